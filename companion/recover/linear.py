"""Estimates from linear measurements without a learned prior: what they share, and the pseudo-inverse ("no prior")."""

import torch
from torch import Tensor

from companion import _support
from companion.measure.base import LinearOperator
from companion.recover.minimise import Result


class Running:
    """The images of a batch that an iterative method still works on, and the best iterate of every image.

    A method keeps state only for the images in `active`, and drops the state of those that stop: an easy image costs
    nothing while its neighbours go on, and its result is the one that it would have had alone.

    Parameters
    ----------
    start
        One iterate per image, [batch, ...].
    energy
        Their energies, [batch].
    spent
        Evaluations spent before the first iteration, for every image.
    """

    def __init__(self, start: Tensor, energy: Tensor, spent: int) -> None:
        self.active = torch.arange(len(start), device=start.device)
        self.best, self.energy, self.spent = start.clone(), energy.clone(), spent
        self.iterations = torch.zeros(len(start), dtype=torch.long, device=start.device)
        self.converged = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        self.reason = ["iteration limit reached"] * len(start)
        self.energies = [energy.clone()]

    def advance(self, iterate: Tensor, energy: Tensor, met: Tensor, reason: str) -> Tensor | None:
        """Take in one iteration of the active images, of which `met` satisfy the stopping rule that `reason` names.

        Returns the mask of those to go on with, or None when all of them do.
        """
        active, sound = self.active, torch.isfinite(energy)
        # Near the minimum energies differ by rounding only: there the rule, not the energy, picks the iterate.
        better = sound & (met | (energy <= self.energy[active]))
        self.best[active] = torch.where(scaling(better, iterate), iterate, self.best[active])
        self.energy[active] = torch.where(better, energy, self.energy[active])
        self.iterations[active] += 1
        row = self.energies[-1].clone()
        row[active] = torch.where(sound, energy, row[active])
        self.energies.append(row)
        keep = sound & ~met
        if bool(keep.all()):
            return None
        self.converged[active] = met & sound
        for image, fine in zip(active[~keep].tolist(), sound[~keep].tolist(), strict=True):
            self.reason[image] = reason if fine else "energy not finite"
        self.active = active[keep]
        return keep

    def result(self, x: Tensor, z: Tensor) -> Result:
        """The result, with the images and the variables made from `best`."""
        iterations = self.iterations.cpu()
        steps = torch.arange(len(self.energies))[:, None]
        trace = {
            "energy": torch.stack(self.energies).double().cpu(),
            "evaluations": (self.spent + torch.minimum(steps, iterations)).double(),
        }
        return Result(x, z, self.energy, trace, self.spent + iterations, self.converged.cpu(), self.reason)


