"""What every operator offers: measurements of a batch of images, and for linear operators the adjoint."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Self, TypeVar, final

import torch
from torch import Tensor

from companion import _support

Index = Sequence[int] | Tensor
T = TypeVar("T")


class Operator(ABC):
    """A map f from images, [batch, *shape], to measurements, [batch, *output_shape], image by image.

    A subclass writes :meth:`apply`; results follow the dtype and device of the input, inside ``torch.autocast`` too,
    and share no memory with it. It is called by ``operator(x)``, which checks x, or by ``operator.forward(x)``, which
    does not, for solvers, to whom a single overflowing image must not be an error of the whole batch. Both check the
    shape of what `apply` returns: a wrong one would be broadcast against y, and mix the images.
    """

    shape: tuple[int, ...]  # of one image
    output_shape: tuple[int, ...]  # of its measurements
    domain: str = "image"  # what it acts on: "image", pixels in [0, 1], or "real", any numbers
    batch: int | None = None  # number of images, where it has data for each; None where all are treated alike

    def __init__(self, shape: Sequence[int], output_shape: Sequence[int], domain: str | None = None) -> None:
        self.shape = _support.shape("shape", shape)
        self.output_shape = _support.shape("output_shape", output_shape)
        self.domain = str(_support.one_of("domain", domain or self.domain, ("image", "real")))

    def __call__(self, x: Tensor) -> Tensor:
        """Measurements f(x), [batch, *output_shape]; ValueError for a wrong shape, integers, NaN or infinity."""
        return self.forward(_support.finite("x", _support.batch_of("x", x, self.shape)))

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """f(x), without checks: what a subclass writes, and :meth:`forward` calls."""

    @final
    def forward(self, x: Tensor) -> Tensor:
        """f(x) of an unchecked x; ValueError where the result has another shape than [batch, *output_shape]."""
        return self._checked("apply", self.apply, x, self.output_shape)

    def select(self, index: Index) -> Self:
        """The operator for some images of its batch, in the order of `index`; itself where all are treated alike."""
        return self

    def check_measurements(self, y: Tensor) -> Tensor:
        """Return y, [batch, *output_shape]; ValueError for a wrong shape, integers, NaN or infinity.

        Warns of measurements of pixels from 0 to 255, which are far above those of a white image.
        """
        size = _support.finite("y", _support.batch_of("y", y, self.output_shape)).detach().abs().mean()
        if self.domain == "image" and size > 1:
            white = self.forward(y.new_ones(self.batch or 1, *self.shape)).detach().abs().mean()
            if size > 10 * white:
                given = f"y: got {size:.3g} on average, where a white image gives {white:.3g}"
                warnings.warn(f"{given}; pixels are in [0, 1]: of 0 to 255, measure x / 255", stacklevel=3)
        return y

    def _checked(self, name: str, function: Callable[[Tensor], Tensor], given: Tensor, shape: tuple) -> Tensor:
        kind, images = type(self).__name__, len(given)
        if self.batch not in (None, images):
            raise ValueError(f"{kind}: got {images} images; allowed: {self.batch}, those that it has data for")
        with _support.own_precision(given):
            result = function(given)
        if result.shape != (images, *shape):
            raise ValueError(f"{kind}.{name}: got shape {tuple(result.shape)}; allowed: {(images, *shape)}")
        return result


class LinearOperator(Operator):
    """A linear map A with its adjoint A*: ⟨A x, y⟩ = ⟨x, A* y⟩ for all x and y (see :func:`check_adjoint`).

    Measurements are real numbers: complex ones are given as real pairs, [..., 2], by ``torch.view_as_real``, as
    :class:`companion.measure.Fourier` does, and say so by ``pairs = True``. A* y is then the real part of what the
    complex adjoint gives.
    """

    pairs = False  # whether the last axis of A x holds real and imaginary parts

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y, [batch, *shape]; ValueError for a wrong shape, an integer tensor, NaN or infinity."""
        return self.transpose(_support.finite("y", _support.batch_of("y", y, self.output_shape)))

    @abstractmethod
    def apply_adjoint(self, y: Tensor) -> Tensor:
        """A* y, without checks: what a subclass writes, and :meth:`transpose` calls."""

    @final
    def transpose(self, y: Tensor) -> Tensor:
        """A* y of an unchecked y; ValueError where the result has another shape than [batch, *shape]."""
        return self._checked("apply_adjoint", self.apply_adjoint, y, self.shape)


def check_adjoint(operator: LinearOperator, seed: int = 0, tolerance: float = 1e-10) -> float:
    """Largest |⟨A x, y⟩ − ⟨x, A* y⟩| of random images in float64, over the larger norm of their terms, ‖x ∘ A* y‖.

    Or ‖y ∘ A x‖; 0 where both are. Images are complex if A* y is. ValueError where it is above `tolerance`, or a shape
    is wrong.
    """
    like = torch.zeros((), dtype=torch.float64, device="cpu")
    x = _support.normal((operator.batch or 3, *operator.shape), seed, like, "x")
    y = _support.normal((len(x), *operator.output_shape), seed, operator.forward(x), "y")
    back = operator.transpose(y)
    x = _support.normal(x.shape, seed, back, "x")
    measured = operator.forward(x)
    left, right = (torch.linalg.vecdot(a.flatten(1), b.flatten(1)) for a, b in ((y, measured), (back, x)))
    difference = (left - right).abs() if x.is_complex() else (left.real - right.real).abs()
    # the sums themselves may be small by chance, as A x is where it is one number; their terms are not
    terms = torch.maximum(*((a * b).flatten(1).norm(dim=1) for a, b in ((y, measured), (back, x))))
    errors = difference / terms.clamp_min(torch.finfo(terms.dtype).tiny)
    error, worst = float(errors.max()), int(errors.argmax())
    if not error <= tolerance:
        given = f"<A x, y> = {left[worst]:.6g} but <x, A* y> = {right[worst]:.6g}, a relative error of {error:.2g}"
        raise ValueError(f"operator: got {type(operator).__name__} with {given}; allowed: at most {tolerance:.2g}")
    return error


def replaced(value: T, **changes: Any) -> T:
    """A shallow copy of an operator or a noise with other attributes, for `select`."""
    other = copy(value)
    vars(other).update(changes)
    return other
