"""Glow (Kingma & Dhariwal 2018), with flat latents z ~ N(0, I) at every level."""

from collections.abc import Sequence

from companion import _support
from companion.priors.bijections import Chain, ChannelMix, Coupling, HaarSqueeze, MultiScale, OpponentColours, Squeeze
from companion.priors.flow import Flow
from companion.priors.networks import ConvConditioner
from companion.priors.pixels import PixelMap


class Glow(Flow):
    """Glow: `levels` times squeeze, `steps` steps of (ActNorm, 1×1 convolution, coupling) and split.

    Parameters
    ----------
    shape
        (channels, height, width); height and width must be divisible by 2^levels.
    levels, steps
        L, number of scales; K, steps of flow in each of them, the last one too.
    width
        Hidden channels of the conditioners.
    coupling
        "affine" or "additive".
    conv1x1
        "rotation" (learned orthogonal matrix, perfectly conditioned), "lu" or "dense" (Kingma & Dhariwal 2018,
        sec. 3.2).
    squeeze
        "haar" (pixels of a 2×2 block are rotated to their average and three details) or "plain" (as in the original).
    colours
        "opponent" (a fixed rotation of red, green, blue to brightness and two differences) or "plain".
    pixels, bits, contraction
        Pixel map; see :class:`companion.priors.pixels.PixelMap`.
    seed
        Seed of the initial weights.

    Unlike the original, the parts that the splits hand over have the fixed density N(0, I) rather than a learned one,
    as in Asim et al. 2020: so ‖z‖² / 2 is the negative log-density of the whole latent, up to a constant.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (3, 32, 32),
        levels: int = 3,
        steps: int = 8,
        width: int = 128,
        coupling: str = "affine",
        conv1x1: str = "rotation",
        squeeze: str = "plain",
        colours: str = "plain",
        pixels: str = "uniform",
        bits: int = 8,
        contraction: float = 0.9,
        seed: int = 0,
    ) -> None:
        _support.count("levels", levels)
        _support.count("steps", steps)
        _support.count("width", width)
        _support.count("seed", seed, least=0)
        shape = check_image_shape(shape, levels)
        channels = shape[0]
        squeezes = {"haar": HaarSqueeze, "plain": Squeeze}
        squeezed = squeezes[str(_support.one_of("squeeze", squeeze, squeezes))]
        _support.one_of("colours", colours, ("opponent", "plain") if channels == 3 else ("plain",))
        stages = []
        for level in range(levels):
            channels = 4 * channels
            parts: list = [OpponentColours()] if level == 0 and colours == "opponent" else []
            parts.append(squeezed())
            outputs = channels if coupling == "affine" else channels // 2
            for step in range(steps):
                draw = _support.generator(seed, "weights", level, step)
                network = ConvConditioner(channels // 2, outputs, width, draw)
                parts += [ChannelMix(channels, conv1x1, draw), Coupling(network, coupling)]
            stages.append(Chain(parts))
            channels = channels // 2
        super().__init__(shape, MultiScale(shape, stages), PixelMap(pixels, bits, contraction))


def resized(flow: Glow, shape: Sequence[int]) -> Glow:
    """The same Glow, frozen or not as it was, for images of another height and width: a copy of the same weights.

    Convolutions, scales and mixtures of channels are alike at every place, so that a flow of small crops is a density
    on large images too, one that looks no further than its receptive field (Whang et al. 2020, sec. 5.4.5). ValueError
    for other channels, or a size that the levels do not divide.
    """
    if not isinstance(flow, Glow):
        raise ValueError(f"flow: got {type(flow).__name__}; allowed: a Glow")
    if _support.image_shape(shape)[0] != flow.shape[0]:
        raise ValueError(f"shape: got {tuple(shape)}; allowed: {flow.shape[0]} channels, as the flow")
    other = Glow(**{**flow.config, "shape": tuple(shape)}).to(flow.like).train(flow.training)
    other.load_state_dict(flow.state_dict())
    for own, given in zip(other.parameters(), flow.parameters(), strict=True):
        own.requires_grad_(given.requires_grad)
    return other


def check_image_shape(shape: Sequence[int], levels: int) -> tuple[int, int, int]:
    """Return (channels, height, width) if `levels` halvings divide it; else raise ValueError."""
    channels, height, width = _support.image_shape(shape)
    unit = 2**levels
    if height % unit or width % unit:
        given = f"{height}×{width} pixels with {levels} levels"
        raise ValueError(f"shape: got {given}; allowed: height and width divisible by {unit}")
    return channels, height, width
