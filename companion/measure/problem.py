"""An inverse problem: what is measured, and how noisily."""

from dataclasses import dataclass

import torch
from torch import Tensor

from companion import _support
from companion.measure.base import Index, Operator
from companion.measure.noise import Noise


@dataclass(frozen=True)
class Problem:
    """Measurements y of images x, with density p(y | f(x))."""

    operator: Operator  # f
    noise: Noise  # the density of y given f(x)

    def __post_init__(self) -> None:
        for name, value, kind in (("operator", self.operator, Operator), ("noise", self.noise, Noise)):
            if not isinstance(value, kind):
                raise ValueError(f"{name}: got {type(value).__name__}; allowed: a measure.{kind.__name__}")

    def observe(self, x: Tensor, seed: int | torch.Generator = 0) -> Tensor:
        """Noisy measurements, [batch, *output_shape], of images x; see :meth:`Noise.sample` for the seed.

        ValueError for a wrong shape, NaN, or, where the operator's domain is "image", pixels outside [0, 1].
        """
        check = _support.pixels if self.operator.domain == "image" else _support.finite
        check("x", _support.batch_of("x", x, self.operator.shape))
        return self.noise.sample(self.operator.forward(x), seed)

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | f(x)) in nats, [batch]; for solvers: x and y are not checked, but all shapes are (ValueError)."""
        exact = self.operator.forward(x)
        if y.shape != exact.shape:
            raise ValueError(f"y: got shape {tuple(y.shape)}; allowed: that of f(x), {tuple(exact.shape)}")
        value = self.noise.log_prob(y, exact)
        if value.shape != (len(y),):
            given = f"{type(self.noise).__name__}.log_prob: got shape {tuple(value.shape)}"
            raise ValueError(f"{given}; allowed: {(len(y),)}")
        return value

    def select(self, index: Index) -> "Problem":
        """The problem of some images only, in the order of `index`."""
        return Problem(self.operator.select(index), self.noise.select(index))
