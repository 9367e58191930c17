"""Running experiments and reading what they stored.

A result is a pair of files, ``<experiment>/<profile>.json`` and ``.npz``, in the book's own store (``out=None``) or in
a folder of the caller's. Finished parts of a run lie in ``parts`` beside it until the result is stored.
"""

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_origin

import numpy as np
import torch

from companion._reads import recording
from companion._support import PROFILES, count, keep_freed_memory, one_of, sha256, store, writable
from companion.experiments import fingerprint, states
from companion.experiments import store as files
from companion.experiments.arrays import Axes, Named, take
from companion.experiments.context import Context
from companion.experiments.parts import Part, Task, check_outcome
from companion.experiments.provenance import Provenance, device_words, resolve_device, versions
from companion.experiments.registry import get, settings_dict, with_changes
from companion.experiments.workers import Runner, last_first, runner

SCHEMA = 1
RUNS = "runs"

_FIELDS: files.Fields = {"schema": int, "experiment": str, "profile": str, "metrics": dict, "provenance": dict}

Folder = str | Path | None


@dataclasses.dataclass(frozen=True)
class Stored:
    """A stored result: its numbers, and where they come from."""

    name: str
    profile: str
    metrics: dict[str, Any]  # nested dict of JSON values
    arrays: dict[str, np.ndarray]
    provenance: Provenance
    layout: dict[str, Axes]  # names and labels of the axes of arrays
    sha256: str  # of the result's content

    def axes(self, name: str) -> Axes:
        """Axes of an array in order, each with its labels; ValueError where there is no such array with named axes."""
        one_of("array", name, self.layout)
        return self.layout[name]

    def take(self, name: str, **wanted: Any) -> np.ndarray:
        """The part of an array at the labels wanted, over the axes left.

        ``take("psnr", m=307, method=["glow", "tv"], image=slice(3))``: a label takes its axis away, a list keeps it,
        and a slice counts positions. ValueError for an array, axis or label that is not there.
        """
        axes = self.axes(name)
        return take(name, Named(self.arrays[name], axes), wanted)


def run(
    name: str,
    profile: str = "quick",
    device: str = "auto",
    seed: int = 0,
    out: Folder = RUNS,
    *,
    changes: Mapping[str, Any] | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    resume: bool = True,
) -> Stored:
    """Run an experiment, store its result and return it.

    Parameters
    ----------
    name, profile
        One of :func:`names`; "quick", "laptop", "overnight" or "paper", as far as the experiment declares them.
    device
        "auto" (CUDA where there is one), "cpu" or "cuda".
    seed
        Whole number >= 0.
    out
        Folder for ``<experiment>/<profile>.json`` and ``.npz``; None for the book's own store.
    changes
        Settings to use in place of the profile's; such a result has no place in the book's own store.
    workers, scheduler
        Processes of this machine, or the address of a Dask scheduler, to compute the parts.
    resume
        Use the finished parts of an earlier run that was stopped, if it had the same code, checkpoints, settings, seed
        and kind of device.

    Raises ValueError for an unknown name, profile or device, a seed that is not a whole number >= 0, settings that the
    experiment does not have, or a folder that cannot be written.
    """
    return _run(name, profile, device, seed, out, runner(workers, scheduler), changes, resume)


