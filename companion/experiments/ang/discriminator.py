"""A generator's prior tilted by its discriminator: nearer to the data or not, and better posterior means or not."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from companion import _support, energy, evaluate, sample
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.problems import Case, cases, observed, posterior, prior_latents, truths


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    data: str  # a data set, or "tilted": see :func:`real_images`
    runs: tuple[tuple[str, str, float], ...]  # generator, how its discriminator came about, and weight λ
    tuning: int = 150  # steps of "logistic"
    calibration: int  # validation images, and as many generated ones, that the discriminator is calibrated on
    labelled: int  # training digits among which the nearest names an image's digit
    draws: int  # of each refined prior, a chain each; as many held-out images are compared with
    budget: int  # evaluations of each of these chains, before its draw
    images: int  # to be recovered
    chains: int  # of each posterior
    search: int = 80  # evaluations of the search for a start, of each chain
    posterior: int  # evaluations of each chain after it, half of them warm-up
    m: int = 50  # pixels seen
    std: float = 0.1  # of the noise of measurements


Real = Callable[[int, str], Tensor]
"""(number, split) → real images, [number, *shape]."""

_LEAPFROGS = 5
_BATCH = 64  # of either class, in a step of "logistic"
_GAN, _VAE = "gan-mnist", "vae-mnist"
_RUNS = (
    *((_GAN, "as trained", weight) for weight in (0.0, 1.0, 3.0, 5.0, 10.0)),
    (_GAN, "theorem 2", 1.0),
    (_GAN, "logistic", 1.0),
    (_VAE, "as trained", 0.0),
    (_VAE, "as trained", 1.0),
    (_VAE, "theorem 2", 1.0),
    (_VAE, "corrected", 1.0),
    (_VAE, "logistic", 1.0),
)

_QUICK = Settings(
    data="tilted",
    runs=((_GAN, "as trained", 0.0), (_GAN, "as trained", 1.0), (_GAN, "logistic", 1.0)),
    tuning=2,
    calibration=20,
    labelled=100,
    draws=8,
    budget=20,
    images=1,
    chains=2,
    search=10,
    posterior=40,
)
_LAPTOP = Settings(
    data="mnist",
    runs=_RUNS,
    calibration=1000,
    labelled=10_000,
    draws=128,
    budget=200,
    images=40,
    chains=2,
    search=100,
    posterior=800,
)
_PAPER = Settings(
    data="mnist",
    runs=_RUNS,
    tuning=2000,
    calibration=5000,
    labelled=55_000,
    draws=2000,
    budget=5000,
    images=1000,
    chains=4,
    posterior=10_000,
)
# chains follow rounding errors apart, and R-hat of chains that hardly moved is any large number
_TOLERANCES = {"rhat": None, "label": 0.5, "*": 0.3}


@experiment(
    "ang.discriminator",
    paper="Ang 2021",
    shows="sec. 3.2, Figs. 3–5, with a discriminator calibrated on held-out images",
    profiles={
        "quick": _QUICK,
        "laptop": _LAPTOP,
        "paper": _PAPER,
    },
    tolerances=_TOLERANCES,
)
def discriminator(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Tilts priors and their posteriors by calibrated discriminators, as trained and fine-tuned."""
    real = real_images(settings, context, 2 * settings.draws, "test")
    facts = {"energy distance of real images": energy_distance(*real.chunk(2))}
    outcomes = context.map(_refine, settings.runs, "runs")
    return facts, gather(outcomes, run=labels(settings))


@dataclass(frozen=True, kw_only=True)
class Measured(Settings):
    """The same, with other measurements; no draws of the prior are made."""

    cases: tuple[tuple[str, int, float], ...]  # kind, m and std of :class:`Case`


_TILTS = ((_GAN, "as trained", 0.0), (_GAN, "as trained", 1.0), (_VAE, "as trained", 0.0), (_VAE, "as trained", 1.0))
_CASES = (("compressed", 50, 0.1), ("denoising", 0, 0.5))


@experiment(
    "ang.discriminator-measured",
    paper="Ang 2021",
    shows="sec. 3.2, Figs. 3 and 4: compressed sensing and denoising",
    profiles={
        "quick": Measured(**vars(_QUICK) | {"runs": _TILTS[:2], "cases": _CASES}),
        "laptop": Measured(**vars(_LAPTOP) | {"runs": (*_TILTS, (_VAE, "logistic", 1.0)), "cases": _CASES}),
        "paper": Measured(**vars(_PAPER) | {"cases": _CASES}),
    },
    tolerances=_TOLERANCES,
)
def measured(settings: Measured, context: Context) -> tuple[dict, dict]:
    """Posterior means by tilted priors from sums of pixels, and from noisy digits."""
    items = [(case, run) for case in cases(settings) for run in settings.runs]
    outcomes = context.map(_recover, items, "runs")
    return {}, gather(outcomes, case=map(str, cases(settings)), run=labels(settings))


