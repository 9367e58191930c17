"""Minimise an energy for a batch of images at once, each as if it were alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from companion import _support
from companion.recover.adam import adam
from companion.recover.lbfgs import LBFGS
from companion.recover.objective import Evaluation, Objective, Recorder, Stopping, Watch

METHODS = ("lbfgs", "adam")
PATIENCE = {"lbfgs": 10, "adam": 100}


@dataclass(frozen=True)
class Result:
    """What a minimiser found, image by image.

    Attributes
    ----------
    x : Tensor
        Images, [batch, *shape], not clipped; the variable itself where the energy is a plain function.
    z : Tensor
        Their latents, [batch, n]; likewise.
    energy : Tensor
        Energy of the best iterate, which x and z are, [batch].
    trace : dict[str, Tensor]
        "energy" and "evaluations" (spent so far) at each iteration, from the start on, and whatever was watched;
        [steps, batch], float64. An image that stopped early keeps its last value.
    evaluations : Tensor
        Evaluations of energy and gradient spent on each image, [batch].
    converged : Tensor
        Boolean, [batch].
    reason : list[str]
        Why each image stopped.
    """

    x: Tensor
    z: Tensor
    energy: Tensor
    trace: dict[str, Tensor]
    evaluations: Tensor
    converged: Tensor
    reason: list[str]


@torch.inference_mode(False)  # gradients are needed, whatever mode the caller is in
def minimise(
    energy: Callable[[Tensor], Tensor],
    z0: Tensor,
    method: str = "lbfgs",
    *,
    max_iterations: int = 500,
    max_evaluations: int | None = None,
    tolerance_gradient: float | None = None,
    tolerance_change: float | None = None,
    history: int = 100,
    learning_rate: float = 0.01,
    watch: Watch | None = None,
    progress: bool = False,
) -> Result:
    """Minimise an energy over the variable of each image.

    Parameters
    ----------
    energy
        Function of z, [batch, ...] → [batch], whose every value depends on its own row only; usually a
        :class:`companion.energy.Energy`, of which finished images are then left out and cost nothing more.
    z0
        Start, [batch, ...]: latents, or images for an energy in image space.
    method
        "lbfgs" (limited-memory BFGS with a strong Wolfe line search), or "adam".
    max_iterations
        Most steps for an image.
    max_evaluations
        Most evaluations of energy and gradient for an image, the one at the start included; None for no limit.
    tolerance_gradient
        An image has converged when no entry of its gradient is larger. Default: 10⁻⁷ in float64, 10⁻⁵ in float32.
    tolerance_change
        It has converged, too, when its energy fell by less than this fraction of itself in the last 10 iterations of
        L-BFGS (100 of Adam). Default: 10 rounding units of the dtype.
    history
        Pairs of steps and gradient changes that L-BFGS remembers: 2 · history · n numbers for each image.
    learning_rate
        Of Adam.
    watch
        Functions of (images, latents) of the whole batch → [batch], recorded in the trace at every iteration under
        their names: PSNR, norms; "energy" and "evaluations" are taken. They cost no extra evaluation.
    progress
        Show a bar of the iterations.

    Where an energy or gradient is not finite, the line search steps back; Adam stops that image. Where it is not
    finite at the start, the image starts from z0 / 4, z0 / 16, … instead; its reason says so, and it does not count
    as converged. In every case the best iterate is kept, and no other image is touched. "Best" is up to 4 rounding
    units of max(1, |energy|).

    The results for an image do not depend on the others, up to the rounding of its energy, which can depend on the
    size of the batch (see :func:`companion.measure.base.never_alone`); an unstable search may then end elsewhere.

    Works under ``torch.inference_mode()`` too, unless the prior itself was made there.

    Raises ValueError for a start that is not a finite floating-point batch, for an energy without a gradient, and for
    options out of range.
    """
    start, objective, watched = _checked(energy, z0, method, history, learning_rate, watch)
    wide = z0.dtype == torch.float64
    stopping = Stopping(
        _support.count("max_iterations", max_iterations),
        None if max_evaluations is None else _support.count("max_evaluations", max_evaluations),
        _or("tolerance_gradient", tolerance_gradient, 1e-7 if wide else 1e-5),
        _or("tolerance_change", tolerance_change, 10 * torch.finfo(z0.dtype).eps),
        PATIENCE[method],
    )
    with tqdm(total=max_iterations, desc=method, unit="step", disable=not progress) as bar:
        recorder = Recorder(len(z0), watched, bar if progress else None)
        start, first, shrunk = _finite_start(objective, start, stopping)
        recorder.note(list(range(len(z0))), first.value, objective, first.seen)
        if method == "lbfgs":
            outcome = LBFGS(objective, start, first, recorder, stopping, history).run()
        else:
            outcome = adam(objective, start, first, recorder, stopping, learning_rate)
    for row, value in enumerate(first.value):
        factor = shrunk.get(row)
        if value == float("inf"):
            tried = f", nor at any multiple down to {factor:.1e} z0" if factor else ""
            outcome.close(row, (False, f"energy or gradient not finite at z0{tried}"))
        elif factor:
            outcome.close(
                row,
                (False, f"energy or gradient not finite at z0, so started at {factor:.2g} z0; {outcome.reason[row]}"),
            )
    x = z = outcome.variable.unflatten(1, objective.shape)
    if hasattr(energy, "at"):
        with torch.no_grad():
            point = energy.at(x)
            x, z = point.x, point.z
    return Result(
        x,
        z,
        torch.tensor(outcome.value, dtype=torch.float64).to(z0),
        recorder.trace(),
        torch.tensor(objective.evaluations),
        torch.tensor(outcome.converged),
        outcome.reason,
    )


def _checked(
    energy: Callable[[Tensor], Tensor], z0: Tensor, method: str, history: int, learning_rate: float, watch: Watch | None
) -> tuple[Tensor, Objective, Watch]:
    if not callable(energy):
        raise ValueError(
            f"energy: got {type(energy).__name__}; allowed: a function of z that returns one value per image"
        )
    _support.finite("z0", z0)
    if z0.dim() < 2 or len(z0) < 1:
        raise ValueError(f"z0: got shape {tuple(z0.shape)}; allowed: [batch, ...] with batch >= 1")
    _support.one_of("method", method, METHODS)
    _support.count("history", history)
    _support.positive("learning_rate", learning_rate)
    for name, function in (watch or {}).items():
        if name in ("energy", "evaluations") or not callable(function):
            raise ValueError(
                f"watch: got {name!r}: {type(function).__name__}; "
                "allowed: functions, under other names than energy and evaluations"
            )
    return z0.detach().flatten(1).clone(), Objective(energy, z0, bool(watch)), watch or {}


def _or(name: str, value: float | None, default: float) -> float:
    return default if value is None else _support.positive(name, value, zero=True)


def _finite_start(
    objective: Objective, start: Tensor, stopping: Stopping
) -> tuple[Tensor, Evaluation, dict[int, float]]:
    """The start, its evaluation, and the factor for each image that had to start nearer to the origin to be finite."""
    first = objective(start, list(range(len(start))))
    factors: dict[int, float] = {}
    for power in range(1, 13):
        bad = [
            row
            for row, value in enumerate(first.value)
            if value == float("inf") and not stopping.spent(objective.evaluations[row])
        ]
        if not bad:
            break
        start[bad] = start[bad] / 4
        again = objective(start[bad], bad)
        first.gradient[bad] = again.gradient
        for k, row in enumerate(bad):
            first.value[row], factors[row] = again.value[k], 0.25**power
        if first.seen and again.seen:
            for whole, part in zip(first.seen, again.seen, strict=True):
                whole[bad] = part
    return start, first, factors
