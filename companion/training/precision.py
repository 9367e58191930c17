"""Mixed precision: the networks inside a flow compute in bfloat16, all that acts on the image itself does not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PRECISIONS = ("float32", "mixed")


def conditioners(model: nn.Module) -> list[nn.Module]:
    """The networks inside the couplings of `model`."""
    found = (getattr(module, "conditioner", None) for module in model.modules())
    return [network for network in found if isinstance(network, nn.Module)]


@contextmanager
def mixed_precision(networks: list[nn.Module], device_type: str) -> Iterator[None]:
    """Inside, each of `networks` computes in bfloat16 where autocast allows it, and answers in its input's dtype.

    A flow stays exactly invertible so, as its inverse calls the same network. The backward pass belongs inside as well:
    a memory-saving flow calls its conditioners there once more.
    """
    for network in networks:
        network.forward = _autocast(network.forward, device_type)
    try:
        yield
    finally:
        for network in networks:
            del network.forward  # the class's own again


def _autocast(forward: Callable[..., Tensor], device_type: str) -> Callable[..., Tensor]:
    def run(x: Tensor, *more: Tensor) -> Tensor:
        with torch.autocast(device_type, torch.bfloat16):
            return forward(x, *more).to(x.dtype)

    return run
