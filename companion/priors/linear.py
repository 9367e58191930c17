"""Linear Gaussian priors: where every question of the book has an answer in closed form."""

import torch
from torch import Tensor

from companion import _support
from companion.priors.base import Kept, Prior, standard_normal_log_density


class Linear(Prior):
    """x = mean + W z with z ~ N(0, I): the Gaussian N(mean, W Wᵀ) (the linear flows of Hand's lecture notes).

    `weight` is W, [n, latent_dim], `mean` [n] or [*shape], 0 by default, and `shape` that of one image of n numbers,
    (n,) by default. W and the mean are buffers: fixed numbers, such as a covariance's square root, that no training
    changes. Where W is square and invertible there are ``encode`` and ``log_prob`` too; else they raise ValueError.
    """

    weight: Tensor
    mean: Tensor

    def __init__(self, weight: Tensor, mean: Tensor | None = None, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        if _support.finite("weight", weight).dim() != 2:
            raise ValueError(f"weight: got shape {tuple(weight.shape)}; allowed: [n, latent_dim]")
        n, self.latent_dim = weight.shape
        self.shape = tuple(shape) if shape else (n,)
        if torch.Size(self.shape).numel() != n:
            raise ValueError(f"shape: got {self.shape}; allowed: {n} numbers, as weight has rows")
        mean = weight.new_zeros(n) if mean is None else _support.finite("mean", mean)
        if mean.shape not in ((n,), self.shape):
            raise ValueError(f"mean: got shape {tuple(mean.shape)}; allowed: [{n}] or {self.shape}")
        self.register_buffer("weight", weight.clone())
        self.register_buffer("mean", mean.to(weight).flatten().clone())
        self._kept = Kept()

    def decode(self, z: Tensor) -> Tensor:
        """Images mean + W z, [batch, *shape], of latents z, [batch, latent_dim]."""
        return (self.mean + self._check_latent(z) @ self.weight.mT).view(-1, *self.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Latents W⁻¹ (x − mean), [batch, n], of images x, [batch, *shape]."""
        inverse, _ = self._inverse()
        return (self._check_image(x).flatten(1) - self.mean) @ inverse.mT

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, W Wᵀ) in nats, [batch]."""
        return standard_normal_log_density(self.encode(x)) - self._inverse()[1]

    def log_prob_latent(self, z: Tensor) -> Tensor:
        """log p(G(z)) in nats, [batch], without encoding."""
        return standard_normal_log_density(self._check_latent(z)) - self._inverse()[1]

    def _inverse(self) -> tuple[Tensor, Tensor]:
        """W⁻¹ and log|det W|."""
        if self.weight.shape[0] != self.weight.shape[1]:
            raise ValueError(f"log_prob: got W of shape {tuple(self.weight.shape)}; allowed: a square W")
        return self._kept([self.weight], lambda: (torch.linalg.inv(self.weight), torch.linalg.slogdet(self.weight)[1]))
