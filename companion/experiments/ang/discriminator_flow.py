"""A flow's prior tilted by a discriminator, both of images with the noise that the flow has learned."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from companion import _support, energy, measure, sample
from companion.experiments import Context, Part, experiment, gather, shared
from companion.experiments.ang import discriminator
from companion.experiments.ang.problems import Case, observed, posterior


@dataclass(frozen=True, kw_only=True)
class Settings(discriminator.Settings):
    """Sizes of the comparison."""

    leapfrogs: int  # of the posterior's chains
    smoothing: float = 0.1  # of the noise in the images that the flow was trained on


_LEAPFROGS = 10  # of the tilted prior's chains: without measurements it is wide, and so are their steps
_SMOOTH = "glow-mnist-smooth"
_RUNS = ((_SMOOTH, "as trained", 0.0), (_SMOOTH, "as trained", 1.0), (_SMOOTH, "logistic", 1.0))


@experiment(
    "ang.discriminator-flow",
    paper="Ang 2021",
    shows="sec. 3.2 for a flow, which the report leaves for later",
    profiles={
        "quick": Settings(
            data="tilted",
            runs=((_SMOOTH, "as trained", 0.0), (_SMOOTH, "logistic", 1.0)),
            tuning=2,
            calibration=20,
            labelled=100,
            draws=4,
            budget=20,
            leapfrogs=2,
            images=1,
            chains=2,
            search=10,
            posterior=40,
        ),
        "laptop": Settings(
            data="mnist",
            runs=(*_RUNS, (_SMOOTH, "logistic", 3.0)),
            calibration=1000,
            labelled=10_000,
            draws=64,
            budget=200,
            leapfrogs=40,
            images=20,
            chains=2,
            search=60,
            posterior=800,
        ),
        "paper": Settings(
            data="mnist",
            runs=(*_RUNS, *((_SMOOTH, "logistic", weight) for weight in (3.0, 5.0, 10.0))),
            tuning=2000,
            calibration=5000,
            labelled=55_000,
            draws=2000,
            budget=5000,
            leapfrogs=60,
            images=1000,
            chains=4,
            posterior=10_000,
        ),
    },
    # chains follow rounding errors apart, and R-hat of chains that hardly moved is any large number
    tolerances={"rhat": None, "label": 0.5, "*": 0.3},
)
def flow(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Tilts a smoothed flow and its posterior by calibrated discriminators, a GAN's and one tuned to the flow."""
    halves = noisy(settings, context, 2 * settings.draws, "test").chunk(2)
    outcomes = context.map(_refine, settings.runs, "runs")
    return {"energy distance of real images": discriminator.energy_distance(*halves)}, gather(
        outcomes, run=discriminator.labels(settings)
    )


def noisy(settings: Settings, part: Part, number: int, split: str) -> Tensor:
    """Real images as the flow knows them, with N(0, smoothing²) noise, [number, *shape]."""
    x = discriminator.real_images(settings, part, number, split)
    return x + settings.smoothing * _support.normal(x.shape, part.seed, x, "smoothing", split)


def measured(settings: Settings, part: Part) -> tuple[Tensor, measure.Problem, Tensor]:
    """Clean images, and noisy pixels y of the images that the flow knows; masks and noise are "ang.discriminator"'s."""
    truth = discriminator.real_images(settings, part, settings.images, "test")
    problem, y = observed(part, truth, Case("inpainting", settings.m, settings.std))
    return truth, problem, y + problem.operator.forward(noisy(settings, part, len(truth), "test") - truth)


def _refine(settings: Settings, part: Part, item: tuple[str, str, float]) -> tuple[dict, dict]:
    """The flow tilted with weight λ: its draws by chains and by importance weights, and posterior means.

    The clean images are estimated from the posterior means, which are of noisy ones, by Tweedie's formula.
    """
    name, how, weight = item
    prior, real = shared.prior(part, name), partial(noisy, settings, part)
    penalty, arrays = discriminator.tilt(settings, part, prior, how, weight, real, _LEAPFROGS)
    truth, problem, y = measured(settings, part)
    tilted = energy.Energy(prior, terms=[*posterior(prior, problem, y).terms, (1.0, penalty)])
    z0 = sample.initialise(
        tilted,
        "typical",
        chains=settings.chains,
        budget=settings.search,
        noise=settings.smoothing,
        seed=shared.seed_of(part, "start"),
    )
    half = settings.posterior // 2 // settings.leapfrogs
    found = sample.hmc(
        tilted,
        z0,
        leapfrogs=settings.leapfrogs,
        step=0.02,
        draws=half,
        warmup=half,
        seed=shared.seed_of(part, "posterior"),
    )
    part.count_evaluations(settings.images * settings.chains * settings.search + int(found.evaluations.sum()))
    with torch.no_grad():
        rhat = found.diagnostics(lambda z: penalty.log_ratio(prior.decode(z))[:, None]).rhat.max(1)
    estimate = found.estimate(prior, std=settings.smoothing)
    return {}, arrays | discriminator.scores(settings, part, estimate, truth, rhat, found.accept_rate.mean(1))
