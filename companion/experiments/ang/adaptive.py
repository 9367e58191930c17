"""Which pixels to measure next (Ang's Figure 6), against the best designs that need no posterior."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion import _support, evaluate, sample
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.problems import truths

FIXED = ("random", "fixed, variance", "fixed, conditional")
ADAPTIVE = ("epsilon", "variance", "conditional")


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


@experiment(
    "ang.adaptive",
    paper="Ang 2021",
    shows="Fig. 6, Algorithm 2",
    profiles={
        "quick": Settings(
            data="prior",
            images=4,
            training=300,
            rounds=4,
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


def training_covariance(part: Part, prior: Any, name: str, number: int) -> tuple[Tensor, Tensor]:
    """Mean, [pixels], and covariance, [pixels, pixels], of training images."""
    flat = truths(part, prior, name, number, "train").flatten(1).double()
    return flat.mean(0).float(), torch.cov(flat.mT, correction=0).float()


def _sense(settings: Settings, part: Part, rule: str) -> tuple[dict, dict]:
    """Errors of the posterior mean after each round, of all images by one rule."""
    prior = shared.prior(part, settings.prior)
    truth = truths(part, prior, settings.data, settings.images)
    number, order = settings.rounds * settings.pixels, None
    if rule == "random":
        sources = [_support.generator(part.seed, "random design", k) for k in range(len(truth))]
        order = torch.stack([torch.randperm(truth[0].numel(), generator=source)[:number] for source in sources])
    elif rule.startswith("fixed"):
        _, covariance = training_covariance(part, prior, settings.data, settings.training)
        best = covariance.diagonal().topk(number).indices
        order = best if rule.endswith("variance") else sample.greedy(covariance, number, settings.std)
    latents = sample.LatentPosterior(
        prior,
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
    errors = torch.stack([evaluate.mse(estimate, truth) for estimate in found.estimates])
    measured = [settings.pixels * (round_ + 1) for round_ in range(settings.rounds)]
    return {}, {
        "error": named(shared.numpy(errors), measured=measured, image=settings.images),
        "place": named(shared.numpy(found.places).astype("int16"), image=settings.images, number=number),
    }
