"""How many modes the posterior of a generative prior's latents has, and which search finds the best of them."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from companion import energy, sample
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.problems import Case, cases, observed, posterior, truths

SEARCHES = ("one", "several", "adjoint", "posterior", "several, one encoded", "continuation", "draws")
LEVELS = 6  # of the continuation, whose noise falls to the problem's from
WIDEST = 1.0  # this standard deviation
INFORMED = 2.0  # precision, in the prior's, from which a direction is told by the data more than by the prior


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the count."""

    prior: str = "vae-mnist"
    data: str
    images: int
    restarts: int = 12
    each: int = 120  # evaluations of each restart
    budget: int = 480  # of each search, whatever it consists of
    parts: int = 5  # starts of "several"
    cases: tuple[tuple[str, int, float], ...]


_LAPTOP = Settings(
    data="mnist",
    images=40,
    cases=(
        *(("inpainting", m, 0.1) for m in (25, 50, 100, 200, 400)),
        ("inpainting", 100, 0.02),
        *(("compressed", m, 0.1) for m in (25, 50, 100)),
        ("compressed", 100, 0.01),
        ("denoising", 0, 0.1),
        ("denoising", 0, 0.5),
    ),
)


@experiment(
    "ang.modes",
    paper="Ang 2021",
    shows="sec. 3.1, the MAP start: whether there is one MAP, and whether a search finds it",
    profiles={
        "quick": Settings(
            data="prior", images=3, restarts=3, each=40, budget=60, parts=3, cases=(("inpainting", 50, 0.1),)
        ),
        "laptop": _LAPTOP,
        "paper": replace(_LAPTOP, images=1000, restarts=100),
    },
    tolerances={"*gap": 0.1, "apart": 0.1, "largest curvature": 0.1, "informed": 0.1},
)
def modes(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Descends from many latents of the prior, and spends one budget on each of several ways to search.

    "restart gap" and "apart", by restart: nats that its end lies above the best known one, by Laplace's approximation
    of the mass there, and the distance of the two images, root mean square over pixels. "gap": nats of energy, by
    search. At the best one: "largest curvature", and "informed", the number of directions that the data tell.
    """
    return {}, gather(context.map(_count, settings.cases, "problems"), case=map(str, cases(settings)))


def _count(settings: Settings, part: Part, given: tuple[str, int, float]) -> tuple[dict, dict]:
    case, prior = Case(*given), shared.prior(part, settings.prior)
    truth = truths(part, prior, settings.data, settings.images)
    problem, y = observed(part, truth, case)
    target = posterior(prior, problem, y)
    starts = sample.initialise(target, "random", chains=settings.restarts, seed=shared.seed_of(part, "restarts"))
    ends, values = sample.improve(target, starts, settings.each)
    found = [_search(settings, part, target, case, how) for how in SEARCHES]
    part.count_evaluations(settings.images * (settings.restarts * settings.each + len(SEARCHES) * settings.budget))
    every = torch.cat([ends, torch.stack([z for z, _ in found], 1)], 1)  # [image, end, n]
    energies = torch.cat([values, torch.stack([value for _, value in found], 1)], 1)
    metrics = [sample.gauss_newton(target, every[:, k]) for k in range(every.shape[1])]
    mass = energies - torch.stack([metric.log_volume for metric in metrics], 1)
    best = mass.argmin(1)
    rows = torch.arange(settings.images)
    at_best = sample.gauss_newton(target, every[rows, best])
    with torch.no_grad():
        x = prior.decode(ends.flatten(0, 1)).unflatten(0, ends.shape[:2])
        distance = (x - prior.decode(every[rows, best])[:, None]).flatten(2).square().mean(2).sqrt()
    per_image = {"image": settings.images}
    precision = at_best.widths**-2
    return {}, {
        "restart gap": named(
            shared.numpy((mass[:, : settings.restarts] - mass.amin(1, True)).T), restart=settings.restarts, **per_image
        ),
        "apart": named(shared.numpy(distance.T), restart=settings.restarts, **per_image),
        "gap": named(
            shared.numpy((energies[:, settings.restarts :] - energies.amin(1, True)).T), search=SEARCHES, **per_image
        ),
        "largest curvature": named(shared.numpy(precision[:, 0]), **per_image),
        "informed": named(shared.numpy((precision > INFORMED).sum(1)), **per_image),
    }


def _search(settings: Settings, part: Part, target: energy.Energy, case: Case, how: str) -> tuple[Tensor, Tensor]:
    """The lowest latents, [image, n], that a search finds with its budget, and their energies, [image]."""
    seed, budget = shared.seed_of(part, "search", how), settings.budget
    if how in ("adjoint", "posterior"):
        z, values = sample.improve(target, sample.initialise(target, how, chains=1), budget)
    elif how == "several, one encoded":
        each = budget // settings.parts
        z = sample.initialise(target, "best", chains=settings.parts, budget=each, seed=seed)[:, :1]
        values = _energies(target, z)
    elif how == "draws":
        number = budget // settings.parts
        draws = sample.initialise(target, "random", chains=number, seed=seed)
        lowest = _energies(target, draws).argmin(1)
        z, values = sample.improve(target, draws[torch.arange(len(draws)), lowest][:, None], budget - number)
    elif how == "continuation":
        z = sample.initialise(target, "random", chains=1, seed=seed)
        for std in np.geomspace(max(WIDEST, case.std), case.std, LEVELS):
            z, values = sample.improve(target.tempered((case.std / std) ** 2), z, budget // LEVELS)
    else:
        number = settings.parts if how == "several" else 1
        starts = sample.initialise(target, "random", chains=number, seed=seed)
        z, values = sample.improve(target, starts, budget // number)
    rows, best = torch.arange(len(z)), values.argmin(1)
    return z[rows, best], values[rows, best]


def _energies(target: energy.Energy, z: Tensor) -> Tensor:
    """[image, start]."""
    index = torch.arange(len(z)).repeat_interleave(z.shape[1])
    with torch.no_grad():
        return target.select(index)(z.flatten(0, 1)).view(z.shape[:2])
