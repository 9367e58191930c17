"""From draws of a generator to draws of the data: calibrated discriminators and importance weights."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from companion import _support
from companion.energy import LogRatio


def calibrated(discriminator: Callable[[Tensor], Tensor], real: Tensor, generated: Tensor) -> LogRatio:
    """log p_data / p_G = scale · d + bias, by logistic regression on images that d was not trained on (Platt 1999).

    real, generated: [number, *shape] each; the two numbers may differ, and their classes weigh the same. ValueError
    where d tells them apart without an error: the scale would be infinite, and the images say nothing of it.
    """
    with torch.no_grad():
        logits = [np.asarray(LogRatio(discriminator)(x).cpu().double()) for x in (real, generated)]
    for name, d in zip(("real", "generated"), logits, strict=True):
        _support.finite(name, torch.as_tensor(d, device="cpu"))
    if logits[0].min() >= logits[1].max() or logits[0].max() <= logits[1].min():
        raise ValueError("real: got images that d tells from all generated ones; allowed: sets that overlap in d")

    # in a unit and from a middle of their own: the minimiser stops by the size of a gradient
    every = np.concatenate(logits)
    middle, width = every.mean(), every.std()
    logits = [(d - middle) / width for d in logits]

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean log loss of either class, and its gradient in scale and bias."""
        value, gradient = 0.0, np.zeros(2)
        for sign, d in zip((1, -1), logits, strict=True):
            margin = sign * (line[0] * d + line[1])
            wrong = -sign * expit(-margin)
            value += np.logaddexp(0, -margin).mean()
            gradient += [(wrong * d).mean(), wrong.mean()]
        return value, gradient

    slope, level = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    scale, bias = slope / width, level - slope * middle / width
    return LogRatio(discriminator, float(scale), float(bias))


@dataclass(frozen=True)
class Weights:
    """Self-normalised importance weights, [draw, ...], that sum to 1 over the draws.

    ``ess`` is Kish's effective number of draws, 1 / Σ w², [...]: few of many means that a few draws decide all.
    """

    values: Tensor
    ess: Tensor

    def mean(self, of: Tensor) -> Tensor:
        """Σ w · of over the draws, for `of` of shape [draw, ..., *more]; [..., *more]."""
        more = of.dim() - self.values.dim()
        return (self.values.view(*self.values.shape, *[1] * more) * of).sum(0)


def importance_weights(log_ratio: Tensor) -> Weights:
    """Weights ∝ exp(log_ratio), [draw, ...], of draws of p_G (Ang 2021, Lemma 1, with log_ratio = log p_data / p_G).

    ValueError for ratios that are not finite.
    """
    values = _support.finite("log_ratio", log_ratio).softmax(0)
    return Weights(values, 1 / values.square().sum(0))
