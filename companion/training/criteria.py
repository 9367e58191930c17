"""Criteria: what a training minimises, and the score by which validation judges it."""

from abc import ABC
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from companion import _support
from companion.priors.base import Prior
from companion.training.schedule import Schedule


class Criterion(ABC):
    """What is minimised; its score is the number that validation compares (lower is better)."""

    unit: str

    @property
    def loss_unit(self) -> str:
        """Unit of the first player's loss, which the progress bar shows; that of the score for most criteria."""
        return self.unit

    def optimisers(self, model: Prior, schedule: Schedule) -> list[torch.optim.Optimizer]:
        """The optimisers, one per player; one for most models."""
        return [torch.optim.Adam([p for p in model.parameters() if p.requires_grad], schedule.learning_rate)]

    def prepare(self, model: Prior, batch: Tensor, draw: torch.Generator) -> None:  # noqa: B027 - a hook, not a duty
        """Data-dependent initialisation from the first batch; nothing for most models."""

    def inputs(self, model: Prior, batch: Tensor, draw: torch.Generator) -> tuple[Tensor, ...]:
        """Everything random that one step needs, made for the whole batch: tensors with one row per image.

        Each process then takes its rows of them, so that any number of processes computes the same.
        """
        return (batch,)

    def surprise(self, model: Any, *inputs: Tensor) -> Tensor:
        """What one player minimises the mean of, in `unit`: −log p(x), or a bound of it, for each row; [batch]."""
        raise NotImplementedError

    def losses(self, model: Any, *inputs: Tensor) -> list[Callable[[], Tensor]]:
        """For each optimiser, in turn, a function that returns its loss, a mean over the rows of `inputs`."""
        return [lambda: self.surprise(model, *inputs).mean()]

    @torch.no_grad()
    def score(self, model: Any, images: Tensor) -> float:
        """Score of held-out images, in `unit`."""
        draw = _support.generator(0, "validation")  # the same noise at every validation
        parts = [self.surprise(model, *self.inputs(model, part, draw)) for part in images.split(250)]
        return float(torch.cat(parts).mean())


class PointLikelihood(Criterion):
    """Maximum likelihood of points, in nats (flows without pixels)."""

    unit = "nats"

    def prepare(self, model: Any, batch: Tensor, draw: torch.Generator) -> None:
        if not bool(model.initialised):
            model.initialise(self.inputs(model, batch, draw)[0])

    def surprise(self, model: Any, *inputs: Tensor) -> Tensor:
        return -model.log_prob(*inputs)


class Likelihood(PointLikelihood):
    """Maximum likelihood of dequantised images, in bits per dimension (flows; ValueError for one without pixels)."""

    unit = "bits/dim"

    def inputs(self, model: Any, batch: Tensor, draw: torch.Generator) -> tuple[Tensor, ...]:
        if getattr(model, "pixels", None) is None:
            given = f"criterion: got {type(self).__name__} for a {type(model).__name__} without pixels"
            raise ValueError(f"{given}; allowed: PointLikelihood, or a flow made with pixels=PixelMap()")
        return (model.pixels.dequantise(batch, draw),)

    def surprise(self, model: Any, *inputs: Tensor) -> Tensor:
        return model.pixels.bits_per_dim(model.log_prob(*inputs), model.latent_dim)


class SmoothedLikelihood(Likelihood):
    """Maximum likelihood of dequantised images plus Gaussian noise of standard deviation `std`.

    The density of bare drawings has spikes where pixels are exactly black: its mode is no image, and no sampler moves
    in it. That of noisy ones is smooth. Needs ``pixels="uniform"``.
    """

    def __init__(self, std: float = 0.1) -> None:
        self.std = _support.positive("std", std)

    def prepare(self, model: Any, batch: Tensor, draw: torch.Generator) -> None:
        if model.domain is not None:
            raise ValueError("model: got a flow with logit pixels, which noise leaves; allowed: pixels='uniform'")
        super().prepare(model, batch, draw)

    def inputs(self, model: Any, batch: Tensor, draw: torch.Generator) -> tuple[Tensor, ...]:
        (x,) = super().inputs(model, batch, draw)
        return (x + self.std * _support.normal(x.shape, draw, x),)


