"""Is the posterior calibrated? Ranks of the truth, and coverage of intervals, for digits of the prior and real ones."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import _support, evaluate, measure, sample
from companion.energy import Energy
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang import printed
from companion.experiments.ang.problems import Case, cases, observed, posterior, prior_latents, truths

METHODS = (
    "printed",
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
_GAN = ("mala", "mala, metric", "hmc, metric", "smc", "laplace")
_OTHERS = ("langevin", "annealed", "hmc, learned", "pcn", "svgd, metric", "psvgd")
_GAN_OTHERS = ("langevin, metric", "annealed, metric", "hmc", "hmc, learned", "pcn, metric")
LEVELS = 5  # of the annealing, which has a third of the budget for those above the last
INTERVALS = ("posterior", "predictive", "conformal")
LIKELIHOODS = ("noise alone", "noise and residual")
NORMAL = 1.6449  # half width of a 90 % interval of N(0, 1)
VISIBLE = 0.02  # pixels whose posterior deviation is below it are black whatever happens, and not counted
STROKE = 0.1  # pixels brighter than it belong to a stroke


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the test on truths that the prior makes."""

    problems: int  # drawn from the prior
    budget: int  # evaluations of each problem's chain, a third of them warm-up
    search: int = 60  # evaluations of each of four searches for the start
    draws: int  # kept of each chain: 19, 39 or 59, whose order statistics make exact 90 % intervals


@dataclass(frozen=True, kw_only=True)
class Ranks(Sizes):
    """Sizes of the test on the prior's own digits."""

    prior: str = "vae-mnist"
    cases: tuple[tuple[str, int, float], ...]
    methods: tuple[str, ...] = METHODS


@dataclass(frozen=True, kw_only=True)
class Settings(Ranks):
    """Sizes of the tests on the prior's own digits and on real ones."""

    data: str  # of the real digits
    images: int  # real digits
    known: int  # validation digits, which neither the VAE nor the test has seen, for residual and conformal factor


_CASES = (("inpainting", 25, 0.1), ("inpainting", 100, 0.1), ("compressed", 100, 0.1))
_QUICK = Ranks(problems=4, budget=90, search=20, draws=19, cases=_CASES[1:2])
_TOLERANCES = {"rank": 0.5, "coverage": 0.2, "error": 0.2}


