"""Variational autoencoders (Kingma & Welling 2014): Bora et al.'s fully connected one and a convolutional one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from companion import _support
from companion.priors.base import Prior
from companion.priors.glow import check_image_shape
from companion.priors.networks import initialise
from companion.priors.pixels import PixelMap

KINDS = ("dense", "conv")
LIKELIHOODS = ("bernoulli", "gaussian")


class VAE(Prior):
    """A decoder of latents z ~ N(0, I) and an encoder q(z|x) = N(mean(x), diag var(x)), both without batch statistics.

    Parameters
    ----------
    shape
        (channels, height, width); for "conv" height and width must be divisible by 2^(layers).
    latent_dim, seed
        Length of z, and seed of the initial weights.
    kind, hidden
        "dense": softplus units, as many in the encoder's hidden layers as `hidden` says, reversed in the decoder; by
        default (500, 500), Bora et al. 2017. "conv": 3×3 convolutions with so many channels, each of which halves the
        image (doubles it in the decoder); by default (28, 64, 64), Ang 2021.
    likelihood
        p(x|z), with the mean sigmoid(decoder(z)) for both. "bernoulli" (Bora et al.) suits drawings that are nearly
        black and white; on grey values it is no density. "gaussian" has one learned standard deviation for all pixels,
        and gives a lower bound of the density of dequantised images, comparable with a flow's. It suits photographs:
        the learned deviation finds the balance of reconstruction and KL divergence, which is otherwise set by hand.

    The encoder's two heads are linear: an activation there would forbid negative means. log var(x) saturates at ±10.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (1, 28, 28),
        latent_dim: int = 20,
        hidden: Sequence[int] | None = None,
        kind: str = "dense",
        likelihood: str = "bernoulli",
        seed: int = 0,
    ) -> None:
        super().__init__()
        _support.one_of("kind", kind, KINDS)
        self.likelihood = str(_support.one_of("likelihood", likelihood, LIKELIHOODS))
        self.latent_dim = _support.count("latent_dim", latent_dim)
        given = hidden or ((500, 500) if kind == "dense" else (28, 64, 64))
        hidden = tuple(_support.count("hidden", units) for units in given)
        self.shape = check_image_shape(shape, len(hidden) if kind == "conv" else 0)
        build = _dense if kind == "dense" else _convolutional
        self.encoder, self.decoder, features = build(self.shape, latent_dim, hidden)
        self.mean_head, self.variance_head = nn.Linear(features, latent_dim), nn.Linear(features, latent_dim)
        if likelihood == "gaussian":
            self.log_std = nn.Parameter(torch.tensor(0.0))
        self.pixels = PixelMap("uniform")
        initialise(self, seed, nn.init.xavier_uniform_)

    @property
    def std(self) -> Tensor:
        """Standard deviation of a pixel given z, between e⁻⁶ and e² ("gaussian" alone); a scalar."""
        return torch.exp(4 * torch.tanh(self.log_std / 4) - 2)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), both [batch, latent_dim], of images x, [batch, *shape]."""
        with _support.own_precision(self._check_image(x)):
            features = self.encoder(x)
            return self.mean_head(features), 10 * torch.tanh(self.variance_head(features) / 10)

    def encode(self, x: Tensor) -> Tensor:
        """Mean of q(z|x), [batch, latent_dim]."""
        return self.posterior(x)[0]

    def logits(self, z: Tensor) -> Tensor:
        """logit of the mean image, [batch, *shape], of latents z, [batch, latent_dim]."""
        with _support.own_precision(self._check_latent(z)):
            return self.decoder(z).view(-1, *self.shape)

    def decode(self, z: Tensor) -> Tensor:
        """Mean images E[x|z] in [0, 1], [batch, *shape], of latents z, [batch, latent_dim]."""
        return torch.sigmoid(self.logits(z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats, [batch]; see the class for what it means on grey values."""
        logits = self.logits(z)
        if self.likelihood == "bernoulli":
            _support.images("x", x, self.shape)
            return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
        residual = (self._check_image(x) - torch.sigmoid(logits)) / self.std
        return -(0.5 * residual.square() + self.std.log() + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def elbo(self, x: Tensor, seed: int | torch.Generator = 0) -> Tensor:
        """Evidence lower bound of log p(x) in nats, [batch], from one z per image (Kingma & Welling 2014, eq. 10)."""
        return self.elbo_with(x, _support.normal((len(x), self.latent_dim), seed, x, "posterior"))

    def elbo_with(self, x: Tensor, noise: Tensor) -> Tensor:
        """The bound, [batch], with z = mean + deviation ⊙ noise for standard normal noise, [batch, latent_dim]."""
        mean, log_variance = self.posterior(x)
        z = mean + torch.exp(0.5 * log_variance) * noise
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
        return self.log_likelihood(x, z) - divergence

    def bits_per_dim(self, x: Tensor, seed: int | torch.Generator = 0) -> Tensor:
        """Upper bound of the bits per dimension of 8-bit images x in [0, 1], [batch]; Gaussian likelihood only."""
        if self.likelihood != "gaussian":
            raise ValueError("bits_per_dim: got a Bernoulli likelihood; allowed: a VAE with likelihood='gaussian'")
        bound = self.elbo(self.pixels.dequantise(_support.images("x", x, self.shape), seed), seed)
        return self.pixels.bits_per_dim(bound, x[0].numel())


def _dense(shape: tuple[int, ...], latent_dim: int, hidden: tuple[int, ...]) -> tuple[nn.Module, nn.Module, int]:
    """Encoder up to its last hidden layer, decoder, and number of the encoder's features."""
    pixels = math.prod(shape)
    encoder: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip((pixels, *hidden), hidden, strict=False):
        encoder += [nn.Linear(inputs, outputs), nn.Softplus()]
    decoder: list[nn.Module] = []
    for inputs, outputs in zip((latent_dim, *hidden[::-1]), hidden[::-1], strict=False):
        decoder += [nn.Linear(inputs, outputs), nn.Softplus()]
    return nn.Sequential(*encoder), nn.Sequential(*decoder, nn.Linear(hidden[0], pixels)), hidden[-1]


def _convolutional(
    shape: tuple[int, ...], latent_dim: int, hidden: tuple[int, ...]
) -> tuple[nn.Module, nn.Module, int]:
    """As :func:`_dense`."""
    channels, height, width = shape
    unit = 2 ** len(hidden)
    small = (hidden[-1], height // unit, width // unit)
    encoder: list[nn.Module] = []
    for inputs, outputs in zip((channels, *hidden), hidden, strict=False):
        encoder += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
    decoder: list[nn.Module] = [nn.Linear(latent_dim, math.prod(small)), nn.LeakyReLU(0.2), nn.Unflatten(1, small)]
    outward = (*hidden[-2::-1], hidden[0])
    for inputs, outputs in zip(hidden[::-1], outward, strict=True):
        decoder += [nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.2)]
    decoder += [nn.Conv2d(hidden[0], channels, 3, padding=1)]
    return nn.Sequential(*encoder, nn.Flatten()), nn.Sequential(*decoder), math.prod(small)
