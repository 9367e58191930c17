"""Several processes train one model: each takes its rows of the same batch; DistributedDataParallel joins gradients.

Each process weights its loss by its share of the rows, so that the joined gradient is that of the whole batch even when
the shares differ. Without a process group every function here is the identity.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@contextmanager
def process_group(device: str | torch.device = "cpu") -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` started, if it did; yields the device of this process.

    On CUDA that is the GPU of this process's local rank. A group that exists already is used and left open.
    """
    device = torch.device(device)
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if device.type == "cuda" and launched:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    own = launched and not distributed.is_initialized()
    if own:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        if own:
            distributed.destroy_process_group()


def world() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def own_rows(total: int) -> slice:
    """This process's share of `total` rows; the shares differ by one row at most."""
    return slice(total * rank() // world(), total * (rank() + 1) // world())


class _Players(nn.ModuleList):
    """Calls a loss of its models as a forward pass, through which alone DistributedDataParallel acts."""

    def forward(self, loss_of: Callable[[], Tensor]) -> Tensor:
        return loss_of()


def players(model: nn.Module, number: int) -> nn.Module:
    """A function of each of a model's losses: in its backward pass, gradients become their means over the processes."""
    calls = _Players([model])
    if world() == 1:
        return calls
    # a 1×1 kernel lies in memory in two ways that are one: nothing to warn of
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # buffers: batch normalisation keeps statistics of its own in each process, and those of the first count in the end
    with warnings.catch_warnings():
        # the argument that is to take its place is unknown to torch 2.11
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
        # of two losses, neither depends on all parameters
        return DistributedDataParallel(calls, find_unused_parameters=number > 1, broadcast_buffers=False)


def mean(value: Tensor) -> Tensor:
    """Mean of a number over the processes."""
    if world() == 1:
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / world()


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by that of process 0."""
    if world() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def from_first(make: Callable[[], T]) -> T:
    """The value that `make` has on process 0, which alone calls it; the others wait for it.

    An error that `make` raises there is raised by all: none waits for a value that will not come.
    """
    if world() == 1:
        return make()
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = make()
        except Exception as error:
            answer[1] = error
    distributed.broadcast_object_list(answer, 0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]
