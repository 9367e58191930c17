"""Looking for the brightest pixel of digits under a slope of light (Ang's Figures 7, 8 and 10, Algorithms 3 and 4)."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern
from torch import Tensor

from companion import _support, sample
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.problems import truths

RULES = (
    "random",
    "training image",
    "gp, ucb",
    "gp refitted, ucb",
    "gaussian, ucb",
    "gaussian, thompson",
    "vae, mean",
    "vae, ucb",
    "vae, printed ucb",
    "vae, thompson",
    "gan, ucb",
    "gan, thompson",
)
PRIORS = {"vae": "vae-mnist", "gan": "gan-mnist"}  # checkpoints of the rules that draw latents
PRINTED_KAPPA = 50.0  # of the variance, in Ang's code
# Amplitudes between a tenth and one, as pixels are; lengths between a pixel and the image. The likeliest one is taken.
KERNELS = tuple(
    ConstantKernel(0.04, (0.01, 1.0)) * kernel for kernel in (RBF(3.0, (1.0, 28.0)), Matern(3.0, (1.0, 28.0), nu=2.5))
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    data: str  # a data set, or "prior": digits that the VAE draws
    images: int
    training: int  # images that the Gaussian and "training image" know
    tuning: int = 20  # of them, by which the process's kernel is tuned
    slopes: tuple[int, ...] = (2,)  # directions of the light: 2, down and up, or 4
    rounds: int
    std: float = 0.05
    chains: int = 4
    search: int = 20
    draws: int = 20
    rules: tuple[str, ...] = RULES


@experiment(
    "ang.optimisation",
    paper="Ang 2021",
    shows="Fig. 7, 8, 10, Algorithms 3 and 4",
    profiles={
        "quick": Settings(
            data="prior",
            images=2,
            training=100,
            rounds=2,
            chains=2,
            draws=10,
            rules=("random", "gp refitted, ucb", "gaussian, ucb", "vae, thompson", "gan, ucb"),
        ),
        "laptop": Settings(data="mnist", images=100, training=10_000, rounds=20),
        "paper": Settings(data="mnist", images=1000, training=60_000, rounds=40, slopes=(2, 4)),
    },
    tolerances={"regret": 0.5},
)
def optimisation(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Measures one pixel a round by every rule, until the brightest is found."""
    items = [(number, rule) for number in settings.slopes for rule in settings.rules]
    return {}, gather(context.map(_optimise, items, "rules"), slopes=settings.slopes, rule=settings.rules)


