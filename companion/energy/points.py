"""Candidates of a search, as latents and as images, and what an energy needs of a prior."""

from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from companion.priors.base import standard_normal_log_density


class Generator(Protocol):
    """What an energy needs of a prior; :class:`companion.priors.base.Prior` has it.

    ``decode`` makes images, [batch, *shape], of flat latents, [batch, latent_dim], in their dtype.
    """

    shape: tuple[int, ...]
    latent_dim: int

    def decode(self, z: Tensor) -> Tensor: ...


@runtime_checkable
class Density(Protocol):
    """What densities and image space need of a prior besides; :class:`companion.priors.flow.Flow` has it.

    ``domain`` is the open interval of pixels that it can represent, None for all numbers. ``encode_with_log_det`` gives
    latents, [batch, latent_dim], and log|det dz/dx|, [batch]; ``decode_with_log_det`` images and log|det dx/dz|. Only
    :func:`companion.sample.tweedie` needs ``log_prob(x)`` too.
    """

    domain: tuple[float, float] | None

    def encode(self, x: Tensor) -> Tensor: ...
    def encode_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def decode_with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]: ...


class Point:
    """A batch of candidates, as latents z and as images x; for a function that knows no prior both are its variable."""

    z: Tensor
    x: Tensor
    log_prob: Tensor

    def __init__(self, variable: Tensor) -> None:
        self.z = self.x = variable


class LatentPoint(Point):
    """A point given by its latents, [batch, n]; what is not given is computed once, when first asked for."""

    def __init__(self, prior: Any, z: Tensor) -> None:
        self.prior, self.z = prior, z

    @cached_property
    def x(self) -> Tensor:  # type: ignore[override]
        """Images G(z), [batch, *shape]."""
        return self.prior.decode(self.z)

    @cached_property
    def log_prob(self) -> Tensor:  # type: ignore[override]
        """log p(G(z)) in nats, [batch]; leaves the image behind, so that the flow is passed once."""
        self.x, log_det = _density(self.prior).decode_with_log_det(self.z)
        return standard_normal_log_density(self.z) - log_det


class ImagePoint(Point):
    """A point given by its images, [batch, *shape].

    A flow may have a `domain`, the open interval of pixels that it can represent. Images with pixels beyond it, or
    within rounding of its ends, are `outside`: they have no latents (those of the nearest image inside stand in) and
    density 0.
    """

    def __init__(self, prior: Any, x: Tensor) -> None:
        self.prior, self.x = _density(prior), x
        low, high = self.prior.domain or (-torch.inf, torch.inf)
        width = high - low if high < torch.inf else 0.0
        edge, margin = 4 * torch.finfo(x.dtype).eps * width, 1e-4 * width
        self.outside = ((x <= low + edge) | (x >= high - edge)).flatten(1).any(1)
        outside = self.outside.view(-1, *[1] * (x.dim() - 1))
        self._inside = torch.where(outside, x.clamp(low + margin, high - margin), x) if self.outside.any() else x

    @cached_property
    def z(self) -> Tensor:  # type: ignore[override]
        """Latents G⁻¹(x), [batch, n]."""
        return self.prior.encode(self._inside)

    @cached_property
    def log_prob(self) -> Tensor:  # type: ignore[override]
        """log p(x) in nats, [batch]; leaves the latents behind, so that the flow is passed once."""
        self.z, log_det = self.prior.encode_with_log_det(self._inside)
        return (standard_normal_log_density(self.z) + log_det).masked_fill(self.outside, -torch.inf)


def _density(prior: Any) -> Density:
    needed = ("domain", "encode", "encode_with_log_det", "decode_with_log_det")
    if missing := [name for name in needed if not hasattr(prior, name)]:
        given = f"{type(prior).__name__}, which has no density: no {', '.join(missing)}"
        raise ValueError(f"prior: got {given}; allowed: an energy.Density, such as a flow or priors.Linear")
    return prior