def _run(
    name: str,
    profile: str,
    device: str,
    seed: int,
    out: Folder,
    running: AbstractContextManager[Runner],
    changes: Mapping[str, Any] | None = None,
    resume: bool = True,
) -> Stored:
    keep_freed_memory()
    entry = get(name)
    one_of("profile", profile, entry.settings)
    seed = count("seed", seed, least=0)
    where = resolve_device(device)
    stem = _stem(name, profile, out)
    if changes and out is None:
        raise ValueError("changes: got some for the book's own store; allowed: with a folder of your own")
    settings = with_changes(entry.settings[profile], changes or {}, entry.settings.values())
    recorded = settings_dict(settings)
    parts = _folder(RUNS if out is None else out) / "parts" / name / profile
    code = fingerprint.code(entry.function.__module__)
    if not resume:
        shutil.rmtree(parts, ignore_errors=True)
    basis = json.dumps([code, recorded, seed, where.type], sort_keys=True)
    start = time.perf_counter()
    with recording() as paths, running as compute:  # entered only now: what was asked for has been checked
        for folder in (stem.parent, parts):
            writable("out", folder)  # asked before the work, so that no long run ends with nowhere to go
        context = Context(where, seed, settings=settings, parts=parts, fingerprint=sha256(basis), runner=compute)
        outcome = check_outcome(entry.function(settings, context))
    provenance = Provenance(
        profile=profile,
        device=device_words(where),
        seed=seed,
        settings=recorded,
        versions=versions(),
        wall_seconds=round(time.perf_counter() - start + context.seconds_before, 3),
        evaluations=context.evaluations,
        code_sha256=code,
        date=datetime.now(UTC).date().isoformat(),
        reads=fingerprint.reads(paths) | context.reads,
    )
    document = {"schema": SCHEMA, "experiment": name, "profile": profile, "metrics": outcome.metrics}
    before = _whole(name, "quick", out)
    files.write(stem, document | {"provenance": dataclasses.asdict(provenance)}, outcome.arrays)
    # Kept parts would answer the next run, which is asked for to compute anew.
    shutil.rmtree(parts, ignore_errors=True)
    result = load(name, profile, out)
    if profile == "quick":
        agree = before is not None and not _differences(before, result)
        states.record(stem.parent, result.sha256, {code, *(_codes(before, out) if agree and before else ())})
    elif before and code not in _codes(before, out):
        verify(name, out)  # so that later code is asked for the quick numbers of the code that ran here
    return result


def verify(name: str, out: Folder = None) -> list[str]:
    """Run the quick profile again and compare it with the stored one; what differs, a line each.

    The parts run in another order, last first, since none may lean on another. Where nothing differs, it is recorded
    beside the results that today's code gives the same quick numbers. What this says of larger profiles, see
    :mod:`companion.experiments.states`. Raises what :func:`load` raises.
    """
    stored = load(name, "quick", out)
    with tempfile.TemporaryDirectory() as folder:
        again = _run(name, "quick", "cpu", stored.provenance.seed, folder, nullcontext(last_first))
    found = _differences(stored, again)
    if not found:
        known_codes = _codes(stored, out) | {again.provenance.code_sha256}
        states.record(_stem(name, "quick", out).parent, stored.sha256, known_codes)
    return found


def _differences(stored: Stored, again: Stored) -> list[str]:
    """:func:`states.differences` within the experiment's tolerances, on the processors that made the two."""
    elsewhere = stored.provenance.device != again.provenance.device
    return states.differences(stored, again, get(stored.name).tolerances, elsewhere)


def verify_all(names: Sequence[str], out: Folder = None, workers: int = 1) -> Iterator[tuple[str, list[str]]]:
    """:func:`verify` each of the names, in so many processes, as they finish: the name, and what differs or went wrong.

    ValueError for an unknown name, before any work.
    """
    tasks = [Task(_verified, out, torch.device("cpu"), 0, get(name).name) for name in names]
    with runner(workers) as running:
        for number, done in running(tasks):
            yield names[number], done.metrics["differences"]


def _verified(out: Folder, part: Part, name: str) -> tuple[dict, dict]:
    try:
        return {"differences": verify(name, out)}, {}
    except Exception as error:  # one experiment that fails leaves the others their turn
        return {"differences": [f"{type(error).__name__}: {error}"]}, {}


def state(name: str, profile: str, out: Folder = None) -> str:
    """ "current", "verified", "stale" or "damaged: why", as :mod:`companion.experiments.states` has them."""
    try:
        result = load(name, profile, out)
    except files.DamagedFile as error:
        return f"damaged: {error}"
    entry, origin = get(name), result.provenance
    if fingerprint.changed(origin.reads) or origin.settings != settings_dict(entry.settings[profile]):
        return "stale"
    code = fingerprint.code(entry.function.__module__)
    if origin.code_sha256 == code:
        return "current"
    quick = _whole(name, "quick", out)
    return "verified" if quick and {code, origin.code_sha256} <= _codes(quick, out) else "stale"


