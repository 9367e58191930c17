"""What every prior offers: images from latents, z ~ N(0, I), flat."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from companion import _support


class Prior(nn.Module, ABC):
    """A generator G of images from flat latents z ~ N(0, I).

    Attributes
    ----------
    shape : tuple
        Shape of one image, (channels, height, width); (2,) for planar points.
    latent_dim : int
        Length of the flat latent vector.
    config : dict
        The arguments that build this prior again; stored in its checkpoints.
    """

    shape: tuple[int, ...]
    latent_dim: int
    config: dict[str, Any]

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Images x = G(z), [batch, *shape], from latents z, [batch, latent_dim]."""

    @property
    def like(self) -> Tensor:
        """A parameter of the prior: its dtype and device are those of the prior."""
        return next(self.parameters())

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, seed: int | torch.Generator = 0) -> Tensor:
        """Draw `n` images G(temperature · z) with z ~ N(0, I); [n, *shape]. The values are not clipped to [0, 1]."""
        _support.count("n", n)
        _support.positive("temperature", temperature, zero=True)
        return self.decode(temperature * _support.normal((n, self.latent_dim), seed, self.like))

    def _check_latent(self, z: Tensor) -> Tensor:
        return self._check_dtype("z", _support.batch_of("z", z, (self.latent_dim,)))

    def _check_image(self, x: Tensor) -> Tensor:
        return _support.finite("x", self._check_dtype("x", _support.batch_of("x", x, self.shape)))

    def _check_dtype(self, name: str, value: Tensor) -> Tensor:
        if value.dtype != self.like.dtype or value.device != self.like.device:
            raise ValueError(
                f"{name}: got {value.dtype} on {value.device}; allowed: {self.like.dtype} on {self.like.device}, "
                "as the prior (move either with .to(...))"
            )
        return value


def standard_normal_log_density(z: Tensor) -> Tensor:
    """log N(z; 0, I) of each row of z, [batch]."""
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
