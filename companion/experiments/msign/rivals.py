"""Zhang et al. 2021, sec. 6.1.1: samplers and amortised SVGD on the synthetic problem, at equal forward simulations."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import wasserstein_distance
from torch import Tensor

from companion import sample
from companion.bayes import FieldProblem, Synthetic, Training, amortised_svgd, jeffreys
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.arrays import Named
from companion.experiments.msign.synthetic import CONVENTIONS
from companion.priors.msign import MsIGN

STARTS = ("both sides", "one side")
COSTS = {"hmc": 10, "mala": 2, "pcn": 1, "svgd": 2, "psvgd": 2}  # simulations of a particle's iteration


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    side: int  # of the finest scale
    scale: int  # where all run
    particles: int
    budgets: tuple[int, ...]  # forward simulations
    draws: int  # repetitions
    samples: int  # exact ones to compare with
    steps: int = 4  # Glow steps of the amortised model
    width: int = 16


@dataclass(frozen=True)
class Case:
    """A sampler, its problem, where its particles start, and what it may spend."""

    convention: str
    rival: str
    start: str
    budget: int
    draw: int


@experiment(
    "msign.rivals",
    paper="Zhang et al. 2021",
    shows="Fig. 3, 11, the rivals' side",
    profiles={
        "quick": Settings(side=8, scale=2, particles=20, budgets=(1000,), draws=1, samples=1000, steps=2, width=8),
        "laptop": Settings(side=64, scale=3, particles=100, budgets=(20_000, 100_000), draws=3, samples=8000),
    },
    tolerances={"*": 0.3, "divergence": None},
)
def rivals(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Runs HMC, MALA, pCN, SVGD, its projected and its amortised form on F(x) = ⟨φ, x⟩², and counts their errors."""
    draws, budgets = range(settings.draws), settings.budgets
    cases = [Case(*item) for item in itertools.product(CONVENTIONS, COSTS, STARTS, budgets, draws)]
    arrays = gather(
        context.map(_sample, cases, "samplers"),
        convention=CONVENTIONS,
        rival=COSTS,
        start=STARTS,
        budget=budgets,
        draw=settings.draws,
    )
    items = list(itertools.product(CONVENTIONS, budgets, draws))
    amortised = gather(
        context.map(_amortise, items, "amortised SVGD"), convention=CONVENTIONS, budget=budgets, draw=settings.draws
    )
    return {"d": 4**settings.scale}, arrays | {f"amortised {name}": one for name, one in amortised.items()}


def _problem(settings: Settings, convention: str) -> Synthetic:
    return Synthetic(settings.side, convention).scales()[settings.scale - 1]


def _sample(settings: Settings, part: Part, case: Case) -> tuple[dict, dict]:
    """Particles after so many iterations, or the draws of chains in their second half."""
    problem, seed = _problem(settings, case.convention), shared.seed_of(part, *vars(case).values())
    iterations = case.budget // (settings.particles * COSTS[case.rival])
    start = _start(problem, settings.particles, case.start, seed)
    x = sampled(problem, case.rival, start, iterations, seed)
    part.count_evaluations(problem.simulations)
    return {}, _errors(settings, part, problem, x)


def sampled(problem: FieldProblem, rival: str, start: Tensor, iterations: int, seed: int) -> Tensor:
    """Fields that a sampler of :data:`COSTS` makes from latents [1, particles, d].

    Of chains the draws of their second half, [iterations // 2 · particles, side²]; else the particles at the end.
    """

    def energy(z: Tensor) -> Tensor:
        return -problem.log_density(problem.field.decode(z))

    if rival in ("svgd", "psvgd"):
        descend: Callable[..., Tensor] = sample.svgd if rival == "svgd" else sample.projected_svgd
        return problem.field.decode(descend(energy, start, iterations=iterations)[0])
    walk: Callable[..., sample.Chains] = {"hmc": sample.hmc, "mala": sample.mala, "pcn": sample.pcn}[rival]
    half = iterations // 2
    return problem.field.decode(walk(energy, start, warmup=half, draws=half, seed=seed).samples.flatten(0, 2))


def _amortise(settings: Settings, part: Part, item: tuple[str, int, int]) -> tuple[dict, dict]:
    """A flow with all its scales at once, moved as particles would be."""
    convention, budget, _ = item
    problem, seed = _problem(settings, convention), shared.seed_of(part, "amortised", *item)
    model = MsIGN(problem.field, settings.scale, settings.steps, settings.width, seed=seed)
    how = Training(iterations=budget // (2 * settings.particles), batch=settings.particles)
    amortised_svgd(problem, model, how, seed=seed)
    part.count_evaluations(problem.simulations)
    own = model.sample(settings.samples, seed=seed)
    errors = _errors(settings, part, problem, own)
    found = jeffreys(model.log_prob, problem.log_density, own, _exact(settings, part, problem))
    return {}, errors | {"divergence": named(found.value), "error": named(found.error)}


def _exact(settings: Settings, part: Part, problem: Synthetic) -> Tensor:
    return problem.sample(settings.samples, seed=shared.seed_of(part, "exact", problem.convention))


def _errors(settings: Settings, part: Part, problem: Synthetic, x: Tensor) -> dict[str, Named]:
    """Share of the mode c > 0; Wasserstein distance of c, and of |c|, from exact draws, in the mean |c|; variance.

    The variance is that of the prior's latents across the critical direction, on average, where the posterior's is 1.
    """
    exact = _exact(settings, part, problem) @ problem.direction
    c, truth = ((value / exact.abs().mean()).numpy() for value in (x @ problem.direction, exact))
    field, z = problem.field, problem.field.encode(x)
    along = field.modes.project(problem.direction[None])[0] * field.std
    along = along / along.norm()
    across = (z - (z @ along)[:, None] * along).var(0).sum() / (len(along) - 1)
    return {
        "share": named(float((c > 0).mean())),
        "distance": named(wasserstein_distance(c, truth)),
        "folded distance": named(wasserstein_distance(np.abs(c), np.abs(truth))),
        "variance": named(float(across)),
        "simulations": named(float(problem.simulations)),
    }


def _start(problem: Synthetic, particles: int, start: str, seed: int) -> Tensor:
    """Latents of draws of the prior, [1, particles, d]; for "one side" all with c > 0."""
    x = problem.field.sample(particles, seed=seed)
    if start == "one side":
        x = x * (x @ problem.direction).sign()[:, None]
    return problem.field.encode(x)[None]
