"""What to measure next, pixels (Ang's Figure 6) or rows of a matrix, against the best designs without a posterior."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion import _support, evaluate, sample
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.problems import truths

FIXED = ("random", "fixed, variance", "fixed, conditional", "fixed, model")
ADAPTIVE = ("epsilon", "variance", "conditional")
_GAN = ("random", "fixed, conditional", "fixed, model", "variance", "conditional")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    prior: str = "vae-mnist"
    data: str
    images: int
    training: int  # images whose covariance the fixed designs know
    rounds: int
    pixels: int = 5  # measured in each round
    std: float = 0.1  # of the noise
    assumed_std: float = 0.1  # in the likelihood
    chains: int = 4
    search: int = 25  # evaluations of the search in each round, for each chain
    draws: int = 30
    rules: tuple[str, ...] = FIXED + ADAPTIVE


@dataclass(frozen=True, kw_only=True)
class RowSettings(Settings):
    """Sizes of the comparison of rows, of which `pixels` are measured in each round."""

    candidates: int = 1000  # rows to choose from, more than there are pixels: see :class:`Rows`


@experiment(
    "ang.adaptive",
    paper="Ang 2021",
    shows="Fig. 6, Algorithm 2",
    profiles={
        "quick": Settings(
            data="prior",
            images=2,
            training=100,
            rounds=2,
            draws=12,
            search=15,
            rules=("random", "fixed, conditional", "conditional"),
        ),
        "laptop": Settings(data="mnist", images=100, training=10_000, rounds=16),
        "paper": Settings(data="mnist", images=1000, training=60_000, rounds=40),
    },
    tolerances={"error": 0.2, "place": 0.5},  # one rounding error may choose another pixel
)
def adaptive(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Measures digits pixel by pixel, by every rule, with the same noise and the same posterior."""
    outcomes = context.map(_sense, settings.rules, "rules")
    return {}, gather(outcomes, rule=settings.rules)


@experiment(
    "ang.adaptive-rows",
    paper="Ang 2021",
    shows="Algorithm 2 for compressed sensing, which the report leaves out",
    profiles={
        "quick": RowSettings(
            data="prior",
            images=2,
            training=100,
            rounds=2,
            draws=12,
            search=15,
            rules=("random", "fixed, conditional", "conditional"),
        ),
        "laptop": RowSettings(data="mnist", images=100, training=10_000, rounds=12),
        "paper": RowSettings(data="mnist", images=1000, training=60_000, rounds=40),
    },
    tolerances={"error": 0.2, "place": 0.5},  # one rounding error may choose another row
)
def adaptive_rows(settings: RowSettings, context: Context) -> tuple[dict, dict]:
    """Measures digits by rows of one Gaussian matrix, chosen by every rule, with the same noise and posterior."""
    return adaptive(settings, context)


@experiment(
    "ang.adaptive-gan",
    paper="Ang 2021",
    shows="Fig. 6, Algorithm 2, with a GAN",
    profiles={
        "quick": Settings(
            prior="gan-mnist",
            data="prior",
            images=2,
            training=100,
            rounds=2,
            chains=2,
            draws=10,
            search=15,
            rules=("fixed, model", "conditional"),
        ),
        "laptop": Settings(prior="gan-mnist", data="mnist", images=100, training=10_000, rounds=16, rules=_GAN),
        "paper": Settings(prior="gan-mnist", data="mnist", images=1000, training=60_000, rounds=40),
    },
    tolerances={"error": 0.2, "place": 0.5},
)
def adaptive_gan(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Measures the same digits with the same noise, and chooses and estimates by a GAN's posterior."""
    return adaptive(settings, context)


class Rows:
    """What rows a of a matrix would measure of images, aᵀ G(z), in place of their pixels: a row is chosen like a pixel.

    The matrix, [candidates, pixels], has entries N(0, 1/pixels): a row of length one, so that its noise says as much
    about it as about a pixel. With more rows than pixels, an image is known by what all of them measure.
    """

    def __init__(self, prior: Any, matrix: Tensor) -> None:
        self.prior, self.matrix = prior, matrix
        self.latent_dim = prior.latent_dim
        self.shape: tuple[int, ...] = (1, len(matrix), 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.of(self.prior.decode(z))

    def of(self, x: Tensor) -> Tensor:
        """The measurements of images x, [batch, *shape]."""
        return (x.flatten(1) @ self.matrix.mT).view(-1, *self.shape)

    def images(self, measured: Tensor) -> Tensor:
        """The images of which these are the measurements, by least squares."""
        found = torch.linalg.lstsq(self.matrix.double(), measured.flatten(1).mT.double()).solution
        return found.mT.to(measured).view(-1, *self.prior.shape)


def training_covariance(part: Part, prior: Any, name: str, number: int) -> tuple[Tensor, Tensor]:
    """Mean, [pixels], and covariance, [pixels, pixels], of training images, or of draws of the "prior"."""
    flat = truths(part, prior, name, number, "train").flatten(1).double()
    return flat.mean(0).float(), torch.cov(flat.mT, correction=0).float()


def _sense(settings: Settings, part: Part, rule: str) -> tuple[dict, dict]:
    """Errors of the posterior mean after each round, of all images by one rule."""
    prior = shared.prior(part, settings.prior)
    images = truths(part, prior, settings.data, settings.images)
    rows = _rows(part, prior, settings.candidates) if isinstance(settings, RowSettings) else None
    truth = rows.of(images) if rows else images
    number, order = settings.rounds * settings.pixels, None
    if rule == "random":
        sources = [_support.generator(part.seed, "random design", k) for k in range(len(truth))]
        order = torch.stack([torch.randperm(truth[0].numel(), generator=source)[:number] for source in sources])
    elif rule.startswith("fixed"):
        # Apart from what adapting adds, the adaptive rules know the model: one list is made from its own draws.
        data = "prior" if rule.endswith("model") else settings.data
        _, covariance = training_covariance(part, prior, data, settings.training)
        covariance = rows.matrix @ covariance @ rows.matrix.mT if rows else covariance
        best = covariance.diagonal().topk(number).indices
        order = best if rule.endswith("variance") else sample.greedy(covariance, number, settings.std)
    latents = sample.LatentPosterior(
        rows or prior,
        settings.assumed_std,
        chains=settings.chains,
        search=settings.search,
        draws=settings.draws,
        seed=shared.seed_of(part, "posterior"),
    )
    found = sample.adaptive_sensing(
        truth,
        latents,
        "order" if order is not None else rule,
        rounds=settings.rounds,
        pixels=settings.pixels,
        std=settings.std,
        order=order,
        seed=shared.seed_of(part, "sensing"),
    )
    part.count_evaluations(latents.evaluations)
    errors = torch.stack([evaluate.mse(rows.images(e) if rows else e, images) for e in found.estimates])
    measured = [settings.pixels * (round_ + 1) for round_ in range(settings.rounds)]
    return {}, {
        "error": named(shared.numpy(errors), measured=measured, image=settings.images),
        "place": named(shared.numpy(found.places).astype("int16"), image=settings.images, number=number),
    }


def _rows(part: Part, prior: Any, candidates: int) -> Rows:
    pixels = math.prod(prior.shape)
    return Rows(prior, _support.normal((candidates, pixels), part.seed, prior.like, "rows") / pixels**0.5)
