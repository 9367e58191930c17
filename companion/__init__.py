"""Normalizing flows as priors for inverse problems: the package beside the book *Flow Priors for Inverse Problems*.

One idea runs through it: an image ``x`` is measured (:mod:`companion.measure`), a prior makes ``x`` from a latent ``z``
(:mod:`companion.priors`), misfit and penalty add up to an energy of ``z`` (:mod:`companion.energy`), and that energy is
minimised (:mod:`companion.recover`) or sampled (:mod:`companion.sample`).

>>> from companion import data, evaluate, measure, priors, recover
>>> photo = data.load("photos", split="test")[:1]
>>> operator = measure.Gaussian((3, 32, 32), 600, seed=0)  # a fifth as many measurements as values
>>> flow = priors.load("glow-photos32")
>>> found = recover.flow_latent(flow, operator, operator(photo), max_iterations=30)
>>> bool(evaluate.psnr(found.x, photo) > 20)
True

Modules load when they are first used, so that ``import companion`` stays quick.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "bayes",
    "data",
    "energy",
    "evaluate",
    "experiments",
    "keep_freed_memory",
    "measure",
    "priors",
    "recover",
    "sample",
    "show",
    "training",
]


def __getattr__(name: str) -> Any:
    if name == "keep_freed_memory":
        return import_module("companion._support").keep_freed_memory
    if name in __all__:
        return import_module(f"companion.{name}")
    raise AttributeError(f"module 'companion' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
