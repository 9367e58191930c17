"""What backpropagation through a flow keeps in memory, and what it costs to keep less."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from companion import data, priors
from companion.experiments.context import Context
from companion.experiments.registry import experiment

METHODS = ("ordinary", "rebuilt")


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Attributes:
        size: side of the photographs.
        levels, width: of every Glow.
        depths: steps of flow K in each level.
        images: photographs in the batch.
        rounds: timed runs of each method, in turn.
    """

    size: int
    levels: int
    width: int
    depths: tuple[int, ...]
    images: int
    rounds: int


@experiment(
    "hand.memory",
    paper="Hand, lecture notes",
    shows="memory savings in back-propagation; Gomez et al. 2017, table 1",
    profiles={
        "quick": Settings(32, 2, 16, (2, 4), 2, 1),
        "laptop": Settings(32, 3, 128, (4, 8, 16, 32), 16, 15),
        "paper": Settings(64, 4, 512, (4, 8, 16, 32, 48), 16, 20),
    },
)
def memory(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measures bytes kept for the backward pass, peak and time of log_prob and its gradient, against the depth."""
    images = data.load("photos", split="train", size=settings.size)[: settings.images].to(context.device)
    results: dict[str, list[np.ndarray]] = {}
    for depth in context.progress(settings.depths, "depths"):

        def part(depth: int = depth) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
            return {}, _one_depth(settings, context, depth, images)

        for name, value in context.part(f"K={depth}", part).arrays.items():
            results.setdefault(name, []).append(value)
    arrays = {name: np.stack(values, -1) for name, values in results.items()}
    metrics = {
        "methods": list(METHODS),
        "depths": list(settings.depths),
        "gradient error": arrays.pop("error").tolist(),
        # The fastest round is the one that other work on the machine disturbed least.
        "time ratio": np.divide(*arrays["seconds"].min(1)[::-1]).tolist(),
    }
    return metrics, arrays


def _one_depth(settings: Settings, context: Context, depth: int, images: Tensor) -> dict[str, np.ndarray]:
    """Arrays kept [2], peak [2] (bytes), seconds [2, rounds] and error, relative, of the gradient."""
    plain = glow(settings, depth, images, context.seed)
    steps = [partial(_loss, flow, images) for flow in (plain, priors.memory_saving(plain))]
    gradients = [torch.autograd.grad(step(), [*plain.parameters()]) for step in steps]
    ordinary, rebuilt = (torch.cat([g.flatten() for g in found]) for found in gradients)
    seconds = [[_seconds(step, plain) for step in steps] for _ in range(settings.rounds)]
    context.count_evaluations(len(images) * len(steps) * (settings.rounds + 3))
    return {
        "kept": np.array([kept_bytes(step, plain) for step in steps]),
        "peak": np.array([_peak_bytes(step, plain) for step in steps]),
        "seconds": np.array(seconds).T,
        "error": np.array(float((rebuilt - ordinary).norm() / ordinary.norm())),
    }


def _loss(flow: priors.Flow, images: Tensor) -> Tensor:
    return flow.log_prob(images).sum()


def glow(settings: Settings, depth: int, images: Tensor, seed: int) -> priors.Glow:
    """A Glow with random weights whose couplings do something, initialised from `images`."""
    flow = priors.Glow((3, settings.size, settings.size), settings.levels, depth, settings.width, seed=seed)
    source = torch.Generator().manual_seed(seed)
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


def _peak_bytes(forward: Callable[[], Tensor], model: torch.nn.Module) -> int:
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
