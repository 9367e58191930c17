"""Deep convolutional GAN (Radford et al. 2016), with its discriminator."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from companion import _support
from companion.priors.base import Prior

_FIRST_SIDE = {28: 7, 32: 4, 64: 4}  # side of the generator's first feature map, by side of the image


class GAN(Prior):
    """DCGAN: transposed convolutions of kernel 4 and stride 2 up to the image, and their mirror image as discriminator.

    Parameters
    ----------
    shape
        (channels, side, side) with side 28, 32 or 64.
    latent_dim
        Length of z ~ N(0, I).
    width
        Channels of the widest maps; doubled with each halving of the side.
    seed
        Seed of the initial weights, N(0, 0.02²).

    Images are (tanh + 1) / 2, so in [0, 1]. In training mode, batch normalisation makes an image depend on the others
    of its batch; in evaluation mode (as ``priors.load`` and ``training.fit`` leave the model) it does not.
    """

    def __init__(
        self, shape: tuple[int, int, int] = (1, 28, 28), latent_dim: int = 100, width: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] not in _FIRST_SIDE:
            raise ValueError(f"shape: got {tuple(shape)}; allowed: (channels, side, side) with side 28, 32 or 64")
        channels, side, _ = shape
        self.shape = (_support.count("shape", channels), side, side)
        self.latent_dim = _support.count("latent_dim", latent_dim)
        _support.count("width", width)
        first = _FIRST_SIDE[side]
        widths = [width << level for level in range((side // first).bit_length() - 1)]  # from the image inwards
        self.generator = _generator(channels, latent_dim, widths, first)
        self.discriminator = _discriminator(channels, widths, first)
        _initialise(self, seed)

    def decode(self, z: Tensor) -> Tensor:
        """Images in [0, 1], [batch, *shape], of latents z, [batch, latent_dim]."""
        with _support.own_precision(self._check_latent(z)):
            return (torch.tanh(self.generator(z[:, :, None, None])) + 1) / 2

    def discriminate(self, x: Tensor) -> Tensor:
        """Logit of the probability that an image is real, [batch], of images x, [batch, *shape]."""
        with _support.own_precision(self._check_image(x)):
            return self.discriminator(2 * x - 1).flatten()


def _generator(channels: int, latent_dim: int, widths: list[int], first: int) -> nn.Module:
    layers = [nn.ConvTranspose2d(latent_dim, widths[-1], first, bias=False), nn.BatchNorm2d(widths[-1]), nn.ReLU()]
    for inputs, outputs in pairwise(reversed(widths)):
        up = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        layers += [up, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[0], channels, 4, stride=2, padding=1))


def _discriminator(channels: int, widths: list[int], first: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for inputs, outputs in pairwise(widths):
        down = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        layers += [down, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, first))


def _initialise(network: nn.Module, seed: int) -> None:
    draw = _support.generator(seed, "weights")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02, generator=draw)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02, generator=draw)