class DenoisingScoreMatching(SmoothedLikelihood):
    """Score matching of noisy images x + σε (Vincent 2011, eq. 9): the mean of (σ ∇ log p + ε)² over pixels.

    The part of the noise's power that :func:`companion.sample.tweedie` leaves in the image, 1 where it does nothing.
    Maximum likelihood fits values of the density at images; this fits its gradient, which denoises. A step costs about
    two of maximum likelihood's, as the gradient is differentiated; best begun at weights of that.
    """

    unit = "noise power left"

    def inputs(self, model: Any, batch: Tensor, draw: torch.Generator) -> tuple[Tensor, ...]:
        (clean,) = Likelihood.inputs(self, model, batch, draw)
        noise = _support.normal(clean.shape, draw, clean)
        return clean + self.std * noise, noise

    def surprise(self, model: Any, *inputs: Tensor) -> Tensor:
        x, noise = inputs
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (score,) = torch.autograd.grad(model.log_prob(x).sum(), x, create_graph=training)
        return (self.std * score + noise).square().flatten(1).mean(1)


class WeightNormLikelihood(Likelihood):
    """Maximum likelihood with an L2 penalty on weight normalisation's scale factors g (Whang et al. 2020, Table 1).

    The gradient of decay · ‖g‖² / 2 is added to that of the negative log-likelihood in bits per dimension.
    """

    def __init__(self, decay: float = 5e-5) -> None:
        self.decay = _support.positive("decay", decay, zero=True)

    def optimisers(self, model: Prior, schedule: Schedule) -> list[torch.optim.Optimizer]:
        """Adam with the penalty on the scale factors alone."""
        scales: list[Tensor] = []
        others: list[Tensor] = []
        for name, p in model.named_parameters():
            (scales if name.endswith(SCALE_FACTOR) else others).append(p)
        groups: list[dict[str, Any]] = [{"params": others}, {"params": scales, "weight_decay": self.decay}]
        return [torch.optim.Adam([g for g in groups if g["params"]], schedule.learning_rate)]


SCALE_FACTOR = ".parametrizations.weight.original0"  # where torch keeps the g of weight normalisation


class Elbo(Criterion):
    """Negative evidence lower bound, in nats per image; for a Gaussian likelihood of dequantised images (VAEs)."""

    unit = "nats"

    def inputs(self, model: Any, batch: Tensor, draw: torch.Generator) -> tuple[Tensor, ...]:
        if model.likelihood == "gaussian":
            batch = model.pixels.dequantise(batch, draw)
        return batch, _support.normal((len(batch), model.latent_dim), draw, batch)

    def surprise(self, model: Any, *inputs: Tensor) -> Tensor:
        return -model.elbo_with(*inputs)


class Adversarial(Criterion):
    """The two-player game of a GAN with the non-saturating loss (Goodfellow et al. 2014, sec. 3; Radford et al. 2016).

    The discriminator moves first, then the generator, both by Adam with β₁ = 0.5. The score,
    :func:`sliced_wasserstein` between held-out images and as many samples, tells collapse from progress, but is too
    blunt to stop the training by. Several processes normalise by their own rows, which changes the result a little.
    """

    unit = "sliced Wasserstein"
    loss_unit = "nats (discriminator)"

    def optimisers(self, model: Any, schedule: Schedule) -> list[torch.optim.Optimizer]:
        players = (model.discriminator, model.generator)
        return [torch.optim.Adam(p.parameters(), schedule.learning_rate, betas=(0.5, 0.999)) for p in players]

    def inputs(self, model: Any, batch: Tensor, draw: torch.Generator) -> tuple[Tensor, ...]:
        return batch, _support.normal((len(batch), model.latent_dim), draw, batch)

    def losses(self, model: Any, *inputs: Tensor) -> list[Callable[[], Tensor]]:
        real, z = inputs
        fake = model.decode(z)

        def discriminator() -> Tensor:
            return F.softplus(-model.discriminate(real)).mean() + F.softplus(model.discriminate(fake.detach())).mean()

        def generator() -> Tensor:
            return F.softplus(-model.discriminate(fake)).mean()

        return [discriminator, generator]

    @torch.no_grad()
    def score(self, model: Any, images: Tensor) -> float:
        return sliced_wasserstein(images, model.sample(len(images), seed=0))


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 256, seed: int | torch.Generator = 0) -> float:
    """Mean 1-Wasserstein distance of x and y, [batch, ...] alike, over random directions of unit length."""
    if x.shape != y.shape:
        raise ValueError(f"y: got shape {tuple(y.shape)}; allowed: {tuple(x.shape)}, as x")
    x, y = x.flatten(1), y.flatten(1)
    directions = F.normalize(_support.normal((x.shape[1], projections), seed, x, "directions"), dim=0)
    return float(((x @ directions).sort(0).values - (y @ directions).sort(0).values).abs().mean())
