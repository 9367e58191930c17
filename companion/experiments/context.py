"""What an experiment is given besides its settings: device, seed, and parts that run apart and outlive a killed run."""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from companion._support import sha256
from companion.experiments import fingerprint, store
from companion.experiments.arrays import named
from companion.experiments.parts import Done, Outcome, Part, Task
from companion.experiments.provenance import say
from companion.experiments.workers import Runner, here

Item = TypeVar("Item")

_COST: store.Fields = {"evaluations": int, "seconds": float, "reads": dict}
_FIELDS: store.Fields = {"part": str, "fingerprint": str, "metrics": dict, **_COST}


@dataclasses.dataclass
class Context(Part):
    """Device, seed and finished parts of one run of an experiment."""

    settings: Any = None  # what each part is given
    parts: Path = Path("parts")  # folder of the finished parts
    fingerprint: str = ""  # of code, settings, seed and kind of device: a finished part of another one is not used
    runner: Runner = here
    seconds_before: float = 0.0  # that the reused parts took when they were computed
    reads: dict[str, str] = dataclasses.field(default_factory=dict)  # hashes of the stored files that the parts read
    _names: set[str] = dataclasses.field(default_factory=set, repr=False)

    def map(self, function: Callable[[Any, Part, Item], Any], items: Iterable[Item], label: str) -> list[Outcome]:
        """Outcomes of function(settings, part, item) for each item, in order: here, in processes, or on a cluster.

        A part that an earlier run with the same code, files, settings, seed and kind of device has finished is read; a
        damaged one is refused with a message and computed anew.

        Parameters
        ----------
        function
            Of a module, not defined inside another function, so that another process can import it. Returns (metrics,
            arrays) and depends on nothing but its arguments.
        items
            Each a value of plain ones, or a dataclass, tuple or dict of such and of NumPy arrays; no two the same.
        label
            What the items are, in the plural, for the progress.

        Raises ValueError for another function or item, or for the same part a second time in one run.
        """
        if not inspect.isfunction(function) or function.__qualname__ != function.__name__:
            raise ValueError(f"function: got {function!r}; allowed: a function defined at the top of a module")
        items = list(items)
        stems, outcomes, tasks = [], dict[int, Outcome](), dict[int, Task]()
        for index, item in enumerate(items):
            name = self._claim(function, item)
            stems.append((name, self.parts / f"{re.sub('[^A-Za-z0-9=.-]+', '_', name)[:60]}-{sha256(name)[:8]}"))
            if done := self._read(*stems[index]):
                outcomes[index] = self._use(done)
            else:
                tasks[index] = Task(function, self.settings, self.device, self.seed, item)
        with tqdm(total=len(items), initial=len(outcomes), desc=label, disable=None) as bar:
            order = list(tasks)
            for place, done in self.runner(list(tasks.values())):
                index = order[place]
                name, stem = stems[index]
                outcomes[index] = self._use(done)
                self._write(name, stem, done)
                bar.update()
                if bar.disable:
                    say(f"{label}: {len(outcomes)} of {len(items)}, {name} ({done.seconds:.1f} s)")
        return [outcomes[index] for index in range(len(items))]

    def _claim(self, function: Callable[..., Any], item: object) -> str:
        """Name of a part, which says all of its item."""
        words = re.sub(r'[{}"\[\]]', "", json.dumps(item, ensure_ascii=False, allow_nan=False, default=_described))
        name = f"{function.__name__.strip('_')} {words}"
        key = f"{function.__module__} {name}"
        if key in self._names:
            raise ValueError(f"part: got {name!r} a second time; allowed: each part of a run once")
        self._names.add(key)
        return name

    def _use(self, done: Done) -> Done:
        self.evaluations += done.evaluations
        self.reads |= done.reads
        return done

    def _read(self, name: str, stem: Path) -> Done | None:
        if not store.beside(stem, ".npz").exists():  # written before the JSON
            return None
        try:
            document, arrays = store.read(stem, _FIELDS)
            same = (document["part"], document["fingerprint"]) == (name, self.fingerprint)
            if not same or fingerprint.changed(document["reads"]):
                made_by = "other code, checkpoints, settings, seed or device"
                raise store.DamagedFile(f"{store.beside(stem, '.json')}: made by {made_by}")
        except store.DamagedFile as error:
            say(f"part {name!r} refused: {error}; computing it anew")
            return None
        self.seconds_before += document["seconds"]
        axes = store.axes(document)
        whole = {key: named(value, **axes[key]) if key in axes else value for key, value in arrays.items()}
        return Done(document["metrics"], whole, **{field: document[field] for field in _COST})

    def _write(self, name: str, stem: Path, done: Done) -> None:
        facts = {key: value for key, value in vars(done).items() if key != "arrays"}
        store.write(stem, {"part": name, "fingerprint": self.fingerprint, **facts}, done.arrays)


def _described(item: object) -> Any:
    """What JSON has no form for: of a dataclass its fields, of an array what tells it apart; else as in a result."""
    if isinstance(item, np.ndarray):
        return f"{item.dtype} {item.shape} {sha256(item)}"
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return vars(item)
    return store.plain("item", item)