def labels(settings: Settings) -> list[str]:
    """Of the runs."""
    return [f"{generator}, {judge}, λ = {weight:g}" for generator, judge, weight in settings.runs]


@torch.no_grad()
def real_images(settings: Settings, part: Part, number: int, split: str) -> Tensor:
    """Images of the data, [number, *shape].

    Those called "tilted" are draws of the GAN accepted with probability ∝ exp(d): the log ratio is d + constant, so
    that the right scale is 1 and λ = 1 is exact. The embedded 8×8 digits won't do: enlarged, they are so smooth that
    the discriminator tells them all from the generator's, and prefers the latter.
    """
    gan = shared.prior(part, _GAN)
    if settings.data != "tilted":
        return truths(part, gan, settings.data, number, split)
    source = _support.generator(part.seed, "tilted", split)
    pool = gan.decode(_support.normal((30 * number, gan.latent_dim), source, gan.like))
    d = gan.discriminate(pool).cpu()
    accepted = torch.rand(len(d), generator=source, device="cpu") < (d - d.max()).exp()
    return pool[accepted.to(pool.device)][:number]


def judge(settings: Settings, part: Part, prior: Any, how: str, real: Real) -> Callable[[Tensor], Tensor]:
    """The GAN's discriminator, in evaluation mode: "as trained", or made to fit images of `prior`.

    "theorem 2" descends E d(G(z)) alone, by 5 steps of SGD over 1,000 draws in training mode, as Ang's code does.
    "logistic" descends the log loss of real training images against draws, which is least for d = log p_data / p_G.
    "corrected" is eq. 7 of Ang: d as trained, of log p_data / p_GAN, plus the logit of a second network that descends
    the log loss of the GAN's draws against those of `prior`, for log p_GAN / p_G.
    """
    gan = shared.prior(part, _GAN)
    if how == "as trained":
        return gan.discriminate
    tuned = deepcopy(gan)
    parameters = [each.requires_grad_() for each in tuned.discriminator.parameters()]
    steps: list[Callable[[], Tensor]]
    if how == "theorem 2":
        tuned.discriminator.train()
        optimiser: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
        generated = _drawn(part, prior, 1000, "tuning")
        steps = [partial(lambda images: tuned.discriminate(images).mean(), generated)] * 5
    else:
        optimiser = torch.optim.Adam(parameters, lr=1e-4)
        number = settings.tuning * _BATCH
        better = _drawn(part, gan, number, "correction") if how == "corrected" else real(number, "train")
        pairs = zip(better.split(_BATCH), _drawn(part, prior, len(better), "tuning").split(_BATCH), strict=True)
        steps = [partial(log_loss, tuned.discriminate, *pair) for pair in pairs]
    for step in steps:
        optimiser.zero_grad()
        step().backward()
        optimiser.step()
    tuned.discriminator.eval()
    tuned.requires_grad_(False)
    if how == "corrected":
        return lambda x: gan.discriminate(x) + tuned.discriminate(x)
    return tuned.discriminate


@torch.no_grad()
def _drawn(part: Part, prior: Any, number: int, stream: str) -> Tensor:
    """Images that the prior makes, [number, *shape]."""
    return torch.cat([prior.decode(z) for z in prior_latents(part, prior, number, stream).split(1000)])


def log_loss(log_ratio: Callable[[Tensor], Tensor], real: Tensor, generated: Tensor) -> Tensor:
    """Mean −log of the probability given to what an image is, real or generated; log 2 for a coin's."""
    return (softplus(-log_ratio(real)).mean() + softplus(log_ratio(generated)).mean()) / 2


def _calibrate(
    settings: Settings, part: Part, prior: Any, discriminate: Callable[[Tensor], Tensor], real: Real
) -> tuple[energy.LogRatio, dict[str, float]]:
    """The calibrated log ratio, and what it is worth: scale, and log losses in nats on images of another set."""

    def both(split: str) -> tuple[Tensor, Tensor]:
        images = real(settings.calibration, split)
        return images, _drawn(part, prior, len(images), split)

    ratio, held_out = sample.calibrated(discriminate, *both("validation")), both("test")
    with torch.no_grad():
        losses = [float(log_loss(each, *held_out)) for each in (energy.LogRatio(discriminate), ratio)]
    return ratio, {"scale": ratio.scale, "bias": ratio.bias, "raw log loss": losses[0], "log loss": losses[1]}


