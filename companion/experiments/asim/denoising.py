"""Denoising: PSNR against the weight of the penalty, for a flow with several penalties and starts, and its rivals."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import evaluate, recover
from companion.experiments import Context, Named, Part, experiment, gather, named, problems, shared
from companion.recover.run import Watch

Weights = Mapping[str, tuple[float, ...]]

# Asim et al. 2020, Fig. 10 and 11 (12 faces of CelebA at 64×64, n = 12,288; 400 iterations of L-BFGS from z0 = 0), in
# dB: BM3D and Glow with the best γ on ‖z‖; the best γ on ‖z‖² was looked for at one σ only.
PUBLISHED = {
    "std": (0.01, 0.05, 0.1, 0.2),
    "bm3d": (43.67, 33.95, 29.93, 25.16),
    "glow": (40.85, 34.04, 30.48, 27.09),
    "best gamma": (0.01, 0.25, 1.0, 2.5),
    "best gamma squared": (None, None, 0.01, None),
}
METHODS = ("glow", "glow squared", "glow from noisy", "glow likelihood", "gan", "vae", "tv", "bm3d")
TV_ITERATIONS = 2000  # at most; each costs a hundredth of a flow's evaluation


@dataclass(frozen=True, kw_only=True)
class Family:
    """One data set, with checkpoints trained on it by kind, noise levels and weights."""

    data: str
    size: int
    priors: Mapping[str, str]
    stds: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2)
    # for each method, what validation images choose from: multiples of σ² beside squared residuals, whose size is σ²;
    # of σ for total variation and BM3D, which weigh residuals themselves
    weights: Weights
    long_budget: int = 0  # evaluations of one more search by "glow" with its chosen weight; 0 for none
    swept: bool = True  # whether "glow" meets the held-out images with every weight, not only with the chosen one

    @property
    def methods(self) -> list[str]:
        """Those with weights; the package of BM3D is optional."""
        return [name for name in self.weights if name != "bm3d" or find_spec("bm3d")]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    families: tuple[Family, ...]
    images: int = 12  # held-out images of each family, reported on
    tuned_on: int = 4  # validation images, on which every weight is chosen
    budget: int  # evaluations for one image, the same for every network
    restarts: int = 2  # random starts among which GAN and VAE divide that budget
    shown: int = 3  # images whose estimates are stored

    def family(self, data: str) -> Family:
        """The family of that data set."""
        return next(family for family in self.families if family.data == data)


@dataclass(frozen=True)
class Search:
    """One method on the held-out images; the weight is the multiple."""

    data: str
    std: float
    method: str
    weight: float
    budget: int


_PHOTOS, _DIGITS = ({kind: f"{kind}-{data}" for kind in ("glow", "gan", "vae")} for data in ("photos32", "mnist"))
_GENERATORS = {"gan": (0.1, 1.0, 10.0, 100.0), "vae": (0.1, 1.0, 10.0, 100.0)}
_FEW = ((0.0, 40.0), (2.0,), (2.0,), (2.0,), (1.0,), (1.0,), (1.0, 2.0), (1.0,))
_PHOTO_WEIGHTS = {
    "glow": (0.0, 20.0, 40.0, 80.0),
    "glow squared": (1.0, 2.0, 4.0),
    "glow from noisy": (1.0, 2.0, 4.0),
    "glow likelihood": (0.5, 1.0, 2.0, 4.0),
    **_GENERATORS,
    "tv": (0.5, 1.0, 1.5, 2.0, 3.0),
    "bm3d": (0.8, 0.9, 1.0, 1.1, 1.25),
}
_DIGIT_WEIGHTS = {
    "glow": (0.0, 1.0, 5.0),
    "glow squared": (0.25, 1.0, 4.0),
    **_GENERATORS,
    "tv": (0.5, 1.0, 1.5, 2.0),
    "bm3d": (0.8, 1.0, 1.25),
}
_FLOWER_WEIGHTS = {
    "glow": (0.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0, 160.0, 320.0),
    "glow squared": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    "glow from noisy": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    "glow likelihood": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    "tv": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
    "bm3d": (0.75, 1.0, 1.25, 1.5),
}
_QUICK = Family(data="photos", size=32, priors=_PHOTOS, stds=(0.1,), weights=dict(zip(METHODS, _FEW, strict=True)))
_LAPTOP = (
    Family(data="photographs", size=32, priors=_PHOTOS, weights=_PHOTO_WEIGHTS, long_budget=200),
    Family(data="mnist", size=28, priors=_DIGITS, stds=(0.1, 0.2), weights=_DIGIT_WEIGHTS, swept=False),
)
_FLOWERS = Family(data="flowers", size=64, priors={"glow": "glow-flowers64"}, weights=_FLOWER_WEIGHTS)


@experiment(
    "asim.denoising",
    paper="Asim et al. 2020",
    shows="Fig. 2, 10, 11",
    profiles={
        "quick": Settings(families=(_QUICK,), images=1, tuned_on=1, budget=6, restarts=1, shown=1),
        "laptop": Settings(families=_LAPTOP, budget=100),
        "paper": Settings(families=(_FLOWERS,), budget=400),
    },
)
def denoising(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Chooses every method's weight on validation images and denoises held-out ones with it, or with every weight.

    Arrays of each data set: what a search gives (see _solve) by std and method with the chosen "weight"; with "sweep",
    of "glow" by std and weight; with "long", of its long search; "METHOD validation psnr" by std and weight.
    """
    metrics, arrays = dict[str, Any](), dict[str, Named]()
    for family in settings.families:
        data, stds, methods = family.data, family.stds, family.methods
        points = [(data, std, name) for std in stds for name in methods]
        choices = dict(zip(points, context.map(_choose, points, f"{data}: weights"), strict=True))
        best = {point: choice.metrics["weight"] for point, choice in choices.items()}
        chosen = [Search(*point, best[point], settings.budget) for point in points]
        weights = family.weights["glow"] if family.swept else ()
        swept = [Search(data, std, "glow", weight, settings.budget) for std in stds for weight in weights]
        extra = stds if family.long_budget else ()
        longer = [Search(data, std, "glow", best[data, std, "glow"], family.long_budget) for std in extra]
        searches = list(dict.fromkeys(chosen + swept + longer))
        found = dict(zip(searches, context.map(_solve, searches, f"{data}: searches"), strict=True))

        stored = gather([found[search] for search in chosen], std=stds, method=methods)
        for kind, few, axes in (("sweep", swept, {"std": stds, "weight": weights}), ("long", longer, {"std": stds})):
            more = gather([found[search] for search in few], **axes) if few else {}
            stored |= {f"{kind} {key}": array for key, array in more.items()}
        for name in methods:
            stored[f"{name} validation psnr"] = gather([choices[data, std, name] for std in stds], std=stds)["psnr"]
        truth = shared.images(context, data, "test", settings.images, family.size)
        noisy = torch.stack([problems.denoising(context, truth, std)[1] for std in stds])
        scores = np.stack([evaluate.psnr(y, truth).numpy() for y in noisy])
        shown = noisy[:, : settings.shown]
        stored |= {
            "noisy psnr": named(scores, std=stds, image=len(truth)),
            "truth": shared.pictures(truth[: settings.shown]),
        }
        stored["noisy"] = shared.pictures(shown, std=stds, picture=shown.shape[1])
        arrays |= {f"{data} {key}": array for key, array in stored.items()}
        means = stored["psnr"].values.mean(2).T.round(3).tolist()
        metrics[data] = {"n": truth[0].numel(), "mean psnr": dict(zip(methods, means, strict=True))}
    return metrics, arrays


