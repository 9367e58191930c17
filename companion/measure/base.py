"""What every operator offers: measurements of a batch of images, and for linear operators the adjoint."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from companion import _support

Index = Sequence[int] | Tensor


class Operator(ABC):
    """A map f from images, [batch, *shape], to measurements, [batch, *output_shape], image by image.

    A subclass writes :meth:`apply`; results follow the dtype and device of the input and share no memory with it. It is
    called by ``operator(x)``, which checks x, or by ``operator.forward(x)``, which does not, for solvers, to whom a
    single overflowing image must not be an error of the whole batch. Both check the shape of what `apply` returns: a
    wrong one would be broadcast against y, and mix the images.

    Attributes
    ----------
    shape, output_shape : tuple
        Shapes of one image and of its measurements.
    domain : str
        What it acts on: "image", pixels in [0, 1], or "real", any numbers.
    batch : int or None
        The number of images, where each has data of its own in the operator; None where all are treated alike.
    """

    batch: int | None = None

    def __init__(self, shape: Sequence[int], output_shape: Sequence[int], domain: str = "image") -> None:
        self.shape = checked_shape("shape", shape)
        self.output_shape = checked_shape("output_shape", output_shape)
        self.domain = str(_support.one_of("domain", domain, ("image", "real")))

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

    def select(self, index: Index) -> "Operator":
        """The operator for some images of its batch, in the order of `index`; itself where all are treated alike."""
        return self

    def check_measurements(self, y: Tensor) -> Tensor:
        """Return measurements y, [batch, *output_shape]; ValueError for a wrong shape, integers, NaN or infinity.

        Warns of those of pixels from 0 to 255: far above the measurements of a white image.
        """
        _support.finite("y", _support.batch_of("y", y, self.output_shape))
        size = y.detach().abs().mean()
        if self.domain == "image" and size > 1:
            with torch.no_grad():
                white = self.forward(y.new_ones(self.batch or 1, *self.shape)).abs().mean()
            if size > 10 * white:
                given = f"{size:.3g} on average, where a white image gives {white:.3g}"
                warnings.warn(f"y: got {given}; pixels are in [0, 1]: of 0 to 255, measure x / 255", stacklevel=3)
        return y

    def _checked(self, name: str, function: Callable[[Tensor], Tensor], given: Tensor, shape: tuple) -> Tensor:
        check_batch(type(self).__name__, self.batch, given)
        result = function(given)
        if result.shape != (len(given), *shape):
            allowed = (len(given), *shape)
            raise ValueError(f"{type(self).__name__}.{name}: got shape {tuple(result.shape)}; allowed: {allowed}")
        return result


class LinearOperator(Operator):
    """A linear map A with its adjoint A*: ⟨A x, y⟩ = ⟨x, A* y⟩ for all x and y (see :func:`check_adjoint`)."""

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

    def select(self, index: Index) -> "LinearOperator":
        """The operator for some images of its batch, in the order of `index`; itself where all are treated alike."""
        return self


def check_adjoint(operator: LinearOperator, seed: int = 0, tolerance: float = 1e-10) -> float:
    """Largest error of ⟨A x, y⟩ = ⟨x, A* y⟩, relative to ‖A x‖ ‖y‖, for random x and y in double precision.

    Three images are tried, or as many as the operator has data for; complex operators too. ValueError where the error
    is above `tolerance`, or a shape is wrong.
    """
    batch = operator.batch or 3
    like = torch.zeros((), dtype=torch.float64, device="cpu")
    x = _support.normal((batch, *operator.shape), seed, like, "x")
    measured = operator.forward(x)
    y = _support.normal(measured.shape, seed, measured, "y")
    back = operator.transpose(y)
    if back.is_complex():  # of complex images: measure one
        x = _support.normal(x.shape, seed, back, "x")
        measured = operator.forward(x)
    left, right = (((a.conj() * b).flatten(1).sum(1)) for a, b in ((y, measured), (back, x)))
    left, right = (left, right) if x.is_complex() else (left.real, right.real)
    scale = measured.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
    error = float(((left - right).abs() / scale.clamp_min(torch.finfo(scale.dtype).tiny)).max())
    if not error <= tolerance:
        given = f"<A x, y> = {left[0]:.6g} and <x, A* y> = {right[0]:.6g}"
        raise ValueError(
            f"operator: got {type(operator).__name__} with {given}, an error of {error:.2g}; "
            f"allowed: at most {tolerance:.2g} of |A x| |y|"
        )
    return error


def checked_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape of whole numbers >= 1 as a tuple; else raise ValueError."""
    try:
        sizes = tuple(_support.count(name, size) for size in shape)
    except (TypeError, ValueError):
        sizes = ()
    if not sizes:
        raise ValueError(f"{name}: got {shape!r}; allowed: a tuple of whole numbers >= 1, such as (3, 32, 32)")
    return sizes


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (channels, height, width) of whole numbers >= 1; else raise ValueError."""
    checked = checked_shape("shape", shape)
    if len(checked) != 3:
        raise ValueError(f"shape: got {checked}; allowed: (channels, height, width)")
    return checked[0], checked[1], checked[2]


def check_batch(name: str, batch: int | None, given: Tensor) -> None:
    """Raise ValueError where there is data for `batch` images, and not as many are given."""
    if batch is not None and len(given) != batch:
        raise ValueError(f"{name}: got a batch of {len(given)}; allowed: {batch}, the images that it has data for")


def row_numbers(index: Index, batch: int) -> Tensor:
    """Numbers of the rows of `batch` that an index picks, on the CPU."""
    index = index.cpu() if isinstance(index, Tensor) else torch.as_tensor(index, device="cpu")
    return torch.arange(batch, device="cpu")[index]


def never_alone(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Call function(batch)."""
    return function(batch)
