"""From pixels to the unbounded numbers that a flow models, and back: dequantisation, centring and the logit map."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from companion import _support
from companion.priors.base import transforming
from companion.priors.bijections import Bijection, Mapped

MAPS = ("uniform", "logit")


class PixelMap(Bijection):
    """Fixed map from pixels x in [0, 1] to the flow's input.

    A pixel of `bits` bits takes L = 2^bits values, x = k / (L − 1). It is put in the middle of its cell,
    t = ((L − 1) x + ½) / L, and then centred ("uniform": t − ½, Glow) or taken to the real line ("logit":
    logit(½ + c (t − ½)), RealNVP).
    Log-determinants are included, so densities are densities of x.

    "uniform" represents every real x. "logit" represents |t − ½| < 1 / (2 c) only, and ``encode`` refuses other pixels.
    The contraction c is 0.9 in Dinh et al. 2017, sec. 4.1. The closer to 1 it is, the wider the map spreads black and
    white: drawings such as MNIST, most of whose pixels are black, are then learned in a fraction of the time.
    """

    def __init__(self, kind: str = "uniform", bits: int = 8, contraction: float = 0.9) -> None:
        super().__init__()
        self.kind = str(_support.one_of("pixels", kind, MAPS))
        self.bits = _support.count("bits", bits)
        _support.one_of("bits", bits, range(1, 9))
        self.levels = 2**bits
        if not _support.positive("contraction", contraction) < 1:
            raise ValueError(f"contraction: got {contraction!r}; allowed: a number between 0 and 1")
        self.contraction = contraction

    def encode(self, x: Tensor) -> Mapped:
        numel = x[0].numel()
        t = ((self.levels - 1) * x + 0.5) / self.levels
        log_det = x.new_full((x.shape[0],), numel * math.log((self.levels - 1) / self.levels))
        if self.kind == "uniform":
            return t - 0.5, log_det
        p = 0.5 + self.contraction * (t - 0.5)
        if not transforming() and ((p <= 0) | (p >= 1)).any():
            low, high = self._ends()
            raise ValueError(
                f"x: got pixels from {float(x.min()):.4g} to {float(x.max()):.4g}; "
                f"allowed: pixels between {low:.4g} and {high:.4g}, all that a logit flow can represent"
            )
        h = torch.logit(p)
        # d logit(p)/dp = 1 / (p (1 − p)), written with softplus so that it stays exact near the ends
        return h, log_det + (F.softplus(h) + F.softplus(-h)).flatten(1).sum(1) + numel * math.log(self.contraction)

    def decode(self, z: Tensor) -> Mapped:
        numel = z[0].numel()
        log_det = z.new_full((z.shape[0],), -numel * math.log((self.levels - 1) / self.levels))
        if self.kind == "logit":
            log_det = log_det - (F.softplus(z) + F.softplus(-z)).flatten(1).sum(1) - numel * math.log(self.contraction)
        t = z + 0.5 if self.kind == "uniform" else 0.5 + (torch.sigmoid(z) - 0.5) / self.contraction
        return (self.levels * t - 0.5) / (self.levels - 1), log_det

    @property
    def domain(self) -> tuple[float, float] | None:
        """The open interval of pixels that the map can represent; None where that is every real number."""
        return None if self.kind == "uniform" else self._ends()

    def _ends(self) -> tuple[float, float]:
        reach = 0.5 / self.contraction
        low, high = ((self.levels * (0.5 + side) - 0.5) / (self.levels - 1) for side in (-reach, reach))
        return low, high

    def dequantise(self, x: Tensor, seed: int | torch.Generator) -> Tensor:
        """Quantise 8-bit pixels to `bits` bits and add uniform noise over each cell (Theis et al. 2016).

        x, [batch, ...] in [0, 1], becomes (k + u − ½) / (L − 1) with u ~ U[0, 1): half a cell beyond [0, 1] at most.
        """
        k = torch.floor(torch.round(x * 255) / 2 ** (8 - self.bits))
        u = torch.rand(x.shape, generator=_support.generator(seed, "dequantisation"), dtype=x.dtype, device="cpu").to(
            x.device
        )
        return (k + u - 0.5) / (self.levels - 1)

    def bits_per_dim(self, log_density: Tensor, numel: int) -> Tensor:
        """Bits per dimension of the `bits`-bit image whose dequantised density (nats, of x) is given; [batch]."""
        return -(log_density - numel * math.log(self.levels - 1)) / (numel * math.log(2))
