"""Estimates under a Gaussian prior, x = mean + G z with z ~ N(0, I): what a linear flow is, solved in closed form."""

import math

import torch
from torch import Tensor

from companion import _support
from companion.measure.base import LinearOperator
from companion.recover.linear import checked, squared_norm
from companion.recover.minimise import Result

COLUMNS = 512  # of the factor, measured at a time


@torch.no_grad()
def gaussian_map(
    operator: LinearOperator, y: Tensor, factor: Tensor, mean: Tensor | None = None, noise_std: float = 0.0
) -> Result:
    """Most likely image given linear measurements y = A x + δ, when x = mean + G z, z ~ N(0, I) and δ ~ N(0, σ² I).

    With M = A G, the latent is z = Mᵀ (M Mᵀ + σ² I)⁻¹ (y − A mean). For σ > 0 it minimises ‖A x − y‖² / 2σ² + ‖z‖² / 2,
    and x is mode and mean of the posterior. For σ = 0 it is the shortest latent that explains y, and x the constrained
    maximum-likelihood estimate argmax p(x) s.t. A x = y (Hand, lecture notes, "Theory for INNs in linear case").

    Parameters
    ----------
    operator
        Linear, on images of any shape; n is its product.
    y
        Measurements, [batch, *operator.output_shape].
    factor
        G, [n, k]; the covariance of the prior is G Gᵀ.
    mean
        Of the prior, [*operator.shape]; zero if not given.
    noise_std
        σ of the measurement noise, >= 0.

    No energy is evaluated, so `evaluations` are 0. The result's energy is the one above, ‖z‖² / 2 for σ = 0.

    By a QR decomposition of [Mᵀ; σ I], of which only the square is ever as ill-conditioned as M Mᵀ + σ² I. ValueError
    for wrong shapes, NaN, half precision, σ² beyond the range of y's dtype, and for σ = 0 where the measurements of the
    prior's images are linearly dependent.
    """
    y = checked(operator, y)
    size = math.prod(operator.shape)
    _support.finite("factor", factor)
    if factor.dim() != 2 or factor.shape[0] != size:
        raise ValueError(f"factor: got shape {tuple(factor.shape)}; allowed: [{size}, k], a row for each pixel")
    kind = torch.finfo(y.dtype)
    least, most = kind.tiny**0.5, kind.max**0.5
    if _support.positive("noise_std", noise_std, zero=True) and not least <= noise_std <= most:
        raise ValueError(
            f"noise_std: got {noise_std!r}; allowed: 0, or from {least:.2g} to {most:.2g}, whose square {y.dtype} holds"
        )
    factor = factor.detach().to(y)
    centre = y.new_zeros(operator.shape) if mean is None else _support.finite("mean", mean).to(y)
    if tuple(centre.shape) != operator.shape:
        raise ValueError(f"mean: got shape {tuple(centre.shape)}; allowed: {operator.shape}")
    centre = centre[None]
    upper, basis = _decompose(operator, factor, noise_std)
    residual = (y - operator.apply(centre)).flatten(1)
    # One solve for each image: products with another number of columns are rounded differently.
    weights = [torch.linalg.solve_triangular(upper.mT, row[:, None], upper=False) for row in residual]
    z = torch.stack([(basis @ weight)[:, 0] for weight in weights])
    x = centre + torch.stack([factor @ latent for latent in z]).unflatten(1, operator.shape)
    energy = squared_norm(z) / 2
    if noise_std:
        energy = energy + squared_norm(operator.apply(x) - y) / (2 * noise_std**2)
    none = torch.zeros(len(y), dtype=torch.long)
    trace = {"energy": energy[None].double().cpu(), "evaluations": none[None].double()}
    return Result(x, z, energy, trace, none, torch.ones(len(y), dtype=torch.bool), ["closed form"] * len(y))


def _decompose(operator: LinearOperator, factor: Tensor, noise_std: float) -> tuple[Tensor, Tensor]:
    """R, [m, m], and Q, [k, m], with Mᵀ = Q R and Rᵀ R = M Mᵀ + σ² I."""
    columns = factor.mT.unflatten(1, operator.shape).split(COLUMNS)
    measured = torch.cat([operator.apply(part).flatten(1) for part in columns])  # Mᵀ
    latents, m = measured.shape
    if noise_std:
        measured = torch.cat([measured, noise_std * torch.eye(m, dtype=factor.dtype, device=factor.device)])
    basis, upper = torch.linalg.qr(measured)
    pivots = upper.diagonal().abs()
    if len(pivots) < m or pivots.min() <= m * torch.finfo(factor.dtype).eps * pivots.max():
        raise ValueError(
            f"noise_std: got {noise_std}, with {m} measurements that are dependent for a prior of {latents} latents; "
            "allowed: a number > 0"
        )
    return upper, basis[:latents]
