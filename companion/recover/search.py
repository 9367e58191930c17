"""Minimise an energy for a batch of images at once, each as if it were alone."""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from companion import _support
from companion.energy import Function, Objective
from companion.recover.adam import adam
from companion.recover.descent import Descent, Stopping
from companion.recover.lbfgs import LBFGS
from companion.recover.run import Result, Watch

METHODS = ("lbfgs", "adam")
PATIENCE = {"lbfgs": 10, "adam": 100}


@torch.inference_mode(False)  # gradients are needed, whatever mode the caller is in
def minimise(
    energy: Objective | Callable[[Tensor], Tensor],
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
        A :class:`companion.energy.Objective`, usually an :class:`companion.energy.Energy`, of which finished images are
        left out and cost nothing more; or a plain function, [batch, ...] → [batch], whose every value depends on its
        own row only, evaluated for the whole batch always.
    z0
        Start, [batch, ...]: latents, or images for an energy in image space.
    method
        "lbfgs" (limited-memory BFGS with a strong Wolfe line search), or "adam".
    max_iterations
        Most steps for an image.
    max_evaluations
        Most evaluations of energy and gradient for an image, the one at the start included; None for no limit.
    tolerance_gradient
        An image has converged when the largest entry of its gradient is at most this fraction of what it was at the
        start. Default: 10⁻⁹ in float64, 10⁻⁶ in float32.
    tolerance_change
        It has converged, too, when its energy fell by less than this fraction of itself in the last 10 iterations of
        L-BFGS (100 of Adam: so it counts, too, where steps too long find nothing better; the trace's end then lies
        above the result's energy). Default: 10 rounding units of the dtype.
    history
        Pairs of steps and gradient changes that L-BFGS remembers: 2 · history · n numbers for each image.
    learning_rate
        Of Adam.
    watch
        Functions of (images, latents) of the whole batch → [batch], recorded in the trace at every iteration under
        their names: PSNR, norms; "energy" and "evaluations" are taken. They cost no extra evaluation.
    progress
        Show a bar of the iterations.

    No threshold depends on the scale of the energy: c times the energy ends where the energy does.

    Where an energy or gradient is not finite, the line search steps back; Adam stops that image. Where it is not
    finite at the start, the image starts from z0 / 4, z0 / 16, … instead; its reason says so, and it does not count
    as converged; nor does an image whose gradient is zero at the start while its energy is not. In every case the best
    iterate is kept, and no other image is touched. "Best" is up to rounding.

    The results for an image do not depend on the others, up to the rounding of its energy and gradient, which can
    depend on the size of the batch; an unstable search may then end elsewhere.

    Works under ``torch.inference_mode()`` too, unless the prior itself was made there.

    Raises ValueError for a start that is not a finite floating-point batch, for an energy without a gradient, and for
    options out of range.
    """
    objective, watch = _checked(energy, z0, watch)
    _support.one_of("method", method, METHODS)
    history = _support.count("history", history)
    learning_rate = _support.positive("learning_rate", learning_rate)
    wide = z0.dtype == torch.float64
    stopping = Stopping(
        _support.count("max_iterations", max_iterations),
        None if max_evaluations is None else _support.count("max_evaluations", max_evaluations),
        _or("tolerance_gradient", tolerance_gradient, 1e-9 if wide else 1e-6),
        _or("tolerance_change", tolerance_change, 10 * torch.finfo(z0.dtype).eps),
        PATIENCE[method],
    )
    with tqdm(total=stopping.max_iterations, desc=method, unit="step", disable=not progress) as bar:
        descent = Descent(objective, z0, stopping, watch, bar if progress else None)
        if method == "lbfgs":
            LBFGS(descent, min(history, stopping.max_iterations)).run()
        else:
            adam(descent, learning_rate)
    with torch.no_grad():
        point = objective.at(descent.run.best.unflatten(1, z0.shape[1:]))
        return descent.result(point.x, None if isinstance(objective, Function) else point.z)


def _checked(energy: object, z0: Tensor, watch: Watch | None) -> tuple[Objective, Watch]:
    if not callable(energy):
        raise ValueError(
            f"energy: got {type(energy).__name__}; allowed: a function of z that returns one value per image"
        )
    _support.finite("z0", z0)
    if z0.dim() < 2 or len(z0) < 1:
        raise ValueError(f"z0: got shape {tuple(z0.shape)}; allowed: [batch, ...] with batch >= 1")
    for name, function in (watch or {}).items():
        if name in ("energy", "evaluations") or not callable(function):
            raise ValueError(
                f"watch: got {name!r}: {type(function).__name__}; "
                "allowed: functions, under other names than energy and evaluations"
            )
    return energy if isinstance(energy, Objective) else Function(energy, z0), watch or {}


def _or(name: str, value: float | None, default: float) -> float:
    return default if value is None else _support.positive(name, value, zero=True)
