"""Estimates under a Gaussian prior, x = mean + G z with z ~ N(0, I): what a linear flow is, solved in closed form.

From training images to estimates with 500 noisy measurements of each::

    factor, mean = priors.gaussian_of(training_images)
    A, noise = measure.Gaussian(mean.shape, 500), measure.GaussianNoise(0.05)
    y = measure.Problem(A, noise).observe(x)
    estimate = recover.gaussian_map(A, y, factor, mean, noise.std).x
"""

import math

import torch
from torch import Tensor

from companion import _support
from companion.measure.base import LinearOperator
from companion.priors.linear import wide
from companion.recover.linear import checked, squared_norm
from companion.recover.run import Result

COLUMNS = 512  # of the factor, measured at a time
CONDITION = 1e8  # of M Mᵀ + σ² I, up to which half of float64's digits are left to a Cholesky factor


@torch.no_grad()
def gaussian_map(
    operator: LinearOperator,
    y: Tensor,
    factor: Tensor,
    mean: Tensor | None = None,
    noise_std: float | Tensor = 0.0,
) -> Result:
    """Most likely image given linear measurements y = A x + δ, when x = mean + G z, z ~ N(0, I) and δ ~ N(0, σ² I).

    With M = A G, the latent is z = Mᵀ (M Mᵀ + σ² I)⁻¹ (y − A mean). For σ > 0 it minimises ‖A x − y‖² / 2σ² + ‖z‖² / 2,
    and x is mode and mean of the posterior. For σ = 0 it is the shortest latent that explains y, and x the constrained
    maximum-likelihood estimate argmax p(x) s.t. A x = y (Hand, lecture notes, "Theory for INNs in linear case").

    Parameters
    ----------
    operator
        Linear, on images of any shape; n is its product. One for all images.
    y
        Measurements, [batch, *operator.output_shape], all of the same noise level.
    factor
        G, [n, k]; the covariance of the prior is G Gᵀ. `priors.gaussian_of` makes it from training images.
    mean
        Of the prior, [*operator.shape]; zero if not given.
    noise_std
        σ of the measurement noise, >= 0; or a tensor that broadcasts to `operator.output_shape`, each > 0, where it
        differs from measurement to measurement (σ² I is the matrix of its squares then).

    Computed in float64 whatever the dtypes of the arguments; the result has y's dtype. No energy is evaluated, so
    `evaluations` are 0. The result's energy is the one above, ‖z‖² / 2 for σ = 0.

    By a Cholesky decomposition of σ⁻² M Mᵀ + I where its trace, which bounds the condition, is below 1e8; otherwise by
    a QR decomposition of [Mᵀ; σ I], of which only the square is ever as ill-conditioned, at five times the cost.
    ValueError for wrong shapes, NaN, half precision, and for σ = 0 where the measurements of the prior's images are
    linearly dependent.
    """
    y, like = wide(checked(operator, y)), y
    size = math.prod(operator.shape)
    if _support.finite("factor", factor).dim() != 2 or factor.shape[0] != size:
        raise ValueError(f"factor: got shape {tuple(factor.shape)}; allowed: [{size}, k], a row for each pixel")
    std = _noise_map(noise_std, operator.output_shape).to(y)
    factor = factor.detach().to(y)
    centre = y.new_zeros(operator.shape) if mean is None else _support.finite("mean", mean).to(y)
    if tuple(centre.shape) != operator.shape:
        raise ValueError(f"mean: got shape {tuple(centre.shape)}; allowed: {operator.shape}")
    columns = factor.mT.unflatten(1, operator.shape).split(COLUMNS)
    measured = torch.cat([operator.forward(part).flatten(1) for part in columns])  # Mᵀ
    residual = (y - operator.forward(centre[None])).flatten(1)
    z = _latents(measured, std.flatten(), residual)
    x = centre + (z @ factor.mT).unflatten(1, operator.shape)
    energy = squared_norm(z) / 2
    if std.any():
        energy = energy + squared_norm((operator.forward(x) - y) / std) / 2
    found = torch.ones(len(y), dtype=torch.bool, device="cpu")
    return Result.of_one_step(x.to(like), z.to(like), energy.to(like), 0, found, ["closed form"] * len(y))


def _noise_map(noise_std: float | Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard deviation of each measurement, [*shape]; ValueError for one that is negative, or 0 beside others."""
    if not isinstance(noise_std, Tensor) or noise_std.dim() == 0:
        level = float(_support.positive("noise_std", noise_std, zero=True))
        return torch.full(shape, level, dtype=torch.float64, device="cpu")
    _support.positive("noise_std", float(_support.finite("noise_std", noise_std).min()))
    try:
        return noise_std.detach().expand(shape)
    except RuntimeError:
        given = tuple(noise_std.shape)
        raise ValueError(f"noise_std: got shape {given}; allowed: one that broadcasts to {shape}") from None


def _latents(measured: Tensor, std: Tensor, residual: Tensor) -> Tensor:
    """z = Mᵀ (M Mᵀ + diag(std²))⁻¹ r, [batch, k], for Mᵀ, [k, m], and residuals r, [batch, m]."""
    scaled = measured / std
    if squared_norm(scaled[None]) < CONDITION:  # false for σ = 0
        gram = scaled.mT @ scaled
        gram.diagonal().add_(1)
        return (scaled @ torch.cholesky_solve((residual / std).mT, torch.linalg.cholesky(gram))).mT
    latents, m = measured.shape
    basis, upper = torch.linalg.qr(torch.cat([measured, std.diag()]) if std.any() else measured)  # Q R
    pivots = upper.diagonal().abs()
    if len(pivots) < m or pivots.min() <= m * torch.finfo(std.dtype).eps * pivots.max():
        raise ValueError(
            f"noise_std: got {float(std.min())}, with {m} measurements that are dependent for a prior of {latents} "
            "latents; allowed: a number > 0"
        )
    return (basis[:latents] @ torch.linalg.solve_triangular(upper.mT, residual.mT, upper=False)).mT
