"""Plug-and-play: any denoiser in the place of a penalty's proximal map."""

from collections.abc import Callable

import torch
from torch import Tensor

from companion import _support
from companion.energy.terms import shaped
from companion.measure.base import LinearOperator
from companion.recover.linear import checked, pseudo_inverse, squared_norm
from companion.recover.run import Result, Run

Denoiser = Callable[[Tensor, float], Tensor]


@torch.no_grad()
def plug_and_play(
    operator: LinearOperator,
    y: Tensor,
    denoise: Denoiser,
    noise_std: float,
    strength: float,
    *,
    shrink: float = 1.0,
    x0: Tensor | None = None,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
) -> Result:
    """Images from linear measurements y = A x + δ, δ ~ N(0, σ² I), by a denoiser D (Venkatakrishnan et al. 2013).

    ADMM for ‖A x − y‖² / 2σ² + R(v) under x = v, the proximal map of s² R replaced by D(·, s)::

        x ← argmin ‖A x − y‖² / 2σ² + ‖x − (v − u)‖² / 2s²
        v ← D(x + u, s)
        u ← u + x − v

    Where D is the proximal map of s² R, v converges to the minimiser whatever s is. Another denoiser has no R: then s
    decides where the iteration comes to rest, and only bounded denoisers with `shrink` < 1 are sure to (Chan et al.
    2017, theorem 1).

    Parameters
    ----------
    operator, y
        Linear, on images of any shape; and measurements, [batch, *operator.output_shape].
    denoise
        D(images, std): as many denoised images from [k, *operator.shape], each by itself, of any floating-point dtype;
        std is s.
    noise_std
        σ of the measurements, > 0.
    strength, shrink
        s of the first iteration, > 0, and what it is multiplied by after each, in (0, 1].
    x0
        First v, [batch, *operator.shape]; zero if not given. Matters where A sees little.
    max_iterations
        Most iterations for an image.
    tolerance
        An image has converged when the root mean square of x − v and of the change of v together is at most this.

    The first step is exact, by conjugate gradients (:func:`pseudo_inverse`). The result's x are the v of the iteration
    nearest to a fixed point, its energy the mean of (x − v)² + (change of v)² there: nothing else is minimised. An
    evaluation is one run of the denoiser. An image whose denoiser returns what is not finite stops at what it had.

    Raises ValueError for an operator that is not linear, wrong shapes, NaN, half precision, options out of range, and
    for a denoiser that returns another shape or whole numbers.
    """
    y = checked(operator, y)
    noise_std, strength = _support.positive("noise_std", noise_std), _support.positive("strength", strength)
    shrink = _support.number("shrink", shrink, "a number in (0, 1]", lambda value: 0 < value <= 1)
    max_iterations = _support.count("max_iterations", max_iterations)
    tolerance = _support.positive("tolerance", tolerance)
    v = y.new_zeros(len(y), *operator.shape) if x0 is None else x0.detach().to(y)
    _support.finite("x0", _support.batch_of("x0", v, operator.shape))
    if len(v) != len(y):
        raise ValueError(f"x0: got {len(v)} images for {len(y)} measurements; allowed: one for each")
    exact = 1e-12 if y.dtype == torch.float64 else 1e-6
    u = torch.zeros_like(v)
    run = Run(v, v.new_full((len(v),), torch.inf), 0, max_iterations)
    while len(run.active):
        centre = v - u
        weight, residual = (noise_std / strength) ** 2, y - operator.forward(centre)
        x = centre + pseudo_inverse(operator, residual, weight, tolerance=exact).x
        before, v = v, shaped("denoise", denoise(x + u, strength), x.shape)
        if not v.is_floating_point():
            raise ValueError(f"denoise: got {v.dtype} images; allowed: floating-point ones")
        v = v.to(x)
        u = u + x - v
        residue = (squared_norm(x - v) + squared_norm(v - before)) / v[0].numel()
        keep = run.advance(v, residue, residue <= tolerance**2, "at rest within the tolerance")
        strength *= shrink
        if keep is not None:
            operator = operator.select(keep.nonzero()[:, 0])
            v, u, y = (t[keep] for t in (v, u, y))
    return run.result(run.best, None)
