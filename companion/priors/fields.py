"""The Gaussian random field of Zhang et al. 2021 on a square lattice, and what average pooling makes of it.

Sines diagonalise its covariance at the finest scale; pooling keeps its mirror symmetries, in which a coarse covariance
falls into four blocks.
"""

import math
from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor

from companion import _sines, _support
from companion.priors.bijections import Bijection, Mapped
from companion.priors.flow import Flow


class GaussianField(Flow):
    """N(0, Σ) on a `side` × `side` lattice, Σ = β² L^(−1−α) with the graph Laplacian L (Zhang et al. 2021, App. F.1).

    L has 4 on the diagonal and −1 for neighbours, with zeros around the lattice (Dirichlet); it is not scaled by the
    mesh size, which the paper leaves open. Its eigenvectors are sin(π k i / (n + 1)), i = 1…n, in each direction. A
    field coarser than `finest` is the push-forward of the finest one under 2×2 average pooling, Σ_{l−1} = A Σ_l Aᵀ
    (App. D), not a field with the Laplacian of its own lattice.

    It is a flow whose map is linear: the latents z are the coordinates along the principal modes in units of their
    standard deviation. Computed in float64; ``.to(torch.float32)`` rounds what was computed.

    Parameters
    ----------
    side
        Even number of points in each direction; fields are [batch, side²], x[i · side + j] at (s₁, s₂) = (i, j).
    alpha, beta
        α >= 0 and β > 0: smoothness and scale.
    finest
        Side of the lattice that L lives on: `side` times a power of two; None for `side` itself.

    Attributes
    ----------
    std : Tensor
        Standard deviation along each mode, [side²].
    """

    def __init__(self, side: int = 64, alpha: float = 0.1, beta: float = 2.0, finest: int | None = None) -> None:
        self.side = even("side", side)
        self.finest = self.side if finest is None else even("finest", finest)
        self.alpha, self.beta = _support.positive("alpha", alpha, zero=True), _support.positive("beta", beta)
        ratio, rest = divmod(self.finest, self.side)
        if rest or ratio & (ratio - 1) or ratio < 1:
            raise ValueError(f"finest: got {self.finest}; allowed: side = {self.side} times a power of two")
        modes: Modes = SineModes(self._spectrum()) if ratio == 1 else BlockModes(self.blocks())
        super().__init__((self.side**2,), modes, pixels=None)

    @property
    def modes(self) -> "Modes":
        """The principal modes, which are the flow's bijection."""
        return cast(Modes, self.bijection)

    @property
    def std(self) -> Tensor:
        return self.modes.std

    def coarsen(self) -> "GaussianField":
        """The push-forward under 2×2 average pooling, a field of half the side; ValueError for side 2, 6, 10, …."""
        if self.side % 4:
            raise ValueError(f"coarsen: got a field of side {self.side}; allowed: sides divisible by 4")
        return GaussianField(self.side // 2, self.alpha, self.beta, self.finest).to(self.like)

    def mirror(self, x: Tensor) -> Tensor:
        """M x, the field with s₂ and 1 − s₂ exchanged, [batch, side²]: as likely as x."""
        return x.unflatten(1, (self.side, self.side)).flip(2).flatten(1)

    def precision(self, x: Tensor) -> Tensor:
        """Σ⁻¹ x, [batch, side²]: minus the gradient of log_prob."""
        return self.modes.expand(self.modes.project(x) / self.std.square())

    def covariance(self) -> Tensor:
        """Σ, [side², side²]."""
        return self.modes.expand(self.modes.project(self._unit_vectors()) * self.std.square())

    def leading(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` orthonormal modes of largest variance, [count, side²], and their standard deviations, [count]."""
        order = self.std.argsort(descending=True, stable=True)[: _support.count("count", count)]
        return self.modes.expand(self._unit_vectors()[order]), self.std[order]

    def blocks(self) -> Tensor:
        """Σ in the coordinates of :func:`fold`, where it is block-diagonal; float64, [4, side²/4, side²/4]."""
        spectrum, rows = self._spectrum(), _sines.sines(self.finest).unflatten(0, (self.side, -1)).mean(1)
        top, bottom = rows[: self.side // 2], rows.flip(0)[: self.side // 2]
        # sines of odd k = 1, 3, … are even about the middle, those of even k odd
        halves = [((top + bottom) / 2**0.5)[:, 0::2], ((top - bottom) / 2**0.5)[:, 1::2]]
        products = [torch.einsum("ik,jk->ijk", half, half).flatten(0, 1) for half in halves]
        size = self.side // 2
        return torch.stack(
            [
                (products[a] @ spectrum[a::2, b::2] @ products[b].T)
                .view(size, size, size, size)  # (row, row', column, column')
                .transpose(1, 2)
                .reshape(size**2, size**2)
                for a in (0, 1)
                for b in (0, 1)
            ]
        )

    def _unit_vectors(self) -> Tensor:
        return torch.eye(self.latent_dim, dtype=self.like.dtype, device=self.like.device)

    def _spectrum(self) -> Tensor:
        """The eigenvalues of Σ at the finest scale, [finest, finest]; float64."""
        return self.beta**2 * _sines.laplacian_spectrum(self.finest) ** (-1 - self.alpha)


class Modes(Bijection):
    """x = V diag(std) z with orthonormal V, the principal modes; both directions cost the same."""

    std: Tensor

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Coordinates Vᵀ x, [batch, d]."""

    @abstractmethod
    def expand(self, coordinates: Tensor) -> Tensor:
        """V c, [batch, d]."""

    def encode(self, x: Tensor) -> Mapped:
        return self.project(x) / self.std, -self.std.log().sum().expand(len(x))

    def decode(self, z: Tensor) -> Mapped:
        return self.expand(z * self.std), self.std.log().sum().expand(len(z))


class SineModes(Modes):
    """The modes of a covariance that the sine transform diagonalises; `spectrum` [n, n] holds its eigenvalues."""

    sines: Tensor

    def __init__(self, spectrum: Tensor) -> None:
        super().__init__()
        self.register_buffer("std", spectrum.sqrt().flatten())
        self.register_buffer("sines", _sines.sines(len(spectrum)))

    def project(self, x: Tensor) -> Tensor:
        return _sines.transform(x.unflatten(1, self.sines.shape), self.sines).flatten(1)

    def expand(self, coordinates: Tensor) -> Tensor:
        return self.project(coordinates)  # the transform is its own inverse


class BlockModes(Modes):
    """The modes of a covariance given by its four blocks, [4, q, q], in the coordinates of :func:`fold`."""

    vectors: Tensor

    def __init__(self, blocks: Tensor) -> None:
        super().__init__()
        variances, vectors = torch.linalg.eigh(blocks)
        self.register_buffer("std", variances.sqrt().flatten())
        self.register_buffer("vectors", vectors)

    def project(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        return torch.einsum("bpi,pik->bpk", fold(x.unflatten(1, (side, side))).flatten(2), self.vectors).flatten(1)

    def expand(self, coordinates: Tensor) -> Tensor:
        blocks, half = coordinates.unflatten(1, self.vectors.shape[:2]), math.isqrt(self.vectors.shape[1])
        folded = torch.einsum("bpk,pik->bpi", blocks, self.vectors)
        return unfold(folded.unflatten(2, (half, half))).flatten(1)


def fold(x: Tensor) -> Tensor:
    """The parts of x, [..., m, m], that are even or odd about the middle of each axis: [..., 4, m/2, m/2]; orthogonal.

    In the order (even, even), (even, odd), (odd, even), (odd, odd) of (rows, columns).
    """
    half = x.shape[-1] // 2
    top, bottom = x[..., :half, :], x.flip(-2)[..., :half, :]
    rows = torch.stack([top + bottom, top - bottom], -3)
    left, right = rows[..., :half], rows.flip(-1)[..., :half]
    return torch.stack([left + right, left - right], -3).flatten(-4, -3) / 2


def unfold(parts: Tensor) -> Tensor:
    """The inverse of :func:`fold`: [..., m, m] from [..., 4, m/2, m/2]."""
    even_columns, odd_columns = parts.unflatten(-3, (2, 2)).unbind(-3)
    rows = torch.cat([even_columns + odd_columns, (even_columns - odd_columns).flip(-1)], -1)
    even_rows, odd_rows = rows.unbind(-3)
    return torch.cat([even_rows + odd_rows, (even_rows - odd_rows).flip(-2)], -2) / 2


def even(name: str, value: int) -> int:
    """Return an even number >= 2; else raise ValueError."""
    whole = _support.count(name, value, least=2)
    if whole % 2:
        raise ValueError(f"{name}: got {value!r}; allowed: an even number >= 2")
    return whole
