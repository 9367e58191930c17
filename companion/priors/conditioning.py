"""Prior conditioning: a finer image from a coarser one, x_c, and noise z, invertibly (Zhang et al. 2021, Theorem 3.1).

x = B x_c + Ãᵀ d: B repeats each pixel 2×2, and d, the Haar details of each block, is drawn given x_c. So A x = x_c, the
2×2 average, whatever z is. ``decode`` makes x; encoded batches are flat, [batch, n], x_c first, z after it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from companion import _support
from companion.priors.bijections import Bijection, HaarSqueeze, Mapped
from companion.priors.fields import GaussianField, fold, unfold

_HAAR = HaarSqueeze()  # its averages are twice the mean


class GaussianConditioning(Bijection):
    """x | A x = x_c for x from a Gaussian field: x = Uᶜ x_c + W z, with z ~ N(0, I) (Zhang et al. 2021, Theorem 3.1).

    In Haar coordinates the mean of the details is G x_c with G = Σ_dc Σ_cc⁻¹, and their covariance S = Σ_dd − G Σ_cd,
    whose symmetric root multiplies z: W = Ãᵀ S^(1/2), the paper's Ãᵀ(Ã Σ⁻¹ Ãᵀ)^(−1/2). All is done in each of the four
    mirror symmetries apart: a quarter of the numbers, and of the work.

    Parameters
    ----------
    field
        The finer prior, its side divisible by 4. x is [batch, 1, side, side], x_c [batch, side²/4] and z
        [batch, 3 side²/4].
    """

    gain: Tensor
    root: Tensor
    inverse_root: Tensor
    log_det: Tensor

    def __init__(self, field: GaussianField) -> None:
        super().__init__()
        if field.side % 4:
            raise ValueError(f"field: got side {field.side}; allowed: sides divisible by 4")
        self.coarse_side = field.side // 2
        size = (self.coarse_side // 2) ** 2
        images = torch.eye(4 * size, dtype=torch.float64, device="cpu").view(-1, 1, self.coarse_side, self.coarse_side)
        haar = _HAAR.encode(images)[0].flatten(1)  # each row the transform of one pixel
        covariance = haar.T @ field.blocks() @ haar
        cross = covariance[:, size:, :size]
        gain = torch.linalg.solve(covariance[:, :size, :size], cross.mT).mT
        variances, vectors = torch.linalg.eigh(covariance[:, size:, size:] - gain @ cross.mT)
        std = variances.sqrt()[:, None]
        self.register_buffer("gain", gain)
        self.register_buffer("root", (vectors * std) @ vectors.mT)
        self.register_buffer("inverse_root", (vectors / std) @ vectors.mT)
        self.register_buffer("log_det", std.log().sum() + 4 * size * math.log(2))
        self.to(field.like)

    def encode(self, x: Tensor) -> Mapped:
        parts = _HAAR.encode(fold(x[:, 0]))[0].unflatten(1, (4, 4)).transpose(1, 2).flatten(2)  # [batch, 4, 4 size]
        coarse, detail = parts.tensor_split([self.gain.shape[2]], 2)
        z = _times(self.inverse_root, detail - _times(self.gain, coarse))
        pooled = unfold(coarse.unflatten(2, (self.coarse_side // 2, -1))) / 2
        return torch.cat([pooled.flatten(1), z.flatten(1)], 1), -self.log_det.expand(len(x))

    def decode(self, z: Tensor) -> Mapped:
        pooled, noise = z.tensor_split([self.coarse_side**2], 1)
        coarse = 2 * fold(pooled.unflatten(1, (self.coarse_side, -1))).flatten(2)
        detail = _times(self.gain, coarse) + _times(self.root, noise.unflatten(1, (4, -1)))
        parts = torch.cat([coarse, detail], 2).unflatten(2, (4, self.coarse_side // 2, -1))
        return unfold(_HAAR.decode(parts.transpose(1, 2).flatten(1, 2))[0])[:, None], self.log_det.expand(len(z))


class HaarConditioning(Bijection):
    """x = 4 Aᵀ x_c + μ Ãᵀ z, where the prior of images is white noise, N(0, c I) (Zhang et al. 2021, App. G).

    The paper's Ã is half the orthonormal Haar details, so that these have standard deviation μ/2. With a μ that is not
    the images' it is the stochastic nearest-neighbour layer of the ablation (sec. 6.1.3).

    Parameters
    ----------
    shape
        (channels, height, width) of x, both sides even.
    mu
        μ > 0.
    """

    def __init__(self, shape: Sequence[int], mu: float) -> None:
        super().__init__()
        self.channels, height, width = shape
        if height % 2 or width % 2:
            raise ValueError(f"shape: got {tuple(shape)}; allowed: even height and width")
        self.coarse = (self.channels, height // 2, width // 2)
        self.std = _support.positive("mu", mu) / 2
        self.log_det = math.prod(self.coarse) * (math.log(2) + 3 * math.log(self.std))

    @classmethod
    def fitted(cls, x: Tensor) -> "HaarConditioning":
        """With the μ of images [batch, channels, height, width]: the root mean square of Ã x over λ = 1/4."""
        details = _HAAR.encode(_support.finite("x", x))[0][:, x.shape[1] :]
        return cls(x.shape[1:], 2 * float(details.square().mean().sqrt()))

    def encode(self, x: Tensor) -> Mapped:
        coarse, detail = _HAAR.encode(x)[0].tensor_split([self.channels], 1)
        z = torch.cat([coarse.flatten(1) / 2, detail.flatten(1) / self.std], 1)
        return z, x.new_full((len(x),), -self.log_det)

    def decode(self, z: Tensor) -> Mapped:
        coarse, detail = z.tensor_split([math.prod(self.coarse)], 1)
        parts = [part.unflatten(1, (-1, *self.coarse[1:])) for part in (2 * coarse, detail * self.std)]
        return _HAAR.decode(torch.cat(parts, 1))[0], z.new_full((len(z),), self.log_det)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """One matrix for each mirror symmetry, [4, m, n], times vectors [batch, 4, n]."""
    return torch.einsum("pij,bpj->bpi", matrices, vectors)
