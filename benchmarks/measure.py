"""Interleaved timings and memory kept for the backward pass."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def interleaved_medians(tasks: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of the milliseconds that each task reports; every round runs all of them in turn.

    So a busy moment hits all alike. Each round begins with another task, for what the one before leaves in the caches.
    """
    names = list(tasks)
    for task in 3 * list(tasks.values()):
        task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for round_ in range(rounds):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(tasks[name]())
    return {name: statistics.median(taken) for name, taken in times.items()}


def milliseconds(task: Callable[[], object]) -> float:
    """How long `task` takes."""
    began = time.perf_counter()
    task()
    return 1e3 * (time.perf_counter() - began)


class Worker:
    """A process in which ``prepare(what)`` makes a function, called from here as ``worker(question)``; a context.

    Every library is measured in a process of its own, as it is used: what one frees changes how the allocator serves
    the others, by a fifth of the time and more.
    """

    def __init__(self, prepare: Callable[[Any], Callable[[Any], Any]], what: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_answer, args=(other, prepare, what), daemon=True)
        self._process.start()

    def __call__(self, question: object) -> Any:
        self._pipe.send(question)
        return self._pipe.recv()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _answer(pipe: Connection, prepare: Callable[[Any], Callable[[Any], Any]], what: object) -> None:
    answer = prepare(what)
    while True:
        pipe.send(answer(pipe.recv()))


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
