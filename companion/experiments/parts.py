"""One part of a run: what its function is given, what it returns, and what that cost."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from companion._reads import recording
from companion._support import count
from companion.experiments import fingerprint, store
from companion.experiments.arrays import Named, collect
from companion.recover import Result


@dataclass(frozen=True)
class Outcome:
    """What an experiment returned, or a part of one."""

    metrics: dict[str, Any]  # nested dict of JSON values
    arrays: dict[str, Any]  # of numpy arrays, and of Named ones

    @property
    def named(self) -> dict[str, Named]:
        """Those of the arrays whose axes have names, for :func:`gather`."""
        return {name: array for name, array in self.arrays.items() if isinstance(array, Named)}


def check_outcome(value: object) -> Outcome:
    """Return what an experiment returned as an Outcome; raise ValueError where it is not (metrics, arrays)."""
    if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], Mapping):
        raise ValueError(f"experiment: returned {type(value).__name__}; allowed: a pair (metrics dict, arrays dict)")
    return Outcome(store.plain("metrics", value[0]), store.check_arrays(value[1]))


def gather(outcomes: Iterable[Outcome], **outer: int | Iterable[Any]) -> dict[str, Named]:
    """Named arrays of parts that ran over a grid, each stacked under the axes of the grid.

    ``gather(outcomes, m=settings.measurements, draw=settings.seeds)`` prepends the axes m and draw; the parts were
    listed with the last axis fastest.
    """
    return collect([outcome.named for outcome in outcomes], **outer)


@dataclass
class Part:
    """Device and seed of one part of a run, and the forward evaluations that it reports."""

    device: torch.device  # where tensors live
    seed: int  # from which every draw of the experiment follows
    evaluations: int = 0  # so far

    def count_evaluations(self, number: int) -> None:
        """Add to the forward evaluations; ValueError unless `number` is a whole number >= 0."""
        self.evaluations += count("evaluations", number, least=0)

    def count(self, result: Result) -> Result:
        """Return a solver's result, its evaluations counted."""
        self.count_evaluations(int(result.evaluations.sum()))
        return result


@dataclass(frozen=True)
class Task:
    """function(settings, Part(device, seed), item), to be computed anywhere."""

    function: Callable[..., Any]
    settings: Any
    device: torch.device
    seed: int
    item: Any


@dataclass(frozen=True)
class Done(Outcome):
    """What a part returned, and what it cost."""

    evaluations: int
    seconds: float
    reads: dict[str, str]


def work(task: Task) -> Done:
    """Compute a part."""
    part, start = Part(task.device, task.seed), time.perf_counter()
    with recording() as paths:
        outcome = check_outcome(task.function(task.settings, part, task.item))
    seconds = time.perf_counter() - start
    return Done(outcome.metrics, outcome.arrays, part.evaluations, seconds, fingerprint.reads(paths))
