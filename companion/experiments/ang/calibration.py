"""Is the posterior calibrated? Ranks of the truth, and coverage of intervals, for digits of the prior and real ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import _support, energy, evaluate, measure, sample
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.problems import Case, cases, observed, posterior, prior_latents, truths

METHODS = (
    "mala",
    "hmc",
    "langevin, metric",
    "annealed, metric",
    "mala, metric",
    "hmc, metric",
    "pcn, metric",
    "smc",
    "laplace",
)
LEVELS = 5  # of the annealing, which has a third of the budget for those above the last
INTERVALS = ("posterior", "predictive", "conformal")
LIKELIHOODS = ("noise alone", "noise and residual")
NORMAL = 1.6449  # half width of a 90 % interval of N(0, 1)
VISIBLE = 0.02  # pixels whose posterior deviation is below it are black whatever happens, and not counted
STROKE = 0.1  # pixels brighter than it belong to a stroke


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the tests."""

    prior: str = "vae-mnist"
    data: str  # of the real digits
    problems: int  # drawn from the prior
    images: int  # real digits
    training: int  # real digits for the decoder's residual and the conformal factor
    budget: int  # evaluations of each problem's chain, a third of them warm-up
    search: int = 60  # evaluations of each of four searches for the start
    draws: int  # kept of each chain: 19, 39 or 59, whose order statistics make exact 90 % intervals
    cases: tuple[tuple[str, int, float], ...]
    methods: tuple[str, ...] = METHODS


_CASES = (("inpainting", 25, 0.1), ("inpainting", 100, 0.1), ("compressed", 100, 0.1))


