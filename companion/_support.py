"""What every module needs: checks of arguments with one-line errors, named random streams, files written whole.

Every check returns its (possibly converted) argument, so that it can stand where the value is used.
"""

import ctypes
import hashlib
import json
import math
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_REPOSITORY_STORE = Path(__file__).resolve().parents[1] / "data"
_WHEEL_STORE = Path(__file__).resolve().parent / "_stored"


def store() -> Path:
    """Folder of the stored checkpoints and results: ``data/`` in a checkout, ``companion/_stored`` in a wheel."""
    return _WHEEL_STORE if _WHEEL_STORE.is_dir() else _REPOSITORY_STORE


def one_of(name: str, value: object, allowed: Iterable[object]) -> object:
    """Return `value` if it is among `allowed`; else raise ValueError naming the argument and the choices."""
    choices = list(allowed)
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}; allowed: {', '.join(map(str, choices)) or 'nothing yet'}")
    return value


def number(name: str, value: object, *, allowed: str = "a finite number") -> float:
    """Return a finite number as Python's own, also if it is NumPy's or a tensor without axes; else raise ValueError."""
    plain = value.item() if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 else value
    if isinstance(plain, bool) or not isinstance(plain, Real) or not math.isfinite(plain):
        raise ValueError(f"{name}: got {value!r}; allowed: {allowed}")
    return int(plain) if isinstance(plain, Integral) else float(plain)


def positive(name: str, value: object, *, zero: bool = False) -> float:
    """Return a finite number > 0 (>= 0 with `zero`) as Python's own; else raise ValueError."""
    allowed = f"a finite number {'>= 0' if zero else '> 0'}"
    plain = number(name, value, allowed=allowed)
    if plain < 0 or (plain == 0 and not zero):
        raise ValueError(f"{name}: got {value!r}; allowed: {allowed}")
    return plain


def count(name: str, value: object, *, least: int = 1) -> int:
    """Return a whole number >= `least` as Python's int; else raise ValueError."""
    allowed = f"a whole number >= {least}"
    plain = number(name, value, allowed=allowed)
    if not isinstance(plain, int) or plain < least:
        raise ValueError(f"{name}: got {value!r}; allowed: {allowed}")
    return plain


def finite(name: str, value: Tensor) -> Tensor:
    """Return a floating-point tensor without NaN or infinity; else raise ValueError."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        given = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: got {given}; allowed: a floating-point torch.Tensor")
    if not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name}: got {bad} NaN or infinite values of {value.numel()}; allowed: finite values")
    return value


def batch_of(name: str, value: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor of shape [batch, *shape] (batch >= 1); else raise ValueError with both shapes."""
    given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if not isinstance(value, Tensor) or value.dim() != len(shape) + 1 or given[1:] != tuple(shape) or given[0] < 1:
        raise ValueError(f"{name}: got shape {given}; allowed: [batch, {', '.join(map(str, shape))}]")
    return value


def images(name: str, value: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Return images [batch, channels, height, width], finite and in [0, 1]; else raise ValueError."""
    if not isinstance(value, Tensor) or value.dim() != 4 or 0 in value.shape:
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: got {given}; allowed: images of shape [batch, channels, height, width], none 0")
    if shape is not None:
        batch_of(name, value, shape)
    finite(name, value)
    low, high = float(value.min()), float(value.max())
    if low < 0 or high > 1:
        raise ValueError(f"{name}: got pixels from {low:.17g} to {high:.17g}; allowed: pixels in [0, 1]")
    return value


def writable(name: str, folder: Path) -> None:
    """Make the folder and write to it; ValueError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        given = f"{folder} ({type(error).__name__})"
        raise ValueError(f"{name}: got {given}; allowed: a folder that can be written") from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Path of a new, empty file for the block to write; it takes the place of `path` when the block ends well.

    So a reader sees the old file or the whole new one, whoever else writes it. The file has a name of its own in the
    same folder, and an ordinary file's mode; it is on the disk before it gets its name, and removed where the block
    raises. A link at `path` is replaced, not followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = os.fstat(handle).st_mode & 0o777  # what the umask leaves: a writer that makes the file anew may forget it
    os.close(handle)
    try:
        yield part
        part.chmod(mode)
        with part.open("r+b") as written:  # Windows syncs no file that is open for reading only
            os.fsync(written.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sha256(*parts: str | bytes | memoryview | np.ndarray | Tensor | Path) -> str:
    """Hexadecimal SHA-256 of texts, bytes, the numbers of arrays and tensors, and the content of files, in a row."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        elif isinstance(part, Tensor):
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(part, np.ndarray):
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def generator(seed: "int | torch.Generator", *stream: str | int) -> torch.Generator:
    """CPU generator of the random stream that `seed` and the names in `stream` say, or the CPU generator given.

    Named streams, ``generator(seed, "noise", draw)``, hash their arguments (SHA-256, 64 bits), so that no two of them
    share numbers, whatever the seeds are. A generator that is given is used as it stands. Numbers are always drawn on
    the CPU and then moved, so that CPU and GPU see the same problem. ValueError for a seed that is neither a generator
    on the CPU nor a whole number >= 0.
    """
    if isinstance(seed, torch.Generator):
        if seed.device.type != "cpu":
            raise ValueError(f"seed: got a generator on {seed.device}; allowed: a CPU generator or a whole number")
        return seed
    seed = count("seed", seed, least=0)
    return torch.Generator(device="cpu").manual_seed(int(sha256(json.dumps([seed, *stream], default=int))[:16], 16))


def normal(shape: Sequence[int], seed: "int | torch.Generator", like: Tensor, *stream: str | int) -> Tensor:
    """Standard normal draws of a named stream, made on the CPU in `like`'s dtype and moved to its device."""
    source = generator(seed, *stream)
    return torch.randn(*shape, generator=source, dtype=like.dtype, device="cpu").to(like.device)


def keep_freed_memory() -> None:
    """Ask the C library to keep memory that tensors free for the tensors that follow (glibc; elsewhere nothing).

    By default it returns blocks of a few MB to the system at once and takes them anew, page by page: a flow on a CPU
    then spends a quarter of its time on page faults. Blocks of 32 MiB and more are returned as ever. Whoever has set
    glibc's own variables (MALLOC_..., GLIBC_TUNABLES) keeps those settings.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim_threshold, mmap_threshold = -1, -3  # the names of the two options in malloc.h
    mallopt(mmap_threshold, 32 * 2**20)
    mallopt(trim_threshold, 512 * 2**20)
