"""Estimates from linear measurements without a learned prior: what they share, and the pseudo-inverse ("no prior")."""

import torch
from torch import Tensor

from companion import _support
from companion.measure.base import LinearOperator
from companion.recover.run import Result, Run, power_of_two, scaling


def squared_norm(x: Tensor) -> Tensor:
    """‖x‖² of every image, [batch]."""
    return x.flatten(1).square().sum(1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of every image of a with that of b, [batch]."""
    return (a * b).flatten(1).sum(1)


def checked(operator: LinearOperator, y: Tensor) -> Tensor:
    """The measurements, without their graph, if they belong to the linear operator and are finite; else ValueError.

    Half precision is refused: its rounding hides whether a method has converged.
    """
    if not isinstance(operator, LinearOperator):
        raise ValueError(f"operator: got {type(operator).__name__}; allowed: a linear operator, one with an adjoint")
    _support.finite("y", _support.batch_of("y", y, operator.output_shape))
    if y.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"y: got {y.dtype}; allowed: torch.float32 or torch.float64")
    return y.detach()


def weights(weight: float, unit: Tensor) -> Tensor:
    """A weight > 0 of a penalty of degree 1 for measurements :func:`in_units`, [batch]; ValueError if out of range."""
    weight, most = _support.positive("weight", weight), torch.finfo(unit.dtype).max
    if weight > most:
        raise ValueError(f"weight: got {weight!r}; allowed: at most {most:.2g}, all that {unit.dtype} can hold")
    return (weight / unit).clamp(torch.finfo(unit.dtype).tiny, most**0.5)  # beyond, nothing but the penalty counts


def checked_on_images(operator: LinearOperator, y: Tensor) -> Tensor:
    """As :func:`checked`, and the operator's input are images [channels, height, width]."""
    y = checked(operator, y)
    if len(operator.shape) != 3:
        raise ValueError(f"operator: got one on arrays {operator.shape}; allowed: on images (channels, height, width)")
    return y


def in_units(y: Tensor) -> tuple[Tensor, Tensor]:
    """The measurements over a power of two near each image's largest, which changes no digit; and those units, [batch].

    Squares of very small or large measurements would leave the dtype's range.
    """
    unit = power_of_two(y.flatten(1).abs().amax(1))
    return y / scaling(unit, y), unit


def check_fit(forward: Tensor, back: Tensor, size: Tensor) -> None:
    """ValueError where ⟨A x, y⟩ = `forward` and ⟨x, A* y⟩ = `back` differ by more than 1 per mille of ‖A x‖ ‖y‖."""
    if bool(((forward - back).abs() > 1e-3 * size).any()):
        raise ValueError(
            "operator: got an adjoint that does not belong to it; allowed: <A x, y> = <x, A* y> for all x and y, "
            "which measure.check_adjoint tests"
        )


def operator_norm(operator: LinearOperator, like: Tensor) -> tuple[Tensor, Tensor]:
    """Largest singular value of a linear operator for each row of `like`, [batch], and the evaluations each took.

    By power iteration on A*A from a fixed start, in the dtype and on the device of `like`, until the value moves by
    less than one part in 10⁴, at most 100 times; then it is checked by 20 steps of Lanczos. The value comes from
    below, short by up to 3 per cent where the spectrum is dense at its edge. An operator that all images share is
    looked at once. ValueError for an operator that maps everything to zero, or whose adjoint is another's.
    """
    one = _support.normal((1, *operator.shape), 0, like, "operator norm")
    x = start = one if operator.select([0]) is operator else one.expand(len(like), *operator.shape)
    value, spent = like.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.long, device="cpu")
    moving = value == 0  # each row stops by itself, as it would alone
    while moving.any() and spent.max() < 100:
        spent += moving.cpu()
        direction = x / scaling(squared_norm(x).sqrt(), x)
        image = operator.forward(direction)
        x = operator.transpose(image)
        check_fit(squared_norm(image), inner(direction, x), squared_norm(image))
        now = squared_norm(x) ** 0.25
        if (now == 0).any():
            raise ValueError("operator: got one that maps everything to zero; allowed: one that measures something")
        still = (now - value).abs() > 1e-4 * now
        value, moving = torch.where(moving, now, value), moving & still
    # The power iteration may come to rest at a value that many singular vectors share, below that of a single one.
    found, more = _lanczos_norm(operator, start, 20)
    # The callers' methods are stable for steps up to a third too long; 3 per cent in the norm are a fifth of that.
    return torch.where(found <= 1.03 * value, value, found).expand(len(like)), (spent + more).expand(len(like))