@experiment(
    "ang.calibration",
    paper="Ang 2021",
    shows="what the report does not ask: whether the posterior's uncertainty is right",
    profiles={
        "quick": Settings(
            data="digits",
            problems=24,
            images=6,
            training=6,
            budget=150,
            search=40,
            draws=19,
            cases=(("inpainting", 100, 0.1),),
            methods=("mala", "annealed, metric", "mala, metric", "pcn, metric", "laplace"),
        ),
        "laptop": Settings(data="mnist", problems=200, images=100, training=100, budget=900, draws=59, cases=_CASES),
        "paper": Settings(data="mnist", problems=1000, images=1000, training=1000, budget=3000, draws=59, cases=_CASES),
    },
    # ranks are whole numbers of chains that follow rounding errors apart
    tolerances={"rank": 0.5, "*coverage": 0.2, "*error": 0.2, "*width": 0.2},
)
def calibration(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Ranks truths drawn from the prior among their posterior's draws; then counts real digits within its intervals."""
    items = [(case, method) for case in settings.cases for method in settings.methods]
    arrays = gather(context.map(_rank, items, "samplers"), case=map(str, cases(settings)), method=settings.methods)
    real = [(case, likelihood) for case in settings.cases for likelihood in LIKELIHOODS]
    outcomes = context.map(_cover, real, "real digits")
    return {}, arrays | gather(outcomes, case=map(str, cases(settings)), likelihood=LIKELIHOODS)


def _rank(settings: Settings, part: Part, item: tuple[tuple[str, int, float], str]) -> tuple[dict, dict]:
    """Simulation-based calibration (Talts et al. 2018): one chain for each of many problems drawn from the prior.

    "rank" counts the draws below the truth, of each latent and, last, of ‖z‖²: uniform on 0 … draws if all is well.
    """
    given, method = item
    prior = shared.prior(part, settings.prior)
    truth = truths(part, prior, "prior", settings.problems)
    latents = prior_latents(part, prior, settings.problems)
    problem, y = observed(part, truth, Case(*given), "calibration")
    z = _draws(settings, part, method, posterior(prior, problem, y))
    below = torch.cat([z < latents, z.square().sum(2, True) < latents.square().sum(1, True)], 2).sum(0)
    with torch.no_grad():
        x = prior.decode(z.flatten(0, 1)).view(len(z), *truth.shape)
    return {}, {
        "rank": named(shared.numpy(below), problem=settings.problems, quantity=prior.latent_dim + 1),
        "coverage": named(_share(_inside(x, truth), x.std(0) > VISIBLE), problem=settings.problems),
        "error": named(evaluate.mse(x.mean(0), truth).numpy(), problem=settings.problems),
    }


def _draws(settings: Settings, part: Part, method: str, target: energy.Energy) -> Tensor:
    """Draws of each problem's posterior, [draw, problem, n]."""
    seed, images = shared.seed_of(part, "chains", method), len(target)
    if method == "smc":
        found = sample.smc(target, particles=settings.draws, seed=seed)
        part.count_evaluations(int(found.evaluations.sum()))
        return found.samples
    best = sample.initialise(target, "best", chains=4, budget=settings.search, seed=seed)[:, 0]
    metric = sample.gauss_newton(target, best)
    part.count_evaluations(images * (4 * settings.search + metric.evaluations))
    if method == "laplace":
        return metric.draw(settings.draws, seed=seed).transpose(0, 1)
    name, _, metrical = method.partition(", ")
    leapfrogs = 3 if name == "hmc" else 1
    steps = settings.budget // leapfrogs
    thin = (2 * steps // 3) // settings.draws
    warmup = steps - thin * settings.draws
    options: dict[str, Any] = {"draws": settings.draws, "thin": thin, "seed": seed}
    options |= {"step": 0.5, "metric": metric} if metrical else {"step": 0.05}
    z0 = metric.draw(1, seed=seed)
    if name == "annealed":
        chains = sample.annealed_langevin(target, z0, levels=LEVELS, steps=warmup // LEVELS, **options)
    elif name == "hmc":
        chains = sample.hmc(target, z0, leapfrogs=leapfrogs, warmup=warmup, **options)
    else:
        sampler = {"mala": sample.mala, "pcn": sample.pcn, "langevin": sample.langevin}[name]
        chains = sampler(target, z0, warmup=warmup, **options)
    part.count_evaluations(int(chains.evaluations.sum()))
    return chains.samples[:, :, 0]


def _inside(x: Tensor, truth: Tensor) -> Tensor:
    """Whether the truth lies between the order statistics of draws x, [draw, ...], that hold 90 % of exact ones."""
    outer = (len(x) + 1) // 20
    ordered = x.sort(0).values
    return (ordered[outer - 1] <= truth) & (truth <= ordered[-outer])


def _share(inside: Tensor, counted: Tensor) -> np.ndarray:
    """The share of the counted pixels that are inside, [image]; NaN where none is counted."""
    counted = counted.flatten(1)
    return shared.numpy((inside.flatten(1) & counted).sum(1) / counted.sum(1))


def _cover(settings: Settings, part: Part, item: tuple[tuple[str, int, float], str]) -> tuple[dict, dict]:
    """Coverage of pixels of real digits by 90 % intervals of three kinds.

    "posterior": of G(z). "predictive": of G(z) plus the decoder's residual, normal with its own deviation for each
    pixel. "conformal": posterior mean plus or minus the predictive deviation times a factor, with which 90 % of the
    stroke pixels of training digits are inside. The likelihood knows of the noise alone, or of the residual too:
    variance std² + τ², for Gaussian rows std² + τ² n / m.
    """
    given, likelihood = item
    case, prior = Case(*given), shared.prior(part, settings.prior)
    residual = _residual(settings, part, prior)
    found = {}
    for split, number in (("train", settings.training), ("test", settings.images)):
        truth = truths(part, prior, settings.data, number, split)
        problem, y = observed(part, truth, case, split)
        if likelihood == "noise and residual":
            gain = truth[0].numel() / case.m if case.kind == "compressed" else 1.0
            std = (case.std**2 + gain * float(residual.square().mean())) ** 0.5
            problem = measure.Problem(problem.operator, measure.GaussianNoise(std))
        z = _draws(settings, part, "mala, metric", posterior(prior, problem, y))
        with torch.no_grad():
            found[split] = truth, prior.decode(z.flatten(0, 1)).view(len(z), *truth.shape)
    (known, at_known), (truth, x) = found["train"], found["test"]
    scores = ((known - at_known.mean(0)).abs() / _width(at_known, residual))[known > STROKE]
    factor = float(scores.quantile(0.9)) / NORMAL
    noise = _support.normal(x.shape, part.seed, x, "predictive")
    inside = {
        "posterior": _inside(x, truth),
        "predictive": _inside(x + residual * noise, truth),
        "conformal": (truth - x.mean(0)).abs() <= factor * NORMAL * _width(x, residual),
    }
    groups = {"all": torch.ones_like(truth, dtype=torch.bool), "strokes": truth > STROKE}
    shares = [[_share(inside[kind], counted) for counted in groups.values()] for kind in INTERVALS]
    return {"conformal factor": round(factor, 3), "residual": round(float(residual.square().mean().sqrt()), 4)}, {
        "real coverage": named(np.stack(shares), interval=INTERVALS, group=tuple(groups), image=settings.images),
        "real error": named(evaluate.mse(x.mean(0), truth).numpy(), image=settings.images),
        "real width": named(shared.numpy(x.var(0).flatten(1).mean(1).sqrt()), image=settings.images),
    }


def _width(x: Tensor, residual: Tensor) -> Tensor:
    """Predictive standard deviation, [image, *shape]."""
    return (x.var(0) + residual.square()).sqrt()


def _residual(settings: Settings, part: Part, prior: Any) -> Tensor:
    """τ, root mean square over training digits of what the decoder cannot show, for each pixel, [*shape]."""
    truth = truths(part, prior, settings.data, settings.training, "train")
    problem = measure.Problem(measure.Identity(tuple(truth.shape[1:])), measure.GaussianNoise(0.1))
    target = posterior(prior, problem, truth)
    z, _ = sample.improve(target, prior.encode(truth)[:, None], settings.search)
    part.count_evaluations(len(truth) * settings.search)
    with torch.no_grad():
        return (truth - prior.decode(z[:, 0])).square().mean(0).sqrt()
