"""What priors other than plain image flows minimise in :func:`companion.priors.fit`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from companion import _support
from companion.priors.base import Prior
from companion.priors.settings import Settings
from companion.priors.training import Likelihood, Objective


class WeightNormLikelihood(Likelihood):
    """Maximum likelihood with an L2 penalty on weight normalisation's scale factors g (Whang et al. 2020, Table 1).

    The gradient of decay · ‖g‖² / 2 is added to that of the negative log-likelihood in bits per dimension.
    """

    def __init__(self, decay: float = 5e-5) -> None:
        self.decay = _support.positive("decay", decay, zero=True)

    def optimisers(self, model: Prior, settings: Settings) -> list[torch.optim.Optimizer]:
        """Adam with the penalty on the scale factors alone."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        scales = [p for name, p in named if name.endswith(SCALE_FACTOR)]
        others = [p for name, p in named if not name.endswith(SCALE_FACTOR)]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": scales, "weight_decay": self.decay}]
        return [torch.optim.Adam([g for g in groups if g["params"]], settings.learning_rate)]


SCALE_FACTOR = ".parametrizations.weight.original0"  # where torch keeps the g of weight normalisation


class PointLikelihood(Likelihood):
    """Maximum likelihood of points, in nats (flows without pixels)."""

    unit = "nats"

    def prepare(self, model: Any, batch: Tensor) -> None:
        if not bool(model.initialised):
            model.initialise(batch)

    def inputs(self, model: Any, batch: Tensor, draw: torch.Generator) -> tuple[Tensor, ...]:
        return (batch,)

    def losses(self, model: Any, *inputs: Tensor) -> list[Callable[[], Tensor]]:
        return [lambda: -model.log_prob(*inputs).mean()]

    @torch.no_grad()
    def score(self, model: Any, images: Tensor) -> float:
        return -float(model.log_prob(images).mean())


class Elbo(Objective):
    """Negative evidence lower bound, in nats per image; for a Gaussian likelihood of dequantised images (VAEs)."""

    unit = "nats"

    def inputs(self, model: Any, batch: Tensor, draw: torch.Generator) -> tuple[Tensor, ...]:
        if model.likelihood == "gaussian":
            batch = model.pixels.dequantise(batch, draw)
        return batch, _support.normal((len(batch), model.latent_dim), draw, batch)

    def losses(self, model: Any, *inputs: Tensor) -> list[Callable[[], Tensor]]:
        return [lambda: -model.elbo_with(*inputs).mean()]

    @torch.no_grad()
    def score(self, model: Any, images: Tensor) -> float:
        draw = torch.Generator().manual_seed(0)
        parts = [-model.elbo_with(*self.inputs(model, part, draw)) for part in images.split(250)]
        return float(torch.cat(parts).mean())


class Adversarial(Objective):
    """The two-player game of a GAN with the non-saturating loss (Goodfellow et al. 2014, sec. 3; Radford et al. 2016).

    The discriminator moves first, then the generator, both by Adam with β₁ = 0.5. The score is a distance of pictures,
    not of likelihoods (a GAN has none): :func:`sliced_wasserstein` between held-out images and as many samples. It
    tells collapse from progress, but is too blunt to stop the training by: leave `patience` at None.

    Where several processes share a batch, each normalises by its own rows, so their number changes the result a little.
    """

    unit = "sliced Wasserstein"
    loss_unit = "nats (discriminator)"

    def optimisers(self, model: Any, settings: Settings) -> list[torch.optim.Optimizer]:
        players = (model.discriminator, model.generator)
        return [torch.optim.Adam(p.parameters(), settings.learning_rate, betas=(0.5, 0.999)) for p in players]

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
    directions = F.normalize(_support.normal((x.shape[1], projections), seed, x), dim=0)
    return float(((x @ directions).sort(0).values - (y @ directions).sort(0).values).abs().mean())
