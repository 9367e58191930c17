"""Noise models: draws for observing, and the log-density of a residual for inverting."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from companion import _support
from companion.measure.base import checked_shape


class Noise(ABC):
    """Additive noise δ with a density, independent from image to image."""

    def sample(self, shape: Sequence[int], seed: int | torch.Generator, like: Tensor | None = None) -> Tensor:
        """Draw noise of the given shape, [batch, *measurement shape].

        Image by image from one generator, in float64 on the CPU: the noise of the first images does not depend on how
        many follow, nor on dtype or device. The result is in the dtype and on the device of `like` (default float32,
        CPU).
        """
        batch, *one = checked_shape("shape", shape)
        if not one:
            raise ValueError(f"shape: got {tuple(shape)}; allowed: (batch, *measurement shape)")
        source = _support.generator(seed)
        draws = torch.stack([self.draw(tuple(one), source) for _ in range(batch)])
        return draws.float() if like is None else draws.to(like)

    @abstractmethod
    def draw(self, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
        """The noise of one image's measurements, in float64 on the CPU."""

    @abstractmethod
    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(δ = residual) in nats, [batch], for residuals [batch, *measurement shape]."""

    def select(self, index: Sequence[int] | Tensor) -> Self:
        """The noise of the images at `index`: the same one, unless it has data for each image."""
        return self


class IndependentNoise(Noise):
    """Normal noise, independent from entry to entry, with a mean and a standard deviation for every entry."""

    mean: float = 0.0

    @abstractmethod
    def std_map(self, shape: tuple[int, ...]) -> Tensor:
        """Standard deviations in float64, of a shape that broadcasts against one image's measurements."""

    def draw(self, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
        """Mean + std · N(0, 1)."""
        return self.mean + self.std_map(shape) * torch.randn(shape, generator=source, dtype=torch.float64)

    def log_prob(self, residual: Tensor) -> Tensor:
        """Σ log N(residual; mean, std²) over all entries, normalised."""
        std = self.std_map(tuple(residual.shape[1:]))
        if (std == 0).any():
            raise ValueError("std: got 0, whose density is infinite; allowed: a number > 0 where log_prob is needed")
        constant = (std.log() + 0.5 * math.log(2 * math.pi)).expand(residual.shape[1:]).sum()
        scaled = (residual - self.mean) / std.to(residual)
        return -0.5 * scaled.square().flatten(1).sum(1) - constant.to(residual)


class GaussianNoise(IndependentNoise):
    """White noise N(0, std²). A `std` of 0 is no noise, and has no density."""

    def __init__(self, std: float) -> None:
        self.std = float(_support.positive("std", std, zero=True))

    @classmethod
    def of_norm(cls, norm: float, m: int) -> "GaussianNoise":
        """White noise on m measurements with √E‖δ‖² = `norm`, so std = norm / √m (Asim et al. 2020, sec. 3.2: 0.1)."""
        return cls(_support.positive("norm", norm, zero=True) / math.sqrt(_support.count("m", m)))

    def std_map(self, shape: tuple[int, ...]) -> Tensor:
        """One number for all entries."""
        return torch.tensor([self.std], dtype=torch.float64)


class SinusoidalNoise(IndependentNoise):
    """Noise whose level rises and falls along the image's rows: σ(k) = scale · exp(sin(2πk / period) − 1).

    k counts the rows of an image, [C, H, W], or the entries of a vector, [m] (1-bit compressed sensing, with a `mean`
    > 0). The largest level is `scale`, the smallest scale / e². Whang et al. 2020, sec. 5.4.2, prints the formula
    without the sine, which would make the level grow to 10¹⁰ over 64 rows.
    """

    def __init__(self, scale: float = 1.0, period: float = 16, mean: float = 0.0) -> None:
        self.scale = _support.positive("scale", scale)
        self.period = _support.positive("period", period)
        if not math.isfinite(mean):
            raise ValueError(f"mean: got {mean!r}; allowed: a finite number")
        self.mean = float(mean)

    def std_map(self, shape: tuple[int, ...]) -> Tensor:
        """[H, 1] for images, [m] for vectors."""
        if len(shape) not in (1, 3):
            raise ValueError(f"shape: got measurements of shape {shape}; allowed: [m] or [C, H, W]")
        place = torch.arange(shape[0] if len(shape) == 1 else shape[1], dtype=torch.float64)
        std = self.scale * torch.exp(torch.sin(2 * math.pi * place / self.period) - 1)
        return std if len(shape) == 1 else std[:, None]


class RadialNoise(IndependentNoise):
    """Noise that fades from the image's centre: σ(d) = scale · max(exp(−decay · d²), floor), d in pixels.

    Whang et al. 2020, sec. 5.4.3. At 64×64 their decay of 0.005 takes σ to 5·10⁻⁵ in the corners, and the misfit's
    weights there to 4·10⁸; the `floor` (relative to `scale`) keeps the energy within what a minimiser can work with.
    """

    def __init__(self, scale: float = 1.0, decay: float = 0.005, floor: float = 1e-2) -> None:
        self.scale = _support.positive("scale", scale)
        self.decay = _support.positive("decay", decay)
        self.floor = _support.positive("floor", floor, zero=True)

    def std_map(self, shape: tuple[int, ...]) -> Tensor:
        """[H, W]."""
        if len(shape) != 3:
            raise ValueError(f"shape: got measurements of shape {shape}; allowed: [C, H, W]")
        rows, columns = (torch.arange(s, dtype=torch.float64) - (s - 1) / 2 for s in shape[1:])
        squared = rows[:, None] ** 2 + columns**2
        return self.scale * torch.exp(-self.decay * squared).clamp_min(self.floor)
