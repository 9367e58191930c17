"""Denoising by the mean of the posterior, from gradients of a flow of noisy photographs, beside its mode and rivals.

For y = x + δ, δ ~ N(0, σ² I), E[x | y] = y + σ² ∇ log p_σ(y), where p_σ is the density of y (Tweedie's formula; Efron
2011, eq. 1.2): a flow trained on images with that noise added needs no search. Two flows are compared, one fitted to
the values of log p_σ (maximum likelihood), one then to its gradients (denoising score matching; Vincent 2011, eq. 9),
each alone and averaged over symmetries of photographs, and so are the Gaussian and BM3D.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import data, evaluate, recover, sample
from companion.experiments import Context, Part, experiment, gather, named, problems, shared

TV_ITERATIONS = 2000

# symmetries of photographs, by the number of changed images over which they average
CHANGES: Mapping[int, tuple[str, ...]] = {1: (), 2: ("flip",), 8: ("flip", "turn"), 48: ("flip", "turn", "colours")}
BY_SCORE = ("tweedie", "score", "gaussian")  # those that one gradient gives, and as many average
BM3D_CHANGES = 8  # it takes colours apart itself

# from which validation images choose: β of the two searches for the mode; multiples of σ for "tv" and "bm3d"; changed
# images for the others
WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "tweedie": (1,),
    "tweedie averaged": tuple(CHANGES),
    "score": (1,),
    "score averaged": tuple(CHANGES),
    "map": (0.05, 0.1, 0.2, 0.35, 0.5, 1.0),
    "map over x": (0.25, 0.5, 1.0, 1.5, 2.0, 4.0),
    "gaussian": (1,),
    "gaussian averaged": tuple(CHANGES),
    "bm3d": (0.8, 0.9, 1.0, 1.1, 1.25),
    "bm3d averaged": (0.9, 1.0, 1.1),
    "tv": (0.75, 1.0, 1.5, 2.0, 3.0),
}


@dataclass(frozen=True, kw_only=True)
class Settings(shared.OnImages):
    """Sizes of the comparison."""

    flow: str = "glow-photos32"  # of clean photographs, for the searches
    noisy_flow: str = "glow-photos32-noisy"  # of noisy ones, for "tweedie"
    score_flow: str = "glow-photos32-score"  # the same one fitted to gradients, for "score"
    gaussian: str = "gaussian-photos32"  # of clean ones
    std: float = 0.1  # of the noise: the level that the noisy flows were trained at
    images: int = 72  # three crops of each photograph
    weights: Mapping[str, tuple[float, ...]]
    tuned_on: int = 12  # validation images
    budget: int = 100  # evaluations of a search for the mode
    changes: tuple[int, ...] = tuple(CHANGES)  # of which each by-score method is shown, beside the chosen one
    shown: int = 4  # images whose estimates are stored

    @property
    def methods(self) -> list[str]:
        """Those with weights; the package of BM3D is optional."""
        return [name for name in self.weights if not name.startswith("bm3d") or find_spec("bm3d")]


_SLOW = ("gaussian averaged", "bm3d averaged")
_QUICK = {name: weights[:1] for name, weights in WEIGHTS.items() if name not in _SLOW} | {
    "map": (0.35, 0.5),
    "map over x": (1.0,),
    "score averaged": (8,),
}


@experiment(
    "asim.posterior-mean",
    paper="Asim et al. 2020; Efron 2011",
    shows="Fig. 2 at one noise level, with the posterior's mean beside its mode",
    profiles={
        "quick": Settings(data="photos", weights=_QUICK, images=1, tuned_on=1, budget=4, changes=(1, 8), shown=1),
        "laptop": Settings(weights=WEIGHTS),
    },
    tolerances={"*psnr": 0.03},
)
def posterior_mean(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Denoises crops of photographs by flows' posterior means, by a mode, by the exact Gaussian, by BM3D and TV.

    Arrays by method: psnr, ssim, evaluations and recovered; by method and number of changed images: orbit psnr and
    orbit recovered; noisy psnr, photograph (the number of each crop's), truth.
    """
    methods = settings.methods
    choices = context.map(_choose, methods, "weights")
    chosen = {name: choice.metrics["weight"] for name, choice in zip(methods, choices, strict=True)}
    arrays = gather(context.map(_solve, list(chosen.items()), "searches"), method=methods)
    orbits = context.map(_orbit, list(product(BY_SCORE, settings.changes)), "orbits")
    arrays |= gather(orbits, method=BY_SCORE, changes=settings.changes)
    truth = settings.truth(context)
    noisy = problems.denoising(context, truth, settings.std)[1]
    photo = data.load(settings.data, "test", settings.size).photo
    means = arrays["psnr"].values.mean(1).round(3).tolist()
    return {"chosen": chosen, "mean psnr": dict(zip(methods, means, strict=True))}, arrays | {
        "noisy psnr": named(evaluate.psnr(noisy, truth).numpy(), image=len(truth)),
        "photograph": named(np.asarray(photo)[: len(truth)], image=len(truth)),
        "noisy": shared.pictures(noisy[: settings.shown]),
        "truth": shared.pictures(truth[: settings.shown]),
    }


