"""What is timed, for the Glow of any library."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import kept_mib, milliseconds
from benchmarks.peers import SHAPE, Model, build

STEPS, BATCH, THREADS = 8, 16, 2


def images() -> Tensor:
    return torch.rand(BATCH, *SHAPE, generator=torch.Generator().manual_seed(0))


def latents() -> Tensor:
    return torch.randn(BATCH, torch.Size(SHAPE).numel(), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def density(model: Model) -> None:
    model.log_prob(images())


def density_and_gradient(model: Model) -> None:
    model.zero_grad()
    model.log_prob(images()).mean().backward()


@torch.no_grad()
def decoding(model: Model) -> None:
    model.decode(latents())


def decoding_and_gradient(model: Model) -> None:
    model.decode(latents().requires_grad_()).square().sum().backward()


TASKS: dict[str, tuple[Callable[[Model], None], bool]] = {  # what runs, and whether the weights are frozen
    "log_prob": (density, False),
    "log_prob and backward": (density_and_gradient, False),
    "decode": (decoding, True),
    "decode and gradient in z, frozen": (decoding_and_gradient, True),
}


def prepare(library: str) -> Callable[[str], float]:
    """In a library's own process: a function from a task's name to the time of one run, or MiB kept for "kept"."""
    torch.set_num_threads(THREADS)
    model = build(library, STEPS)

    def answer(task: str) -> float:
        if task == "kept":
            model.requires_grad_(True)
            return kept_mib(model, lambda: model.log_prob(images()))
        run, frozen = TASKS[task]
        model.requires_grad_(not frozen)
        run(model)  # wakes the threads and warms the caches after the other libraries' turns
        return milliseconds(partial(run, model))

    return answer
