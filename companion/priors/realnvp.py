"""RealNVP (Dinh et al. 2017) in the configuration of Whang et al. 2020, Table 1; NICE as its additive case."""

from companion import _support
from companion.priors.bijections import ActNorm, Bijection, Chain, Coupling, MultiScale, Squeeze
from companion.priors.checkerboard import ChannelOrder, CheckerboardCoupling, swapped_halves
from companion.priors.flow import Flow
from companion.priors.glow import check_image_shape
from companion.priors.networks import ResidualConditioner
from companion.priors.pixels import PixelMap


class RealNVP(Flow):
    """RealNVP: scales of 3 checkerboard couplings, squeeze, 3 channel-wise couplings, split; 4 checkerboards at last.

    Parameters
    ----------
    shape
        (channels, height, width); height and width must be divisible by 2^(scales − 1). The last scale may be odd:
        MNIST's 28×28 images have 28, 14 and 7 pixels a side at their three scales.
    scales, blocks
        Number of scales (Whang et al.: 3 for MNIST, 6 for 64×64), and of residual blocks in each conditioner (6, 10).
    width
        Hidden channels of the conditioners at the first scale; doubled after each squeeze.
    coupling
        "affine", or "additive" for a volume-preserving stack (NICE, Dinh et al. 2014) between the ActNorms.
    pixels, bits, contraction
        Pixel map; see :class:`companion.priors.pixels.PixelMap`. Decoding undoes the contraction.
    seed
        Seed of the initial weights.

    Unlike the original, an ActNorm, set once from data, stands before each coupling in place of batch normalisation
    (with it the density of an image would depend on its neighbours in the batch), and scales and shifts are bounded, so
    that no weights make the flow overflow.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (1, 28, 28),
        scales: int = 3,
        blocks: int = 6,
        width: int = 64,
        coupling: str = "affine",
        pixels: str = "logit",
        bits: int = 8,
        contraction: float = 0.9,
        seed: int = 0,
    ) -> None:
        _support.count("scales", scales)
        _support.count("blocks", blocks)
        _support.count("width", width)
        _support.count("seed", seed, least=0)
        channels, height, wide = shape = check_image_shape(shape, scales - 1)
        build = _Builder(blocks, coupling, seed)
        stages: list[Bijection] = []
        for scale in range(scales - 1):
            parts = build.checkerboards(3, channels, (height, wide), width << scale)
            parts += [Squeeze(), _by_position(channels)]
            parts += build.channel_wise(4 * channels, width << (scale + 1))
            stages.append(Chain([*parts, _diagonal_first(channels)]))
            channels, height, wide = 2 * channels, height // 2, wide // 2
        stages.append(Chain(build.checkerboards(4, channels, (height, wide), width << (scales - 1))))
        super().__init__(shape, _Scales(shape, stages), PixelMap(pixels, bits, contraction))


class _Builder:
    """Makes couplings with conditioners of one kind, each with a seed of its own."""

    def __init__(self, blocks: int, coupling: str, seed: int) -> None:
        self.blocks, self.coupling, self.seed, self.made = blocks, coupling, seed, 0

    def conditioner(self, inputs: int, moved: int, width: int) -> ResidualConditioner:
        self.made += 1
        outputs = 2 * moved if self.coupling == "affine" else moved
        draw = _support.generator(self.seed, "weights", self.made)
        return ResidualConditioner(inputs, outputs, width, self.blocks, draw)

    def checkerboards(self, number: int, channels: int, size: tuple[int, int], width: int) -> list[Bijection]:
        parts: list[Bijection] = []
        for i in range(number):
            network = self.conditioner(channels, channels, width)
            parts += [ActNorm(channels), CheckerboardCoupling(network, size, i % 2, self.coupling)]
        return parts

    def channel_wise(self, channels: int, width: int) -> list[Bijection]:
        half, parts = channels // 2, []
        for _ in range(3):
            coupling = Coupling(self.conditioner(half, half, width), self.coupling)
            parts += [ActNorm(channels), coupling, swapped_halves(channels)]
        return parts[:-1]


class _Scales(MultiScale):
    """Scales whose last one is not squeezed."""

    def __init__(self, shape: tuple[int, int, int], scales: list[Bijection]) -> None:
        super().__init__(shape, scales)
        channels, height, width = shape
        shrink = 2 ** (len(scales) - 1)
        self.kept[-1] = (channels * shrink, height // shrink, width // shrink)


def _by_position(channels: int) -> ChannelOrder:
    """From Squeeze's order (image channel, then position) to position first, so that halves differ in position."""
    return ChannelOrder([4 * c + position for position in range(4) for c in range(channels)])


def _diagonal_first(channels: int) -> ChannelOrder:
    """Upper left and lower right pixels first: the split then hands over every second pixel of a checkerboard.

    Un-squeezing and squeezing again in this order is this order of the channels (Dinh et al. 2017, sec. 3.6).
    """
    return ChannelOrder([position * channels + c for position in (0, 3, 1, 2) for c in range(channels)])
