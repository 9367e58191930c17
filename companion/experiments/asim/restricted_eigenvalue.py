"""The set-restricted eigenvalue condition of Bora et al. 2017, measured: how much A shortens differences of images.

A satisfies S-REC(S, γ, δ) if ‖A (x₁ − x₂)‖ >= γ ‖x₁ − x₂‖ − δ for all x₁, x₂ in S (their definition 1). The largest γ
is the smallest (‖A d‖ + δ) / ‖d‖ over the differences d. Pairs at random show how large it may be at most; a descent
over pairs finds smaller ones; for a linear range and δ = 0 it is a singular value.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion import _support, measure, priors, recover
from companion.experiments import Context, Part, experiment, gather, named, shared

QUANTILES = (0.0, 0.01, 0.5)  # of the ratios of pairs
BEYOND = 2.0  # how far beyond √k the ball of the searches goes, which holds all but 0.3 % of z ~ N(0, I)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the sets and searches."""

    sets: tuple[str, ...] = ("pca", "gan", "vae", "glow", "photographs")
    measurements: tuple[int, ...] = (15, 61, 154, 614, 3072)
    seeds: int = 1  # draws of A
    slack: float = 0.1  # δ
    components: int = 100  # of the linear range, as many as the GAN has latents
    images: int = 72  # of each set, all pairs of which are measured
    searches: int = 2  # pairs from which a descent begins
    budget: int = 60  # evaluations of each
    data: str = "photographs"
    size: int = 32


@experiment(
    "asim.restricted-eigenvalue",
    paper="Bora et al. 2017",
    shows="Definition 1 (S-REC), its constant measured, for theorems 1.1 and 1.2",
    profiles={
        "quick": Settings(data="photos", measurements=(61, 614), seeds=1, images=12, searches=2, budget=6),
        "laptop": Settings(),
    },
    tolerances={"searched": 0.05},
)
def restricted_eigenvalue(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Measures how much random matrices shorten differences of images from five sets, at random pairs and at the worst.

    Arrays: "ratio", quantiles of (‖A d‖ + δ) / ‖d‖ over all pairs of each set; "searched", the smallest that descents
    find (1 where there is none: for photographs); "exact", the smallest singular value of A on the linear range;
    "distance", the median ‖d‖.
    """
    sets = [(name, m) for name in settings.sets for m in settings.measurements]
    measured = gather(context.map(_measure, sets, "sets"), set=settings.sets, m=settings.measurements)
    exact = gather(context.map(_exact, settings.measurements, "linear"), m=settings.measurements)
    return {"n": 3 * settings.size**2}, measured | exact


def _operator(settings: Settings, part: Part, m: int, draw: int) -> measure.Gaussian:
    return measure.Gaussian((3, settings.size, settings.size), m, shared.seed_of(part, "draw", draw))


def _linear(settings: Settings, part: Part) -> priors.Linear:
    """The Gaussian of the photographs on its first principal components alone."""
    whole = shared.prior(part, "gaussian-photos32")
    return priors.Linear(whole.weight[:, : settings.components].float(), whole.mean.float(), whole.shape)


def _prior(settings: Settings, part: Part, name: str) -> Any:
    return _linear(settings, part) if name == "pca" else shared.prior(part, f"{name}-photos32")


def _measure(settings: Settings, part: Part, item: tuple[str, int]) -> tuple[dict, dict]:
    name, m = item
    ratios, searched = [], torch.ones(settings.seeds)
    if name == "photographs":
        x = shared.images(part, settings.data, "test", settings.images, settings.size)
    else:
        prior = _prior(settings, part, name)
        x = prior.sample(settings.images, seed=shared.seed_of(part, "images"))
    for draw in range(settings.seeds):
        operator = _operator(settings, part, m, draw)
        ratios.append(of_pairs(operator, x, settings.slack).quantile(torch.tensor(QUANTILES, dtype=torch.float64)))
        if name != "photographs":
            start = _support.normal((settings.searches, 2 * prior.latent_dim), part.seed, x, "pairs", draw)
            found = part.count(worst_pair(prior, operator, start, settings.slack, settings.budget))
            searched[draw] = found.energy.min()
    distance = torch.pdist(x.flatten(1).double()).median()
    return {}, {
        "ratio": named(torch.stack(ratios), draw=settings.seeds, quantile=QUANTILES),
        "searched": named(searched, draw=settings.seeds),
        "distance": named(float(distance)),
    }


def of_pairs(operator: measure.LinearOperator, x: Tensor, slack: float) -> Tensor:
    """(‖A d‖ + slack) / ‖d‖ of the differences d of all pairs of images x, [batch, *shape]; [batch (batch − 1) / 2]."""
    apart = torch.pdist(x.flatten(1).double())
    return (torch.pdist(operator.forward(x).flatten(1).double()) + slack) / apart


def worst_pair(
    prior: Any, operator: measure.LinearOperator, start: Tensor, slack: float, budget: int
) -> recover.Result:
    """Descends in (‖A d‖ + slack) / ‖d‖, d = G(z₁) − G(z₂), over pairs of latents in a ball; `start`: [batch, 2 k].

    The ball holds nearly all z ~ N(0, I), as theorem 1.2 asks for one. The slack keeps pairs apart: without it the
    ratio of ever closer pairs would be that of a tangent, and lost to rounding. `energy` holds the ratios.
    """
    radius = prior.latent_dim**0.5 + BEYOND

    def ratio(pairs: Tensor) -> Tensor:
        z = pairs.reshape(2 * len(pairs), -1)
        z = z * (radius / torch.linalg.vector_norm(z, dim=1, keepdim=True)).clamp(max=1)
        x = prior.decode(z).flatten(1).unflatten(0, (len(pairs), 2))
        d = x[:, 0] - x[:, 1]
        shortened = torch.linalg.vector_norm(operator.forward(d.view(-1, *prior.shape)), dim=1)
        return (shortened + slack) / torch.linalg.vector_norm(d, dim=1)

    return recover.minimise(ratio, start, max_evaluations=budget)


def _exact(settings: Settings, part: Part, m: int) -> tuple[dict, dict]:
    basis = torch.linalg.qr(_linear(settings, part).weight.double()).Q
    found = [smallest(_operator(settings, part, m, draw), basis) for draw in range(settings.seeds)]
    return {}, {"exact": named(found, draw=settings.seeds)}


def smallest(operator: measure.LinearOperator, basis: Tensor) -> float:
    """The smallest ‖A u‖ of unit vectors u in the span of an orthonormal `basis`, [n, k]; 0 for fewer measurements."""
    measured = operator.forward(basis.mT.unflatten(1, operator.shape)).flatten(1)
    k, m = measured.shape
    return float(torch.linalg.svdvals(measured)[-1]) if m >= k else 0.0