def _codes(quick: Stored, out: Folder) -> set[str]:
    """Hashes of the code that is known to give the numbers of a stored quick result."""
    folder = _stem(quick.name, "quick", out).parent
    return {quick.provenance.code_sha256} | states.same_numbers(folder, quick.sha256)


def _whole(name: str, profile: str, out: Folder) -> Stored | None:
    """A stored result, None where there is none or it is damaged."""
    with suppress(ValueError):
        return load(name, profile, out)
    return None


def load(name: str, profile: str | None = None, out: Folder = None) -> Stored:
    """Read a stored result; without a profile the best one stored (paper, else overnight, laptop, quick).

    Raises ValueError for an unknown name or profile, where nothing is stored, or where a file is damaged; the message
    says what to run.
    """
    allowed = get(name).settings
    if profile is None:
        profile = next((each for each in reversed(PROFILES) if present(name, each, out)), None)
        if profile is None:
            remake = _remake(name, next(iter(allowed)), out)
            raise ValueError(f"experiment: nothing is stored for {name!r}; run: {remake}")
    else:
        one_of("profile", profile, allowed)
        if not present(name, profile, out):
            raise ValueError(f"profile: nothing is stored for {name!r} {profile}; run: {_remake(name, profile, out)}")
    try:
        document, arrays = files.read(_stem(name, profile, out), _FIELDS)
        provenance = _provenance(document, name, profile, out)
    except files.DamagedFile as error:
        raise files.DamagedFile(f"{error}; remake it: {_remake(name, profile, out)}") from None
    return Stored(name, profile, document["metrics"], arrays, provenance, files.axes(document), document["sha256"])


def describe(name: str, out: Folder = None) -> dict[str, Any]:
    """Name, paper, shows, summary, profiles, and the :func:`state` of each stored profile."""
    found = get(name)
    about = {"name": name, "paper": found.paper, "shows": found.shows, "summary": found.summary}
    stored = {profile: state(name, profile, out) for profile in found.settings if present(name, profile, out)}
    return about | {"profiles": list(found.settings), "stored": stored}


def path(name: str, profile: str, out: Folder = None) -> Path:
    """Where the JSON file of a result lies, stored or not."""
    return files.beside(_stem(name, profile, out), ".json")


def present(name: str, profile: str, out: Folder = None) -> bool:
    """Whether a result is stored, whole or not."""
    return any(files.beside(_stem(name, profile, out), suffix).exists() for suffix in (".json", ".npz"))


def _stem(name: str, profile: str, out: Folder) -> Path:
    return (store() / "results" if out is None else _folder(out)) / name / profile


def _folder(out: object) -> Path:
    if not isinstance(out, str | Path):
        raise ValueError(f"out: got {out!r}; allowed: a folder as text or pathlib.Path, or None")
    return Path(out).expanduser()


def _remake(name: str, profile: str, out: Folder) -> str:
    module = get(name).function.__module__
    outside = "" if module.startswith("companion.") else f" --module {module}"
    return f"companion run {name} --profile {profile}{outside} " + ("--store" if out is None else f"--out {out}")


def _provenance(document: dict[str, Any], name: str, profile: str, out: Folder) -> Provenance:
    where = path(name, profile, out)
    given = (document["schema"], document["experiment"], document["profile"])
    if given != (SCHEMA, name, profile):
        raise files.DamagedFile(f"{where}: holds schema {given[0]}, {given[1]} {given[2]}")
    fields = {"reads": {}, **document["provenance"]}  # results of before files were recorded have none
    kinds = {field.name: get_origin(field.type) or field.type for field in dataclasses.fields(Provenance)}
    if set(fields) != set(kinds):
        raise files.DamagedFile(f"{where}: its provenance has other fields than {', '.join(kinds)}")
    for field, kind in kinds.items():
        if type(fields[field]) not in ((float, int) if kind is float else (kind,)):  # True is no number here
            raise files.DamagedFile(f"{where}: its provenance says {field} = {fields[field]!r}")
    return Provenance(**fields)
