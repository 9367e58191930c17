"""Where chains start, with few steps and with the cost of the start left out (Ang's Figure 2), and at equal cost."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion import evaluate, sample
from companion.energy import Energy
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang import printed
from companion.experiments.ang.problems import Case, cases, observed, posterior, truths

STARTS = (
    "random",
    "adjoint",  # the report's "posterior": hidden pixels are black when they are encoded
    "posterior",
    "map",
    "map-posterior",
    "posterior, map",
    "posterior, map, metric",
    "posterior, search alone",  # a MAP, on which the whole budget goes, and no chain
    "random, printed",  # by Algorithm 1 as the report prints and computes it
    "adjoint, printed",
    "map-posterior, printed",
)
SEARCHES = ("map", "map-posterior", "posterior, map", "posterior, map, metric", "map-posterior, printed")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    prior: str = "vae-mnist"
    data: str
    images: int
    published: int = 15  # Langevin steps from every start, whatever the start cost
    search: int = 60  # evaluations of the search for a MAP; the report has 100 steps of gradient descent
    budgets: tuple[int, ...]  # evaluations in all, the search and the metric included
    cases: tuple[tuple[str, int, float], ...]
    starts: tuple[str, ...] = STARTS


_MS = (25, 50, 100, 200, 400)


@experiment(
    "ang.initialisation",
    paper="Ang 2021",
    shows="Fig. 2",
    profiles={
        "quick": Settings(
            data="prior",
            images=16,
            budgets=(115,),
            cases=(("inpainting", 100, 0.1),),
            starts=("random", "posterior", "map-posterior", "posterior, search alone", "adjoint, printed"),
        ),
        "laptop": Settings(
            data="mnist",
            images=200,
            budgets=(115, 250, 500),
            cases=(
                *(("inpainting", m, 0.1) for m in _MS),
                *(("compressed", m, 0.1) for m in _MS[:-1]),
                ("denoising", 0, 0.3),
                *(("denoising", 0, (k / 15) ** 0.5) for k in (1, 4, 9, 15)),
            ),
        ),
        "paper": Settings(
            data="mnist",
            images=10_000,
            search=100,
            budgets=(115, 250, 500, 1000),
            cases=(
                # the report's grid, but for m = 0, and with variances of k/15
                *((kind, m, 0.1) for kind in ("inpainting", "compressed") for m in range(50, 701, 50)),
                *(("denoising", 0, (k / 15) ** 0.5) for k in range(1, 16)),
            ),
        ),
    },
    tolerances={"error": 0.05},
)
def initialisation(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers digits by Langevin chains from every start, as published and at equal evaluations."""
    items = [(case, start) for case in settings.cases for start in settings.starts]
    outcomes = context.map(_recover, items, "starts")
    return {}, gather(outcomes, case=map(str, cases(settings)), start=settings.starts)


def _recover(settings: Settings, part: Part, item: tuple[tuple[str, int, float], str]) -> tuple[dict, dict]:
    """Squared errors of one start on all images: after the published steps, and at each budget.

    The estimate is the mean image over the later half of a chain. The step size is 1/√λ with λ the largest curvature at
    the first guess, the same for all starts and at nobody's cost; a metric's cost counts. A search alone has the whole
    budget, and the cost of a MAP where chains have the published steps.
    """
    given, start = item
    prior = shared.prior(part, settings.prior)
    truth = truths(part, prior, settings.data, settings.images)
    problem, y = observed(part, truth, Case(*given))
    energy, cost = posterior(prior, problem, y), settings.search if start in SEARCHES else 0
    most = max(settings.budgets)
    guess = sample.initialise(energy, "posterior", chains=1)
    options: dict[str, Any] = {"warmup": 0, "seed": shared.seed_of(part, "chains"), "draws": most - cost}
    if start.endswith("alone"):
        spent = (settings.search, *settings.budgets)
        estimates = [_decoded(prior, sample.improve(energy, guess, budget)[0][:, 0]) for budget in spent]
        part.count_evaluations(settings.images * sum(spent))
    elif start.endswith("printed"):
        target = printed.energy(prior, problem, y)
        chains = printed.langevin(target, _start(settings, part, target, start.removesuffix(", printed")), **options)
        latents = chains.samples[:, :, 0]
        # the published code averages latents, and leaves the first of its row of them 0
        lengths = (settings.published, *(budget - cost for budget in settings.budgets))
        estimates = [_decoded(prior, latents[: steps - 1].sum(0) / steps) for steps in lengths]
        part.count_evaluations(settings.images * most)
    else:
        z0 = _start(settings, part, energy, start, guess)
        if start.endswith("metric"):
            metric = sample.gauss_newton(energy, z0[:, 0])
            cost += metric.evaluations
            # steps have no warm-up to adapt in: what MALA adapts to in these coordinates
            chains = sample.mala(energy, z0, step=0.7, metric=metric, **options | {"draws": most - cost})
        else:
            step = sample.gauss_newton(energy, guess[:, 0]).widths[:, 0]
            chains = sample.langevin(energy, z0, step=step, **options)
        drawn = chains.images(prior)[:, :, 0]
        lengths = (settings.published, *(budget - cost for budget in settings.budgets))
        estimates = [drawn[steps // 2 : steps].mean(0) for steps in lengths]
        part.count_evaluations(settings.images * most)
    budgets = [f"{settings.published} steps", *map(str, settings.budgets)]
    found = torch.stack([evaluate.mse(x, truth) for x in estimates])
    return {}, {"error": named(found.numpy(), budget=budgets, image=settings.images)}


def _start(settings: Settings, part: Part, energy: Energy, start: str, guess: Tensor | None = None) -> Tensor:
    if guess is not None and start.startswith("posterior, map"):
        return sample.improve(energy, guess, settings.search)[0]
    return sample.initialise(energy, start, chains=1, budget=settings.search, seed=shared.seed_of(part, "start"))


def _decoded(prior: Any, z: Tensor) -> Tensor:
    with torch.no_grad():
        return prior.decode(z)