def _choose(settings: Settings, part: Part, method: str) -> tuple[dict, dict]:
    weights = settings.weights[method]
    truth = settings.truth(part, "validation", settings.tuned_on)
    problem, y = problems.denoising(part, truth, settings.std, "validation")
    best, _ = problems.choose(part, weights, lambda w: _estimate(settings, part, problem, y, method, w), truth)
    return {"weight": weights[best]}, {}


def _solve(settings: Settings, part: Part, item: tuple[str, float]) -> tuple[dict, dict]:
    truth = settings.truth(part)
    problem, y = problems.denoising(part, truth, settings.std)
    found = part.count(_estimate(settings, part, problem, y, *item))
    scores = {"psnr": evaluate.psnr(found.x, truth), "ssim": evaluate.ssim(found.x, truth)}
    return {}, shared.by_image(scores | {"evaluations": found.evaluations}) | {
        "recovered": shared.pictures(found.x[: settings.shown])
    }


def _orbit(settings: Settings, part: Part, item: tuple[str, int]) -> tuple[dict, dict]:
    truth = settings.truth(part)
    problem, y = problems.denoising(part, truth, settings.std)
    x = _estimate(settings, part, problem, y, *item).x
    return {}, shared.by_image({"orbit psnr": evaluate.psnr(x, truth)}) | {
        "orbit recovered": shared.pictures(x[: settings.shown])
    }


def _estimate(settings: Settings, part: Part, problem: Any, y: Tensor, method: str, weight: float) -> recover.Result:
    name, std = method.removesuffix(" averaged"), settings.std
    if name == "tv":
        return recover.tv(problem.operator, y, weight * std, max_iterations=TV_ITERATIONS)
    if name == "bm3d":
        changes = CHANGES[BM3D_CHANGES if name != method else 1]
        return problems.closed_form(_averaged(lambda some: recover.bm3d(some, weight * std).x, y, changes))
    if name in ("tweedie", "score"):
        flow = shared.prior(part, settings.noisy_flow if name == "tweedie" else settings.score_flow)
        estimates = [sample.tweedie(flow, some, std, CHANGES[int(weight)]) for some in y.split(24)]
        return problems.closed_form(torch.cat(estimates), evaluations=int(weight))
    gaussian = shared.stored_gaussian(part, settings.gaussian)
    if name == "gaussian":
        operator = problem.operator
        changes = CHANGES[int(weight)]
        return problems.closed_form(
            _averaged(lambda some: recover.gaussian_map(operator, some, *gaussian, std).x, y, changes)
        )
    flow = shared.prior(part, settings.flow)
    options: dict[str, Any] = {"gaussian": gaussian, "max_evaluations": settings.budget}
    return recover.flow_map(flow, problem, y, weight, space="x" if name == "map over x" else "z", **options)


def _averaged(estimate: Callable[[Tensor], Tensor], y: Tensor, symmetries: tuple[str, ...]) -> Tensor:
    """Mean of the estimates of all changed images, each changed back: what sample.tweedie does, for any estimate."""
    pixels = torch.arange(y[0].numel()).view(1, *y.shape[1:])
    changed = sample.orbit(y, symmetries)
    estimates = estimate(torch.cat(changed)).flatten(1).split(len(y))
    places = (places.flatten() for places in sample.orbit(pixels, symmetries))
    back = [x[:, place.argsort()] for x, place in zip(estimates, places, strict=True)]
    return torch.stack(back).mean(0).view_as(y)
