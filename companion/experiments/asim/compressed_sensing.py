"""Compressed sensing: a flow prior against classical priors, on the same photographs, from the same measurements."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from companion import data, evaluate, measure, priors, recover
from companion.experiments.context import Context
from companion.experiments.registry import experiment

CLASSICAL: dict[str, Callable[..., recover.Result]] = {
    "lasso-dct": partial(recover.lasso, basis="dct"),
    "lasso-wavelet": partial(recover.lasso, basis="wavelet"),
    "tv": recover.tv,
}
METHODS = ("glow", *CLASSICAL)


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Attributes:
        prior, data, size: checkpoint, data set and side of its images.
        images: held-out images reported on.
        seeds: draws of the matrix and of the noise.
        measurements: numbers of measurements m.
        budget: gradient evaluations allowed for one image, the same for every method.
        tuned_on: validation images on which the weight of each classical method is chosen, for every m.
        weights: the weights to choose from.
    """

    prior: str
    data: str
    size: int
    images: int
    seeds: int
    measurements: tuple[int, ...]
    budget: int
    tuned_on: int
    weights: tuple[float, ...]


@experiment(
    "asim.compressed-sensing",
    paper="Asim et al. 2020",
    shows="Fig. 4 left, 15, 16",
    profiles={
        "quick": Settings("glow-photos32", "photos", 32, 2, 1, (307, 614), 40, 2, (0.01, 0.03)),
        "laptop": Settings(
            "glow-photos32",
            "photos",
            32,
            12,
            3,
            (154, 307, 614, 922, 1229, 1536),
            400,
            8,
            (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
        ),
        "paper": Settings(
            "glow-flowers64",
            "flowers",
            64,
            12,
            1,
            (20, 30, 50, 100, 200, 300, 400, 500, 750, 1000, 2500, 5000, 7500, 10000, 12288),
            600,
            8,
            (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
        ),
    },
)
def compressed_sensing(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Recovers held-out photographs from m Gaussian measurements, by a flow prior, two Lassos and total variation."""
    prior = priors.load(settings.prior, context.device)
    truth = _images(settings.data, "test", settings.size, settings.images).to(context.device)
    tuning = _images(settings.data, "validation", settings.size, settings.tuned_on).to(context.device)
    shape = tuple(truth.shape[1:])
    metrics: dict[str, Any] = {"methods": list(METHODS), "m": list(settings.measurements), "n": truth[0].numel()}
    metrics |= {"weight": {method: [] for method in CLASSICAL}}
    scores: dict[str, list[np.ndarray]] = {"psnr": [], "ssim": [], "evaluations": []}
    recovered = []
    for m in context.progress(settings.measurements, "measurements"):
        chosen = _choose_weights(settings, context, m, tuning)
        for method in CLASSICAL:
            metrics["weight"][method].append(chosen[method])
        drawn: dict[str, list[np.ndarray]] = {name: [] for name in scores}
        for draw in range(settings.seeds):
            seed = 1000 * context.seed + draw

            def part(m: int = m, seed: int = seed, chosen: dict[str, float] = chosen) -> tuple[dict, dict]:
                operator, y = _observe(shape, m, truth, seed)
                estimates = {"glow": recover.flow_latent(prior, operator, y, max_evaluations=settings.budget)}
                for method, solve in CLASSICAL.items():
                    estimates[method] = solve(operator, y, weight=chosen[method], max_iterations=settings.budget)
                context.count_evaluations(int(estimates["glow"].evaluations.sum()))
                return {}, _arrays(estimates, truth)

            arrays = context.part(f"m={m}/draw={draw}", part).arrays
            for name, values in drawn.items():
                values.append(arrays[name])
            if draw == 0:
                recovered.append(arrays["x"])
        for name, values in drawn.items():
            scores[name].append(np.stack(values, axis=1))
    # [methods, m, draws, images]
    stacked = {name: np.stack(values, axis=1) for name, values in scores.items()}
    metrics["mean psnr"] = {
        method: stacked["psnr"][i].mean((1, 2)).round(3).tolist() for i, method in enumerate(METHODS)
    }
    metrics["mean ssim"] = {
        method: stacked["ssim"][i].mean((1, 2)).round(4).tolist() for i, method in enumerate(METHODS)
    }
    # recovered: [m, methods, images, C, H, W] of the first draw
    return metrics, stacked | {"recovered": np.stack(recovered), "truth": _bytes(truth)}


def _images(name: str, split: str, size: int, number: int) -> Tensor:
    return data.load(name, split=split, size=size)[:number]


def _observe(shape: tuple[int, ...], m: int, truth: Tensor, seed: int) -> tuple[measure.Gaussian, Tensor]:
    """The operator of one draw and its measurements, with √E‖δ‖² = 0.1 as in the paper."""
    operator = measure.Gaussian(shape, m, seed)
    return operator, measure.Problem(operator, measure.GaussianNoise.of_norm(0.1, m)).observe(truth, seed + 1)


def _choose_weights(settings: Settings, context: Context, m: int, images: Tensor) -> dict[str, float]:
    """For each classical method, the weight with the best mean PSNR on validation images, from other measurements."""

    def part() -> tuple[dict, dict]:
        operator, y = _observe(tuple(images.shape[1:]), m, images, 1000 * context.seed + 900)
        best = {}
        for method, solve in CLASSICAL.items():
            scores = {}
            for weight in settings.weights:
                x = solve(operator, y, weight=weight, max_iterations=settings.budget).x
                scores[weight] = float(evaluate.psnr(x, images).mean())
            best[method] = max(scores, key=lambda weight: scores[weight])
        return best, {}

    return context.part(f"m={m}/weights", part).metrics


def _arrays(estimates: dict[str, Any], truth: Tensor) -> dict[str, np.ndarray]:
    return {
        "psnr": np.stack([evaluate.psnr(e.x, truth).numpy() for e in estimates.values()]),
        "ssim": np.stack([evaluate.ssim(e.x, truth).numpy() for e in estimates.values()]),
        "evaluations": np.stack([e.evaluations.cpu().numpy() for e in estimates.values()]),
        "x": np.stack([_bytes(e.x) for e in estimates.values()]),
    }


def _bytes(x: Tensor) -> np.ndarray:
    return (x.clamp(0, 1) * 255).round().byte().cpu().numpy()
