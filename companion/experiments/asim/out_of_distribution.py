"""Images unlike the training images: how much each prior loses on them, and what tells that they are unlike."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import evaluate, measure, recover
from companion.experiments import Context, Named, Part, experiment, gather, named, problems, shared
from companion.experiments.arrays import collect
from companion.experiments.asim.image_sets import image_set
from companion.recover.run import Watch

CLASSICAL = ("tv", "lasso-dct")
SEARCHES = ("glow", "grey")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A flow, generators (kind, checkpoint) of the same images, and the sets of images on which they are tried."""

    flow: str
    generators: tuple[tuple[str, str], ...] = ()
    sets: tuple[str, ...]  # the flow's own first
    everywhere: int = 0  # so many sets are recovered at every share of measurements, the others at the middle one
    grey: bool = False  # whether the flow searches a second time, from the latent of an image that is grey throughout

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of what is compared: the flow, the generators, the classical methods, the flow from grey."""
        return ("glow", *dict(self.generators), *CLASSICAL, *("grey",) * self.grey)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    families: tuple[Family, ...]
    images: int = 12  # of each set that are recovered
    shown: int = 7  # which of them is stored as a picture
    scored: int = 48  # images whose density is computed; the recovered ones are the first of them
    shares: tuple[float, ...] = (0.1, 0.2, 0.4)  # measurements m as shares of the pixels n
    budget: int = 200  # evaluations for one image, the same for flow and generators (all restarts together)
    iterations: int = 2000  # of the classical methods at most, each far cheaper than an evaluation of a network
    restarts: int = 2  # of the generators' searches
    tuned_on: int = 8  # images of the flow's own validation split on which classical weights are chosen, for every m
    weights: tuple[float, ...] = (0.001, 0.01, 0.1)  # from which they are chosen

    def family(self, flow: str) -> Family:
        """The family of that flow."""
        return next(family for family in self.families if family.flow == flow)

    @property
    def checkpoints(self) -> list[int]:
        """Numbers of evaluations at which a search by the flow is looked at: from the start, 1, to the last."""
        return np.unique(np.r_[np.geomspace(1, self.budget, 30).round().astype(int), self.budget // 4]).tolist()


@dataclass(frozen=True)
class Search:
    """One method on the images of one set; the weight is that of a classical method."""

    flow: str
    m: int
    set: str
    method: str
    weight: float


_GENERATORS = (("gan", "gan-photos32"), ("vae", "vae-photos32"))
_DIGITS = (("gan", "gan-mnist"), ("vae", "vae-mnist"))
_NEAR = ("photographs", "satellite", "textures", "text")
_ALL = (*_NEAR, "checkerboards", "constant", "noise")
_FEW = Family(flow="glow-photos32", generators=_GENERATORS, sets=("photos", "textures"), everywhere=1, grey=True)
_FLOWERS = Family(flow="glow-flowers64", sets=("flowers", *_ALL), everywhere=5)
_LAPTOP = (
    Family(flow="glow-photos32", generators=_GENERATORS, sets=_ALL, everywhere=2),
    Family(flow="glow-eurosat32", sets=("satellite", "photographs"), everywhere=2),
    Family(flow="glow-mnist", generators=_DIGITS, sets=("mnist", "letters", "fashion-mnist", "photographs"), grey=True),
)
_PUBLISHED = tuple(m / 12288 for m in (1000, 2500, 5000, 7500, 10000))
_SMALL: dict[str, Any] = {"images": 2, "shown": 1, "scored": 4, "iterations": 20, "restarts": 2, "tuned_on": 1}


@experiment(
    "asim.out-of-distribution",
    paper="Asim et al. 2020",
    shows="Fig. 5, 42-46",
    profiles={
        "quick": Settings(families=(_FEW,), shares=(0.1, 0.2), budget=4, weights=(0.001, 0.01), **_SMALL),
        "laptop": Settings(families=_LAPTOP),
        "paper": Settings(families=(_FLOWERS,), shares=_PUBLISHED, budget=2000),
    },
    tolerances={"*round trip": 0.1},  # which is rounding itself
)
def out_of_distribution(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers images from near to far of what a prior was trained on, and asks what tells them from its own.

    Arrays of each flow: those of _score by set; those of _solve by m, set and method, NaN where there was no search.
    """
    metrics, arrays = dict[str, Any](), dict[str, Named]()
    for family in settings.families:
        n = shared.prior(context, family.flow).latent_dim
        counts = [round(share * n) for share in settings.shares]
        middle = counts[len(counts) // 2]
        counts = counts if family.everywhere else [middle]
        scores = gather(context.map(_score, [(family.flow, name) for name in family.sets], "scores"), set=family.sets)
        choices = context.map(_choose, [(family.flow, m) for m in counts], "weights")
        weights = {m: choice.metrics for m, choice in zip(counts, choices, strict=True)}
        grid = [(m, name, method) for m in counts for name in family.sets for method in family.methods]
        measured = {(m, name) for m in counts for name in family.sets[: None if m == middle else family.everywhere]}
        searches = [
            Search(family.flow, *point, weights[point[0]].get(point[2], 0.0)) for point in grid if point[:2] in measured
        ]
        solved = [outcome.named for outcome in context.map(_solve, searches, "searches")]
        nothing = {"f": np.nan, "i": 0, "u": 0}
        blank = {
            key: Named(np.full_like(array.values, nothing[array.values.dtype.kind]), array.axes)
            for key, array in solved[0].items()
        }
        found = {(search.m, search.set, search.method): each for search, each in zip(searches, solved, strict=True)}
        stacked = collect([found.get(point, blank) for point in grid], m=counts, set=family.sets, method=family.methods)
        arrays |= {f"{family.flow} {key}": array for key, array in (scores | stacked).items()}
        at = {key: array.values[counts.index(middle), :, 0] for key, array in stacked.items()}  # of the flow, by set
        plain = {key: array.values for key, array in scores.items()}
        metrics[family.flow] = {
            "weight": {f"m={m}": weight for m, weight in weights.items()},
            "median bits": dict(zip(family.sets, np.median(plain["bits"], 1).round(3).tolist(), strict=True)),
            "auroc": _detection(family.sets, n, plain, at),
        }
    return metrics, arrays


def _choose(settings: Settings, part: Part, item: tuple[str, int]) -> tuple[dict, dict]:
    """The weights with the best mean PSNR on a flow's own validation images; other sets have to live with them."""
    family, m = settings.family(item[0]), item[1]
    shape = shared.prior(part, family.flow).shape
    truth = image_set(family.sets[0], settings.tuned_on, shape, "validation").to(part.device)
    problem, y = problems.compressed(part, truth, m, "validation")
    best = {}
    for method in CLASSICAL:
        searches = [Search(family.flow, m, family.sets[0], method, weight) for weight in settings.weights]
        solve = partial(_estimate, settings, part, problem.operator, y)
        best[method] = settings.weights[problems.choose(part, searches, solve, truth)[0]]
    return best, {}


def _solve(settings: Settings, part: Part, search: Search) -> tuple[dict, dict]:
    """One method on one set, scored against truth and measurements; NaN for what only a search by the flow has."""
    flow = shared.prior(part, search.flow)
    truth = image_set(search.set, settings.images, flow.shape).to(part.device)
    problem, y = problems.compressed(part, truth, search.m)
    points = settings.checkpoints
    found = part.count(_estimate(settings, part, problem.operator, y, search, problems.watch_psnr(truth)))
    norm = bits = torch.full((len(truth),), torch.nan)
    paths = {key: torch.full((len(points), len(truth)), torch.nan) for key in ("psnr", "residual")}
    if search.method in SEARCHES:
        norm, log_prob = found.z.norm(dim=1), flow.log_prob_latent(found.z)
        bits = flow.pixels.bits_per_dim(log_prob, flow.latent_dim)
        paths = {"psnr": found.at("psnr", points), "residual": found.at("energy", points).clamp(min=0).sqrt()}
    ended = sum(not reason.startswith("stopped after") for reason in found.reason)
    scores = {"psnr": evaluate.psnr(found.x, truth), "residual": (problem.operator(found.x) - y).norm(dim=1)}
    scores |= {"estimate norm": norm, "estimate bits": bits}
    return {}, {
        **shared.by_image({key: score.double() for key, score in scores.items()}),
        "ended": named(ended),  # of the images, by themselves
        "recovered": shared.pictures(found.x[settings.shown]),
        **{
            f"{key} path": named(shared.numpy(path.float()), evaluation=points, image=len(truth))
            for key, path in paths.items()
        },
    }


def _estimate(
    settings: Settings, part: Part, operator: Any, y: Tensor, search: Search, watch: Watch | None = None
) -> recover.Result:
    """Asim et al. 2020, eq. 2, from z = 0 or a grey image's latent; Bora et al. 2017, eq. 4; γ = 0; TV, Lasso."""
    method, budget = search.method, settings.budget
    if method in CLASSICAL:
        options: dict[str, Any] = {"weight": search.weight, "max_iterations": settings.iterations}
        return recover.tv(operator, y, **options) if method == "tv" else recover.lasso(operator, y, "dct", **options)
    if method not in SEARCHES:
        prior = shared.prior(part, dict(settings.family(search.flow).generators)[method])
        return problems.restarted(part, prior, operator, y, restarts=settings.restarts, budget=budget)
    flow, z0 = shared.prior(part, search.flow), None
    if method == "grey":
        z0 = flow.encode(torch.full((1, *flow.shape), 0.5).to(y)).expand(len(y), -1).clone()
    # as many iterations as evaluations: only the budget stops a search that has not converged
    return recover.flow_latent(flow, operator, y, z0=z0, max_iterations=budget, max_evaluations=budget, watch=watch)


@torch.no_grad()
def _score(settings: Settings, part: Part, item: tuple[str, str]) -> tuple[dict, dict]:
    """Density and latent length of dequantised images, length of the plain ones, round trip; generators' nearest."""
    family, name = settings.family(item[0]), item[1]
    flow, number = shared.prior(part, family.flow), max(settings.scored, settings.images)
    truth = image_set(name, number, flow.shape).to(part.device)
    z, log_det = flow.encode_with_log_det(flow.pixels.dequantise(truth, part.seed))
    log_density = -0.5 * (z.square().sum(1) + flow.latent_dim * np.log(2 * np.pi)) + log_det
    plain = flow.encode(truth)
    scores = {
        "bits": flow.pixels.bits_per_dim(log_density, flow.latent_dim),
        "norm": z.norm(dim=1),
        "plain norm": plain.norm(dim=1),
        "round trip": (flow.decode(plain) - truth).flatten(1).abs().amax(1),
    }
    arrays = shared.by_image({key: score.double() for key, score in scores.items()})
    arrays["truth"] = shared.pictures(truth[settings.shown])
    if family.generators:
        some, identity = truth[: settings.images], measure.Identity(flow.shape)
        with torch.enable_grad():
            searches = [Search(family.flow, flow.latent_dim, name, kind, 0.0) for kind, _ in family.generators]
            found = [part.count(_estimate(settings, part, identity, some, search)) for search in searches]
        nearest = torch.stack([evaluate.psnr(result.x, some) for result in found])
        arrays["nearest psnr"] = named(nearest.numpy(), method=dict(family.generators), image=len(some))
    return {}, arrays


def _detection(
    sets: tuple[str, ...], n: int, scores: dict[str, np.ndarray], solved: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Area under the ROC curve of scores that are meant to be larger for a set than for the flow's own images."""
    found = {"bits": scores["bits"], "norm": scores["norm"], "distance of norm": np.abs(scores["norm"] - np.sqrt(n))}
    found |= {key: solved[key] for key in ("estimate norm", "estimate bits", "residual")}
    return {
        name: {key: round(auroc(values[0], values[k]), 3) for key, values in found.items()}
        for k, name in enumerate(sets)
        if k
    }


def auroc(own: np.ndarray, other: np.ndarray) -> float:
    """Chance that a score drawn from `other` is above one drawn from `own`, ties counted half (Mann-Whitney U)."""
    difference = np.asarray(other)[:, None] - np.asarray(own)
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())
