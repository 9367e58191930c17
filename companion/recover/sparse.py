"""Sparse recovery in a fixed orthonormal basis, the classical baseline: Lasso by accelerated proximal gradients."""

import math
from collections.abc import Sequence

import pywt
import torch
from torch import Tensor

from companion import _support
from companion.measure.base import LinearOperator
from companion.recover.linear import checked_on_images, in_units, inner, operator_norm, squared_norm, weights
from companion.recover.run import Result, Run, scaling

BASES = ("dct", "wavelet", "pixel")

# The l1 weight comes down to the one asked for by halves, each time the duality gap is below a tenth of the objective.
# Without this, a small weight needs thousands of steps, and at a fixed budget the baseline would look worse than it is.
_LOWERING, _LOWER_AT = 0.5, 0.1


class Basis:
    """An orthonormal basis Φ for each channel of images: ``synthesise`` is both inverse and adjoint of ``analyse``.

    Each level turns the upper left corner of its size, by orthogonal matrices for rows and columns. Without levels it
    is the basis of the pixels themselves, as Bora et al. 2017 use it for MNIST.
    """

    levels: Sequence[tuple[Tensor, Tensor]] = ()

    def analyse(self, x: Tensor) -> Tensor:
        """Coefficients Φ* x of images, [batch, C, H, W] both."""
        c = x.clone()
        for rows, columns in self.levels:
            height, width = len(rows), len(columns)
            c[..., :height, :width] = rows @ c[..., :height, :width] @ columns.T
        return c

    def synthesise(self, c: Tensor) -> Tensor:
        """Images Φ c from coefficients, [batch, C, H, W] both."""
        x = c.clone()
        for rows, columns in reversed(self.levels):
            height, width = len(rows), len(columns)
            x[..., :height, :width] = rows.T @ x[..., :height, :width] @ columns
        return x


class DCTBasis(Basis):
    """Orthonormal two-dimensional cosine transform (DCT-II) of each channel, for any height and width.

    Equal to ``scipy.fft.dctn(x, axes=(-2, -1), norm="ortho")``, in the dtype and on the device of `like`.
    """

    def __init__(self, height: int, width: int, like: Tensor) -> None:
        self.levels = [(_cosines(height, like), _cosines(width, like))]


class WaveletBasis(Basis):
    """Orthonormal two-dimensional wavelet transform of each channel, periodic at the borders, by PyWavelets' filters.

    Equal to ``pywt.wavedec2(x, wavelet, mode="periodization", level=basis.depth)`` in the layout of
    ``pywt.coeffs_to_array``: the coarsest averages in the upper left corner.

    The transform goes as deep as both sides stay even: 5 levels for 32×32 (down to one average per channel), but 2 for
    28×28 (down to 7×7 averages). Padding would allow more levels, but then the basis would not be orthonormal.

    `wavelet` is an orthogonal one of PyWavelets: "db1" (Haar), "db4", "sym8", ... "dmey" is refused: its filters are
    orthogonal to two digits only.
    """

    def __init__(self, height: int, width: int, like: Tensor, wavelet: str = "db1") -> None:
        if wavelet not in pywt.wavelist(kind="discrete") or not _orthogonal(wavelet):
            raise ValueError(f"wavelet: got {wavelet!r}; allowed: an orthogonal one of PyWavelets, such as db1 or sym8")
        self.levels: list[tuple[Tensor, Tensor]] = []
        while height % 2 == 0 and width % 2 == 0:
            self.levels.append((_filters(height, wavelet, like), _filters(width, wavelet, like)))
            height, width = height // 2, width // 2
        self.depth = len(self.levels)


def _cosines(side: int, like: Tensor) -> Tensor:
    """Orthonormal DCT-II matrix [side, side]; row k holds the cosine of frequency k."""
    index = torch.arange(side, dtype=torch.float64, device="cpu")
    matrix = torch.cos(math.pi / side * index[:, None] * (index + 0.5)) * math.sqrt(2 / side)
    matrix[0] = math.sqrt(1 / side)
    return matrix.to(like)


def _filters(side: int, wavelet: str, like: Tensor) -> Tensor:
    """Orthogonal matrix [side, side] of one level: averages in the upper half, details in the lower."""
    units = torch.eye(side, dtype=torch.float64, device="cpu").numpy()
    low, high = pywt.dwt(units, wavelet, mode="periodization", axis=0)
    return torch.cat([torch.from_numpy(low), torch.from_numpy(high)]).to(like)


def _orthogonal(wavelet: str) -> bool:
    """Whether the wavelet's transform is orthogonal in truth; PyWavelets says so of one that is not."""
    matrix = _filters(64, wavelet, torch.zeros((), dtype=torch.float64, device="cpu"))
    return bool((matrix @ matrix.T - torch.eye(64, dtype=torch.float64, device="cpu")).abs().max() < 1e-6)


def make_basis(name: str, height: int, width: int, like: Tensor, wavelet: str = "db1") -> Basis:
    """The basis "dct", "wavelet" or "pixel" for images of the given size, in the dtype and on the device of `like`."""
    _support.one_of("basis", name, BASES)
    if name == "dct":
        return DCTBasis(height, width, like)
    return WaveletBasis(height, width, like, wavelet) if name == "wavelet" else Basis()


