"""What backpropagation through a flow keeps in memory, and what it costs to keep less."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from companion import _support, priors
from companion.experiments import Context, Part, experiment, gather, named, shared

METHODS = ("ordinary", "rebuilt")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    size: int = 32  # side of the photographs
    levels: int = 3  # of every Glow
    width: int = 128
    depths: tuple[int, ...] = (4, 8, 16, 32)  # steps of flow K in each level
    images: int = 16  # in the batch
    rounds: int = 15  # timed runs of each method, in turn


@experiment(
    "hand.memory",
    paper="Hand, lecture notes",
    shows="memory savings in back-propagation; Gomez et al. 2017, table 1",
    profiles={
        "quick": Settings(levels=2, width=16, depths=(2, 4), images=2, rounds=1),
        "laptop": Settings(),
        "paper": Settings(size=64, levels=4, width=512, depths=(4, 8, 16, 32, 48), rounds=20),
    },
    tolerances={"seconds": None, "gradient error": None, "peak": 0.1},
)
def memory(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Measures bytes kept for the backward pass, peak and time of log_prob and its gradient, against the depth."""
    return {}, gather(context.map(_one_depth, settings.depths, "depths"), depth=settings.depths)


def _one_depth(settings: Settings, part: Part, depth: int) -> tuple[dict, dict]:
    """Bytes kept and at the peak, seconds, and the relative error of the gradient."""
    images = shared.images(part, "photos", "train", settings.images, settings.size)
    plain = glow(settings, depth, images, part.seed)
    steps = [partial(_loss, flow, images) for flow in (plain, priors.memory_saving(plain))]
    gradients = [torch.autograd.grad(step(), [*plain.parameters()]) for step in steps]
    ordinary, rebuilt = (torch.cat([g.flatten() for g in found]) for found in gradients)
    seconds = [[_seconds(step, plain) for step in steps] for _ in range(settings.rounds)]
    part.count_evaluations(len(images) * len(steps) * (settings.rounds + 3))
    return {}, {
        "kept": named([kept_bytes(step, plain) for step in steps], method=METHODS),
        "peak": named([peak_bytes(step, plain) for step in steps], method=METHODS),
        "seconds": named(seconds, round=settings.rounds, method=METHODS),
        "gradient error": named(float((rebuilt - ordinary).norm() / ordinary.norm())),
    }


def _loss(flow: priors.Flow, images: Tensor) -> Tensor:
    return flow.log_prob(images).sum()


def glow(settings: Settings, depth: int, images: Tensor, seed: int) -> priors.Glow:
    """A Glow with random weights whose couplings do something, initialised from `images`."""
    flow = priors.Glow((3, settings.size, settings.size), settings.levels, depth, settings.width, seed=seed)
    source = _support.generator(seed, "weights")
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.003 * torch.randn(parameter.shape, generator=source))
    flow.to(images.device).initialise(images)
    return flow


def kept_bytes(forward: Callable[[], Tensor], model: torch.nn.Module) -> int:
    """Bytes of the distinct storages that the graph of `forward` keeps, parameters left out."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)


def peak_bytes(forward: Callable[[], Tensor], model: torch.nn.Module) -> int:
    """Largest number of bytes that forward and backward held at once, beyond what was there before."""
    model.zero_grad()
    if next(model.parameters()).is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        forward().backward()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        forward().backward()
    # Kineto's own events: the public list leaves out what was allocated inside an operator.
    events = sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns())  # type: ignore[union-attr]
    return int(np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]).max())


def _seconds(forward: Callable[[], Tensor], model: torch.nn.Module) -> float:
    model.zero_grad()
    began = time.perf_counter()
    forward().backward()
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
