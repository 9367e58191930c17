"""An experiment of milliseconds that exercises the machinery; environment variables stop it or log what it computes."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from companion._support import generator
from companion.experiments import Context, experiment


@dataclass(frozen=True)
class Settings:
    images: int
    measurements: tuple[int, ...]


def one(settings: Settings, context: Context, m: int) -> tuple[dict, dict]:
    if log := os.environ.get("TINY_LOG"):
        with Path(log).open("a") as file:
            file.write(f"m={m}\n")
    match os.environ.get("TINY_STOP", "").split("@"):
        case ["kill", at] if int(at) == m:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["interrupt", at] if int(at) == m:
            raise KeyboardInterrupt
        case ["fail", at] if int(at) == m:
            raise RuntimeError("the solver\nbroke")
    draws = torch.randn(settings.images, m, generator=generator(context.seed)).numpy()
    context.count_evaluations(settings.images * m)
    return {"mean": float(draws.mean())}, {"draws": draws}


@experiment(
    "test.tiny",
    paper="Nobody 1900",
    shows="Fig. 0",
    profiles={"quick": Settings(2, (4, 8, 16)), "laptop": Settings(3, (4, 8, 16, 32))},
)
def tiny(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Averages normal draws.

    And no more.
    """
    parts = [
        context.part(f"m={m}", lambda m=m: one(settings, context, m))
        for m in context.progress(settings.measurements, "m")
    ]
    metrics = {"mean": {"normal": [part.metrics["mean"] for part in parts]}, "m": settings.measurements}
    return metrics, {"spread": np.array([part.arrays["draws"].std() for part in parts]), "file": np.arange(3)}
