"""Where a stored number comes from: profile, device in words, seed, versions, time, evaluations, hash of the code."""

import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from companion import __version__
from companion._support import one_of


@dataclass(frozen=True)
class Provenance:
    """Origin of a result.

    Time in seconds; `evaluations` counts forward evaluations; `date` is a UTC day (ISO 8601); `code_sha256` and `reads`
    are what :mod:`companion.experiments.fingerprint` says of the code and of the stored files that were read.
    """

    profile: str
    device: str
    seed: int
    settings: dict[str, Any]
    versions: dict[str, str]
    wall_seconds: float
    evaluations: int
    code_sha256: str
    date: str
    reads: dict[str, str]


def resolve_device(device: str) -> torch.device:
    """Device for "auto" (CUDA where there is one), "cpu" or "cuda"; ValueError for others, or without a usable GPU."""
    one_of("device", device, ("auto", "cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: got 'cuda', but torch finds no CUDA GPU here; allowed: auto, cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def device_words(device: torch.device) -> str:
    """Model of the GPU, or of the processor with the number of threads that torch uses; never a host name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()} ({threads} thread{'s' if threads > 1 else ''})"


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    text = listing.read_text(errors="replace") if listing.is_file() else ""
    named = re.search(r"^model name\s*:\s*(\S.*)$", text, re.MULTILINE)
    return " ".join(named[1].split()) if named else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    own = {"torch": str(torch.__version__), "numpy": np.__version__, "companion": __version__}
    return {"python": platform.python_version(), **own}


def say(message: str) -> None:
    """Print a message on stderr, where it mixes with no result."""
    print(message, file=sys.stderr, flush=True)
