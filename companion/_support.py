"""What every module needs: checks of arguments with one-line errors, seeded randomness, and the place of stored files.

Every check returns its (possibly converted) argument, so that it can stand where the value is used.
"""

import ctypes
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

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


def positive(name: str, value: float, *, zero: bool = False) -> float:
    """Return a finite number > 0 (>= 0 with `zero`); else raise ValueError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    finite = number and value == value and abs(value) != float("inf")
    if not finite or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name}: got {value!r}; allowed: a finite number {'>= 0' if zero else '> 0'}")
    return value


def count(name: str, value: int, *, least: int = 1) -> int:
    """Return an integer >= `least`; else raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: got {value!r}; allowed: a whole number >= {least}")
    return value


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
        raise ValueError(f"{name}: got pixels from {low:.4g} to {high:.4g}; allowed: pixels in [0, 1]")
    return value


def writable(name: str, folder: Path) -> None:
    """Make the folder and write to it; ValueError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        given = f"{folder} ({type(error).__name__})"
        raise ValueError(f"{name}: got {given}; allowed: a folder that can be written") from None


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
    named = hashlib.sha256(json.dumps([seed, *stream]).encode()).digest()[:8]
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(named, "big"))


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
