"""Invertible maps with tractable log-determinants: the parts of which every flow is built.

Each map has two directions, named after what they do to an image: ``encode`` (towards the latent) and ``decode``
(towards the image). Both return the mapped batch and log|det J| of that direction, one value per image.
Neither draws random numbers nor changes any state.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from companion import _support

Mapped = tuple[Tensor, Tensor]


class Bijection(nn.Module, ABC):
    """An invertible map of batches."""

    @abstractmethod
    def encode(self, x: Tensor) -> Mapped:
        """Map towards the latent: (z, log|det dz/dx| of shape [batch])."""

    @abstractmethod
    def decode(self, z: Tensor) -> Mapped:
        """Map towards the image: (x, log|det dx/dz| of shape [batch])."""

    def initialise(self, x: Tensor) -> Tensor:
        """Set data-dependent parameters from one batch `x`, and return the encoded batch; most maps have none."""
        return self.encode(x)[0]


def _per_image(value: Tensor, x: Tensor) -> Tensor:
    """A log-determinant that is the same for every image of the batch, as [batch]."""
    return value.to(x.dtype).expand(x.shape[0])


class Chain(Bijection):
    """Bijections applied one after the other (in the order given when encoding).

    The result saturates at ±1e10: far beyond anything a trained flow produces, and far enough below the largest float32 that
    the next chain cannot overflow, whatever its weights are. So a broken flow gives large finite numbers, never NaN, and
    :meth:`companion.priors.Flow.check` tells.
    """

    limit = 1e10

    def __init__(self, parts: Sequence[Bijection]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def encode(self, x: Tensor) -> Mapped:
        total = x.new_zeros(x.shape[0])
        for part in self.parts:
            x, log_det = part.encode(x)
            total = total + log_det
        return x.clamp(-self.limit, self.limit), total

    def decode(self, z: Tensor) -> Mapped:
        total = z.new_zeros(z.shape[0])
        for part in reversed(self.parts):
            z, log_det = part.decode(z)
            total = total + log_det
        return z.clamp(-self.limit, self.limit), total

    def initialise(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part.initialise(x)
        return x


class Squeeze(Bijection):
    """Space to depth: each 2×2 block of pixels becomes four channels (Dinh et al. 2017, sec. 3.6)."""

    def encode(self, x: Tensor) -> Mapped:
        return F.pixel_unshuffle(x, 2), x.new_zeros(x.shape[0])

    def decode(self, z: Tensor) -> Mapped:
        return F.pixel_shuffle(z, 2), z.new_zeros(z.shape[0])


class ActNorm(Bijection):
    """Scale and shift of each channel, z = s ⊙ (x + b) (Kingma & Dhariwal 2018, sec. 3.1).

    The scale is s = s₀ exp(r tanh(a / r)): s₀ is set once from data by :meth:`initialise`, a is learned, and r = 1/2
    bounds how far learning can move it, so that no depth makes the map overflow. Nothing is initialised by a forward pass,
    in training or in evaluation.
    """

    reach = 0.5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("start", torch.zeros(channels))

    def scale(self) -> tuple[Tensor, Tensor]:
        """The scale s of each channel and its logarithm, [channels]."""
        log_scale = self.start + self.reach * torch.tanh(self.log_scale / self.reach)
        return log_scale.exp(), log_scale

    def encode(self, x: Tensor) -> Mapped:
        scale, log_scale = self.scale()
        view = (-1, *[1] * (x.dim() - 2))
        return (x + self.bias.view(view)) * scale.view(view), _per_image(log_scale.sum() * _sites(x), x)

    def decode(self, z: Tensor) -> Mapped:
        scale, log_scale = self.scale()
        view = (-1, *[1] * (z.dim() - 2))
        return z / scale.view(view) - self.bias.view(view), _per_image(-log_scale.sum() * _sites(z), z)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Choose b and s₀ so that `x` comes out with mean 0 and standard deviation 1 in each channel.

        Raises ValueError for NaN and for a channel that is constant over the batch, which would poison the scale for good.
        """
        _support.finite("first batch", x)
        axes = [0, *range(2, x.dim())]
        spread = x.std(dim=axes, correction=0)
        if (spread < 1e-6).any():
            flat = int((spread < 1e-6).sum())
            raise ValueError(f"first batch: got {flat} channels that are constant; allowed: images that differ")
        self.bias.copy_(-x.mean(dim=axes))
        self.start.copy_(-spread.log())
        self.log_scale.zero_()
        return self.encode(x)[0]


