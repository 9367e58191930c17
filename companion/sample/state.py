"""What kernels work with: the state of every chain, and an energy evaluated for all chains of all images at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from companion import _support
from companion.energy import Energy, Function, Objective
from companion.sample.metric import Metric


@dataclass(frozen=True)
class State:
    """Where the chains stand, a row for each: [rows, n], [rows], [rows, n], in the coordinates of :class:`Rows`."""

    z: Tensor
    energy: Tensor
    gradient: Tensor

    def where(self, chosen: Tensor, other: "State") -> "State":
        """This state's rows where `chosen`, [rows], and the other's elsewhere."""
        return State(
            torch.where(chosen[:, None], self.z, other.z),
            torch.where(chosen, self.energy, other.energy),
            torch.where(chosen[:, None], self.gradient, other.gradient),
        )

    @property
    def finite(self) -> Tensor:
        """Whether position, energy and gradient are finite, boolean [rows]."""
        return self.z.isfinite().all(1) & self.energy.isfinite() & self.gradient.isfinite().all(1)

    @property
    def all_finite(self) -> bool:
        """Whether every row is finite, by one number for all; False, too, where only their sum overflows."""
        return math.isfinite(self.z.sum() + self.energy.sum() + self.gradient.sum())


def chains_of(energy: Objective | Callable[[Tensor], Tensor], z0: Tensor) -> Tensor:
    """The starts as [images, chains, *variable shape]; [images, *variable shape] is one chain for each image."""
    if not callable(energy):
        raise ValueError(f"energy: got {type(energy).__name__}; allowed: a function of z, one value per row")
    variable = energy.variable_shape if isinstance(energy, Energy) else tuple(_support.finite("z0", z0).shape[-1:])
    if tuple(_support.finite("z0", z0).shape[1:]) == variable:
        z0 = z0.unsqueeze(1)
    if z0.shape[2:] != variable or 0 in z0.shape or (isinstance(energy, Energy) and len(z0) != len(energy)):
        images = len(energy) if isinstance(energy, Energy) else "images"
        inside = ", ".join(map(str, variable))
        raise ValueError(
            f"z0: got shape {tuple(z0.shape)}; allowed: [{images}, chains, {inside}] or one without chains"
        )
    return z0.detach().clone()  # in inference mode z0 is a tensor that takes no gradient, its clone outside is not


class Rows:
    """The energy of images × chains as rows, in coordinates u with z = centre + L u (:class:`Metric`; u = z without).

    A plain function must treat its rows alike, whatever their number; an Objective has data for each image, and its
    rows are picked by ``select``.
    """

    def __init__(
        self, energy: Objective | Callable[[Tensor], Tensor], z0: Tensor, metric: Metric | None = None
    ) -> None:
        self.images, self.chains, *self.shape = z0.shape
        self.metric = metric
        if metric is not None and not isinstance(metric, Metric):
            raise ValueError(f"metric: got {type(metric).__name__}; allowed: a sample.Metric")
        if metric is not None and metric.centre.shape != (self.images, z0[0, 0].numel()):
            given, allowed = tuple(metric.centre.shape), (self.images, z0[0, 0].numel())
            raise ValueError(f"metric: got one for latents of shape {given}; allowed: {allowed}, one for each image")
        index = torch.arange(self.images, device=z0.device).repeat_interleave(self.chains)
        self.energy = energy.select(index) if isinstance(energy, Objective) else Function(energy, z0.flatten(0, 1))
        self.like = z0

    def variable(self, u: Tensor) -> Tensor:
        """The variables, [rows, *variable shape], at coordinates u, [rows, n]."""
        if self.metric is not None:
            u = self.metric.outward(u.view(self.images, self.chains, -1)).flatten(0, 1)
        return u.view(-1, *self.shape)

    def coordinates(self, z: Tensor) -> Tensor:
        """The coordinates u, [rows, n], of variables z, [images, chains, *variable shape]."""
        z = z.flatten(2)
        return (z if self.metric is None else self.metric.inward(z)).flatten(0, 1)

    def at(self, u: Tensor) -> State:
        """The state at coordinates u: one evaluation of energy and gradient per row."""
        energy, gradient = self.energy.value_and_gradient(self.variable(u))
        gradient = gradient.flatten(1)
        if self.metric is not None:
            gradient = (gradient.view(self.images, self.chains, -1) @ self.metric.factor).flatten(0, 1)
        return State(u, energy, gradient)

    @torch.no_grad()
    def value(self, u: Tensor) -> Tensor:
        """Energies alone, [rows]."""
        return self.energy(self.variable(u)).detach()

    def per_row(self, values: Tensor) -> Tensor:
        """Values of images, [images], as rows."""
        return values.repeat_interleave(self.chains)

    def per_image(self, rows: Tensor) -> Tensor:
        """Mean over the chains of each image, [images], of values of rows."""
        return rows.view(self.images, self.chains).mean(1)
