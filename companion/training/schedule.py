"""How to train a prior, and what training did."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from companion import _support
from companion.training.augment import AUGMENTATIONS
from companion.training.precision import PRECISIONS

_COUNTS = ("steps", "batch_size", "checkpoint_every", "validate_every")


@dataclass(frozen=True)
class Schedule:
    """How to train. With `patience`, training stops after that many validations without a better score.

    The model then gets the weights of the best one. ``precision="mixed"``: the conditioners of a flow compute in
    bfloat16 (CUDA, and processors with instructions for it); "float32": in the model's own dtype, as all else.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3  # Adam's step size
    warm_up: int = 100  # steps over which it is reached, linearly
    decay: bool = True  # whether it falls to 0 along a half cosine
    clip: float = 100.0  # largest norm of the gradient
    average: float = 0.99  # decay of the moving average of the weights, which the model gets (0: no averaging)
    augment: tuple[str, ...] = ()  # changes of the images: see :func:`companion.training.augment.augment`
    seed: int = 0  # of every random number that training draws
    checkpoint_every: int = 200
    validate_every: int = 200
    patience: int | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        checks: dict[str, Callable[..., Any]] = dict.fromkeys(_COUNTS, _support.count)
        checks |= dict.fromkeys(("warm_up", "seed"), partial(_support.count, least=0))
        checks |= dict.fromkeys(("learning_rate", "clip"), _support.positive)
        for name, check in checks.items():  # Python's own numbers, which the file of a training can hold
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if isinstance(self.augment, str):
            raise ValueError(f"augment: got {self.augment!r}; allowed: a tuple of names, such as ('flip',)")
        for name in self.augment:
            _support.one_of("augment", name, AUGMENTATIONS)
        if not 0 <= self.average < 1:
            raise ValueError(f"average: got {self.average!r}; allowed: a number in [0, 1)")
        if self.patience is not None:
            _support.count("patience", self.patience)
        _support.one_of("precision", self.precision, PRECISIONS)

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        rise = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.decay else 1.0
        return self.learning_rate * rise * fall


@dataclass
class LearningCurve:
    """What training did: step and training loss, validation scores, and whether it went on to the last step."""

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    seconds: float = 0.0
    stopped_early: bool = False
