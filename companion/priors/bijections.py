"""Invertible maps with tractable log-determinants: the parts of which every flow is built.

Each map has two directions, named after what they do to an image: ``encode`` (towards the latent) and ``decode``
(towards the image). Both return the mapped batch and log|det J| of that direction, one value per image.
Neither draws random numbers nor changes any state.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from companion import _support
from companion.priors.base import Kept, transforming
from companion.priors.matrices import MIXES, Matrix

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


def _at_every_site(log_det: Tensor, x: Tensor) -> Tensor:
    """[batch]: the log-determinant of a map that is the same at all positions (height × width; 1 for vectors) of x."""
    return (log_det * x.shape[2:].numel()).to(x.dtype).expand(x.shape[0])


class Chain(Bijection):
    """Bijections applied one after the other (in the order given when encoding).

    The result saturates at ±1e10: far beyond anything a trained flow produces, and far enough below the largest
    float32 that the 32 steps of the next chain do not overflow, if their 1×1 convolutions are rotations. So a broken
    flow of these gives large finite numbers rather than NaN for values within ±1e10, and
    :meth:`companion.priors.Flow.check` tells. NaN is possible for larger ones (in float32 from about 1e36, even in a
    new flow), for other 1×1 convolutions that are far from a rotation ("lu" with log_diagonal ±20), and for parameters
    near the end of the dtype's range.
    """

    limit = 1e10

    def __init__(self, parts: Sequence[Bijection]) -> None:
        super().__init__()
        self.parts: Sequence[Bijection] = nn.ModuleList(parts)  # type: ignore[assignment]

    def encode(self, x: Tensor) -> Mapped:
        return self._through(x, "encode")

    def decode(self, z: Tensor) -> Mapped:
        return self._through(z, "decode")

    def ordered(self, direction: str) -> list[Bijection]:
        """The parts in the order in which `direction` applies them."""
        return list(self.parts) if direction == "encode" else list(self.parts)[::-1]

    def run(self, value: Tensor, direction: str) -> Mapped:
        """All parts in order, without the final saturation."""
        total = value.new_zeros(value.shape[0])
        for part in self.ordered(direction):
            value, log_det = getattr(part, direction)(value)
            total = total + log_det
        return value, total

    def _through(self, value: Tensor, direction: str) -> Mapped:
        value, log_det = self.run(value, direction)
        return value.clamp(-self.limit, self.limit), log_det

    def initialise(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part.initialise(x)
        return x


class Squeeze(Bijection):
    """Space to depth: each 2×2 block of pixels becomes four channels (Dinh et al. 2017, sec. 3.6)."""

    def encode(self, x: Tensor) -> Mapped:
        return channels_last(F.pixel_unshuffle(x, 2)), x.new_zeros(x.shape[0])

    def decode(self, z: Tensor) -> Mapped:
        return F.pixel_shuffle(z, 2), z.new_zeros(z.shape[0])


class HaarSqueeze(Bijection):
    """Squeeze, then the orthonormal Haar transform of each 2×2 block: averages of all channels first, then details.

    Its inverse is its transpose and its log-determinant 0. Neighbouring pixels are nearly equal, so that it takes over
    what a new flow would have to learn first (Ardizzone et al. 2019; Zhang et al. 2021, App. G).
    """

    def encode(self, x: Tensor) -> Mapped:
        return channels_last(F.conv2d(x, self._kernel(x.shape[1], x), stride=2)), x.new_zeros(x.shape[0])

    def decode(self, z: Tensor) -> Mapped:
        return F.conv_transpose2d(z, self._kernel(z.shape[1] // 4, z), stride=2), z.new_zeros(z.shape[0])

    @staticmethod
    def _kernel(channels: int, like: Tensor) -> Tensor:
        """[4 · channels, channels, 2, 2]: every coefficient of every channel."""
        haar = like.new_tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
        each = torch.eye(channels, dtype=like.dtype, device=like.device)
        return torch.einsum("kp,cd->kcdp", haar, each).reshape(4 * channels, channels, 2, 2)


class OpponentColours(Bijection):
    """Rotation of red, green, blue to brightness and two colour differences; log-determinant 0.

    Rows (1, 1, 1)/√3, (1, 0, −1)/√2 and (1, −2, 1)/√6: nearly the principal axes of the colours of photographs
    (Ohta et al. 1980).
    """

    def encode(self, x: Tensor) -> Mapped:
        return per_pixel(x, self._rotation(x)), x.new_zeros(x.shape[0])

    def decode(self, z: Tensor) -> Mapped:
        return per_pixel(z, self._rotation(z).T), z.new_zeros(z.shape[0])

    @staticmethod
    def _rotation(like: Tensor) -> Tensor:
        rows = like.new_tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]])
        return rows / rows.norm(dim=1, keepdim=True)


def per_pixel(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1×1 convolution of x, [batch, c, h, w]: as a product of matrices, faster on a CPU than as a convolution."""
    return F.linear(x.movedim(1, -1), matrix, bias).movedim(-1, 1)


