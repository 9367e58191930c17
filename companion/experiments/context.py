"""What an experiment is given besides its settings: device, seed, progress bars, parts that outlive a killed run."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from companion._support import count
from companion.experiments import store
from companion.experiments.provenance import say

Item = TypeVar("Item")
PartFunction = Callable[[], tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]

_PART_FIELDS: dict[str, type | tuple[type, ...]] = {
    "part": str,
    "fingerprint": str,
    "metrics": dict,
    "evaluations": int,
    "seconds": (int, float),
}


class Outcome(NamedTuple):
    """Metrics (nested dict of JSON values) and arrays (dict of numpy arrays) of an experiment, or of a part of one."""

    metrics: dict[str, Any]
    arrays: dict[str, np.ndarray]


def check_outcome(value: object) -> Outcome:
    """Return what an experiment returned as an Outcome; raise ValueError where it is not (metrics, arrays)."""
    if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], Mapping):
        raise ValueError(f"experiment: returned {type(value).__name__}; allowed: a pair (metrics dict, arrays dict)")
    return Outcome(store.plain("metrics", value[0]), store.check_arrays(value[1]))


@dataclass
class Context:
    """Device, seed, progress and finished parts of one run of an experiment.

    Attributes:
        device: where tensors live.
        seed: whole number >= 0 from which every draw of the experiment follows.
        parts: folder of the finished parts.
        fingerprint: what a finished part must match to be used again (the package's code, its checkpoints, settings,
            seed, kind of device).
        evaluations: forward evaluations so far, those of reused parts included.
        seconds_before: time that the reused parts took when they were computed.
    """

    device: torch.device
    seed: int
    parts: Path
    fingerprint: str
    evaluations: int = 0
    seconds_before: float = 0.0
    _names: set[str] = field(default_factory=set, repr=False)

    def count_evaluations(self, number: int) -> None:
        """Add to the forward evaluations of the run; ValueError unless `number` is a whole number >= 0."""
        self.evaluations += count("evaluations", number, least=0)

    def progress(self, items: Iterable[Item], label: str) -> Iterable[Item]:
        """Iterate over `items` behind a progress bar, which shows on a terminal only."""
        return tqdm(items, desc=label, disable=None)

    def part(self, name: str, function: PartFunction) -> Outcome:
        """Return function()'s (metrics, arrays), computed once: a run resumed with the same code and seed reads them.

        A damaged part is refused with a message and computed anew. ValueError for a name used twice in one run.
        """
        if name in self._names:
            raise ValueError(f"part: got {name!r} a second time; allowed: one name for each part of a run")
        self._names.add(name)
        slug = re.sub(r"[^A-Za-z0-9=.-]+", "_", name)[:60]
        stem = self.parts / f"{slug}-{store.sha256(name.encode())[:8]}"
        if store.beside(stem, ".npz").exists():  # written before the JSON
            try:
                return self._read(stem, name)
            except store.DamagedFile as error:
                say(f"part {name!r} refused: {error}; computing it anew")
        return self._compute(stem, name, function)

    def _read(self, stem: Path, name: str) -> Outcome:
        document, arrays = store.read(stem, _PART_FIELDS)
        if document["part"] != name or document["fingerprint"] != self.fingerprint:
            raise store.DamagedFile(
                f"{store.beside(stem, '.json')}: made by other code, checkpoints, settings, seed or device"
            )
        self.evaluations += document["evaluations"]
        self.seconds_before += document["seconds"]
        return Outcome(document["metrics"], arrays)

    def _compute(self, stem: Path, name: str, function: PartFunction) -> Outcome:
        start, before = time.perf_counter(), self.evaluations
        outcome = check_outcome(function())
        document = {
            "part": name,
            "fingerprint": self.fingerprint,
            "metrics": outcome.metrics,
            "evaluations": self.evaluations - before,
            "seconds": time.perf_counter() - start,
        }
        store.write(stem, document, outcome.arrays)
        return outcome
