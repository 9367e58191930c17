"""Denoising: PSNR against the weight of the penalty, for a flow with several penalties and starts, and its rivals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from companion import data, evaluate, measure, priors, recover
from companion.experiments.context import Context
from companion.experiments.registry import experiment

Weights = Mapping[str, tuple[float, ...]]

# Asim et al. 2020, Fig. 10 and 11 (12 faces of CelebA at 64×64, n = 12,288; 400 iterations of L-BFGS from z0 = 0), in
# dB: noisy image, BM3D, and the best over γ of Glow with ‖z‖, Glow with ‖z‖² (at one σ only), and DCGAN.
PUBLISHED = {
    "std": (0.01, 0.05, 0.1, 0.2),
    "noisy": (40.04, 26.22, 20.49, 15.05),
    "bm3d": (43.67, 33.95, 29.93, 25.16),
    "glow": (40.85, 34.04, 30.48, 27.09),
    "best gamma": (0.01, 0.25, 1.0, 2.5),
    "glow squared": (None, None, 30.29, None),
    "best gamma squared": (None, None, 0.01, None),
    "gan": (22.39, 22.36, 22.17, 22.06),
}


TV_ITERATIONS = 2000  # at most; each costs a hundredth of a flow's evaluation


class Problem(NamedTuple):
    """What a method is given: priors by kind, noisy images, noise level, evaluations for an image, restarts, seed."""

    priors: dict[str, Any]
    operator: measure.Identity
    y: Tensor
    std: float
    budget: int
    restarts: int
    seed: int
    watch: dict[str, Callable[[Tensor, Tensor], Tensor]]


def _flow(problem: Problem, weight: float, *, squared: bool = False, from_noisy: bool = False) -> recover.Result:
    flow, budget = problem.priors["glow"], problem.budget
    z0 = None
    if from_noisy:
        z0, budget = flow.encode(problem.y), budget - 1  # finding the start costs a pass, too
    options: dict[str, Any] = {"max_evaluations": budget, "watch": problem.watch}
    return recover.flow_latent(flow, problem.operator, problem.y, weight, squared=squared, z0=z0, **options)


def _likelihood(problem: Problem, weight: float) -> recover.Result:
    options: dict[str, Any] = {"max_evaluations": problem.budget, "watch": problem.watch}
    return recover.flow_image(problem.priors["glow"], problem.operator, problem.y, weight, x0=problem.y, **options)


def _generator(kind: str, problem: Problem, weight: float) -> recover.Result:
    each = problem.budget // problem.restarts
    options: dict[str, Any] = {"restarts": problem.restarts, "seed": problem.seed, "max_evaluations": each}
    return recover.gan_latent(problem.priors[kind], problem.operator, problem.y, weight, **options)


def _tv(problem: Problem, weight: float) -> recover.Result:
    return recover.tv(problem.operator, problem.y, weight=weight, max_iterations=TV_ITERATIONS)


# A method's weight is a multiple of this power of σ: of σ² beside squared residuals, whose size is σ², and of σ where
# it competes with the residuals themselves.
METHODS: dict[str, tuple[int, Callable[[Problem, float], recover.Result]]] = {
    "glow": (2, _flow),
    "glow squared": (2, lambda problem, weight: _flow(problem, weight, squared=True)),
    "glow from noisy": (2, lambda problem, weight: _flow(problem, weight, squared=True, from_noisy=True)),
    "glow likelihood": (2, _likelihood),
    "gan": (2, lambda problem, weight: _generator("gan", problem, weight)),
    "vae": (2, lambda problem, weight: _generator("vae", problem, weight)),
    "tv": (1, _tv),
    "bm3d": (1, lambda problem, weight: recover.bm3d(problem.y, weight)),
}


@dataclass(frozen=True)
class Family:
    """One data set.

    Attributes:
        data, size: its name, and the side of its images.
        priors: checkpoints trained on it, by kind.
        stds: noise levels.
        weights: for each method, the multiples of σ or σ² (see METHODS) that validation images choose from.
        long_budget: evaluations of one more search by the first method with its chosen weight; 0 for none.
        swept: methods that run on the held-out images with every weight; the others run with the chosen one only.
    """

    data: str
    size: int
    priors: Mapping[str, str]
    stds: tuple[float, ...]
    weights: Weights
    long_budget: int = 0
    swept: tuple[str, ...] = ()


_PHOTOS = {"glow": "glow-photos32", "gan": "gan-photos32", "vae": "vae-photos32"}


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Attributes:
        families: data sets with their priors, noise levels and weights.
        images: held-out images reported on, of each family.
        tuned_on: validation images on which every weight is chosen.
        budget: evaluations for one image, the same for every network; BM3D has a single run, total variation
            TV_ITERATIONS.
        restarts: random starts among which GAN and VAE divide that budget.
        shown: images whose estimates are stored.
    """

    families: tuple[Family, ...]
    images: int
    tuned_on: int
    budget: int
    restarts: int
    shown: int