def channels_last(x: Tensor) -> Tensor:
    """Images in the memory layout in which convolutions are fastest; every map after this one keeps it.

    On the CPU that is channels-last, which halves the time of a conditioner; elsewhere the layout is left alone.
    """
    if x.device.type != "cpu" or transforming():  # torch.func knows no layouts
        return x
    return x.contiguous(memory_format=torch.channels_last)


class ActNorm(Bijection):
    """Scale and shift of each channel, z = s ⊙ (x + b) (Kingma & Dhariwal 2018, sec. 3.1).

    The scale is s = s₀ exp(r tanh(a / r)): s₀ is set once from data by :meth:`initialise`, a is learned, and r = 1/2
    bounds how far learning can move it, so that no depth makes the map overflow. Nothing is initialised by a forward
    pass, in training or in evaluation.
    """

    reach = 0.5
    start: Tensor

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
        return (x + self.bias.view(view)) * scale.view(view), _at_every_site(log_scale.sum(), x)

    def decode(self, z: Tensor) -> Mapped:
        scale, log_scale = self.scale()
        view = (-1, *[1] * (z.dim() - 2))
        return z / scale.view(view) - self.bias.view(view), _at_every_site(-log_scale.sum(), z)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Choose b and s₀ so that `x` comes out with mean 0 and standard deviation 1 in each channel.

        ValueError for NaN and for a channel that is constant over the batch, which would poison the scale for good.
        """
        _support.finite("first batch", x)
        axes = [0, *range(2, x.dim())]
        spread = x.std(dim=axes, correction=0)
        unfit = ~((spread >= 1e-6) & torch.isfinite(spread))
        if unfit.any():
            given = f"{int(unfit.sum())} channels that are constant, or whose spread overflows"
            raise ValueError(f"first batch: got {given}; allowed: images that differ, of ordinary size")
        self.bias.copy_(-x.mean(dim=axes))
        self.start.copy_(-spread.log())
        self.log_scale.zero_()
        return self.encode(x)[0]


class Folded(NamedTuple):
    """ActNorm and 1×1 convolution as one map of each pixel, z = weight · x + bias, its inverse, and its log|det|."""

    weight: Tensor
    bias: Tensor
    inverse: Tensor
    inverse_bias: Tensor
    log_det: Tensor


class ChannelMix(Bijection):
    """ActNorm followed by an invertible 1×1 convolution, applied as the one 1×1 convolution that they make together.

    z = W (s ⊙ (x + b)) at every pixel, so the convolution has the matrix W diag(s) and the bias W (s ⊙ b): one pass
    over the image in place of two.
    """

    def __init__(self, channels: int, kind: str = "rotation", seed: int | torch.Generator = 0) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.mix: Matrix = MIXES[str(_support.one_of("conv1x1", kind, MIXES))](channels, seed)
        self._kept = Kept()

    def encode(self, x: Tensor) -> Mapped:
        return self.through("encode", x, self.folded())

    def decode(self, z: Tensor) -> Mapped:
        return self.through("decode", z, self.folded())

    @staticmethod
    def through(direction: str, value: Tensor, folded: "Folded") -> Mapped:
        """Either direction, by convolutions that are folded already."""
        log_det = _at_every_site(folded.log_det, value)
        if direction == "encode":
            return per_pixel(value, folded.weight, folded.bias), log_det
        return per_pixel(value, folded.inverse, folded.inverse_bias), -log_det

    def folded(self) -> "Folded":
        """The 1×1 convolutions of both directions; kept while no gradient of the parameters is wanted."""
        # parameters() and buffers() would take longer to walk through than the tensors to compare
        own = (held for part in (self.norm, self.mix) for held in (part._parameters, part._buffers))
        tensors = [t for held in own for t in held.values() if t is not None]
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if wanted or transforming():
            return self._fold()
        return self._kept(tensors, self._fold)

    def _fold(self) -> "Folded":
        scale, log_scale = self.norm.scale()
        matrix, inverse, log_det = self.mix.matrices()
        weight, bias = matrix * scale, self.norm.bias
        return Folded(weight, weight @ bias, inverse / scale[:, None], -bias, log_scale.sum() + log_det)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        self.norm.initialise(x)
        return self.encode(x)[0]


class Coupling(Bijection):
    """Affine or additive coupling: z_b = exp(s(x_a)) ⊙ x_b + t(x_a), z_a = x_a (Dinh et al. 2017, eq. 7-8).

    The conditioner takes x_a, [batch, channels // 2, ...], to h, [batch, 2 · channels of x_b, ...]; for the kind
    "additive" (s = 0; NICE, Dinh et al. 2014) to as many channels as x_b has. It is bounded, s = tanh(h_s) and
    t = 32 tanh(h_t / 32): a coupling changes the scale of a value by at most a factor e, whatever its weights are, so
    that no depth makes the flow overflow. Trained flows stay well inside.
    """

    shift_bound = 32.0

    def __init__(self, conditioner: nn.Module, kind: str = "affine") -> None:
        super().__init__()
        self.kind = str(_support.one_of("coupling", kind, ("affine", "additive")))
        self.conditioner = conditioner

    def condition(self, fixed: Tensor) -> tuple[Tensor | None, Tensor]:
        """The log-scale s (None if additive) and the shift t that x_a asks for."""
        h = self.conditioner(fixed)
        if self.kind == "additive":
            return None, self.shift_bound * torch.tanh(h / self.shift_bound)
        raw_scale, raw_shift = h.chunk(2, 1)
        return torch.tanh(raw_scale), self.shift_bound * torch.tanh(raw_shift / self.shift_bound)

    @staticmethod
    def forward_moved(moved: Tensor, log_scale: Tensor | None, shift: Tensor) -> Mapped:
        """x_b -> z_b, and the log-determinant of the coupling."""
        if log_scale is None:
            return moved + shift, moved.new_zeros(moved.shape[0])
        return torch.addcmul(shift, torch.exp(log_scale), moved), _sum_per_image(log_scale)

    @staticmethod
    def inverse_moved(moved: Tensor, log_scale: Tensor | None, shift: Tensor) -> Mapped:
        """z_b -> x_b, and the log-determinant of the inverse coupling."""
        if log_scale is None:
            return moved - shift, moved.new_zeros(moved.shape[0])
        return (moved - shift) * torch.exp(-log_scale), -_sum_per_image(log_scale)

    def encode(self, x: Tensor) -> Mapped:
        fixed, moved = split_channels(x)
        moved, log_det = self.forward_moved(moved, *self.condition(fixed))
        return torch.cat([fixed, moved], 1), log_det

    def decode(self, z: Tensor) -> Mapped:
        fixed, moved = split_channels(z)
        moved, log_det = self.inverse_moved(moved, *self.condition(fixed))
        return torch.cat([fixed, moved], 1), log_det


def _sum_per_image(value: Tensor) -> Tensor:
    return value.sum(tuple(range(1, value.dim())))


def split_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first ⌊c/2⌋ channels and the rest."""
    half = x.shape[1] // 2
    first, rest = x.split([half, x.shape[1] - half], 1)  # its derivative is one concatenation, that of slices two sums
    return first, rest


class MultiScale(Bijection):
    """Levels that each hand half of their channels to the latent, flat and joined (Dinh et al. 2017, sec. 3.6).

    ``encode`` maps images [batch, c, h, w] to flat latents [batch, c·h·w]: the finest level's part comes first.
    """

    def __init__(self, shape: tuple[int, int, int], levels: Sequence[Bijection]) -> None:
        super().__init__()
        self.levels: Sequence[Bijection] = nn.ModuleList(levels)  # type: ignore[assignment]
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
        log_dets = []

        def through(level: Bijection, h: Tensor) -> Tensor:
            x, log_det = level.decode(h)
            log_dets.append(log_det)
            return x

        x = self._join(z, through)
        return x, torch.stack(log_dets).sum(0)

    def _join(self, z: Tensor, through: Callable[[Bijection, Tensor], Tensor]) -> Tensor:
        """The image, from the coarsest level to the finest; `through` takes a level's input to its image."""
        sizes = [c * h * w for c, h, w in self.kept]
        parts = [part.view(-1, *kept) for part, kept in zip(z.split(sizes, 1), self.kept, strict=True)]
        x = through(self.levels[-1], channels_last(parts[-1]))
        for level, part in zip(reversed(self.levels[:-1]), reversed(parts[:-1]), strict=True):
            x = through(level, channels_last(torch.cat([x, part], 1)))
        return x

    def initialise(self, x: Tensor) -> Tensor:
        parts = []
        for level in self.levels[:-1]:
            x, part = split_channels(level.initialise(x))
            parts.append(part.flatten(1))
        return torch.cat([*parts, self.levels[-1].initialise(x).flatten(1)], 1)
