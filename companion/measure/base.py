"""What every operator offers: measurements of a batch of images, and for linear operators the adjoint."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from torch import Tensor

from companion import _support


class Operator(ABC):
    """A map f from images, [batch, *shape], to measurements, [batch, *output_shape], image by image.

    Results follow the dtype and the device of the input. ``operator(x)`` checks its input; ``operator.apply(x)`` is
    the same map without checks, for solvers, to whom a single overflowing image must not be an error of the whole
    batch.

    Attributes
    ----------
    shape, output_shape : tuple
        Shapes of one image and of its measurements.
    """

    def __init__(self, shape: Sequence[int], output_shape: Sequence[int]) -> None:
        self.shape = checked_shape("shape", shape)
        self.output_shape = checked_shape("output_shape", output_shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Measurements f(x), [batch, *output_shape]; ValueError for a wrong shape, integers, NaN or infinity."""
        return self.apply(_support.finite("x", _support.batch_of("x", x, self.shape)))

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """f(x) without checks."""

    def select(self, index: Sequence[int] | Tensor) -> Self:
        """The operator for the images at `index`: the same one, unless it has data for each image."""
        return self


class LinearOperator(Operator):
    """A linear map A with its adjoint A*: ⟨A x, y⟩ = ⟨x, A* y⟩ for all x and y."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y, [batch, *shape]; ValueError for a wrong shape, an integer tensor, NaN or infinity."""
        return self.apply_adjoint(_support.finite("y", _support.batch_of("y", y, self.output_shape)))

    @abstractmethod
    def apply_adjoint(self, y: Tensor) -> Tensor:
        """A* y without checks."""


def checked_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape of whole numbers >= 1 as a tuple; else raise ValueError."""
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if not sizes or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
        raise ValueError(f"{name}: got {shape!r}; allowed: a tuple of whole numbers >= 1, such as (3, 32, 32)")
    return sizes