def _choose(settings: Settings, part: Part, point: tuple[str, float, str]) -> tuple[dict, dict]:
    """The weight of a method at a noise level, and the PSNR of all validation images with each."""
    family, weights = settings.family(point[0]), settings.family(point[0]).weights[point[2]]
    truth = shared.images(part, family.data, "validation", settings.tuned_on, family.size, spread=True)
    problem, y = problems.denoising(part, truth, point[1], "validation")

    def solve(weight: float) -> recover.Result:
        return _estimate(settings, part, problem.operator, y, Search(*point, weight, settings.budget))

    best, scores = problems.choose(part, weights, solve, truth)
    return {"weight": weights[best]}, {"psnr": named(scores, weight=weights, image=len(truth))}


def _solve(settings: Settings, part: Part, search: Search) -> tuple[dict, dict]:
    """One search for all held-out images; NaN for latents and paths of methods that have none."""
    truth = shared.images(part, search.data, "test", settings.images, settings.family(search.data).size)
    problem, y = problems.denoising(part, truth, search.std)
    found = part.count(_estimate(settings, part, problem.operator, y, search, problems.watch_psnr(truth)))
    evaluations = range(1, search.budget + 1)
    path = found.at("psnr", evaluations).mean(1) if "psnr" in found.trace else torch.full((search.budget,), torch.nan)
    norm = torch.full((len(truth),), torch.nan) if found.z is None else found.z.norm(dim=1)
    return {}, {
        "weight": named(search.weight),
        "psnr": named(evaluate.psnr(found.x, truth).float().numpy(), image=len(truth)),
        "norm": named(shared.numpy(norm), image=len(truth)),
        "path": named(path.float().numpy(), evaluation=evaluations),
        "converged": named(int(found.converged.sum())),
        "recovered": shared.pictures(found.x[: settings.shown]),
    }


def _estimate(
    settings: Settings, part: Part, operator: Any, y: Tensor, search: Search, watch: Watch | None = None
) -> recover.Result:
    method, weight = search.method, search.weight * search.std
    if method == "tv":
        return recover.tv(operator, y, weight=weight, max_iterations=TV_ITERATIONS)
    if method == "bm3d":
        return recover.bm3d(y, weight)
    weight *= search.std
    prior = shared.prior(part, settings.family(search.data).priors[method.split()[0]])
    options: dict[str, Any] = {"max_evaluations": search.budget, "watch": watch}
    if method in ("gan", "vae"):
        return problems.restarted(part, prior, operator, y, weight, restarts=settings.restarts, budget=search.budget)
    if method == "glow likelihood":
        return recover.flow_image(prior, operator, y, weight, x0=y, **options)
    if method == "glow from noisy":  # finding the start costs a pass, too
        options |= {"z0": prior.encode(y), "max_evaluations": search.budget - 1}
    return recover.flow_latent(prior, operator, y, weight, squared=method != "glow", **options)
