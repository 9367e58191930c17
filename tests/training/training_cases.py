"""Small trainings, and processes to run them in and to kill."""

import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path

import torch
from flow_cases import rand
from torch import Tensor

from companion import training
from companion.priors import Glow
from companion.training import Likelihood, Schedule

SMALL = Schedule(
    steps=24,
    batch_size=6,
    learning_rate=2e-3,
    warm_up=4,
    average=0.8,
    augment=("flip",),
    checkpoint_every=5,
    validate_every=7,
)


def photos(n: int = 40, seed: int = 5) -> Tensor:
    """Smooth random images, [n, 1, 4, 4] as uint8."""
    noise = rand(n, 1, 4, 4, seed=seed)
    return (255 * (0.3 * noise + 0.7 * noise.cumsum(3) / noise.sum(3, keepdim=True))).round().to(torch.uint8)


def model(dtype: torch.dtype = torch.float32, **config: object) -> Glow:
    return Glow(**({"shape": (1, 4, 4), "levels": 1, "steps": 2, "width": 4} | config)).to(dtype)


def train(schedule: Schedule = SMALL, *, checkpoint: Path | None = None, **options: object) -> tuple[Glow, object]:
    """A model trained on `photos`, and its curve."""
    flow = options.pop("flow", None) or model()
    options = {"criterion": Likelihood(), "validation": photos(9, seed=6), "images": photos()} | options
    curve = training.fit(flow, schedule=schedule, checkpoint=checkpoint, progress=False, **options)
    return flow, curve


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def start(target, *args: object) -> multiprocessing.process.BaseProcess:
    """Run `target` in a process of its own, forked from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["__main__", "test_training", "test_distributed", "companion.training", "torch._dynamo"]
    )
    process = context.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_within(seconds: float, seed: int) -> None:
    """Die at some moment of the next `seconds`, whatever this process is doing then."""
    threading.Timer(seconds * random.Random(seed).random(), die).start()
