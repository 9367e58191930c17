"""Discriminators as estimates of p_data / p_G, and the energy term that tilts a prior by them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from companion import _support
from companion.energy.points import Point
from companion.energy.terms import _Weighted, shaped


@dataclass(frozen=True)
class LogRatio:
    """log p_data(x) / p_G(x) ≈ scale · d(x) + bias, in nats, of images x, [batch, *shape] → [batch].

    d is the logit of the probability that x is real. With as many real as generated images the best d is the log ratio
    itself, D / (1 − D) = exp(d) (Goodfellow et al. 2014, Prop. 1); one that was not trained to the end, or is run in
    evaluation mode, needs a scale and a bias: :func:`companion.sample.calibrated` fits them.

    Raises ValueError for a discriminator in training mode, where batch normalisation mixes the images of a batch.
    """

    discriminator: Callable[[Tensor], Tensor]
    scale: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        owner = getattr(self.discriminator, "__self__", self.discriminator)  # a prior's method, or a network
        if isinstance(owner, nn.Module) and owner.training:
            raise ValueError(f"discriminator: got {type(owner).__name__} in training mode; allowed: one after .eval()")
        for name in ("scale", "bias"):
            _support.finite(name, torch.tensor(float(getattr(self, name)), device="cpu"))

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * shaped("discriminator", self.discriminator(x), (len(x),)) + self.bias


class Discrimination(_Weighted):
    """−λ log p_data(x) / p_G(x) (Ang 2021, sec. 3.2: −λ d(G(z))); λ a number or [batch].

    Beside ``LatentNorm(0.5, squared=True)``, or ``FlowLikelihood()``, λ = 1 makes the prior of x that of the data, if
    the ratio is right and G injective (Ang 2021, Lemma 1). For other λ it is p_G (p_data / p_G)^λ.
    """

    def __init__(self, log_ratio: LogRatio, weight: float | Tensor = 1.0) -> None:
        super().__init__("weight", weight)
        self.log_ratio = log_ratio

    def one(self, point: Point) -> Tensor:
        return -self.log_ratio(point.x)
