"""Noise whose density a flow has learned: drawings in places of an image (Whang et al. 2020, sec. 5.4.1)."""

import math
import operator
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from companion import _support
from companion.measure.noise import AdditiveNoise, floating

Place = tuple[int, int, int]  # channel, top row, left column


class FlowLike(Protocol):
    """What is needed of a flow on [1, rows, columns]; :class:`companion.priors.Flow` has it."""

    shape: tuple[int, ...]
    latent_dim: int
    like: Tensor

    def decode(self, z: Tensor) -> Tensor: ...
    def log_prob(self, x: Tensor) -> Tensor: ...


class FlowNoise(AdditiveNoise):
    """Drawings by a flow, `scale` times as bright, in places of images [C, H, W], and N(0, `tau`²) where there is none.

    p(δ) = (1/K) Σ_k Π_places p_flow(δ[place] / scale) scale^(−n) · Π_elsewhere N(δ; 0, tau²), over K `placements` that
    are equally likely: a single one where channels and corners of the drawings are known. A flow that was trained on
    drawings smoothed by noise of standard deviation s takes the empty background within a drawing for N(0, (scale s)²):
    with tau = scale · s the whole density is of one smoothness. Without smoothing the density at the background would
    be a spike (Whang et al. say nothing about either).

    Parameters
    ----------
    flow
        On drawings, [1, h, w], frozen; it computes in its own dtype. Outside the pixels that it can represent, its
        `domain`, the density is 0.
    shape
        (C, H, W) of the measurements.
    placements
        Each a sequence of (channel, top, left), the places of its drawings, which lie inside the image and share no
        pixel; ValueError otherwise. An empty one means that there is no drawing.
    tau, scale
        Standard deviation where there is no drawing; and the factor, the noise rate, of what the flow draws.
    """

    def __init__(
        self,
        flow: FlowLike,
        shape: Sequence[int],
        placements: Sequence[Sequence[Place]],
        tau: float = 0.1,
        scale: float = 1.0,
    ) -> None:
        self.flow, self.shape = flow, _support.image_shape(shape)
        self.tau, self.scale = _support.positive("tau", tau), _support.positive("scale", scale)
        if len(flow.shape) != 3 or flow.shape[0] != 1:
            raise ValueError(f"flow: got one on {tuple(flow.shape)}; allowed: drawings, (1, rows, columns)")
        try:
            self.placements = [[self._checked(*place) for place in placement] for placement in placements]
        except TypeError:
            allowed = "sequences of (channel, top, left), whole numbers"
            raise ValueError(f"placements: got {placements!r}; allowed: {allowed}") from None
        if not self.placements:
            raise ValueError("placements: got none; allowed: at least one, [[]] for no drawing")
        for placement in self.placements:
            count = torch.zeros(self.shape, device="cpu")
            for place in placement:
                count[self._window(place)] += 1
            if count.max() > 1:
                raise ValueError(f"placements: got overlapping drawings at {placement}; allowed: none over another")

    def _checked(self, channel: int, top: int, left: int) -> Place:
        ends = (self.shape[0] - 1, *(mine - its for mine, its in zip(self.shape[1:], self.flow.shape[1:], strict=True)))
        given = operator.index(channel), operator.index(top), operator.index(left)
        if any(not 0 <= value <= end for value, end in zip(given, ends, strict=True)):
            raise ValueError(f"placements: got {given}; allowed: channel, top and left from 0 to {ends}")
        return given

    def _window(self, place: Place) -> tuple[Any, slice, slice]:
        channel, top, left = place
        return channel, slice(top, top + self.flow.shape[1]), slice(left, left + self.flow.shape[2])

    def residual(self, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
        noise = self.tau * torch.randn(shape, generator=source, dtype=torch.float64, device="cpu")
        which = torch.randint(len(self.placements), (1,), generator=source, device="cpu")
        for place in self.placements[int(which)]:
            z = torch.randn(1, self.flow.latent_dim, generator=source, dtype=torch.float64, device="cpu")
            with torch.no_grad():
                noise[:, *self._window(place)] = (
                    self.scale * self.flow.decode(z.to(self.flow.like))[:, 0].cpu().double()
                )
        return noise

    def residual_log_prob(self, residual: Tensor) -> Tensor:
        floating(_support.batch_of("residual", residual, self.shape))
        sound = residual.isfinite().flatten(1).all(1)  # the flow refuses a batch for one image's overflow
        residual = torch.where(sound.view(-1, 1, 1, 1), residual, 0)
        places = dict.fromkeys(place for placement in self.placements for place in placement)
        gains = {place: self._gain(residual[:, *self._window(place)]) for place in places}
        empty = residual.new_zeros(len(residual))
        each = torch.stack([sum((gains[place] for place in placement), empty) for placement in self.placements])
        value = self._empty(residual) + each.logsumexp(0) - math.log(len(each))
        return value.masked_fill(~sound, -torch.inf)

    def _gain(self, window: Tensor) -> Tensor:
        """How much more likely each window, [batch, h, w], is as a drawing than as none, in nats; [batch]."""
        x = (window[:, None] / self.scale).to(self.flow.like)
        low, high = getattr(self.flow, "domain", None) or (-math.inf, math.inf)
        edge = 4 * torch.finfo(x.dtype).eps * (high - low) if high < math.inf else 0.0
        outside = ((x <= low + edge) | (x >= high - edge)).flatten(1).any(1)  # the flow refuses a batch for these too
        if outside.any():
            x = torch.where(outside.view(-1, 1, 1, 1), (low + high) / 2, x)
        drawing = self.flow.log_prob(x).to(window).masked_fill(outside, -math.inf)
        return drawing - window[0].numel() * math.log(self.scale) - self._empty(window)

    def _empty(self, values: Tensor) -> Tensor:
        """log N(values; 0, tau²), [batch]."""
        constant = math.log(self.tau) + 0.5 * math.log(2 * math.pi)
        return -0.5 * (values / self.tau).square().flatten(1).sum(1) - values[0].numel() * constant
