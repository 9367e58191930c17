"""Conditioners: the networks inside couplings. They need no inverse, so they may be any network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from companion import _support

Seed = int | torch.Generator


class PixelLayer(nn.Conv2d):
    """A 1×1 convolution with ReLU, as a product of matrices (see :func:`companion.priors.bijections.per_pixel`)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.movedim(1, -1)
        h = F.linear(pixels.flatten(0, -2), self.weight[:, :, 0, 0], self.bias)  # flat: in place on a view costs copies
        return F.relu(h, inplace=True).unflatten(0, pixels.shape[:-1]).movedim(-1, 1)


class ConvConditioner(nn.Sequential):
    """Glow's three convolutions, 3×3 → 1×1 → 3×3 with ReLU; the last starts at zero: a new coupling is the identity."""

    def __init__(self, inputs: int, outputs: int, width: int, seed: Seed) -> None:
        layers = [
            nn.Conv2d(inputs, width, 3, padding=1),
            nn.ReLU(inplace=True),
            PixelLayer(width, width),
            nn.Identity(),  # keeps the number of the last layer, by which checkpoints know it
            nn.Conv2d(width, outputs, 3, padding=1),
        ]
        super().__init__(*layers)
        he_initialise(self, seed)
        zero_last(layers[-1])
        for layer in [m for m in layers if isinstance(m, nn.Conv2d)]:
            # in the layout of the images: else each call copies the weights first
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


class ResidualConditioner(nn.Module):
    """RealNVP's residual network with weight normalisation (Dinh et al. 2017, sec. 3.4; Salimans & Kingma 2016).

    3×3 convolution, `blocks` pre-activated blocks of two 3×3 convolutions, 1×1 convolution that starts at zero. Each
    weight is w = g v / ‖v‖ per output channel. The hidden values saturate at ±1e6, far beyond anything useful.
    """

    limit = 1e6

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int, seed: Seed) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
            )
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, outputs, 1)
        he_initialise(self, seed)
        for layer in [m for m in self.modules() if isinstance(m, nn.Conv2d)]:
            weight_norm(layer)
        with torch.no_grad():
            for block in self.blocks:
                norm_scale([*block.children()][-1]).mul_(blocks**-0.5)  # the sum over blocks keeps the size of one
            norm_scale(self.last).zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, outputs, h, w] from [batch, inputs, h, w]."""
        h = self.first(x.clamp(-self.limit, self.limit))
        for block in self.blocks:
            h = (h + block(h)).clamp(-self.limit, self.limit)
        return self.last(F.relu(h))


def norm_scale(layer: nn.Module) -> nn.Parameter:
    """The scale factors g of a layer with weight normalisation."""
    return layer.parametrizations.weight.original0  # type: ignore[union-attr, return-value]


class DenseConditioner(nn.Sequential):
    """Two hidden layers of `width` SiLU units for vectors; smooth, and zero at first."""

    def __init__(self, inputs: int, outputs: int, width: int, seed: Seed) -> None:
        layers = [nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs)]
        super().__init__(*layers)
        he_initialise(self, seed)
        zero_last(layers[-1])


def initialise(network: nn.Module, seed: Seed, weight: Callable[..., Any]) -> None:
    """Draw the weights of every convolution and linear layer by ``weight(tensor, generator=...)``; biases are 0."""
    draw = _support.generator(seed, "weights")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            weight(layer.weight, generator=draw)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def he_initialise(network: nn.Module, seed: Seed) -> None:
    """Draw the weights of every convolution and linear layer from N(0, 2 / fan-in); biases start at 0."""
    initialise(network, seed, partial(nn.init.kaiming_normal_, nonlinearity="relu"))


def zero_last(layer: nn.Module) -> None:
    """Zero the parameters of a coupling's last layer."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def count_parameters(module: nn.Module) -> int:
    """Number of learned values."""
    return sum(p.numel() for p in module.parameters())
