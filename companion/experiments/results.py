"""Running experiments and reading what they stored.

A result is a pair of files, ``<experiment>/<profile>.json`` and ``.npz``, in the store's ``results`` folder or in a
folder of the caller's. Finished parts of a run lie under ``runs/`` until the result is stored.
"""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from companion._support import count, keep_freed_memory, one_of, store, writable
from companion.experiments import store as files
from companion.experiments.context import Context, check_outcome
from companion.experiments.provenance import (
    Provenance,
    device_words,
    package_hash,
    resolve_device,
    today,
    versions,
)
from companion.experiments.registry import PROFILES, declaration, get, settings_dict

SCHEMA = 1

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "experiment": str,
    "profile": str,
    "metrics": dict,
    "provenance": dict,
}


@dataclasses.dataclass(frozen=True)
class Result:
    """A stored result: metrics (nested dict), arrays (dict of numpy arrays), profile, and where they come from."""

    name: str
    profile: str
    metrics: dict[str, Any]
    arrays: dict[str, np.ndarray]
    provenance: Provenance


def run(
    name: str,
    profile: str = "quick",
    device: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    *,
    resume: bool = True,
) -> Result:
    """Run an experiment, store its result and return it.

    Args:
        name: one of :func:`names`.
        profile: "quick", "laptop" or "paper", as far as the experiment declares them.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        seed: whole number >= 0.
        out: folder for ``<experiment>/<profile>.json`` and ``.npz``; the package's own store by default.
        resume: use the finished parts of an earlier run that was stopped, if it had the same package code, checkpoints,
            settings, seed and kind of device.

    Raises:
        ValueError: for an unknown name, profile or device, a seed that is not a whole number >= 0, or a folder that
            cannot be written.
    """
    keep_freed_memory()
    entry = get(name)
    one_of("profile", profile, entry.declaration.profiles)
    count("seed", seed, least=0)
    where = resolve_device(device)
    stem = _stem(name, profile, out)
    parts = _runs(out) / name / profile / "parts"
    for folder in (stem.parent, parts):
        writable("out", folder)  # asked before the work, so that no long run ends with nowhere to go
    settings = entry.settings[profile]
    recorded = settings_dict(settings)
    code = entry.declaration.code_sha256
    # The package's hash is the parts' alone: a stored result is stale where its experiment's own module has changed.
    basis = [code, package_hash(), recorded, seed, where.type]
    fingerprint = files.sha256(json.dumps(basis, sort_keys=True).encode())
    if not resume:
        shutil.rmtree(parts, ignore_errors=True)

    context = Context(where, seed, parts, fingerprint)
    start = time.perf_counter()
    outcome = check_outcome(entry.function(settings, context))
    seconds = time.perf_counter() - start + context.seconds_before
    provenance = Provenance(
        profile=profile,
        device=device_words(where),
        seed=seed,
        settings=recorded,
        versions=versions(),
        wall_seconds=round(seconds, 3),
        evaluations=context.evaluations,
        code_sha256=code,
        date=today(),
    )
    document = {
        "schema": SCHEMA,
        "experiment": name,
        "profile": profile,
        "metrics": outcome.metrics,
        "provenance": dataclasses.asdict(provenance),
    }
    files.write(stem, document, outcome.arrays)
    # Kept parts would answer the next run, which is asked for to compute anew.
    shutil.rmtree(parts.parent, ignore_errors=True)
    return load(name, profile, out)


def load(name: str, profile: str | None = None, out: str | Path | None = None) -> Result:
    """Read a stored result; without a profile the best one stored (paper, else laptop, else quick).

    Raises:
        ValueError: for an unknown name or profile, where nothing is stored, or where a file is damaged; the message
            says what to run.
    """
    known = declaration(name).profiles
    if profile is None:
        profile = next((each for each in reversed(PROFILES) if _present(name, each, out)), None)
        if profile is None:
            raise ValueError(f"experiment: nothing is stored for {name!r}; run: {_remake(name, known[0], out)}")
    else:
        one_of("profile", profile, known)
        if not _present(name, profile, out):
            raise ValueError(f"profile: nothing is stored for {name!r} {profile}; run: {_remake(name, profile, out)}")
    try:
        document, arrays = files.read(_stem(name, profile, out), _FIELDS)
        provenance = _provenance(document, name, profile, out)
    except files.DamagedFile as error:
        raise files.DamagedFile(f"{error}; remake it: {_remake(name, profile, out)}") from None
    return Result(name, profile, document["metrics"], arrays, provenance)


def stale(name: str, profile: str, out: str | Path | None = None) -> bool:
    """Whether the experiment's module has changed since the result was stored; raises what :func:`load` raises."""
    return load(name, profile, out).provenance.code_sha256 != declaration(name).code_sha256


def describe(name: str, out: str | Path | None = None) -> dict[str, Any]:
    """Name, paper, shows, summary, profiles, and for each stored profile "current", "stale" or "damaged: why"."""
    found = declaration(name)
    stored = {}
    for profile in found.profiles:
        if _present(name, profile, out):
            try:
                stored[profile] = "stale" if stale(name, profile, out) else "current"
            except files.DamagedFile as error:
                stored[profile] = f"damaged: {error}"
    return {
        "name": name,
        "paper": found.paper,
        "shows": found.shows,
        "summary": found.summary,
        "profiles": list(found.profiles),
        "stored": stored,
    }


def path(name: str, profile: str, out: str | Path | None = None) -> Path:
    """Where the JSON file of a result lies, stored or not."""
    return files.beside(_stem(name, profile, out), ".json")


def _stem(name: str, profile: str, out: str | Path | None) -> Path:
    if out is not None and not isinstance(out, str | Path):
        raise ValueError(f"out: got {out!r}; allowed: a folder as text or pathlib.Path, or None")
    return (store() / "results" if out is None else Path(out)) / name / profile


def _runs(out: str | Path | None) -> Path:
    if out is not None:
        return Path(out) / "runs"
    checkout = store().parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "runs"


def _present(name: str, profile: str, out: str | Path | None) -> bool:
    return any(files.beside(_stem(name, profile, out), suffix).exists() for suffix in (".json", ".npz"))


def _remake(name: str, profile: str, out: str | Path | None) -> str:
    return f"companion run {name} --profile {profile}" + ("" if out is None else f" --out {out}")


def _provenance(document: dict[str, Any], name: str, profile: str, out: str | Path | None) -> Provenance:
    where = path(name, profile, out)
    given = (document["schema"], document["experiment"], document["profile"])
    if given != (SCHEMA, name, profile):
        raise files.DamagedFile(f"{where}: holds schema {given[0]}, {given[1]} {given[2]}")
    kinds = {field.name: field.type for field in dataclasses.fields(Provenance)}
    if set(document["provenance"]) != set(kinds):
        raise files.DamagedFile(f"{where}: its provenance has other fields than {', '.join(kinds)}")
    return Provenance(**document["provenance"])
