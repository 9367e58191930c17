"""Checkerboard couplings and orders of channels: what RealNVP needs beside Glow's bijections."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from companion.priors.bijections import Bijection, Coupling, Mapped


def checkerboard(height: int, width: int, parity: int = 0) -> Tensor:
    """Mask [1, 1, height, width] that is 1 where (row + column + parity) is even, else 0 (Dinh et al. 2017, fig. 3)."""
    rows = torch.arange(height)[:, None] + torch.arange(width)
    return ((rows + parity) % 2 == 0).to(torch.get_default_dtype())[None, None]


class CheckerboardCoupling(Coupling):
    """Coupling of the two colours of a checkerboard: z = m ⊙ x + (1 − m) ⊙ (exp(s) ⊙ x + t).

    s and t are functions of m ⊙ x (Dinh et al. 2017, eq. 9), with the bounds of every coupling: |s| ≤ 1, |t| ≤ 32. The
    conditioner takes [batch, c, h, w] to [batch, 2 c, h, w] ("additive": c channels); `size`, (height, width), may be
    odd; `parity` says which colour stays: 0 that of the upper left pixel, 1 the other.
    """

    mask: Tensor

    def __init__(self, conditioner: nn.Module, size: tuple[int, int], parity: int, kind: str = "affine") -> None:
        super().__init__(conditioner, kind)
        self.register_buffer("mask", checkerboard(*size, parity), persistent=False)

    def condition(self, fixed: Tensor) -> tuple[Tensor | None, Tensor]:
        log_scale, shift = super().condition(self.mask * fixed)  # m ⊙ z = m ⊙ x
        moved = 1 - self.mask
        return None if log_scale is None else moved * log_scale, moved * shift

    def encode(self, x: Tensor) -> Mapped:
        return self.forward_moved(x, *self.condition(x))

    def decode(self, z: Tensor) -> Mapped:
        return self.inverse_moved(z, *self.condition(z))


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