@experiment(
    "ang.calibration",
    paper="Ang 2021",
    shows="what the report does not ask: whether the posterior's uncertainty is right",
    profiles={
        "quick": Settings(
            data="digits",
            problems=8,
            images=4,
            known=4,
            budget=90,
            search=20,
            draws=19,
            cases=(("inpainting", 100, 0.1),),
            methods=("printed", "mala", "annealed, metric", "mala, metric", "pcn, metric", "laplace"),
        ),
        "laptop": Settings(data="mnist", problems=200, images=100, known=100, budget=900, draws=59, cases=_CASES),
        "paper": Settings(data="mnist", problems=1000, images=1000, known=1000, budget=3000, draws=59, cases=_CASES),
    },
    # ranks are whole numbers of chains that follow rounding errors apart
    tolerances={"rank": 0.5, "*coverage": 0.2, "*error": 0.2, "*width": 0.2, "conformal factor": 0.2, "residual": 0.05},
)
def calibration(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Ranks truths drawn from the prior among their posterior's draws; then counts real digits within its intervals."""
    _, arrays = ranks(settings, context)
    real = [(case, likelihood) for case in settings.cases for likelihood in LIKELIHOODS]
    outcomes = context.map(_cover, real, "real digits")
    return {}, arrays | gather(outcomes, case=map(str, cases(settings)), likelihood=LIKELIHOODS)


@experiment(
    "ang.calibration-gan",
    paper="Ang 2021",
    shows="what the report does not ask: whether a GAN's posterior is sampled",
    profiles={
        "quick": replace(_QUICK, prior="gan-mnist", methods=("mala, metric", "laplace")),
        # four times the budget of the chains that sample the VAE
        "laptop": Ranks(prior="gan-mnist", problems=100, budget=3600, draws=59, cases=_CASES[1:], methods=_GAN),
        "paper": Ranks(prior="gan-mnist", problems=1000, budget=30_000, draws=59, cases=_CASES),
    },
    tolerances=_TOLERANCES,
)
def ranks(settings: Ranks, context: Context) -> tuple[dict, dict]:
    """Ranks truths drawn from the prior among their posterior's draws."""
    items = [(case, method) for case in settings.cases for method in settings.methods]
    outcomes = context.map(_rank, items, "samplers")
    return {}, gather(outcomes, case=map(str, cases(settings)), method=settings.methods)


@experiment(
    "ang.calibration-others",
    paper="Ang 2021",
    shows="calibration of the samplers that no other test has: without a metric, with a learned one, and Stein's",
    profiles={
        "quick": replace(_QUICK, budget=150, methods=_OTHERS),
        "laptop": Ranks(problems=200, budget=900, draws=59, cases=_CASES, methods=_OTHERS),
        "paper": Ranks(problems=1000, budget=3000, draws=59, cases=_CASES, methods=_OTHERS),
    },
    tolerances=_TOLERANCES,
)
def others(settings: Ranks, context: Context) -> tuple[dict, dict]:
    """Ranks digits of the VAE among the draws of more samplers."""
    return ranks(settings, context)


@experiment(
    "ang.calibration-gan-others",
    paper="Ang 2021",
    shows="whether other samplers fare better with a GAN's posterior",
    profiles={
        "quick": replace(_QUICK, prior="gan-mnist", budget=150, methods=_GAN_OTHERS),
        "laptop": Ranks(prior="gan-mnist", problems=100, budget=3600, draws=59, cases=_CASES[1:], methods=_GAN_OTHERS),
        "paper": Ranks(prior="gan-mnist", problems=1000, budget=30_000, draws=59, cases=_CASES, methods=_GAN_OTHERS),
    },
    tolerances=_TOLERANCES,
)
def gan_others(settings: Ranks, context: Context) -> tuple[dict, dict]:
    """Ranks digits of the GAN among the draws of more samplers."""
    return ranks(settings, context)


def _rank(settings: Ranks, part: Part, item: tuple[tuple[str, int, float], str]) -> tuple[dict, dict]:
    """Simulation-based calibration (Talts et al. 2018): one chain for each of many problems drawn from the prior.

    "rank" counts the draws below the truth, of each latent, of ‖z‖² and of ‖f(G(z)) − y‖²: uniform on 0 … draws if all
    is well. Draws of the prior would pass by the latents alone, which do not see y.
    """
    given, method = item
    prior = shared.prior(part, settings.prior)
    truth = truths(part, prior, "prior", settings.problems)
    latents = prior_latents(part, prior, settings.problems)
    problem, y = observed(part, truth, Case(*given), "calibration")
    z = draw(settings, part, method, prior, problem, y)
    with torch.no_grad():
        x = prior.decode(z.flatten(0, 1)).view(len(z), *truth.shape)
    below = (quantities(z, x, problem, y) < quantities(latents[None], truth[None], problem, y)).sum(0)
    return {}, {
        "rank": named(shared.numpy(below), problem=settings.problems, quantity=prior.latent_dim + 2),
        "coverage": named(share(within(x, truth), x.std(0) > VISIBLE), problem=settings.problems),
        "error": named(evaluate.mse(x.mean(0), truth).numpy(), problem=settings.problems),
    }


def quantities(z: Tensor, x: Tensor, problem: measure.Problem, y: Tensor) -> Tensor:
    """Latents z [draw, problem, n], their squared lengths, and squared misfits of x = G(z), [draw, problem, n + 2]."""
    misfit = torch.stack([(problem.operator(each) - y).flatten(1).square().sum(1) for each in x])
    return torch.cat([z, z.square().sum(2, True), misfit[..., None]], 2)


def draw(settings: Sizes, part: Part, method: str, prior: Any, problem: measure.Problem, y: Tensor) -> Tensor:
    """Draws of each problem's posterior, [draw, problem, n]."""
    target = printed.energy(prior, problem, y) if method == "printed" else posterior(prior, problem, y)
    seed, images = shared.seed_of(part, "chains", method), len(target)
    if method == "smc":
        found = sample.smc(target, particles=settings.draws, seed=seed)
        part.count_evaluations(int(found.evaluations.sum()))
        return found.samples
    if method == "psvgd":  # which keeps what its starts, draws of the prior, are in directions that y does not inform
        z0 = sample.initialise(target, "random", chains=settings.draws, seed=seed)
        return _particles(settings, part, sample.projected_svgd, target, z0)
    best = sample.initialise(target, "best", chains=4, budget=settings.search, seed=seed)[:, 0]
    metric = sample.gauss_newton(target, best)
    part.count_evaluations(images * (4 * settings.search + metric.evaluations))
    if method == "laplace":
        return metric.draw(settings.draws, seed=seed).transpose(0, 1)
    name, _, kind = method.partition(", ")
    if name == "svgd":
        z0 = metric.draw(settings.draws, seed=seed)
        return _particles(settings, part, sample.svgd, target, z0, metric=metric)
    leapfrogs, budget, z0 = 3 if name == "hmc" else 1, settings.budget, metric.draw(1, seed=seed)
    if kind == "learned":
        windows, before = (budget // 30, budget // 15), metric.evaluations  # three tenths of the budget, in HMC's steps
        metric, z0 = sample.adapted(target, z0, metric, windows=windows, leapfrogs=leapfrogs, seed=seed)
        budget -= metric.evaluations - before
        part.count_evaluations(images * (metric.evaluations - before))
    steps = budget // leapfrogs
    thin = (2 * steps // 3) // settings.draws
    warmup = steps - thin * settings.draws
    options: dict[str, Any] = {"draws": settings.draws, "thin": thin, "seed": seed}
    if kind:
        options |= {"step": 0.5, "metric": metric}
    else:  # Langevin keeps its step; the others adapt it
        options["step"] = metric.widths[:, 0] if name in ("langevin", "annealed") else 0.05
    if name == "printed":
        chains = printed.langevin(target, z0, warmup=warmup, draws=settings.draws, thin=thin, seed=seed)
    elif name == "annealed":
        chains = sample.annealed_langevin(target, z0, levels=LEVELS, steps=warmup // LEVELS, **options)
    else:
        options |= {"leapfrogs": leapfrogs} if name == "hmc" else {}
        chains = getattr(sample, name)(target, z0, warmup=warmup, **options)
    part.count_evaluations(int(chains.evaluations.sum()))
    return chains.samples[:, :, 0]


def _particles(
    settings: Sizes, part: Part, descend: Callable[..., Tensor], target: Energy, z0: Tensor, **options: Any
) -> Tensor:
    """Particles as draws, [particle, problem, n]; each takes as many steps as a third of a chain's evaluations."""
    iterations = settings.budget // 3
    part.count_evaluations(z0.shape[0] * z0.shape[1] * iterations)
    return descend(target, z0, iterations=iterations, **options).transpose(0, 1)


def within(x: Tensor, truth: Tensor) -> Tensor:
    """Whether the truth lies between the order statistics of draws x, [draw, ...], that hold 90 % of exact ones."""
    outer = (len(x) + 1) // 20
    ordered = x.sort(0).values
    return (ordered[outer - 1] <= truth) & (truth <= ordered[-outer])


def share(inside: Tensor, counted: Tensor) -> np.ndarray:
    """The share of the counted pixels that are inside, [image]; NaN where none is counted."""
    counted = counted.flatten(1)
    return shared.numpy((inside.flatten(1) & counted).sum(1) / counted.sum(1))


def _cover(settings: Settings, part: Part, item: tuple[tuple[str, int, float], str]) -> tuple[dict, dict]:
    """Coverage of pixels of real digits by 90 % intervals of three kinds.

    "posterior": of G(z). "predictive": of G(z) plus the decoder's residual, normal with its own deviation for each
    pixel. "conformal": posterior mean plus or minus the predictive deviation times a factor, with which 90 % of the
    stroke pixels of validation digits are inside. The likelihood knows of the noise alone, or of the residual too:
    variance std² + τ², for Gaussian rows std² + τ² n / m.
    """
    given, likelihood = item
    case, prior = Case(*given), shared.prior(part, settings.prior)
    residual = _residual(settings, part, prior)
    found = {}
    for split, number in (("validation", settings.known), ("test", settings.images)):
        truth = truths(part, prior, settings.data, number, split)
        problem, y = observed(part, truth, case, split)
        if likelihood == "noise and residual":
            gain = truth[0].numel() / case.m if case.kind == "compressed" else 1.0
            std = (case.std**2 + gain * float(residual.square().mean())) ** 0.5
            problem = measure.Problem(problem.operator, measure.GaussianNoise(std))
        z = draw(settings, part, "mala, metric", prior, problem, y)
        with torch.no_grad():
            found[split] = truth, prior.decode(z.flatten(0, 1)).view(len(z), *truth.shape)
    (known, at_known), (truth, x) = found["validation"], found["test"]
    scores = ((known - at_known.mean(0)).abs() / _width(at_known, residual))[known > STROKE]
    factor = float(scores.quantile(0.9)) / NORMAL
    noise = _support.normal(x.shape, part.seed, x, "predictive")
    inside = {
        "posterior": within(x, truth),
        "predictive": within(x + residual * noise, truth),
        "conformal": (truth - x.mean(0)).abs() <= factor * NORMAL * _width(x, residual),
    }
    groups = {"all": torch.ones_like(truth, dtype=torch.bool), "strokes": truth > STROKE}
    shares = [[share(inside[kind], counted) for counted in groups.values()] for kind in INTERVALS]
    return {}, {
        "conformal factor": named(round(factor, 3)),
        "residual": named(round(float(residual.square().mean().sqrt()), 4)),
        "real coverage": named(np.stack(shares), interval=INTERVALS, group=tuple(groups), image=settings.images),
        "real error": named(evaluate.mse(x.mean(0), truth).numpy(), image=settings.images),
        "real width": named(shared.numpy(x.var(0).flatten(1).mean(1).sqrt()), image=settings.images),
    }


def _width(x: Tensor, residual: Tensor) -> Tensor:
    """Predictive standard deviation, [image, *shape]."""
    return (x.var(0) + residual.square()).sqrt()


def _residual(settings: Settings, part: Part, prior: Any) -> Tensor:
    """τ, root mean square over validation digits of what the decoder cannot show, for each pixel, [*shape]."""
    truth = truths(part, prior, settings.data, settings.known, "validation")
    problem = measure.Problem(measure.Identity(tuple(truth.shape[1:])), measure.GaussianNoise(0.1))
    target = posterior(prior, problem, truth)
    z, _ = sample.improve(target, prior.encode(truth)[:, None], settings.search)
    part.count_evaluations(len(truth) * settings.search)
    with torch.no_grad():
        return (truth - prior.decode(z[:, 0])).square().mean(0).sqrt()
