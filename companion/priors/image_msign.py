"""MsIGN for images: the same scales, with white noise as the prior of images (Zhang et al. 2021, sec. 6.2, App. G)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from companion import _support
from companion.priors.bijections import ActNorm, Bijection, Chain, HaarSqueeze, Mapped
from companion.priors.conditioning import HaarConditioning
from companion.priors.flow import Flow
from companion.priors.glow import check_image_shape
from companion.priors.msign import GlowBlock, Scales
from companion.priors.pixels import PixelMap


class ImageMsIGN(Flow):
    """A density of images made from coarse to fine: x₁ = F₁(m + s z₁), x_l = F_l(4 Aᵀ x_{l−1} + μ_l Ãᵀ z_l).

    A new one is Gaussian: all F_l start as the identity, the pixels of the coarsest image as N(m, s²), and the
    orthonormal Haar details of scale l as N(0, μ_l²/4). :meth:`initialise` leaves that as it is and gives the couplings
    inside normalised values. All this is of what the pixel map makes of images: with logit pixels, the averages are of
    logits. The latent's parts stand from coarse to fine.

    Parameters
    ----------
    shape
        (channels, height, width); height and width must be divisible by 2^scales.
    scales
        L, number of scales; the coarsest image has 2^(1 − L) of the height and width.
    steps, width
        K, number of Glow steps in each F_l, and hidden channels of their couplings (Table 6).
    mu
        μ_2, …, μ_L (Table 7).
    mean, std
        m and s, which the paper doesn't have: its x₁ is F₁(z₁).
    pixels, bits, contraction
        Pixel map; see :class:`companion.priors.pixels.PixelMap`.
    seed
        Seed of the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (1, 28, 28),
        scales: int = 2,
        steps: int = 8,
        width: int = 64,
        mu: Sequence[float] = (1.0,),
        mean: float = 0.0,
        std: float = 1.0,
        pixels: str = "uniform",
        bits: int = 8,
        contraction: float = 0.9,
        seed: int = 0,
    ) -> None:
        channels, height, breadth = shape = check_image_shape(shape, _support.count("scales", scales))
        if len(mu) != scales - 1:
            raise ValueError(f"mu: got {len(mu)} numbers; allowed: {scales - 1}, one for each scale but the coarsest")
        finer = [(channels, height >> level, breadth >> level) for level in range(scales - 2, -1, -1)]
        flows = [_HaarBlock(channels, steps, width, seed, scale).float() for scale in range(1, scales + 1)]
        conditionings = [HaarConditioning(*each) for each in zip(finer, mu, strict=True)]
        scheme = _ImageScales(shape, _Scaled(mean, std), conditionings, flows)
        # in the layout of the images: else each convolution copies its weights first
        scheme.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(shape, scheme, PixelMap(pixels, bits, contraction))


def moments(x: Tensor, scales: int, pixels: PixelMap) -> dict[str, Any]:
    """μ_2, …, μ_L, m and s of images x, [batch, channels, height, width] in [0, 1], by matching second moments.

    As keyword arguments of :class:`ImageMsIGN`. x are dequantised first.
    """
    h, mu = pixels.encode(pixels.dequantise(x, 0))[0], []
    for _ in range(scales - 1):
        mu.append(2 * HaarConditioning.fitted(h).std)
        h = avg_pool2d(h, 2)
    return {"mu": tuple(mu[::-1]), "mean": float(h.mean()), "std": float(h.std())}


class _HaarBlock(GlowBlock):
    """Glow steps between averages and details of 2 × 2 pixels, each normalised: F_l, which starts as the identity.

    Pixels as they are, of another mean and spread and nearly equal to their neighbours, would be learned much later.
    """

    def __init__(self, channels: int, steps: int, width: int, seed: int = 0, scale: int = 1) -> None:
        super().__init__(channels, steps, width, seed, scale)
        self.squeeze = Chain([HaarSqueeze(), ActNorm(4 * channels)])  # type: ignore[assignment]

    def initialise(self, x: Tensor) -> Tensor:
        self.squeeze.initialise(x)
        return self.encode(x)[0]


class _ImageScales(Scales):
    """Scales whose flows are given their first batch."""

    def initialise(self, x: Tensor) -> Tensor:
        h = x
        for shape, coarse_shape, conditioning, flow in self._steps():
            h = conditioning.encode(flow.initialise(h.reshape(-1, *shape)))[0][:, : math.prod(coarse_shape)]
        self.flows[0].initialise(h.reshape(-1, *self.shapes[0]))
        return self.encode(x)[0]


class _Scaled(Bijection):
    """x = mean + std z, entry by entry."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, _support.positive("std", std)

    def encode(self, x: Tensor) -> Mapped:
        return (x - self.mean) / self.std, x.new_full((len(x),), -math.log(self.std) * x[0].numel())

    def decode(self, z: Tensor) -> Mapped:
        return self.mean + self.std * z, z.new_full((len(z),), math.log(self.std) * z[0].numel())
