"""One operator after another, and operators that are not linear: signs, magnitudes, a camera that saturates."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from companion import _support
from companion.measure.base import Index, LinearOperator, Operator, replaced


class Composition(Operator):
    """f(x) = outer(inner(x)), for any two operators that fit; `domain` is that of `inner`."""

    def __init__(self, outer: Operator, inner: Operator) -> None:
        for name, operator in (("outer", outer), ("inner", inner)):
            if not isinstance(operator, Operator):
                raise ValueError(f"{name}: got {type(operator).__name__}; allowed: an Operator")
        if outer.shape != inner.output_shape:
            raise ValueError(f"outer: got one on {outer.shape}; allowed: {inner.output_shape}, what inner measures")
        if None not in (outer.batch, inner.batch) and outer.batch != inner.batch:
            raise ValueError(f"outer: got data for {outer.batch} images; allowed: for {inner.batch}, as inner")
        self.outer, self.inner = outer, inner
        self.batch = outer.batch if inner.batch is None else inner.batch
        super().__init__(inner.shape, outer.output_shape, inner.domain)

    def apply(self, x: Tensor) -> Tensor:
        return self.outer.forward(self.inner.forward(x))

    def select(self, index: Index) -> Self:
        if self.batch is None:
            return self
        outer, inner = self.outer.select(index), self.inner.select(index)
        return replaced(self, outer=outer, inner=inner, batch=outer.batch if inner.batch is None else inner.batch)


class LinearComposition(Composition, LinearOperator):
    """A x = outer inner x, for linear operators; its adjoint is inner* outer*."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        for name, operator in (("outer", outer), ("inner", inner)):
            if not isinstance(operator, LinearOperator):
                raise ValueError(f"{name}: got {type(operator).__name__}; allowed: a LinearOperator")
        super().__init__(outer, inner)
        self.pairs = outer.pairs

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return self.inner.transpose(self.outer.transpose(y))  # type: ignore[attr-defined]


class _OfLinear(Operator):
    """A function of each of the linear measurements A x, said by a subclass in `of`."""

    def __init__(self, linear: LinearOperator) -> None:
        if not isinstance(linear, LinearOperator):
            raise ValueError(f"linear: got {type(linear).__name__}; allowed: a LinearOperator")
        self.linear, self.batch = linear, linear.batch
        super().__init__(linear.shape, linear.output_shape, linear.domain)

    @abstractmethod
    def of(self, value: Tensor) -> Tensor:
        """The measurements, given A x."""

    def apply(self, x: Tensor) -> Tensor:
        return self.of(self.linear.forward(x))

    def select(self, index: Index) -> Self:
        if self.batch is None:
            return self
        linear = self.linear.select(index)
        return replaced(self, linear=linear, batch=linear.batch)


class SignOf(_OfLinear):
    """sign(A x), +1 or −1 for each measurement (0 counts as +1); Whang et al. 2020, sec. 5.4.4.

    Its true gradient is zero almost everywhere. Differentiating it gives the straight-through estimate instead, the
    gradient of A x, as that paper does; so its energies cannot be trusted to descend along their gradients, and Adam
    suits them better than a line search. :class:`companion.energy.PerceptronMisfit` has that gradient for its own.
    """

    def of(self, value: Tensor) -> Tensor:
        sign = torch.where(value < 0, -1.0, 1.0).to(value)
        return sign + (value - value.detach())  # adds 0 to it and 1 to its derivative (Bengio et al. 2013)


class PhaseRetrieval(_OfLinear):
    """|A x|², real or complex A x without its phase (Candès et al. 2015, eq. 1.1); x and −x measure the same.

    Of real pairs, as :class:`companion.measure.Fourier` measures, each is one complex number.
    """

    def __init__(self, linear: LinearOperator) -> None:
        super().__init__(linear)
        if linear.pairs:
            self.output_shape = linear.output_shape[:-1]

    def of(self, value: Tensor) -> Tensor:
        if value.is_complex():
            return torch.view_as_real(value).square().sum(-1)
        return value.square().sum(-1) if self.linear.pairs else value.square()


class SaturatingCamera(Operator):
    """1 − exp(−exposure · x): how far light x fills each pixel's well, on images of `shape`.

    Twice the light gives less than twice the signal, and white is never reached, as on film. Below black, where a
    search may stray, the curve goes on. ``Composition(SaturatingCamera(...), Blur(...))`` has a lens before it.
    """

    def __init__(self, shape: Sequence[int], exposure: float = 3.0) -> None:
        self.exposure = _support.positive("exposure", exposure)
        super().__init__(shape, shape)

    def apply(self, x: Tensor) -> Tensor:
        return -torch.expm1(-self.exposure * x)
