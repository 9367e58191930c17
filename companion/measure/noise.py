"""Noise models: the density of measurements y given the exact ones, f(x), to draw from and to invert with."""

import math
from abc import ABC, abstractmethod
from typing import Self, final

import torch
from torch import Tensor

from companion import _support
from companion.measure.base import Index, replaced


class Noise(ABC):
    """The density p(y | exact) of measurements given the exact ones, both [batch, *measurement shape], image by image.

    A subclass writes :meth:`draw` and :meth:`log_prob`, and may write :meth:`precision`.
    """

    @final
    def sample(self, exact: Tensor, seed: int | torch.Generator) -> Tensor:
        """Draw y given f(x), in the dtype and on the device of `exact`.

        ValueError for NaN, without a batch, and where what a subclass draws is no y of one image.

        Image k has the random stream (seed, "noise", k) and is drawn in float64 on the CPU: its y depends on no other
        image, nor on dtype or device. A generator (``_support.generator(seed, "noise", draw)``) goes from image to
        image.
        """
        if _support.finite("exact", exact).dim() < 2 or not len(exact):
            raise ValueError(f"exact: got shape {tuple(exact.shape)}; allowed: [batch, *measurement shape]")
        images = enumerate(exact.detach().cpu().double().split(1))
        drawn = [self.select([k]).draw(one, _support.generator(seed, "noise", k)) for k, one in images]
        for one in drawn:
            if one.shape != (1, *exact.shape[1:]):
                given = f"{type(self).__name__}.draw: got shape {tuple(one.shape)} for one image"
                raise ValueError(f"{given}; allowed: {(1, *exact.shape[1:])} (data for each image: see select)")
        return torch.cat(drawn).to(exact.dtype).to(exact.device)

    @abstractmethod
    def draw(self, exact: Tensor, source: torch.Generator) -> Tensor:
        """Y for one image, [1, *measurement shape], given `exact` in float64 on the CPU."""

    @abstractmethod
    def log_prob(self, y: Tensor, exact: Tensor) -> Tensor:
        """log p(y | exact) in nats, [batch]."""

    def precision(self, exact: Tensor) -> Tensor:
        """Fisher information of each measurement about its exact value, [batch, *measurement shape].

        For measurements independent of each other given `exact`, to make a metric of
        (:func:`companion.sample.gauss_newton`); ValueError for a noise that does not say it.
        """
        given = f"noise: got {type(self).__name__}, which has no precision"
        raise ValueError(f"{given}; allowed: an IndependentNoise, a PoissonGaussianNoise, or one that writes it")

    def select(self, index: Index) -> Self:
        """The noise of some images of a batch, in the order of `index`; itself where all are treated alike."""
        return self


