"""Interleaved timings and memory kept for the backward pass."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def interleaved_medians(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each task; every round runs all of them in turn, so that a busy moment hits all alike."""
    for task in tasks.values():
        task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(taken) for name, taken in times.items()}


def kept_mib(model: nn.Module, forward: Callable[[], Tensor]) -> float:
    """MiB of the distinct storages that the graph of `forward` keeps, parameters left out."""
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own) / 2**20


def peak_mib(task: Callable[[], object]) -> float:
    """Largest number of MiB that were allocated during `task` and not yet freed."""
    task()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        task()
    changes = [e.nbytes() for e in _in_order(record.profiler.kineto_results.events()) if e.name() == "[memory]"]
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return peak / 2**20


def _in_order(events: list) -> list:
    return sorted(events, key=lambda event: event.start_ns())
