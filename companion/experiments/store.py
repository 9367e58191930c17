"""Stored numbers that say when they are damaged: a JSON document beside the .npz of its arrays.

Each file is written whole or not at all, carries a checksum, and is read without pickles.
"""

import hashlib
import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np


class DamagedFile(ValueError):
    """A stored file that is missing, truncated, altered or of another layout; the message names the file."""


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


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


def check_arrays(value: object) -> dict[str, np.ndarray]:
    """Return a dict of NumPy arrays that need no pickle; else raise ValueError naming the entry."""
    if not isinstance(value, Mapping):
        raise ValueError(f"arrays: got {type(value).__name__}; allowed: a dict of numpy arrays")
    for key, array in value.items():
        if not isinstance(key, str) or not isinstance(array, np.ndarray) or array.dtype.hasobject:
            given = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(
                f"arrays: got {given} for {key!r}; allowed: text names and numpy arrays of numbers or text"
            )
    return dict(value)


def beside(stem: Path, suffix: str) -> Path:
    """Path of `stem` with `suffix` appended, dots in its name left alone."""
    return stem.with_name(stem.name + suffix)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp lets only its owner read, but stored results are shared.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


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


def write(stem: Path, document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write `stem`.json and `stem`.npz, each atomically; the JSON records the checksums of both."""
    packed = _packed(arrays)
    listing = {name: {"dtype": str(arrays[name].dtype), "shape": list(arrays[name].shape)} for name in sorted(arrays)}
    whole = {
        **document,
        "arrays": {"file": beside(stem, ".npz").name, "sha256": sha256(packed), "entries": listing},
    }
    whole["sha256"] = _digest(whole)
    _replace(beside(stem, ".npz"), packed)
    # The JSON comes last: where it exists, the arrays do.
    _replace(beside(stem, ".json"), (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def read_document(stem: Path, fields: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Return the JSON document of `stem`, checked; DamagedFile where it is unreadable, altered or lacks a field."""
    path = beside(stem, ".json")
    try:
        document = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except (OSError, ValueError) as error:
        raise DamagedFile(f"{path}: not a readable JSON file ({type(error).__name__})") from None
    if not isinstance(document, dict):
        raise DamagedFile(f"{path}: holds a {type(document).__name__}, not an object")
    for field, kind in {**fields, "arrays": dict, "sha256": str}.items():
        if not isinstance(document.get(field), kind):
            raise DamagedFile(f"{path}: field {field!r} is missing or of a wrong type")
    if document["sha256"] != _digest(document):
        raise DamagedFile(f"{path}: its checksum does not match its content")
    return document


def read(stem: Path, fields: Mapping[str, type | tuple[type, ...]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return document and arrays of `stem`; raise DamagedFile where either file is not what was written."""
    document = read_document(stem, fields)
    path = beside(stem, ".npz")
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path}: not a readable file ({type(error).__name__})") from None
    if sha256(packed) != document["arrays"].get("sha256"):
        raise DamagedFile(f"{path}: its checksum is not the one that {beside(stem, '.json').name} records")
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
            return document, {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DamagedFile(f"{path}: not an archive of plain arrays ({type(error).__name__})") from None