def _sites(x: Tensor) -> int:
    """Number of positions that share one value per channel: height × width, or 1 for vectors."""
    return x[0, 0].numel()


class Rotation(nn.Module):
    """A learned rotation Q = (I + S)(I − S)⁻¹ with S = a − aᵀ (Cayley transform of a skew-symmetric matrix).

    Orthogonal for every value of its parameters and in every dtype: its inverse is its transpose, its log-determinant 0.
    """

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        draw = torch.randn(size, size, generator=_support.generator(seed))
        self.skew = nn.Parameter(draw / size**0.5)  # eigenvalues of S of order 1: angles spread over the circle

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """(Q, Q⁻¹, log|det Q|)."""
        skew = self.skew - self.skew.T
        eye = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
        rotation = torch.linalg.solve(eye - skew, eye + skew)
        return rotation, rotation.T, skew.new_zeros(())


class DenseMatrix(nn.Module):
    """An unconstrained invertible matrix that starts as a rotation (Kingma & Dhariwal 2018, eq. 9)."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_random_rotation(size, seed))

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """(W, W⁻¹, log|det W|)."""
        return self.weight, torch.linalg.inv(self.weight), torch.linalg.slogdet(self.weight)[1]


class LUMatrix(nn.Module):
    """W = P L (U + diag(± exp(s))), P fixed, with log-determinant Σ s (Kingma & Dhariwal 2018, eq. 10)."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        permutation, lower, upper = torch.linalg.lu(_random_rotation(size, seed).double())
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", upper.diag().sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_diagonal = nn.Parameter(upper.diag().abs().log().float())

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """(W, W⁻¹, log|det W|)."""
        eye = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        lower = self.lower.tril(-1) + eye
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        inverse_lower = torch.linalg.solve_triangular(lower, self.permutation.T, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, inverse_lower, upper=True)
        return self.permutation @ lower @ upper, inverse, self.log_diagonal.sum()


def _random_rotation(size: int, seed: int) -> Tensor:
    draw = torch.randn(size, size, generator=_support.generator(seed), dtype=torch.float64)
    return torch.linalg.qr(draw)[0].float()


MIXES = {"rotation": Rotation, "lu": LUMatrix, "dense": DenseMatrix}


