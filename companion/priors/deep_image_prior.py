"""A network nobody trained as a prior: its weights are the latents (deep image prior; Ulyanov et al. 2018)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from companion import _support
from companion.priors.base import Prior
from companion.priors.glow import check_image_shape


class DeepImagePrior(Prior):
    """A small encoder–decoder from fixed noise to an image; z are its weights.

    What it knows is its architecture: from random weights, gradient descent reaches images before it reaches noise
    (Ulyanov et al. 2018). So there is no penalty, and how long a search runs, by :func:`companion.recover.gan_latent`
    with one start and ``method="adam"``, is what regularises. On 32×32 pixels all must pass the coarsest level: skip
    connections, which the authors use on large images, would hand the noise of the input on to the image.

    Parameters
    ----------
    shape
        (channels, height, width); height and width must be divisible by 2^depth.
    width, depth
        Channels of every layer; number of times that the encoder halves the image.
    seed
        Of the fixed input, N(0, I) in each of `width` channels.

    A layer is a 3×3 convolution, a normalisation of each channel over the pixels of its own image, a shift and a leaky
    ReLU; the last one is a 1×1 convolution with a sigmoid. The weights are √(2 / fan-in) z and the shifts z / 10, so
    that z ~ N(0, I) is He's initialisation. Each image has a network of its own: all run at once as one grouped
    convolution.
    """

    noise: Tensor

    def __init__(
        self, shape: tuple[int, int, int] = (3, 32, 32), width: int = 32, depth: int = 3, seed: int = 0
    ) -> None:
        super().__init__()
        self.depth, width = _support.count("depth", depth), _support.count("width", width)
        self.shape = check_image_shape(shape, depth)
        # inputs, outputs and side of the kernels: in, down, up, and out
        self.sizes = [(width, width, 3)] * (1 + 2 * depth) + [(width, self.shape[0], 1)]
        self.latent_dim = sum(outputs * (inputs * side**2 + 1) for inputs, outputs, side in self.sizes)
        source = _support.generator(seed, "input")
        self.register_buffer("noise", torch.randn(width, *self.shape[1:], generator=source))

    def decode(self, z: Tensor) -> Tensor:
        """Images in (0, 1), [batch, *shape], of networks with the weights z, [batch, latent_dim]."""
        with _support.own_precision(self._check_latent(z)):
            return self._decode(z)

    def _decode(self, z: Tensor) -> Tensor:
        rest, layers = z, []
        for inputs, outputs, side in self.sizes:
            fan_in = inputs * side**2
            weight, shift, rest = rest.tensor_split([outputs * fan_in, outputs * (fan_in + 1)], 1)
            weight = weight.unflatten(1, (outputs, inputs, side, side)) * math.sqrt(2 / fan_in)
            layers.append((weight, shift / 10))
        h = _layer(self.noise.expand(len(z), *self.noise.shape), *layers[0])
        for weight, shift in layers[1 : 1 + self.depth]:
            h = _layer(h, weight, shift, stride=2)
        for weight, shift in layers[1 + self.depth : -1]:
            h = _layer(F.interpolate(h, scale_factor=2, mode="bilinear"), weight, shift)
        weight, shift = layers[-1]
        return torch.sigmoid(_convolve(h, weight) + shift[:, :, None, None])


def _convolve(h: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Convolutions of each image, [batch, inputs, H, W], with kernels of its own, [batch, outputs, inputs, k, k]."""
    grouped = F.conv2d(h.flatten(0, 1)[None], weight.flatten(0, 1), None, stride, weight.shape[-1] // 2, 1, len(h))
    return grouped[0].unflatten(0, weight.shape[:2])


def _layer(h: Tensor, weight: Tensor, shift: Tensor, stride: int = 1) -> Tensor:
    h = _convolve(h, weight, stride)
    h = h - h.mean((2, 3), keepdim=True)
    h = h / (h.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    return F.leaky_relu(h + shift[:, :, None, None], 0.1)