@experiment(
    "ang.optimisation-four",
    paper="Ang 2021",
    shows="Fig. 7, 8, 10, the images with four gradients",
    profiles={
        "quick": Settings(
            data="prior",
            images=2,
            training=100,
            tuning=5,
            slopes=(4,),
            rounds=2,
            chains=1,
            draws=10,
            rules=("random", "gp, ucb", "vae, printed ucb"),
        ),
        # two chains of each of four hypotheses: as many in all as under two slopes
        "laptop": Settings(
            data="mnist",
            images=100,
            training=10_000,
            slopes=(4,),
            rounds=12,
            chains=2,
            rules=tuple(rule for rule in RULES if not rule.startswith("gan,")),
        ),
        "paper": Settings(data="mnist", images=1000, training=60_000, slopes=(4,), rounds=40),
    },
    tolerances={"regret": 0.5},
)
def four(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Measures one pixel a round under light from one of four sides, until the brightest is found."""
    return optimisation(settings, context)


class Sloped:
    """Images ½ G(z) + slope, with a slope [*shape] between 0 and ½: a hypothesis of where the light comes from."""

    def __init__(self, prior: Any, slope: Tensor) -> None:
        self.prior, self.slope = prior, slope
        self.shape, self.latent_dim = prior.shape, prior.latent_dim

    def decode(self, z: Tensor) -> Tensor:
        return 0.5 * self.prior.decode(z) + self.slope


def slopes(number: int, shape: tuple[int, ...]) -> list[Tensor]:
    """The slopes of light: down, up, and for four of them right and left."""
    down = torch.linspace(0, 0.5, shape[1])[:, None].expand(shape)
    right = torch.linspace(0, 0.5, shape[2]).expand(shape)
    return [down, down.flip(1), right, right.flip(2)][:number]


def lit(part: Part, x: Tensor, number: int, stream: str) -> Tensor:
    """Images ½ x + a slope chosen at random for each."""
    every = slopes(number, tuple(x.shape[1:]))
    chosen = torch.randint(number, (len(x),), generator=_support.generator(part.seed, "slope", stream))
    return 0.5 * x + torch.stack([every[k] for k in chosen.tolist()]).to(x)


def _optimise(settings: Settings, part: Part, item: tuple[int, str]) -> tuple[dict, dict]:
    """The regret of one rule on all images, under light from so many directions."""
    number, rule = item
    prior = shared.prior(part, PRIORS["vae"])
    truth = lit(part, truths(part, prior, settings.data, settings.images), number, "test")
    known = lit(part, truths(part, prior, settings.data, settings.training, "train"), number, "train")
    options: dict[str, Any] = {"rounds": settings.rounds, "std": settings.std, "seed": shared.seed_of(part, "search")}
    kind, _, how = rule.partition(", ")
    if not how:
        found = sample.bayesian_optimisation(truth, None, "order", order=_order(settings, part, known, kind), **options)
    else:
        model = _posterior(settings, part, known, kind, number)
        if how == "printed ucb":
            found = sample.bayesian_optimisation(truth, squared_spread(model), "ucb", kappa=PRINTED_KAPPA, **options)
        else:
            found = sample.bayesian_optimisation(truth, model, how, **options)
        part.count_evaluations(getattr(model, "evaluations", 0))
    return {}, {"regret": named(shared.numpy(found.regret.T), image=settings.images, round=settings.rounds)}


def _order(settings: Settings, part: Part, known: Tensor, kind: str) -> Tensor:
    """Pixels to try in turn, [images, rounds]: at random, or the brightest one of a training image each."""
    found = []
    for k in range(settings.images):
        source = _support.generator(part.seed, kind, k)
        if kind == "random":
            found.append(torch.randperm(known[0].numel(), generator=source)[: settings.rounds])
        else:
            chosen = torch.randint(len(known), (settings.rounds,), generator=source)
            found.append(known[chosen].flatten(1).argmax(1))
    return torch.stack(found)


def squared_spread(posterior: sample.Posterior) -> sample.Posterior:
    """Draws whose standard deviation at each pixel is the square of that of `posterior`, about the same mean.

    With them mean + κ deviations is mean + κ variances, which Ang's code calls UCB.
    """

    def draws(mask: Tensor, y: Tensor, round_: int) -> Tensor:
        x = posterior(mask, y, round_)
        return x.mean(0) + x.std(0) * (x - x.mean(0))

    return draws


def _posterior(settings: Settings, part: Part, known: Tensor, kind: str, number: int) -> sample.Posterior:
    seed, shape = shared.seed_of(part, "posterior"), tuple(known.shape[1:])
    if kind in PRIORS:
        prior = shared.prior(part, PRIORS[kind])
        hypotheses = [Sloped(prior, slope.to(known)) for slope in slopes(number, shape)]
        sizes = {"chains": settings.chains, "search": settings.search, "draws": settings.draws}
        return sample.LatentPosterior(hypotheses, settings.std, worst=8.0, seed=seed, **sizes)
    if kind == "gp refitted":
        return refitted(shape, settings.std, seed)
    flat = known.flatten(1)
    if kind == "gaussian":
        return sample.GaussianPosterior(flat.mean(0), torch.cov(flat.mT), settings.std, seed=seed)
    level, at = flat.mean(), places(shape)
    kernel = likeliest(at, (flat[: settings.tuning] - level).mT.double().cpu().numpy(), settings.std).kernel_
    covariance = torch.as_tensor(kernel(at)).to(flat)
    return sample.GaussianPosterior(level.expand(len(at)), covariance, settings.std, seed=seed)


def places(shape: tuple[int, ...]) -> np.ndarray:
    """Row and column of each pixel of images [1, rows, columns], [pixels, 2]."""
    return np.indices(shape[1:]).reshape(2, -1).T.astype(float)


def likeliest(at: np.ndarray, values: np.ndarray, std: float) -> GaussianProcessRegressor:
    """Scikit-learn's Gaussian process with the likeliest of KERNELS, given values [places] or [places, images].

    The values are at places [places, 2], with N(0, std²) noise, less their mean. For each kernel the library's
    optimiser finds the amplitude and the length of the largest marginal likelihood.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of a few pixels, the likeliest may lie at a bound
        fits = [GaussianProcessRegressor(kernel, alpha=std**2).fit(at, values) for kernel in KERNELS]
    return max(fits, key=lambda fit: fit.log_marginal_likelihood_value_)


def refitted(shape: tuple[int, ...], std: float, seed: int, draws: int = 256) -> sample.Posterior:
    """Draws of a Gaussian process that knows no training image: its kernel is fitted to what has been measured.

    Its mean is that of the measured pixels. Each pixel has the mean and the deviation that scikit-learn predicts, and
    is drawn apart from the others, which is enough for UCB.
    """
    at = places(shape)

    def posterior(mask: Tensor, y: Tensor, round_: int) -> Tensor:
        drawn = []
        for k, (seen, measured) in enumerate(zip(mask.flatten(1).cpu().numpy(), y.double().cpu().numpy(), strict=True)):
            model, level = GaussianProcessRegressor(KERNELS[0]), 0.5
            if seen.any():
                level = measured.mean()
                model = likeliest(at[seen], measured - level, std)
            mean, deviation = (torch.as_tensor(moment).to(y) for moment in model.predict(at, return_std=True))
            noise = _support.normal((draws, len(at)), seed, y, "process", round_, k)
            drawn.append(level + mean + deviation * noise)
        return torch.stack(drawn, 1)

    return posterior
