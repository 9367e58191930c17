"""What every module needs: checks of arguments with one-line errors, named random streams, files written whole.

Every check returns its (possibly converted) argument, so that it can stand where the value is used.
"""

import ctypes
import difflib
import hashlib
import json
import math
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_REPOSITORY_STORE = Path(__file__).resolve().parents[1] / "data"
_WHEEL_STORE = Path(__file__).resolve().parent / "_stored"

PROFILES = ("quick", "laptop", "overnight", "paper")  # of experiments and trainings, by size


def store() -> Path:
    """Folder of the stored checkpoints and results: ``data/`` in a checkout, ``companion/_stored`` in a wheel."""
    return _WHEEL_STORE if _WHEEL_STORE.is_dir() else _REPOSITORY_STORE


def one_of(name: str, value: object, allowed: Iterable[object]) -> object:
    """Return `value` if it is among `allowed`; else raise ValueError naming the argument, the nearest and all."""
    choices = list(allowed)
    if value not in choices:
        texts = list(map(str, choices))
        near = difflib.get_close_matches(str(value), texts, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{name}: got {value!r}; allowed: {', '.join(texts) or 'nothing yet'}{hint}")
    return value


def number(
    name: str, value: object, allowed: str = "a finite number", right: Callable[[Any], bool] = lambda _: True
) -> float:
    """Return a finite, `right` number as Python's own, NumPy's and tensors' without axes too; else ValueError."""
    plain: Any = value.item() if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 else value
    real = isinstance(plain, Real) and not isinstance(plain, bool)
    if not real or not (isinstance(plain, Integral) or math.isfinite(plain)) or not right(plain):
        raise ValueError(f"{name}: got {value!r}; allowed: {allowed}")
    return int(plain) if isinstance(plain, Integral) else float(plain)


def positive(name: str, value: object, *, zero: bool = False) -> float:
    """Return a finite number > 0 (>= 0 with `zero`) as Python's own; else raise ValueError."""
    return number(name, value, f"a finite number {'>=' if zero else '>'} 0", lambda v: v > 0 or (zero and v == 0))


def count(name: str, value: object, *, least: int = 1) -> int:
    """Return a whole number >= `least` as Python's int; else raise ValueError."""
    return int(number(name, value, f"a whole number >= {least}", lambda v: v >= least and isinstance(v, Integral)))


def shape(name: str, value: Sequence[int]) -> tuple[int, ...]:
    """Return a shape of whole numbers >= 1 as a tuple; else raise ValueError."""
    try:
        sizes = tuple(count(name, size) for size in value)
    except (TypeError, ValueError):
        sizes = ()
    if not sizes:
        raise ValueError(f"{name}: got {value!r}; allowed: a tuple of whole numbers >= 1, such as (3, 32, 32)")
    return sizes


def image_shape(value: Sequence[int]) -> tuple[int, int, int]:
    """Return (channels, height, width) of whole numbers >= 1; else raise ValueError."""
    sizes = shape("shape", value)
    if len(sizes) != 3:
        raise ValueError(f"shape: got {sizes}; allowed: (channels, height, width)")
    return sizes[0], sizes[1], sizes[2]


def finite(name: str, value: Tensor) -> Tensor:
    """Return a floating-point tensor without NaN or infinity; else raise ValueError."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        given = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        hint = " (pixels from 0 to 255: divide by 255)" if given == "torch.uint8 tensor" else ""
        if isinstance(value, Tensor) and value.is_complex():
            hint = " (complex numbers: as real pairs, torch.view_as_real)"
        raise ValueError(f"{name}: got {given}; allowed: a floating-point torch.Tensor{hint}")
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
    return pixels(name, value)


def pixels(name: str, value: Tensor) -> Tensor:
    """Return a tensor of any shape with values in [0, 1]; else raise ValueError."""
    low, high = float(finite(name, value).min()), float(value.max())
    if low < 0 or high > 1:
        raise ValueError(f"{name}: got pixels from {low:.17g} to {high:.17g}; allowed: pixels in [0, 1]")
    return value


def writable(name: str, folder: Path) -> None:
    """Make the folder and write to it; ValueError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        kind = type(error).__name__
        raise ValueError(f"{name}: got {folder} ({kind}); allowed: a folder that can be written") from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Path of a new, empty file for the block to write; it takes the place of `path` when the block ends well.

    So a reader sees the old file or the whole new one, whoever else writes it. The file has a name of its own in the
    same folder, and an ordinary file's mode; it is on the disk before it gets its name, and removed where the block
    raises. A link at `path` is replaced, not followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    with part.open("x"):  # never through a link that is there
        mode = part.stat().st_mode & 0o777  # what the umask leaves; a writer that makes the file anew may not ask it
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
                hashlib.file_digest(file, lambda: digest)
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


def own_precision(value: Tensor) -> AbstractContextManager[None]:
    """Inside, ``torch.autocast`` does not round what is computed from `value`."""
    kind = value.device.type
    rounds = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # "meta" has none
    return torch.autocast(kind, enabled=False) if rounds else nullcontext()


def keep_freed_memory() -> None:
    """Ask the C library to keep memory that tensors free for the tensors that follow (glibc; elsewhere nothing).

    By default it returns blocks of a few MB to the system at once and takes them anew, page by page: a flow on a CPU
    then spends a quarter of its time on page faults. It changes the whole process, so no import calls it: the command
    line and `experiments.run` do, and whoever asks for ``companion.keep_freed_memory()``. Blocks of 32 MiB and more are
    returned as ever. Where glibc's own variables (MALLOC_..., GLIBC_TUNABLES) are set, they hold: MALLOC_ARENA_MAX=0
    leaves all as it was.
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
