"""Conditioners: the networks inside couplings. They need no inverse, so they may be any network."""

import torch
from torch import Tensor, nn


class ConvConditioner(nn.Sequential):
    """Glow's three convolutions, 3×3 → 1×1 → 3×3 with ReLU; the last starts at zero, so that a new coupling is the identity."""

    def __init__(self, inputs: int, outputs: int, width: int, seed: int) -> None:
        layers = [
            nn.Conv2d(inputs, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, outputs, 3, padding=1),
        ]
        super().__init__(*layers)
        he_initialise(self, seed)
        zero_last(layers[-1])


def he_initialise(network: nn.Module, seed: int) -> None:
    """Draw the weights of every convolution and linear layer from N(0, 2 / fan-in); biases start at 0."""
    draw = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=draw)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def zero_last(layer: nn.Module) -> None:
    """Zero the parameters of a coupling's last layer."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def count_parameters(module: nn.Module) -> int:
    """Number of learned values."""
    return sum(p.numel() for p in module.parameters())


__all__ = ["ConvConditioner", "Tensor", "count_parameters", "he_initialise", "zero_last"]
