"""Stored numbers that say when they are damaged: a JSON document beside the .npz of its arrays.

Each pair is written whole or not at all, carries checksums, and is read without pickles.
"""

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

Fields = Mapping[str, type | tuple[type, ...]]
Pair = tuple[dict[str, Any], dict[str, np.ndarray]]


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
    """Return NumPy arrays that come back from a file as they are, sorted by name; else raise ValueError naming one.

    Arrays that need a pickle are refused, and so are subclasses (a masked array would lose its mask).
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"arrays: got {type(value).__name__}; allowed: a dict of numpy arrays")
    for key, array in value.items():
        # A zip archive cuts a name at NUL.
        if not isinstance(key, str) or "\0" in key or type(array) is not np.ndarray or array.dtype.hasobject:
            given = f"{array.dtype} array" if type(array) is np.ndarray else type(array).__name__
            raise ValueError(
                f"arrays: got {given} for {key!r}; allowed: text names without NUL, and plain numpy arrays of numbers "
                "or text"
            )
    return {key: value[key] for key in sorted(value)}


def beside(stem: Path, suffix: str) -> Path:
    """Path of `stem` with `suffix` appended, dots in its name left alone."""
    return stem.with_name(stem.name + suffix)


def _temporary(path: Path) -> Path:
    # One name for each file, so that the next writing replaces what a killed one left.
    return path.with_name(f".{path.name}.tmp")


def _put(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


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
    """Write `stem`.json, which records the checksums of both, and `stem`.npz; a kill leaves the old pair or the new."""
    packed = _packed(arrays)
    listing = {name: {"dtype": str(arrays[name].dtype), "shape": list(arrays[name].shape)} for name in sorted(arrays)}
    whole = {
        **document,
        "arrays": {"file": beside(stem, ".npz").name, "sha256": sha256(packed), "entries": listing},
    }
    whole["sha256"] = _digest(whole)
    text = (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode()
    paths = [beside(stem, ".npz"), beside(stem, ".json")]
    stem.parent.mkdir(parents=True, exist_ok=True)
    _finish(stem)
    try:
        for path, content in zip(paths, (packed, text), strict=True):
            _put(_temporary(path), content)
    except BaseException:
        for path in paths:
            _temporary(path).unlink(missing_ok=True)
        raise
    # The JSON comes last: whoever stops between the two leaves it whole under its temporary name, where `read` looks.
    for path in paths:
        os.replace(_temporary(path), path)


def _finish(stem: Path) -> None:
    """Give the JSON its name where a kill came before that, lest the next writing overwrite the only one that fits."""
    late = _temporary(beside(stem, ".json"))
    if late.exists():
        with suppress(DamagedFile):
            _read_pair(late, beside(stem, ".npz"), {})
            os.replace(late, beside(stem, ".json"))


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


def read(stem: Path, fields: Fields) -> Pair:
    """Return document and arrays of `stem`; raise DamagedFile where either file is not what was written.

    `fields` are those that the document must have, with their types.
    """
    text, arrays = beside(stem, ".json"), beside(stem, ".npz")
    try:
        return _read_pair(text, arrays, fields)
    except DamagedFile as error:
        try:
            # What a kill between the two renamings of `write` left.
            return _read_pair(_temporary(text), arrays, fields)
        except DamagedFile:
            raise error from None


def _read_pair(text: Path, path: Path, fields: Fields) -> Pair:
    document = _read_document(text, fields)
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path}: not a readable file ({type(error).__name__})") from None
    if sha256(packed) != document["arrays"].get("sha256"):
        raise DamagedFile(f"{path}: its checksum is not the one that {text.name} records")
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
            return document, {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DamagedFile(f"{path}: not an archive of plain arrays ({type(error).__name__})") from None