def squared_norm(x: Tensor) -> Tensor:
    """‖x‖² of every image, [batch]."""
    return x.flatten(1).square().sum(1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of every image of a with that of b, [batch]."""
    return (a * b).flatten(1).sum(1)


def scaling(value: Tensor, like: Tensor) -> Tensor:
    """One value per image, [batch], as [batch, 1, ..., 1], to scale the images of `like`."""
    return value.view(-1, *[1] * (like.dim() - 1))


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


def representable(name: str, value: float, like: Tensor) -> float:
    """Return a number if the dtype of `like` can hold it; else ValueError."""
    most = torch.finfo(like.dtype).max
    if value > most:
        raise ValueError(f"{name}: got {value!r}; allowed: at most {most:.2g}, all that {like.dtype} can hold")
    return value


def checked_on_images(operator: LinearOperator, y: Tensor) -> Tensor:
    """As :func:`checked`, and the operator's input are images [channels, height, width]."""
    y = checked(operator, y)
    if len(operator.shape) != 3:
        raise ValueError(f"operator: got one on arrays {operator.shape}; allowed: on images (channels, height, width)")
    return y


def operator_norm(operator: LinearOperator, like: Tensor) -> tuple[float, int]:
    """Largest singular value of a linear operator, and the number of its applications (and the adjoint's) this took.

    By power iteration on A*A from a fixed start, in the dtype and on the device of `like`, until the value moves by
    less than one part in 10⁴, at most 100 times; then it is checked by 20 steps of Lanczos. The value comes from
    below, short by up to 3 per cent where the spectrum is dense at its edge. ValueError for an operator that maps
    everything to zero.
    """
    x = start = _support.normal((1, *operator.shape), 0, like)
    value, spent = 0.0, 0
    while spent < 100:
        spent += 1
        x = operator.apply_adjoint(operator.apply(x / x.norm()))
        before, value = value, float(x.norm()) ** 0.5
        if value == 0:
            raise ValueError("operator: got one that maps everything to zero; allowed: one that measures something")
        if abs(value - before) <= 1e-4 * value:
            break
    # The power iteration may come to rest at a value that many singular vectors share, below that of a single one.
    found, more = _lanczos_norm(operator, start, 20)
    # The callers' methods are stable for steps up to a third too long; 3 per cent in the norm are a fifth of that.
    return (found if found > 1.03 * value else value), spent + more


def _lanczos_norm(operator: LinearOperator, start: Tensor, steps: int) -> tuple[float, int]:
    """Largest singular value by Lanczos on A*A (Golub & Van Loan 2013, sec. 10.1), from below, and the steps taken."""
    before, v, length = torch.zeros_like(start), start / start.norm(), 0.0
    matrix = torch.zeros(steps, steps, dtype=torch.float64)
    for k in range(steps):
        image = operator.apply_adjoint(operator.apply(v)) - length * before
        along = float((image * v).sum())
        image = image - along * v
        length, matrix[k, k] = float(image.norm()), along
        # What is left within rounding of 0 is no direction any more: all that the start can show is known.
        if k + 1 == steps or length <= 10 * torch.finfo(v.dtype).eps * along:
            break
        matrix[k, k + 1] = matrix[k + 1, k] = length
        before, v = v, image / length
    # Where the operator overflows there is nothing to find; its caller's energies will say so.
    sound = bool(torch.isfinite(matrix).all())
    return float(torch.linalg.eigvalsh(matrix)[-1]) ** 0.5 if sound else float("nan"), k + 1


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
    operator
        Linear.
    y
        Measurements, [batch, *operator.output_shape].
    weight
        Of the Tikhonov penalty, >= 0.
    max_iterations
        Most steps for an image.
    tolerance
        An image has converged when ‖A*(y − A x) − weight x‖ <= tolerance ‖A* y‖.

    An evaluation, here and in the result, is one application of A and one of A*. The result's z is x.

    Raises ValueError for an operator that is not linear, measurements of another shape, not finite or in half
    precision, options out of range.
    """
    y = checked(operator, y)
    _support.positive("weight", weight, zero=True)
    _support.count("max_iterations", max_iterations)
    _support.positive("tolerance", tolerance)
    # Squares of very small or large measurements leave the dtype's range; by a power of two, which changes no digit,
    # each image's largest is brought near 1.
    largest = y.flatten(1).abs().amax(1)
    unit = torch.where(largest > 0, largest / (2 * torch.frexp(largest).mantissa), 1)
    y = y / scaling(unit, y)
    residual, gradient = y, operator.apply_adjoint(y)
    x, direction, slope = torch.zeros_like(gradient), gradient, squared_norm(gradient)
    goal = tolerance**2 * slope
    running = Running(x, squared_norm(y), spent=1)
    for _ in range(max_iterations):
        image = operator.apply(direction)
        curvature = squared_norm(image) + weight * squared_norm(direction)
        # Measurements orthogonal to the range of A give a zero direction: the step is then 0, not 0/0.
        step = torch.where(curvature > 0, slope / curvature, 0)
        x = x + scaling(step, x) * direction
        residual = residual - scaling(step, residual) * image
        gradient = operator.apply_adjoint(residual) - weight * x
        before, slope = slope, squared_norm(gradient)
        energy = squared_norm(residual) + weight * squared_norm(x)
        keep = running.advance(x, energy, slope <= goal, "gradient below tolerance")
        if len(running.active) == 0:
            break
        direction = gradient + scaling(torch.where(before > 0, slope / before, 0), x) * direction
        if keep is not None:
            x, residual, direction, slope, goal = (t[keep] for t in (x, residual, direction, slope, goal))
    running.energy, *running.energies = (e * unit * unit for e in (running.energy, *running.energies))
    x = running.best * scaling(unit, running.best)
    return running.result(x, x)
