"""Stored numbers that say when they are damaged: a JSON document beside the .npz of its arrays.

Each pair is written whole or not at all, carries checksums, and is read without pickles.
"""

import glob
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from companion._support import atomic, sha256
from companion.experiments.arrays import Axes, Named, check

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Fields = Mapping[str, type | tuple[type, ...]]


class DamagedFile(ValueError):
    """A stored file that is missing, truncated, altered or of another layout; the message names the file."""


def plain(name: str, value: object, where: str = "") -> Any:
    """Return `value` as JSON holds it: tuples become lists, NumPy scalars numbers; ValueError with the place of others.

    NaN and infinity are refused, because JSON has neither: store None for what is missing.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(name, item, f"{where}.{key}" if where else key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(name, item, f"{where}[{index}]") for index, item in enumerate(value)]
    given = repr(value) if isinstance(value, float) else type(value).__name__
    given += " with keys that are not text" if isinstance(value, Mapping) else ""
    allowed = "None, bool, int, finite float, str, lists and dicts of these with text keys"
    raise ValueError(f"{name}: got {given} at {where or 'the top'}; allowed: {allowed}")


def check_arrays(value: object) -> dict[str, np.ndarray | Named]:
    """Return NumPy arrays, with named axes or without, that come back from a file as they are; else raise ValueError.

    Arrays that need a pickle are refused, and so are subclasses (a masked array would lose its mask).
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"arrays: got {type(value).__name__}; allowed: a dict of numpy arrays")
    for key, given in value.items():
        array = given.values if isinstance(given, Named) else given
        # A zip archive cuts a name at NUL.
        if not isinstance(key, str) or "\0" in key or type(array) is not np.ndarray or array.dtype.hasobject:
            kind = f"{array.dtype} array" if type(array) is np.ndarray else type(array).__name__
            allowed = "text names without NUL, and plain numpy arrays of numbers or text"
            raise ValueError(f"arrays: got {kind} for {key!r}; allowed: {allowed}")
        if isinstance(given, Named):
            plain("axes", given.axes)
    return {key: value[key] for key in sorted(value)}


def beside(stem: Path, suffix: str) -> Path:
    """Path of `stem` with `suffix` appended, dots in its name left alone."""
    return stem.with_name(stem.name + suffix)


@contextmanager
def _locked(folder: Path, exclusive: bool) -> Iterator[bool]:
    """Hold the folder's lock, which the system frees when a process ends; False where the system has none."""
    handle, held = os.open(folder, os.O_RDONLY) if fcntl else -1, False
    try:
        with suppress(OSError):
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
                held = True
        yield held
    finally:
        if fcntl:
            os.close(handle)


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    # np.savez takes names as keyword arguments, so that an array called "file" would break it.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(arrays[name]), allow_pickle=False)
    return buffer.getvalue()


def _digest(document: Mapping[str, Any]) -> str:
    content = {key: value for key, value in document.items() if key != "sha256"}
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def write(stem: Path, document: Mapping[str, Any], arrays: Mapping[str, np.ndarray | Named]) -> None:
    """Write `stem`.json, which records the checksums of both, and `stem`.npz; a kill leaves the old pair or the new.

    Of several writers at once, the last leaves its pair. The names of an array's axes go into the JSON.
    """
    entries: dict[str, dict[str, Any]] = {}
    plain = {name: array.values if isinstance(array, Named) else array for name, array in sorted(arrays.items())}
    for name, array in plain.items():
        entries[name] = {"dtype": str(array.dtype), "shape": list(array.shape)}
        if isinstance(given := arrays[name], Named):
            entries[name]["axes"] = [[axis, labels] for axis, labels in given.axes.items()]
    packed = _packed(plain)
    about = {"file": beside(stem, ".npz").name, "sha256": sha256(packed), "entries": entries}
    whole: dict[str, Any] = {**document, "arrays": about}
    whole["sha256"] = _digest(whole)
    text = (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode()
    stem.parent.mkdir(parents=True, exist_ok=True)
    with _locked(stem.parent, exclusive=True) as held:
        if held:
            _finish(stem)
        # The JSON is written first and named last: whoever stops in between leaves it whole, where `read` looks.
        with atomic(beside(stem, ".json")) as json_part:
            with json_part.open("r+b") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            with atomic(beside(stem, ".npz")) as npz_part:
                npz_part.write_bytes(packed)


def _unnamed(stem: Path, suffix: str) -> list[Path]:
    """Files of `atomic` that a kill, or a writer at work, has left without their name."""
    return list(stem.parent.glob(f".{glob.escape(stem.name + suffix)}.*.part"))


def _finish(stem: Path) -> None:
    """Name the JSON where a kill came before that, lest the next writing lose the only one that fits; sweep the rest.

    The caller holds the lock, so that nobody is at work on these files.
    """
    for late in _unnamed(stem, ".json"):
        with suppress(DamagedFile):
            _read_pair(late, beside(stem, ".npz"), {})
            os.replace(late, beside(stem, ".json"))
    for part in (*_unnamed(stem, ".json"), *_unnamed(stem, ".npz")):
        part.unlink(missing_ok=True)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    # Python reads 1e905 as infinity.
    number = float(text)
    return number if math.isfinite(number) else _no_constant(text)


def _read_document(path: Path, fields: Fields) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes(), parse_float=_finite, parse_constant=_no_constant)
        digest = _digest(document) if isinstance(document, dict) else ""
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path}: not a readable JSON file ({type(error).__name__})") from None
    if not isinstance(document, dict):
        raise DamagedFile(f"{path}: holds a {type(document).__name__}, not an object")
    for field, kind in {**fields, "arrays": dict, "sha256": str}.items():
        if not isinstance(document.get(field), kind):
            raise DamagedFile(f"{path}: field {field!r} is missing or of a wrong type")
    if document["sha256"] != digest:
        raise DamagedFile(f"{path}: its checksum does not match its content")
    return document


def read(stem: Path, fields: Fields) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return document and arrays of `stem`; raise DamagedFile where either file is not what was written.

    `fields` are those that the document must have, with their types. :func:`axes` reads the names of the axes.
    """
    text, arrays = beside(stem, ".json"), beside(stem, ".npz")
    try:
        return _read_pair(text, arrays, fields)
    except DamagedFile as error:
        if not stem.parent.is_dir():
            raise
        # A writer between the two renamings holds the lock until both are done; a killed one left the JSON unnamed.
        with _locked(stem.parent, exclusive=False):
            for each in (text, *_unnamed(stem, ".json")):
                with suppress(DamagedFile):
                    return _read_pair(each, arrays, fields)
        raise error


def axes(document: Mapping[str, Any]) -> dict[str, Axes]:
    """Names and labels of the axes of those arrays of a document that :func:`read` returned that have them."""
    entries = document["arrays"]["entries"]
    return {name: dict(entry["axes"]) for name, entry in entries.items() if "axes" in entry}


def _read_pair(text: Path, path: Path, fields: Fields) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    document = _read_document(text, fields)
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path}: not a readable file ({type(error).__name__})") from None
    if sha256(packed) != document["arrays"].get("sha256"):
        raise DamagedFile(f"{path}: its checksum is not the one that {text.name} records")
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            for name in archive.namelist():
                content = io.BytesIO(archive.read(name))
                found[name.removesuffix(".npy")] = np.lib.format.read_array(content, allow_pickle=False)
        for name, labels in axes(document).items():
            check(found[name], labels)
    except Exception as error:  # whatever a file may hold that no `write` has written
        raise DamagedFile(f"{path}: not an archive of plain arrays ({type(error).__name__})") from None
    return document, found
