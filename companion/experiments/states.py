"""Whether a stored result is what today's code makes.

current
    Neither the code that it can reach nor a stored file that it read has changed (:mod:`fingerprint`).
verified
    The code has changed, but both its old and its new form gave the stored numbers of the quick profile
    (:func:`companion.experiments.verify`).
stale
    None of these: the code gives other quick numbers or has not been asked, a file has changed, or the settings have.
"""

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from companion._support import atomic

TOLERANCE = 0.01
ELSEWHERE = 4.0  # times the tolerance, on another model of processor


def same_numbers(folder: Path, quick: str) -> set[str]:
    """Hashes of code that gave the quick numbers stored in an experiment's folder; `quick` is their content's hash."""
    try:
        record = json.loads((folder / "verified.json").read_text(encoding="utf-8"))
        return set(record["code"]) if record["quick"] == quick else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()  # an unreadable record verifies nothing


def record(folder: Path, quick: str, code: set[str]) -> None:
    """Write what :func:`same_numbers` reads."""
    if code != same_numbers(folder, quick):
        with atomic(folder / "verified.json") as part:
            text = json.dumps({"quick": quick, "code": sorted(code)}, indent=1)
            part.write_text(text + "\n", encoding="utf-8")


def differences(stored: Any, again: Any, tolerances: Mapping[str, float | None], elsewhere: bool = False) -> list[str]:
    """What two results differ in beyond tolerance, a line each; empty where they agree.

    Numbers agree if the root mean square of their differences is at most the tolerance times that of the stored ones:
    over an array, or over a list in the metrics. `tolerances` names metrics and arrays, or patterns of their names, or
    of a nested number's path, as "reference.barrier"; the first that fits holds, and None lets anything pass. All
    others have TOLERANCE; texts must be the same.

    Another model of processor adds in another order, which searches and chains enlarge: `elsewhere` multiplies every
    tolerance by ELSEWHERE and, where one is named, lets up to half of the numbers be finite in one result alone.
    """
    found = []
    pairs = [dict(_leaves({**result.metrics, **result.arrays})) for result in (stored, again)]
    for name in dict.fromkeys([*pairs[0], *pairs[1]]):
        whole = name.partition(".")[0]
        own = [each for key, each in tolerances.items() if fnmatchcase(whole, key) or fnmatchcase(name, key)]
        allowed = own[0] if own else TOLERANCE
        if allowed is None:
            continue
        if elsewhere:
            allowed *= ELSEWHERE
        if reason := _differ(pairs[0].get(name), pairs[1].get(name), allowed, gaps=elsewhere and bool(own)):
            found.append(f"{name}: {reason}")
    return found


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(each, list | dict | str | None) for each in value):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{name}.{index}")
    else:
        yield name, value if isinstance(value, str | None) else np.asarray(value)


def _differ(stored: Any, again: Any, allowed: float, gaps: bool) -> str:
    """Why two values differ, "" where they do not; with `gaps` half of its numbers may be finite in one alone."""
    if not (isinstance(stored, np.ndarray) and isinstance(again, np.ndarray)):
        return "" if stored is again or (isinstance(stored, str) and stored == again) else f"{stored} became {again}"
    if stored.shape != again.shape or stored.dtype.kind != again.dtype.kind:
        return f"{stored.dtype} {stored.shape} became {again.dtype} {again.shape}"
    if stored.dtype.kind not in "biuf":
        return "" if np.array_equal(stored, again) else "other texts"
    old, new = stored.astype(np.float64), again.astype(np.float64)
    usable = np.isfinite(old) & np.isfinite(new)
    gone = not np.array_equal(old[~usable], new[~usable], equal_nan=True)
    if usable.sum() < np.isfinite(old).sum() / 2 if gaps else gone:
        return "other values are not finite"
    apart, size = (float(np.sqrt(np.mean(each[usable] ** 2))) if usable.any() else 0.0 for each in (new - old, old))
    return "" if apart <= allowed * size else f"off by {apart:.3g} where {size:.3g} is usual (root mean squares)"