@experiment(
    "asim.denoising",
    paper="Asim et al. 2020",
    shows="Fig. 2, 10, 11",
    profiles={
        "quick": Settings(
            (
                Family(
                    "photos",
                    32,
                    _PHOTOS,
                    (0.1,),
                    {
                        "glow": (0.0, 40.0),
                        "glow squared": (2.0,),
                        "glow from noisy": (2.0,),
                        "glow likelihood": (2.0,),
                        "gan": (1.0,),
                        "vae": (1.0,),
                        "tv": (1.0, 2.0),
                        "bm3d": (1.0,),
                    },
                    swept=("glow",),
                ),
            ),
            images=2,
            tuned_on=1,
            budget=15,
            restarts=1,
            shown=1,
        ),
        "laptop": Settings(
            (
                Family(
                    "photos",
                    32,
                    _PHOTOS,
                    (0.01, 0.05, 0.1, 0.2),
                    {
                        "glow": (0.0, 20.0, 40.0, 80.0, 160.0),
                        "glow squared": (1.0, 2.0, 4.0, 8.0, 16.0),
                        "glow from noisy": (2.0, 4.0, 8.0, 16.0),
                        "glow likelihood": (1.0, 2.0, 4.0, 8.0, 16.0),
                        "gan": (0.1, 1.0, 10.0, 100.0),
                        "vae": (0.1, 1.0, 10.0, 100.0),
                        "tv": (0.5, 1.0, 1.5, 2.0, 3.0),
                        "bm3d": (0.8, 1.0, 1.25),
                    },
                    400,
                    ("glow",),
                ),
                Family(
                    "mnist",
                    28,
                    {"glow": "glow-mnist", "gan": "gan-mnist", "vae": "vae-mnist"},
                    (0.1, 0.2),
                    {
                        "glow": (0.0, 1.0, 5.0),
                        "glow squared": (0.25, 1.0, 4.0),
                        "gan": (0.1, 1.0, 10.0, 100.0),
                        "vae": (0.1, 1.0, 10.0, 100.0),
                        "tv": (0.5, 1.0, 1.5, 2.0),
                        "bm3d": (0.8, 1.0, 1.25),
                    },
                ),
            ),
            images=12,
            tuned_on=12,
            budget=150,
            restarts=2,
            shown=3,
        ),
        "paper": Settings(
            (
                Family(
                    "flowers",
                    64,
                    {"glow": "glow-flowers64"},
                    (0.01, 0.05, 0.1, 0.2),
                    {
                        "glow": (0.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0, 160.0, 320.0),
                        "glow squared": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
                        "glow from noisy": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
                        "glow likelihood": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
                        "tv": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
                        "bm3d": (0.75, 1.0, 1.25, 1.5),
                    },
                    swept=("glow",),
                ),
            ),
            images=12,
            tuned_on=12,
            budget=400,
            restarts=2,
            shown=3,
        ),
    },
)
def denoising(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Chooses every method's weight on validation images and denoises held-out ones with it, or with every weight."""
    metrics: dict[str, Any] = {"published": {name: list(values) for name, values in PUBLISHED.items()}}
    arrays: dict[str, np.ndarray] = {}
    for family in settings.families:
        found, stored = _family(settings, context, family)
        metrics[family.data] = found
        arrays |= {f"{family.data} {name}": values for name, values in stored.items()}
    return metrics, arrays


def _family(settings: Settings, context: Context, family: Family) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    loaded = {kind: priors.load(name, context.device) for kind, name in family.priors.items()}
    x = images(family, settings).to(context.device)
    held_out = x[settings.tuned_on :]
    methods = [name for name in family.weights if name != "bm3d" or find_spec("bm3d")]  # bm3d is optional
    runs: list[dict[str, Any]] = []
    chosen: dict[str, list[int]] = {name: [] for name in methods}
    columns: dict[str, list[np.ndarray]] = {"validation psnr": [], "psnr": [], "norm": [], "path": []}
    noisy_scores, noisy_images, recovered, sweep, long = [], [], [], [], []
    for std in context.progress(family.stds, f"{family.data}: noise levels"):
        operator = measure.Identity(tuple(x.shape[1:]))
        y = measure.Problem(operator, measure.GaussianNoise(std)).observe(x, 1000 * context.seed + 1)
        problem = Problem(loaded, operator, y, std, settings.budget, settings.restarts, context.seed, _watch(x))
        noisy_scores.append(evaluate.psnr(y, x)[settings.tuned_on :].numpy())
        noisy_images.append(as_bytes(y[settings.tuned_on :][: settings.shown]))
        best = []
        for name in methods:

            def part(name: str = name, problem: Problem = problem) -> tuple[dict, dict]:
                return _method(settings, context, family, name, problem, x)

            done = context.part(f"{family.data} std={std:g} {name}", part)
            pick = done.metrics["chosen"]
            chosen[name].append(len(runs) + pick)
            runs += [{"method": name, "std": std, **run} for run in done.metrics["runs"]]
            for column, values in columns.items():
                values.append(done.arrays[column])
            best.append(done.arrays["x"][pick])
            if name == "glow" and name in family.swept:
                sweep.append(done.arrays["x"])
        recovered.append(np.stack(best))
        if family.long_budget:
            weight = runs[chosen[methods[0]][-1]]["weight"]

            def longer(
                problem: Problem = problem, weight: float = weight, method: str = methods[0]
            ) -> tuple[dict, dict]:
                few = problem._replace(
                    y=problem.y[settings.tuned_on :], budget=family.long_budget, watch=_watch(held_out)
                )
                found = METHODS[method][1](few, weight)
                context.count_evaluations(int(found.evaluations.sum()))
                return {}, {
                    "psnr": evaluate.psnr(found.x, held_out).numpy(),
                    "path": path(found, family.long_budget).mean(0),
                }

            long.append(context.part(f"{family.data} std={std:g} long", longer).arrays)
    # validation psnr: [runs, tuned_on]; of the held-out images, NaN where a method did not run on them: psnr and norm:
    # [runs, images]; path: [runs, budget]; noisy psnr: [stds, images]; recovered: [stds, methods, shown, C, H, W];
    # sweep, of method "glow" where it is swept: [stds, weights, shown, C, H, W]
    arrays = {name: np.concatenate(values).astype(np.float32) for name, values in columns.items()} | {
        "noisy psnr": np.stack(noisy_scores),
        "noisy": np.stack(noisy_images),
        "recovered": np.stack(recovered),
        "truth": as_bytes(held_out[: settings.shown]),
    }
    if sweep:
        arrays["sweep"] = np.stack(sweep)
    if long:  # psnr: [stds, images]; path: [stds, long_budget]
        arrays |= {f"long {name}": np.stack([each[name] for each in long]).astype(np.float32) for name in long[0]}
    metrics = {"methods": methods, "stds": list(family.stds), "n": x[0].numel(), "runs": runs, "chosen": chosen}
    return metrics, arrays


def _method(
    settings: Settings, context: Context, family: Family, name: str, problem: Problem, x: Tensor
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One method at one noise level: with all of its weights on validation images, then on the held-out ones."""
    power, solve = METHODS[name]
    weights = [multiple * problem.std**power for multiple in family.weights[name]]
    tuning, held_out = slice(0, settings.tuned_on), slice(settings.tuned_on, len(x))

    def run(weight: float, on: slice) -> recover.Result:
        found = solve(problem._replace(y=problem.y[on], watch=_watch(x[on])), weight)
        context.count_evaluations(int(found.evaluations.sum()))
        return found

    if len(weights) > 1:
        validation = np.stack([evaluate.psnr(run(weight, tuning).x, x[tuning]).numpy() for weight in weights])
    else:  # nothing to choose from
        validation = np.full((1, settings.tuned_on), np.nan)
    chosen = int(np.argmax(validation.mean(1)))
    count, runs = settings.images, []
    arrays = {
        "validation psnr": validation,
        "psnr": np.full((len(weights), count), np.nan),
        "norm": np.full((len(weights), count), np.nan),
        "path": np.full((len(weights), settings.budget), np.nan),
        "x": np.zeros((len(weights), settings.shown, *x.shape[1:]), np.uint8),
    }
    for k, (multiple, weight) in enumerate(zip(family.weights[name], weights, strict=True)):
        runs.append(
            {"multiple": multiple, "weight": round(weight, 8), "validation psnr": _rounded(validation[k].mean(), 3)}
        )
        if k == chosen or name in family.swept:
            found = run(weight, held_out)
            arrays["psnr"][k] = evaluate.psnr(found.x, x[held_out]).numpy()
            if found.z is not None:
                arrays["norm"][k] = found.z.norm(dim=1).cpu().numpy()
            arrays["path"][k] = path(found, settings.budget).mean(0)
            arrays["x"][k] = as_bytes(found.x[: settings.shown])
            runs[k] |= {
                "mean psnr": _rounded(arrays["psnr"][k].mean(), 3),
                "mean evaluations": _rounded(float(found.evaluations.double().mean()), 1),
                "converged": int(found.converged.sum()),  # of the held-out images
            }
    return {"runs": runs, "chosen": chosen}, arrays


def _rounded(value: float, digits: int) -> float | None:
    return None if np.isnan(value) else round(float(value), digits)


def images(family: Family, settings: Settings) -> Tensor:
    """Validation images, from all over their split, then held-out images; [tuned_on + images, C, H, W]."""
    tuning = data.load(family.data, split="validation", size=family.size)
    held_out = data.load(family.data, split="test", size=family.size)
    return torch.cat([tuning[:: len(tuning) // settings.tuned_on][: settings.tuned_on], held_out[: settings.images]])


def _watch(x: Tensor) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    return {"psnr": lambda estimate, z: evaluate.psnr(torch.nan_to_num(estimate), x)}


def path(found: recover.Result, budget: int) -> np.ndarray:
    """PSNR of each image after 1, 2, … evaluations, [batch, budget]; NaN for methods that are not watched."""
    if "psnr" not in found.trace:
        return np.full((len(found.x), budget), np.nan)
    spent, scores = found.trace["evaluations"].numpy(), found.trace["psnr"].numpy()
    at = np.arange(1, budget + 1)
    rows = [np.maximum(np.searchsorted(column, at, side="right") - 1, 0) for column in spent.T]
    return np.stack([scores[each, k] for k, each in enumerate(rows)])


def as_bytes(x: Tensor) -> np.ndarray:
    """Images in [0, 1], clipped, as 8-bit values."""
    return (x.clamp(0, 1) * 255).round().byte().cpu().numpy()
