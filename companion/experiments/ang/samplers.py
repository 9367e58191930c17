"""How well kernels mix on the posterior of a generative prior's latents, and what R-hat says of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from companion import evaluate, sample
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.problems import Case, cases, observed, posterior, truths

METHODS = ("langevin", "mala", "hmc", "mala, metric", "hmc, metric", "pcn, metric", "hmc, learned metric")
_KINDS = ("inpainting", "compressed")
STARTS = ("random", "best", "one", "each")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    prior: str = "vae-mnist"
    data: str  # "prior", "digits" or a data set
    images: int
    chains: int = 4
    budget: int  # evaluations of each chain, half of them warm-up; the metric and the search for a start come on top
    search: int = 200  # evaluations of the search for a start, of each chain; with half of it three of 8 are no modes
    cases: tuple[tuple[str, int, float], ...]
    methods: tuple[str, ...] = METHODS
    starts: tuple[str, ...] = STARTS  # of the HMC with a metric; the other methods start at "best" alone


@experiment(
    "ang.samplers",
    paper="Ang 2021",
    shows="sec. 2.2 and Algorithm 1, with the diagnostics that the report leaves out",
    profiles={
        "quick": Settings(
            data="prior",
            images=2,
            budget=150,
            search=30,
            cases=(("compressed", 100, 0.1),),
            methods=("mala", "hmc, metric", "mala, metric", "hmc, learned metric"),
            starts=("best",),
        ),
        "laptop": Settings(
            data="mnist",
            images=8,
            budget=2000,
            cases=(
                ("inpainting", 25, 0.1),
                ("inpainting", 100, 0.1),
                ("compressed", 100, 0.1),
                ("compressed", 100, 0.01),
            ),
        ),
        "paper": Settings(
            data="mnist",
            images=100,
            budget=10_000,
            cases=tuple(
                (k, m, s) for k in ("inpainting", "compressed") for m in (25, 50, 100, 200) for s in (0.1, 0.01)
            ),
        ),
    },
    # chains follow rounding errors apart; what is compared is of the size of the Monte Carlo error
    tolerances={"ess*": 0.5, "rhat": 0.5, "error": 0.1, "spread": 0.5, "accept_rate": 0.1, "step": 0.3},
)
def samplers(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Samples the same posteriors by every kernel, with and without a metric and from several starts, at equal cost."""
    pairs = [(method, "best") for method in settings.methods]
    pairs += [("hmc, metric", start) for start in settings.starts if start != "best"]
    items = [(case, method, start) for case in settings.cases for method, start in pairs]
    outcomes = context.map(_sample, items, "chains")
    labels = [f"{method} from {start}" for method, start in pairs]
    arrays = gather(outcomes, case=map(str, cases(settings)), run=labels)
    return {}, arrays


def _sample(settings: Settings, part: Part, item: tuple[tuple[str, int, float], str, str]) -> tuple[dict, dict]:
    """Chains of one method from one start on all images of a case.

    The starts "best" and "one" put all chains at one minimum: the lowest of a few searches, or that of a single search
    from a random latent. Over them the chains are spread by 1½ times Laplace's approximation there. "each" is a minimum
    for each chain, and "random" no search at all.
    """
    given, method, start = item
    case, prior = Case(*given), shared.prior(part, settings.prior)
    truth = truths(part, prior, settings.data, settings.images)
    problem, y = observed(part, truth, case)
    energy = posterior(prior, problem, y)
    options: dict[str, Any] = {"budget": settings.search, "seed": shared.seed_of(part, "start")}
    best = sample.initialise(energy, "best", chains=settings.chains, **options)
    part.count_evaluations(settings.images * settings.chains * settings.search)
    metric = sample.gauss_newton(energy, best[:, 0])
    part.count_evaluations(settings.images * metric.evaluations)
    if start == "best":
        z0 = metric.draw(settings.chains, 1.5, shared.seed_of(part, "spread"))
    elif start == "one":
        one = sample.initialise(energy, "map", chains=1, **options)
        metric = sample.gauss_newton(energy, one[:, 0])
        z0 = metric.draw(settings.chains, 1.5, shared.seed_of(part, "spread"))
    else:
        z0 = sample.initialise(energy, {"each": "map"}.get(start, start), chains=settings.chains, **options)
    chains, spent = _run(method, energy, z0, metric, settings.budget, shared.seed_of(part, "chains"))
    part.count_evaluations(spent)
    found = chains.diagnostics()
    estimate = chains.estimate(prior)
    per_image, latents = {"image": settings.images}, settings.budget // 2 * settings.chains
    mixing = {"ess per 1000": 1000 * found.ess_bulk[:, :-1].min(1) / latents, "rhat": found.rhat.max(1)}
    return {}, {
        **{name: named(np.minimum(values, 1e6).round(4), **per_image) for name, values in mixing.items()},
        "converged": named(found.converged.astype(int), **per_image),
        "error": named(evaluate.mse(estimate, truth).numpy(), **per_image),
        "accept_rate": named(shared.numpy(chains.accept_rate.mean(1)), **per_image),
        "spread": named(found.spread, **per_image),
        "step": named(shared.numpy(chains.step), **per_image),
        "largest curvature": named(shared.numpy(metric.widths[:, 0] ** -2), **per_image),
    }


def _run(
    method: str, energy: Any, z0: torch.Tensor, metric: sample.Metric, budget: int, seed: int
) -> tuple[sample.Chains, int]:
    """Chains that cost `budget` evaluations each, half of it before the first draw; and what they cost in all."""
    name, _, metrical = method.partition(", ")
    options: dict[str, Any] = {"seed": seed} | ({"metric": metric} if metrical else {})
    leapfrogs = 1 if name != "hmc" else 3 if metrical else 10
    draws = warmup = budget // 2 // leapfrogs
    learning = 0
    if metrical == "learned metric":
        windows = [draws // 8, draws // 4, 3 * draws // 8]  # of the warm-up, whose last quarter adapts the step
        learned, z0 = sample.adapted(energy, z0, metric, windows=windows, leapfrogs=leapfrogs, seed=seed)
        learning, warmup = len(z0) * (learned.evaluations - metric.evaluations), draws - sum(windows)
        options["metric"] = learned
    options |= {"draws": draws, "warmup": warmup, "step": 0.5 if metrical else 0.05}
    if name == "langevin":
        chains = sample.langevin(energy, z0, **options | {"step": metric.widths[:, 0]})
    elif name == "hmc":
        chains = sample.hmc(energy, z0, leapfrogs=leapfrogs, **options)
    else:
        chains = {"mala": sample.mala, "pcn": sample.pcn}[name](energy, z0, **options)
    return chains, learning + int(chains.evaluations.sum())