class AdditiveNoise(Noise):
    """Noise whose residual δ = y − f(x) has a density that does not depend on f(x)."""

    def draw(self, exact: Tensor, source: torch.Generator) -> Tensor:
        return exact + self.residual(tuple(exact.shape), source)

    def log_prob(self, y: Tensor, exact: Tensor) -> Tensor:
        return self.residual_log_prob(y - exact)

    @abstractmethod
    def residual(self, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
        """Draw δ for one image, on the CPU; `shape` is (1, *measurement shape)."""

    @abstractmethod
    def residual_log_prob(self, residual: Tensor) -> Tensor:
        """log p(δ = residual) in nats, [batch], for residuals [batch, *measurement shape]."""


def floating(residual: Tensor) -> Tensor:
    """The residual, if it is of floating-point numbers, else ValueError: what is cast to its dtype would be cut off."""
    if not residual.is_floating_point():
        raise ValueError(f"y: got residuals of {residual.dtype}; allowed: floating-point y and exact measurements")
    return residual


def positive_std(std: Tensor, like: Tensor) -> Tensor:
    """Standard deviations in the dtype and on the device of `like`; ValueError where one is 0 there."""
    std = std.to(floating(like).dtype).to(like.device)
    if (std == 0).any():
        given = f"std: got 0 in {like.dtype}, whose density is infinite"
        raise ValueError(f"{given}; allowed: a number > 0 where log_prob is needed")
    return std


class IndependentNoise(AdditiveNoise):
    """Normal noise, independent from entry to entry, with a mean and a standard deviation for every entry."""

    mean: float = 0.0

    @abstractmethod
    def std_map(self, shape: tuple[int, ...]) -> Tensor:
        """Standard deviations, float64 on the CPU, of a shape that broadcasts against one image's measurements.

        A noise with levels for each image, whose :meth:`select` picks them, returns as many axes as a batch has:
        [images, 1] or [images, m] for measurements [m].
        """

    def residual(self, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
        normal = torch.randn(shape, generator=source, dtype=torch.float64, device="cpu")
        return self.mean + self.std_map(shape[1:]) * normal

    def precision(self, exact: Tensor) -> Tensor:
        return self.std_map(tuple(exact.shape[1:])).expand(exact.shape) ** -2

    def residual_log_prob(self, residual: Tensor) -> Tensor:
        std = self.std_map(tuple(residual.shape[1:]))
        each = std.log().flatten(1).mean(1) if std.dim() == residual.dim() else std.log().mean()
        mean_log = each + 0.5 * math.log(2 * math.pi)  # each value stands for equally many entries of an image
        scaled = (residual - self.mean) / positive_std(std, residual)
        return -0.5 * scaled.square().flatten(1).sum(1) - (residual[0].numel() * mean_log).to(scaled)


class WidenedNoise(IndependentNoise):
    """Another independent noise with white noise N(0, std²) added to it: what a model leaves unexplained."""

    def __init__(self, noise: IndependentNoise, std: float) -> None:
        if not isinstance(noise, IndependentNoise):
            raise ValueError(f"noise: got {type(noise).__name__}; allowed: an IndependentNoise")
        self.noise, self.std, self.mean = noise, _support.positive("std", std), noise.mean

    def std_map(self, shape: tuple[int, ...]) -> Tensor:
        return (self.noise.std_map(shape).square() + self.std**2).sqrt()

    def select(self, index: Index) -> Self:
        return replaced(self, noise=self.noise.select(index))


class GaussianNoise(IndependentNoise):
    """White noise N(0, std²). A `std` of 0 is no noise, and has no density."""

    def __init__(self, std: float) -> None:
        self.std = float(_support.positive("std", std, zero=True))

    @classmethod
    def of_norm(cls, norm: float, m: int) -> "GaussianNoise":
        """White noise on m measurements with √E‖δ‖² = `norm`, so std = norm / √m (Asim et al. 2020, sec. 3.2: 0.1)."""
        return cls(_support.positive("norm", norm, zero=True) / math.sqrt(_support.count("m", m)))

    def std_map(self, shape: tuple[int, ...]) -> Tensor:
        return torch.tensor([self.std], dtype=torch.float64, device="cpu")


class PoissonGaussianNoise(Noise):
    """A camera's shot and read noise: y ~ N(f(x), gain · f(x) + read²), each entry independent; no light below 0.

    The mean and variance are those of gain · Poisson(f(x) / gain) + N(0, read²), whose density is an infinite sum, and
    which is close to this normal one where many photons are counted (Foi et al. 2008, eq. 6). What is drawn has exactly
    the density given. One photon adds `gain` to y; `read` is the read noise's standard deviation.
    """

    def __init__(self, gain: float = 0.01, read: float = 0.01) -> None:
        self.gain, self.read = _support.positive("gain", gain), _support.positive("read", read)

    def _variance(self, exact: Tensor) -> Tensor:
        return self.gain * exact.clamp_min(0) + self.read**2

    def draw(self, exact: Tensor, source: torch.Generator) -> Tensor:
        normal = torch.randn(exact.shape, generator=source, dtype=exact.dtype, device="cpu")
        return exact + self._variance(exact).sqrt() * normal

    def precision(self, exact: Tensor) -> Tensor:
        variance = positive_std(self._variance(exact), exact)
        return 1 / variance + (self.gain * (exact > 0) / variance).square() / 2  # of the mean, and of the variance

    def log_prob(self, y: Tensor, exact: Tensor) -> Tensor:
        variance = positive_std(self._variance(exact), y - exact)  # of exact = 0 it is read², which may underflow
        return -0.5 * ((y - exact).square() / variance + (2 * math.pi * variance).log()).flatten(1).sum(1)


class SinusoidalNoise(IndependentNoise):
    """Noise whose level rises and falls along the image's rows: σ(k) = scale · exp(sin(2πk / period) − 1).

    k counts the rows of an image, [C, H, W], or the entries of a vector, [m] (1-bit compressed sensing, with a `mean`
    > 0). The largest level is `scale`, the smallest scale / e². Whang et al. 2020, sec. 5.4.2, prints the formula
    without the sine, which would make the level grow to 10¹⁰ over 64 rows.
    """

    def __init__(self, scale: float = 1.0, period: float = 16, mean: float = 0.0) -> None:
        self.scale = _support.positive("scale", scale)
        self.period = _support.positive("period", period)
        self.mean = float(_support.number("mean", mean))

    def std_map(self, shape: tuple[int, ...]) -> Tensor:
        """[H, 1] for images, [m] for vectors."""
        if len(shape) not in (1, 3):
            raise ValueError(f"shape: got measurements of shape {shape}; allowed: [m] or [C, H, W]")
        place = torch.arange(shape[0] if len(shape) == 1 else shape[1], dtype=torch.float64, device="cpu")
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
        rows, columns = (torch.arange(s, dtype=torch.float64, device="cpu") - (s - 1) / 2 for s in shape[1:])
        squared = rows[:, None] ** 2 + columns**2
        return self.scale * torch.exp(-self.decay * squared).clamp_min(self.floor)