def energy_distance(x: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
    """√(2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖) of images x, [number, *shape], with weights that sum to 1, and y.

    Draws of one distribution are not at 0, but at about √(E‖X − X'‖ (1 / number of x + 1 / number of y)).
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()
    w = x.new_full((len(x),), 1 / len(x)) if weights is None else weights.to(x)
    across, within, real = w @ torch.cdist(x, y).mean(1), w @ torch.cdist(x, x) @ w, torch.cdist(y, y).mean()
    return float((2 * across - within - real).clamp(min=0).sqrt())


def _refine(settings: Settings, part: Part, item: tuple[str, str, float]) -> tuple[dict, dict]:
    """The prior tilted with weight λ: its draws by chains and by importance weights, and posterior means."""
    name, how, weight = item
    prior = shared.prior(part, name)
    penalty, arrays = tilt(settings, part, prior, how, weight, partial(real_images, settings, part), _LEAPFROGS)
    return {}, arrays | _recovered(settings, part, prior, penalty, Case("inpainting", settings.m, settings.std))


def _recover(settings: Settings, part: Part, item: tuple[Case, tuple[str, str, float]]) -> tuple[dict, dict]:
    """Posterior means by a prior tilted with weight λ."""
    case, (name, how, weight) = item
    prior, real = shared.prior(part, name), partial(real_images, settings, part)
    ratio, _ = _calibrate(settings, part, prior, judge(settings, part, prior, how, real), real)
    return {}, _recovered(settings, part, prior, energy.Discrimination(ratio, weight), case)


def _recovered(settings: Settings, part: Part, prior: Any, penalty: energy.Discrimination, case: Case) -> dict:
    """Scores of posterior means, by chains in the metric of the posterior that is not tilted."""
    truth = real_images(settings, part, settings.images, "test")
    problem, y = observed(part, truth, case)
    plain = posterior(prior, problem, y)
    tilted = energy.Energy(prior, terms=[*plain.terms, (1.0, penalty)])
    z0 = sample.initialise(
        tilted, "best", chains=settings.chains, budget=settings.search, seed=shared.seed_of(part, "start")
    )
    metric = sample.gauss_newton(plain, z0[:, 0])
    half = settings.posterior // 2 // _LEAPFROGS
    options: dict[str, Any] = {"leapfrogs": _LEAPFROGS, "draws": half, "warmup": half, "metric": metric}
    found = sample.hmc(tilted, z0, seed=shared.seed_of(part, "posterior"), **options)
    part.count_evaluations(settings.images * (settings.chains * settings.search + metric.evaluations))
    part.count_evaluations(int(found.evaluations.sum()))
    rhat = found.diagnostics().rhat.max(1)
    return scores(settings, part, found.estimate(prior), truth, rhat, found.accept_rate.mean(1))


def tilt(
    settings: Settings, part: Part, prior: Any, how: str, weight: float, real: Real, leapfrogs: int
) -> tuple[energy.Discrimination, dict]:
    """The term of the tilted energy, and draws of the tilted prior by chains and by importance weights."""
    ratio, facts = _calibrate(settings, part, prior, judge(settings, part, prior, how, real), real)
    penalty = energy.Discrimination(ratio, weight)
    held_out = real(settings.draws, "test")
    z = prior_latents(part, prior, settings.draws, "refined")
    steps = settings.budget // leapfrogs
    chains = sample.hmc(
        lambda z: z.square().sum(1) / 2 + penalty(energy.LatentPoint(prior, z)),
        z[:, None],
        leapfrogs=leapfrogs,
        draws=1,
        warmup=steps - 1,
        seed=shared.seed_of(part, "prior"),
    )
    part.count_evaluations(int(chains.evaluations.sum()))
    with torch.no_grad():
        generated, refined = prior.decode(z), prior.decode(chains.last[:, 0])
        before, after = ratio(generated), ratio(refined)
    weights = sample.importance_weights(weight * before)
    numbers = facts | {
        "importance ess": float(weights.ess),
        "energy distance": energy_distance(refined, held_out),
        "energy distance, importance": energy_distance(generated, held_out, weights.values),
    }
    return penalty, {
        **{name: named(round(value, 4)) for name, value in numbers.items()},
        "log ratio": named(shared.numpy(torch.stack([before, after]), 3), at=("prior", "tilted"), draw=settings.draws),
        "refined step": named(shared.numpy(chains.step, 4), draw=settings.draws),
        "refined": shared.pictures(refined[:8]),
    }


def scores(
    settings: Settings, part: Part, estimate: Tensor, truth: Tensor, rhat: np.ndarray, accept_rate: Tensor
) -> dict:
    """What estimates of the images are worth, an image each, and what their chains were."""
    digit = shared.reader(part, "digits" if settings.data == "tilted" else settings.data, settings.labelled)
    per_image = {
        "error": evaluate.mse(estimate, truth),
        "ssim": evaluate.ssim(estimate, truth),
        "label": (digit(estimate) == digit(truth)).double(),
        "rhat": torch.as_tensor(rhat).clamp(max=1e6),
        "accept_rate": accept_rate,
    }
    return {**shared.by_image(per_image, 5), "estimate": shared.pictures(estimate[:8])}