@torch.no_grad()
def lasso(
    operator: LinearOperator,
    y: Tensor,
    basis: str = "dct",
    weight: float = 0.01,
    *,
    wavelet: str = "db1",
    max_iterations: int = 3000,
    tolerance: float = 0.01,
) -> Result:
    """Lasso: x = Φ c with c = argmin ‖A Φ c − y‖² + weight ‖c‖₁, Φ an orthonormal basis (Asim et al. 2020, sec. 4.2).

    FISTA (Beck and Teboulle 2009) from A and A* alone. All images advance together, each with its own momentum and
    restarts (gradient rule of O'Donoghue and Candès 2015), its own l1 weight on the way down, and its own end.

    Neither intercept nor rescaling: `weight` 0.01 is the published objective, but the published scores also contain
    scikit-learn's intercept and, for wavelets, a division of the image by its largest pixel.

    Parameters
    ----------
    operator, y
        Linear, on images [C, H, W]; and measurements, [batch, *operator.output_shape].
    basis, wavelet
        "dct" (:class:`DCTBasis`), "wavelet" (:class:`WaveletBasis`; "db1" is Haar's) or "pixel".
    weight
        Of the l1 norm beside the sum (not the mean) of squared residuals, > 0.
    max_iterations
        Most steps for an image.
    tolerance
        An image has converged when the duality gap is at most this fraction of the objective; the objective is then
        within that fraction of its minimum. Rounding in float32 hides gaps below about 0.001.

    An evaluation, in the result, is one application of A and one of A*, those for the operator's norm included.
    The result's z are the coefficients c, [batch, C·H·W].

    Raises ValueError for an operator that is not linear on images or has another's adjoint, measurements of another
    shape, not finite or in half precision, an unknown basis or wavelet, options out of range.
    """
    y, unit = in_units(checked_on_images(operator, y))
    max_iterations = _support.count("max_iterations", max_iterations)
    tolerance = _support.positive("tolerance", tolerance)
    phi = make_basis(basis, operator.shape[1], operator.shape[2], y, wavelet)
    norm, spent = operator_norm(operator, y)
    step = 1 / (2.04 * norm**2)  # the gradient's Lipschitz constant is 2 ‖A‖², and the norm is found from below
    goal = weights(weight, unit)

    gradient = -2 * phi.analyse(operator.transpose(y))
    c = torch.zeros_like(gradient)
    previous, gradient_previous = c, gradient
    run = Run(c, squared_norm(y), spent + 1, max_iterations, unit=unit.cpu().double() ** 2)
    age, momentum = torch.ones_like(unit), torch.zeros_like(unit)
    current = (0.5 * gradient.flatten(1).abs().amax(1)).maximum(goal)
    while len(run.active):
        # The gradient is affine in c: at the extrapolated point it costs no further application of A.
        factor = scaling(momentum, c)
        point = c + factor * (c - previous)
        forward = point - scaling(step, c) * (gradient + factor * (gradient - gradient_previous))
        threshold = scaling(step * current, c)
        previous, gradient_previous = c, gradient
        c = forward - forward.clamp(-threshold, threshold)
        residual = operator.forward(phi.synthesise(c)) - y
        gradient = 2 * phi.analyse(operator.transpose(residual))

        misfit, size = squared_norm(residual), c.flatten(1).abs().sum(1)
        objective = misfit + current * size
        gap = objective - _dual(residual, gradient, y, misfit, current)
        met = (current <= goal) & (gap <= tolerance * objective)
        keep = run.advance(c, misfit + goal * size, met, "duality gap below tolerance")
        current = torch.where(gap < _LOWER_AT * objective, (_LOWERING * current).maximum(goal), current)
        restart = inner(point - c, c - previous) > 0
        older = (1 + torch.sqrt(1 + 4 * age**2)) / 2
        momentum = torch.where(restart, 0, (age - 1) / older)
        age = torch.where(restart, 1, older)
        if keep is not None:
            operator = operator.select(keep.nonzero()[:, 0])
            state = (c, previous, gradient, gradient_previous, y, age, momentum, current, goal, step)
            c, previous, gradient, gradient_previous, y, age, momentum, current, goal, step = (t[keep] for t in state)
    c = run.best * scaling(unit, run.best)
    return run.result(phi.synthesise(c), c.flatten(1))


def _dual(residual: Tensor, gradient: Tensor, y: Tensor, misfit: Tensor, weight: Tensor) -> Tensor:
    """A lower bound of the minimum, [batch]: the dual objective at the best multiple of the residual.

    The dual problem is max −‖θ‖²/4 + <θ, y> over ‖Φ* A* θ‖_∞ <= weight; here θ = −2 s residual with the best s.
    """
    tiny = torch.finfo(misfit.dtype).tiny
    correlation = inner(residual, y)
    allowed = weight / gradient.flatten(1).abs().amax(1).clamp(min=tiny)
    scale = (-correlation / misfit.clamp(min=tiny)).clamp(-allowed, allowed)
    return -(scale**2) * misfit - 2 * scale * correlation