def _lanczos_norm(operator: LinearOperator, start: Tensor, steps: int) -> tuple[Tensor, int]:
    """Largest singular values by Lanczos on A*A (Golub & Van Loan 2013, sec. 10.1), from below, and the steps taken."""
    before, v = torch.zeros_like(start), start / scaling(squared_norm(start).sqrt(), start)
    length = start.new_zeros(len(start))
    matrix = torch.zeros(len(start), steps, steps, dtype=torch.float64, device="cpu")
    for k in range(steps):
        image = operator.transpose(operator.forward(v)) - scaling(length, v) * before
        along = inner(image, v)
        image = image - scaling(along, v) * v
        length = squared_norm(image).sqrt()
        matrix[:, k, k] = along.double().cpu()
        # What is left within rounding of 0 is no direction any more: all that the start can show is known.
        length = torch.where(length > 10 * torch.finfo(v.dtype).eps * along, length, 0)
        if k + 1 == steps or not length.any():
            break
        matrix[:, k, k + 1] = matrix[:, k + 1, k] = length.double().cpu()
        before, v = v, image * scaling(torch.where(length > 0, 1 / length, 0), v)
    # Where the operator overflows there is nothing to find; its caller's energies will say so.
    sound = torch.isfinite(matrix).all(2).all(1)
    largest = torch.linalg.eigvalsh(torch.where(sound[:, None, None], matrix, 0))[:, -1].clamp(min=0).sqrt()
    return torch.where(sound, largest, torch.nan).to(start), k + 1


@torch.no_grad()
def pseudo_inverse(
    operator: LinearOperator,
    y: Tensor,
    weight: float = 0.0,
    *,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Result:
    """Least squares without a prior: argmin ‖A x − y‖² + weight ‖x‖², and among the minimisers the one of least norm.

    Conjugate gradients on the normal equations, without ever forming A*A (CGLS; Björck 1996, Numerical Methods for
    Least Squares Problems, sec. 7.4), started at zero, so that the iterates stay in the range of A*.

    Parameters
    ----------
    operator, y
        Linear; and measurements, [batch, *operator.output_shape].
    weight
        Of the Tikhonov penalty, >= 0.
    max_iterations
        Most steps for an image.
    tolerance
        An image has converged when ‖A*(y − A x) − weight x‖ <= tolerance ‖A* y‖.

    An evaluation, here and in the result, is one application of A and one of A*.

    Raises ValueError for an operator that is not linear or has another's adjoint, measurements of another shape, not
    finite or in half precision, options out of range.
    """
    y, unit = in_units(checked(operator, y))
    weight = _support.positive("weight", weight, zero=True)
    max_iterations = _support.count("max_iterations", max_iterations)
    tolerance = _support.positive("tolerance", tolerance)
    residual, gradient = y, operator.transpose(y)
    x, direction, slope = torch.zeros_like(gradient), gradient, squared_norm(gradient)
    goal = tolerance**2 * slope
    run = Run(x, squared_norm(y), 1, max_iterations, unit=unit.cpu().double() ** 2)
    while len(run.active):
        image = operator.forward(direction)
        if not run.iterations.any():
            check_fit(inner(image, y), slope, (squared_norm(image) * squared_norm(y)).sqrt())
        curvature = squared_norm(image) + weight * squared_norm(direction)
        # Measurements orthogonal to the range of A give a zero direction: the step is then 0, not 0/0.
        step = torch.where(curvature > 0, slope / curvature, 0)
        x = x + scaling(step, x) * direction
        residual = residual - scaling(step, residual) * image
        gradient = operator.transpose(residual) - weight * x
        before, slope = slope, squared_norm(gradient)
        energy = squared_norm(residual) + weight * squared_norm(x)
        keep = run.advance(x, energy, slope <= goal, "gradient below tolerance")
        direction = gradient + scaling(torch.where(before > 0, slope / before, 0), x) * direction
        if keep is not None:
            operator = operator.select(keep.nonzero()[:, 0])
            x, residual, direction, slope, goal = (t[keep] for t in (x, residual, direction, slope, goal))
    return run.result(run.best * scaling(unit, run.best), None)
