"""Checkerboard couplings and orders of channels: what RealNVP needs beside Glow's bijections."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from companion import _support
from companion.priors.bijections import COUPLINGS, Bijection, Coupling, Mapped


def checkerboard(height: int, width: int, parity: int = 0) -> Tensor:
    """Mask [1, 1, height, width] that is 1 where (row + column + parity) is even, else 0 (Dinh et al. 2017, fig. 3)."""
    rows = torch.arange(height)[:, None] + torch.arange(width)
    return ((rows + parity) % 2 == 0).to(torch.get_default_dtype())[None, None]


class CheckerboardCoupling(Bijection):
    """Coupling of the two colours of a checkerboard: z = m ⊙ x + (1 − m) ⊙ (exp(s) ⊙ x + t).

    s and t are functions of m ⊙ x (Dinh et al. 2017, eq. 9), with the bounds of
    :class:`companion.priors.bijections.Coupling`: |s| ≤ 1, |t| ≤ 32.

    Parameters
    ----------
    conditioner
        Network from m ⊙ x, [batch, c, h, w], to [batch, 2 c, h, w] (affine) or [batch, c, h, w] (additive).
    size
        (height, width) of the images; odd numbers are allowed.
    parity
        Which colour stays: 0 the one of the upper left pixel, 1 the other.
    kind
        "affine" or "additive".
    """

    mask: Tensor

    def __init__(self, conditioner: nn.Module, size: tuple[int, int], parity: int, kind: str = "affine") -> None:
        super().__init__()
        self.kind = str(_support.one_of("coupling", kind, COUPLINGS))
        self.conditioner = conditioner
        self.register_buffer("mask", checkerboard(*size, parity), persistent=False)

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        h, moved, bound = self.conditioner(self.mask * x), 1 - self.mask, Coupling.shift_bound
        if self.kind == "additive":
            return None, moved * bound * torch.tanh(h / bound)
        raw_scale, raw_shift = h.chunk(2, 1)
        return moved * torch.tanh(raw_scale), moved * bound * torch.tanh(raw_shift / bound)

    def encode(self, x: Tensor) -> Mapped:
        log_scale, shift = self._scale_and_shift(x)
        if log_scale is None:
            return x + shift, x.new_zeros(x.shape[0])
        return torch.exp(log_scale) * x + shift, log_scale.flatten(1).sum(1)

    def decode(self, z: Tensor) -> Mapped:
        log_scale, shift = self._scale_and_shift(z)  # m ⊙ z = m ⊙ x
        if log_scale is None:
            return z - shift, z.new_zeros(z.shape[0])
        return torch.exp(-log_scale) * (z - shift), -log_scale.flatten(1).sum(1)


class ChannelOrder(Bijection):
    """A fixed order of the channels: channel i of the encoded batch is channel order[i] of the given one."""

    forth: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"order: got {list(order)}; allowed: each channel number from 0 once")
        forth = torch.tensor(list(order))
        self.register_buffer("forth", forth, persistent=False)
        self.register_buffer("back", torch.argsort(forth), persistent=False)

    def encode(self, x: Tensor) -> Mapped:
        return x[:, self.forth], x.new_zeros(x.shape[0])

    def decode(self, z: Tensor) -> Mapped:
        return z[:, self.back], z.new_zeros(z.shape[0])


def swapped_halves(channels: int) -> ChannelOrder:
    """The order that puts the second half of the channels first, so that the next coupling moves the other half."""
    half = channels // 2
    return ChannelOrder([*range(half, channels), *range(half)])
