"""Linear Gaussian priors: where every question of the book has an answer in closed form."""

import torch
from torch import Tensor

from companion import _support
from companion.priors.base import Kept, Prior, standard_normal_log_density

PART = 4096  # images whose covariance is summed at a time


class Linear(Prior):
    """x = mean + W z with z ~ N(0, I): the Gaussian N(mean, W Wᵀ) (the linear flows of Hand's lecture notes).

    `weight` is W, [n, latent_dim], `mean` [n] or [*shape], 0 by default, and `shape` that of one image of n numbers,
    (n,) by default. W and the mean are buffers: fixed numbers, such as a covariance's square root, that no training
    changes. Where W is square and invertible it is a flow: ``encode``, ``log_prob`` and the methods with
    log-determinants work, and :func:`companion.recover.flow_map` finds what :func:`companion.recover.gaussian_map`
    computes. Else, and where rounding hides whether it is, they raise ValueError.
    """

    domain: None = None  # every real number
    weight: Tensor
    mean: Tensor
    _among_weights = ("weight", "mean")

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
        with _support.own_precision(self._check_latent(z)):
            return (self.mean + z @ self.weight.mT).view(-1, *self.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Latents W⁻¹ (x − mean), [batch, n], of images x, [batch, *shape]."""
        inverse, _ = self._inverse()
        with _support.own_precision(self._check_image(x)):
            return (x.flatten(1) - self.mean) @ inverse.mT

    def encode_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents W⁻¹ (x − mean), [batch, n], and −log|det W|, [batch]."""
        return self.encode(x), -self._inverse()[1].expand(len(x))

    def decode_with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Images mean + W z, [batch, *shape], and log|det W|, [batch]."""
        return self.decode(z), self._inverse()[1].expand(len(z))

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
        return self._kept([self.weight], self._inverted)

    def _inverted(self) -> tuple[Tensor, Tensor]:
        inverse, failed = torch.linalg.inv_ex(self.weight)
        # at most n times that of the Euclidean norm, whose singular values cost more than the inverse
        condition = torch.linalg.matrix_norm(self.weight, 1) * torch.linalg.matrix_norm(inverse, 1)
        if failed or not condition < len(inverse) / torch.finfo(inverse.dtype).eps:
            allowed = "an invertible W, as gaussian_of(images, floor) gives for floor > 0"
            raise ValueError(f"log_prob: got a W that is singular in {inverse.dtype}; allowed: {allowed}")
        return inverse, torch.linalg.slogdet(self.weight)[1]


@torch.no_grad()
def gaussian_of(images: Tensor, floor: float = 0.0, mirror: bool = False) -> tuple[Tensor, Tensor]:
    """The Gaussian with the mean and covariance of images, [N, *shape]: its factor G, [n, n], and mean, [*shape].

    G Gᵀ is the covariance plus floor² I, G's columns are the principal components, largest first; float64. With
    `mirror` the images' mirror images (last axis) count too. ValueError for images that are no finite batch.
    """
    if _support.finite("images", images).dim() < 2 or len(images) < 1:
        raise ValueError(f"images: got shape {tuple(images.shape)}; allowed: [N, ...] with N >= 1")
    floor = _support.positive("floor", floor, zero=True)
    like = wide(images[:0])
    mean, second = like.new_zeros(images[0].numel()), like.new_zeros(images[0].numel(), images[0].numel())
    for part in images.flatten(1).split(PART):
        mean += part.to(like).sum(0) / len(images)
    for part in images.flatten(1).split(PART):
        offset = part.to(like) - mean
        second += offset.mT @ offset / len(images)
    if mirror:
        places = torch.arange(len(mean), device=like.device).view(images.shape[1:]).flip(-1).flatten()
        half = (mean - mean[places]) / 2
        second = (second + second[places][:, places]) / 2 + torch.outer(half, half)
        mean = mean - half
    variances, vectors = torch.linalg.eigh(second)
    factor = vectors.flip(1) * (variances.flip(0).clamp(min=0) + floor**2).sqrt()
    return factor, mean.view(images.shape[1:])


def wide(value: Tensor) -> Tensor:
    """The tensor in float64, on its device if that has it."""
    return (value.cpu() if value.device.type == "mps" else value).double()
