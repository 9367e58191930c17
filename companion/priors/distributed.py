"""Several processes train one model: each takes its rows of the same batch, and their gradients are added up.

Plain collectives stand here in place of ``DistributedDataParallel`` because that class acts through ``forward`` alone,
while priors are trained through ``log_prob``, ``encode`` and ``decode``, some with two players; and because a sum of
gradients, each weighted by its share of the rows, equals the gradient of the whole batch even when the shares differ.
Without a process group every function here is the identity.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed

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


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in one message per dtype."""
    if world() > 1:
        _in_one_message(tensors, distributed.all_reduce)


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by that of process 0."""
    if world() > 1:
        _in_one_message(tensors, lambda flat: distributed.broadcast(flat, 0))


@torch.no_grad()
def _in_one_message(tensors: Iterable[Tensor], act: Callable[[Tensor], object]) -> None:
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        act(flat)
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def from_first(make: Callable[[], T]) -> T:
    """The value that `make` has on process 0, which alone calls it; the others wait for it."""
    if world() == 1:
        return make()
    value = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(value, 0)
    return value[0]  # type: ignore[return-value]
