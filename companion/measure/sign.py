"""The sign of linear measurements: 1-bit compressed sensing."""

from typing import Self

import torch
from torch import Tensor

from companion.measure.base import Index, LinearOperator, Operator, replaced


class SignOf(Operator):
    """sign(A x), +1 or −1 for each measurement (0 counts as +1); Whang et al. 2020, sec. 5.4.4.

    Its true gradient is zero almost everywhere. Differentiating it gives the straight-through estimate instead, the
    gradient of A x, as that paper does; so its energies cannot be trusted to descend along their gradients, and Adam
    suits them better than a line search.
    """

    def __init__(self, linear: LinearOperator) -> None:
        if not isinstance(linear, LinearOperator):
            raise ValueError(f"linear: got {type(linear).__name__}; allowed: a LinearOperator")
        self.linear, self.batch = linear, linear.batch
        super().__init__(linear.shape, linear.output_shape, linear.domain)

    def apply(self, x: Tensor) -> Tensor:
        value = self.linear.forward(x)
        sign = torch.where(value < 0, -1.0, 1.0).to(value)
        return sign + (value - value.detach())  # adds 0 to it and 1 to its derivative (Bengio et al. 2013)

    def select(self, index: Index) -> Self:
        if self.batch is None:
            return self
        linear = self.linear.select(index)
        return replaced(self, linear=linear, batch=linear.batch)
