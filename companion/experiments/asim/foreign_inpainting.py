"""Inpainting of images that no prior was trained on: what fills the hole, from near to far."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import evaluate, measure, priors, recover
from companion.experiments.asim.denoising import as_bytes
from companion.experiments.asim.inpainting import hidden_psnr
from companion.experiments.asim.out_of_distribution import image_set
from companion.experiments.context import Context
from companion.experiments.registry import experiment

Solver = Callable[[measure.Mask, Tensor], recover.Result]


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Attributes:
        glow, gan, vae: priors trained on the first of the sets ("" for none).
        sets: of images, from near to far.
        images: of each set.
        budget: evaluations allowed for one image, the same for all priors (all restarts of a generator together).
        restarts: of the generators' searches.
        iterations: of total variation, each some hundred times cheaper than an evaluation of a prior.
        weights: of total variation, chosen by the hidden pixels of `tuned_on` validation images of the first set.
        shown: which image of each set is stored as a picture.
    """

    glow: str
    gan: str
    vae: str
    sets: tuple[str, ...]
    images: int
    budget: int
    restarts: int
    iterations: int
    weights: tuple[float, ...]
    tuned_on: int
    shown: int


_LAPTOP = Settings(
    glow="glow-photos32",
    gan="gan-photos32",
    vae="vae-photos32",
    sets=("photos", "satellite", "textures", "text"),
    images=12,
    budget=400,
    restarts=4,
    iterations=2000,
    weights=(0.0001, 0.0003, 0.001, 0.003, 0.01),
    tuned_on=12,
    shown=7,
)


@experiment(
    "asim.foreign-inpainting",
    paper="Asim et al. 2020",
    shows="Fig. 49",
    profiles={
        "quick": replace(
            _LAPTOP,
            sets=("photos", "text"),
            images=2,
            budget=12,
            restarts=2,
            iterations=50,
            weights=(0.001, 0.01),
            tuned_on=2,
            shown=1,
        ),
        "laptop": _LAPTOP,
        "paper": replace(
            _LAPTOP, glow="glow-flowers64", gan="", vae="", sets=("flowers", *_LAPTOP.sets), budget=600, iterations=5000
        ),
    },
)
def foreign_inpainting(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fills the centre of images from near to far of what a flow, a GAN and a VAE were trained on.

    Metrics: methods, sets, the weight of total variation, mean psnr and hidden psnr by set and method. Arrays: psnr,
    hidden psnr (of the hidden pixels) and residual (length of the misfit) [sets, methods, images]; as bytes the
    pictures of one image a set, recovered [sets, methods, C, H, W], truth and masked [sets, C, H, W].
    """
    names = {"glow": settings.glow, "gan": settings.gan, "vae": settings.vae}
    models = {kind: priors.load(name, context.device) for kind, name in names.items() if name}
    operator = measure.Mask(measure.masks.centre(models["glow"].shape).to(context.device))
    chosen = context.part("weight", partial(_choose, settings, context, operator)).metrics["weight"]
    solvers = _solvers(settings, context, models, chosen)
    found = []
    for name in context.progress(settings.sets, "sets"):
        part = partial(_fill, settings, context, operator, name, solvers)
        found.append(context.part(name, part).arrays)
    arrays = {key: np.stack([each[key] for each in found]) for key in found[0]}
    metrics: dict[str, Any] = {"methods": list(solvers), "sets": list(settings.sets), "weight": chosen}
    for key in ("psnr", "hidden psnr"):
        means = arrays[key].mean(2).round(3)
        metrics[f"mean {key}"] = {
            name: dict(zip(solvers, row.tolist(), strict=True)) for name, row in zip(settings.sets, means, strict=True)
        }
    return metrics, arrays


def _solvers(settings: Settings, context: Context, models: dict[str, Any], weight: float) -> dict[str, Solver]:
    """Flow from z₀ = 0 with γ = 0, generators with restarts and γ = 0, as in the paper; total variation."""
    solvers: dict[str, Solver] = {
        "glow": partial(recover.flow_latent, models["glow"], max_evaluations=settings.budget),
    }
    each = settings.budget // settings.restarts
    for kind in list(models)[1:]:
        solvers[kind] = partial(
            recover.gan_latent, models[kind], restarts=settings.restarts, seed=context.seed, max_evaluations=each
        )
    solvers["tv"] = partial(recover.tv, weight=weight, max_iterations=settings.iterations)
    return solvers


def _observe(operator: measure.Mask, truth: Tensor, seed: int) -> Tensor:
    """Measurements with √E‖δ‖² = 0.1, as in the paper."""
    noise = measure.GaussianNoise.of_norm(0.1, operator.output_shape[0])
    return measure.Problem(operator, noise).observe(truth, seed)


def _choose(settings: Settings, context: Context, operator: measure.Mask) -> tuple[dict, dict]:
    """The weight of total variation with the best mean PSNR over the hidden pixels of validation images."""
    x = image_set(settings.sets[0], settings.tuned_on, operator.shape, "validation").to(context.device)
    y = _observe(operator, x, 1000 * context.seed + 900)
    scores = {}
    for weight in settings.weights:
        estimate = recover.tv(operator, y, weight=weight, max_iterations=settings.iterations)
        scores[weight] = float(hidden_psnr(estimate.x, x, operator.mask).mean())
    return {"weight": max(scores, key=lambda weight: scores[weight])}, {}


def _fill(
    settings: Settings, context: Context, operator: measure.Mask, name: str, solvers: dict[str, Solver]
) -> tuple[dict, dict]:
    """All methods on the images of one set, from the same measurements."""
    truth = image_set(name, settings.images, operator.shape).to(context.device)
    y = _observe(operator, truth, 1000 * context.seed)
    estimates = {method: solve(operator, y) for method, solve in solvers.items()}
    context.count_evaluations(sum(int(e.evaluations.sum()) for method, e in estimates.items() if method != "tv"))
    residual = [(operator(e.x) - y).norm(dim=1).cpu().numpy() for e in estimates.values()]
    shown = truth[settings.shown]
    return {}, {
        "psnr": np.stack([evaluate.psnr(e.x, truth).numpy() for e in estimates.values()]),
        "hidden psnr": np.stack([hidden_psnr(e.x, truth, operator.mask).numpy() for e in estimates.values()]),
        "residual": np.stack(residual),
        "recovered": np.stack([as_bytes(e.x[settings.shown]) for e in estimates.values()]),
        "truth": as_bytes(shown),
        "masked": as_bytes(torch.where(operator.mask, shown, 0.5)),
    }