class ChannelMix(Bijection):
    """ActNorm followed by an invertible 1×1 convolution, applied as the one 1×1 convolution that they make together.

    z = W (s ⊙ (x + b)) at every pixel, so the convolution has the matrix W diag(s) and the bias W (s ⊙ b): one pass over the
    image in place of two.
    """

    def __init__(self, channels: int, kind: str = "rotation", seed: int = 0) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.mix = MIXES[str(_support.one_of("conv1x1", kind, MIXES))](channels, seed)

    def encode(self, x: Tensor) -> Mapped:
        scale, log_scale = self.norm.scale()
        matrix, _, log_det = self.mix.matrices()
        weight = matrix * scale
        z = F.conv2d(x, weight[:, :, None, None], weight @ self.norm.bias)
        return z, _per_image((log_scale.sum() + log_det) * _sites(x), x)

    def decode(self, z: Tensor) -> Mapped:
        scale, log_scale = self.norm.scale()
        _, inverse, log_det = self.mix.matrices()
        x = F.conv2d(z, (inverse / scale[:, None])[:, :, None, None], -self.norm.bias)
        return x, _per_image(-(log_scale.sum() + log_det) * _sites(z), z)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Initialise the ActNorm from `x` (see :meth:`ActNorm.initialise`)."""
        self.norm.initialise(x)
        return self.encode(x)[0]


class Coupling(Bijection):
    """Affine or additive coupling: z_b = exp(s(x_a)) ⊙ x_b + t(x_a), z_a = x_a (Dinh et al. 2017, eq. 7-8).

    The conditioner's output h is bounded, s = tanh(h_s) and t = 32 tanh(h_t / 32): a coupling changes the scale of a value by
    at most a factor e, whatever its weights are, so that no depth makes the flow overflow. Trained flows stay well inside.

    Parameters
    ----------
    conditioner
        Network from x_a, [batch, channels // 2, ...], to h, [batch, (2 or 1) · channels of x_b, ...].
    kind
        "affine", or "additive" (s = 0; NICE, Dinh et al. 2014).
    """

    shift_bound = 32.0

    def __init__(self, conditioner: nn.Module, kind: str = "affine") -> None:
        super().__init__()
        self.kind = str(_support.one_of("coupling", kind, COUPLINGS))
        self.conditioner = conditioner

    def _scale_and_shift(self, fixed: Tensor) -> tuple[Tensor | None, Tensor]:
        h = self.conditioner(fixed)
        if self.kind == "additive":
            return None, self.shift_bound * torch.tanh(h / self.shift_bound)
        raw_scale, raw_shift = h.chunk(2, 1)
        return torch.tanh(raw_scale), self.shift_bound * torch.tanh(raw_shift / self.shift_bound)

    def encode(self, x: Tensor) -> Mapped:
        fixed, moved = split_channels(x)
        log_scale, shift = self._scale_and_shift(fixed)
        if log_scale is None:
            return torch.cat([fixed, moved + shift], 1), x.new_zeros(x.shape[0])
        return torch.cat([fixed, torch.exp(log_scale) * moved + shift], 1), log_scale.flatten(1).sum(1)

    def decode(self, z: Tensor) -> Mapped:
        fixed, moved = split_channels(z)
        log_scale, shift = self._scale_and_shift(fixed)
        if log_scale is None:
            return torch.cat([fixed, moved - shift], 1), z.new_zeros(z.shape[0])
        return torch.cat([fixed, (moved - shift) * torch.exp(-log_scale)], 1), -log_scale.flatten(1).sum(1)


COUPLINGS = ("affine", "additive")


def split_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first ⌊c/2⌋ channels and the rest."""
    half = x.shape[1] // 2
    return x[:, :half], x[:, half:]


class MultiScale(Bijection):
    """Levels that each hand half of their channels to the latent; the parts are flattened and joined (Dinh et al. 2017, 3.6).

    ``encode`` maps images [batch, c, h, w] to flat latents [batch, c·h·w]: the finest level's part comes first.
    """

    def __init__(self, shape: tuple[int, int, int], levels: Sequence[Bijection]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        channels, height, width = shape
        self.kept: list[tuple[int, int, int]] = []
        for last in [False] * (len(levels) - 1) + [True]:
            channels, height, width = 4 * channels, height // 2, width // 2
            given_up = channels if last else channels - channels // 2
            self.kept.append((given_up, height, width))
            channels -= given_up

    def encode(self, x: Tensor) -> Mapped:
        total, parts = x.new_zeros(x.shape[0]), []
        for level in self.levels[:-1]:
            h, log_det = level.encode(x)
            x, part = split_channels(h)
            parts.append(part.flatten(1))
            total = total + log_det
        h, log_det = self.levels[-1].encode(x)
        return torch.cat([*parts, h.flatten(1)], 1), total + log_det

    def decode(self, z: Tensor) -> Mapped:
        sizes = [c * h * w for c, h, w in self.kept]
        parts = [part.view(-1, *kept) for part, kept in zip(z.split(sizes, 1), self.kept, strict=True)]
        x, total = self.levels[-1].decode(parts[-1])
        for level, part in zip(reversed(self.levels[:-1]), reversed(parts[:-1]), strict=True):
            x, log_det = level.decode(torch.cat([x, part], 1))
            total = total + log_det
        return x, total

    def initialise(self, x: Tensor) -> Tensor:
        parts = []
        for level in self.levels[:-1]:
            x, part = split_channels(level.initialise(x))
            parts.append(part.flatten(1))
        return torch.cat([*parts, self.levels[-1].initialise(x).flatten(1)], 1)
