"""An experiment of milliseconds that exercises the machinery; environment variables stop it or log what it computes."""

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from companion._support import generator
from companion.experiments import Context, Part, experiment, gather, named


@dataclass(frozen=True, kw_only=True)
class Settings:
    images: int
    measurements: tuple[int, ...]
    scale: float = 1.0
    label: str = "none"


_left_behind: dict[str, int] = {}


def one(settings: Settings, part: Part, m: int) -> tuple[dict, dict]:
    if log := os.environ.get("TINY_LOG"):
        with Path(log).open("a") as file:
            file.write(f"m={m}\n")
    match os.environ.get("TINY_STOP", "").split("@"):
        case ["kill", at] if int(at) == m:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["once", at] if int(at) == m and not (dead := Path(log + ".dead")).exists():
            dead.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        case ["interrupt", at] if int(at) == m:
            raise KeyboardInterrupt
        case ["fail", at] if int(at) == m:
            raise RuntimeError("the solver\nbroke")
        case ["slow", seconds]:
            time.sleep(float(seconds))
        case ["lean", _]:  # on the part before
            before, _left_behind["m"] = _left_behind.get("m", 0), m
            settings = replace(settings, scale=settings.scale + before)
    draws = torch.randn(settings.images, m, generator=generator(part.seed, "draws", m)).numpy() * settings.scale
    part.count_evaluations(settings.images * m)
    return {"mean": float(draws.mean())}, {"spread": named(draws.std(1), image=settings.images)}


@experiment(
    "test.tiny",
    paper="Nobody 1900",
    shows="Fig. 0",
    profiles={
        "laptop": Settings(images=3, measurements=(4, 8, 16, 32)),
        "quick": Settings(images=2, measurements=(4, 8, 16)),
    },
    tolerances={"file": None},
)
def tiny(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Averages normal draws.

    And no more.
    """
    parts = context.map(one, settings.measurements, "measurements")
    metrics = {"mean": {"normal": [part.metrics["mean"] for part in parts]}, "m": settings.measurements}
    return metrics, gather(parts, m=settings.measurements) | {"file": np.arange(3)}
