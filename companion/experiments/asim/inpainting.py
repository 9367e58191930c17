"""Inpainting: what fills a hole, how much the start and the weight matter, and how unsure the answer is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import _support, data, evaluate, measure, priors, recover
from companion.experiments.context import Context
from companion.experiments.registry import experiment

MASKS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "centre": measure.masks.centre,
    "left": lambda shape: measure.masks.side(shape, "left"),
    "bottom": lambda shape: measure.masks.side(shape, "bottom"),
    "random pixels": measure.masks.random_pixels,
    "random sub-pixels": measure.masks.random_subpixels,
    "text": measure.masks.text,
}
# The last two put something of the true hole into it; the published code calls them noisy and inverted.
STARTS = ("zero", "normal", "black", "noise", "noisy truth", "turned truth")
METHODS = ("glow", "gan", "vae", "tv")
NORMAL_STD, FILL_STD, GENERATOR_STD = 0.7, 0.2, 0.1


@dataclass(frozen=True)
class Family:
    """A flow, the generators trained on the same images ("" for none), the data set and the side of its images."""

    glow: str
    gan: str
    vae: str
    data: str
    size: int


PHOTOS = Family("glow-photos32", "gan-photos32", "vae-photos32", "photos", 32)
FLOWERS = Family("glow-flowers64", "", "", "flowers", 64)


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Attributes:
        family: priors and their images.
        images: held-out images reported on.
        budget: evaluations allowed for one image, the same for every model.
        iterations: steps of total variation, each some hundred times cheaper than an evaluation of a model.
        gammas: weights of ‖z‖, for the flow and the two generators.
        weights: weights of total variation.
        tuned_on: validation images on which γ and the weight are chosen, for every method and mask.
        points: numbers of evaluations at which the progress of each search is stored.
        fills: random starts of each image for the spread of the answers.
        spread_images, spread_masks: images and masks of that part.
    """

    family: Family
    images: int
    budget: int
    iterations: int
    gammas: tuple[float, ...]
    weights: tuple[float, ...]
    tuned_on: int
    points: tuple[int, ...]
    fills: int
    spread_images: int
    spread_masks: tuple[str, ...]


@experiment(
    "asim.inpainting",
    paper="Asim et al. 2020",
    shows="Fig. 6, 47, 48",
    profiles={
        "quick": Settings(
            PHOTOS,
            images=2,
            budget=10,
            iterations=100,
            gammas=(0.0, 0.05),
            weights=(0.001, 0.01),
            tuned_on=1,
            points=(1, 5, 10),
            fills=2,
            spread_images=1,
            spread_masks=("centre",),
        ),
        "laptop": Settings(
            PHOTOS,
            images=12,
            budget=120,
            iterations=2000,
            gammas=(0.0, 0.01, 0.05, 0.25, 1.0),
            weights=(0.0003, 0.001, 0.003, 0.01, 0.03),
            tuned_on=3,
            points=(1, 10, 20, 30, 40, 50, 60, 80, 100, 120),
            fills=8,
            spread_images=4,
            spread_masks=("centre", "left"),
        ),
        "paper": Settings(
            FLOWERS,
            images=12,
            budget=400,
            iterations=5000,
            gammas=(
                0.0,
                0.01,
                0.025,
                0.05,
                0.075,
                0.1,
                0.25,
                0.5,
                0.75,
                1.0,
                2.5,
                5.0,
                7.5,
                10.0,
                20.0,
                30.0,
                40.0,
                50.0,
            ),
            weights=(0.0003, 0.001, 0.003, 0.01, 0.03),
            tuned_on=3,
            points=(1, 10, 20, 40, 60, 80, 100, 150, 200, 300, 400),
            fills=16,
            spread_images=12,
            spread_masks=("centre", "left", "bottom"),
        ),
    },
)
def inpainting(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fills holes of six kinds in held-out photographs by a flow, a GAN, a VAE and total variation."""
    named = {name: getattr(settings.family, name) for name in METHODS[:3]}
    models = {name: priors.load(checkpoint, context.device) for name, checkpoint in named.items() if checkpoint}
    truth = _images(settings, "test", settings.images).to(context.device)
    tuning = _images(settings, "validation", settings.tuned_on, spread=True).to(context.device)
    methods = [name for name in METHODS if name in models or name == "tv"]
    # [starts, gammas, …] of the centre mask, then [masks, methods, …], then [spread masks, …]
    sweep = _sweep(settings, context, models, truth)
    chosen, compared = _compare(settings, context, models, methods, truth, tuning)
    spread = {name: _spread(settings, context, models["glow"], name, truth) for name in settings.spread_masks}
    metrics = {
        "methods": methods,
        "masks": list(MASKS),
        "starts": list(STARTS),
        "gammas": list(settings.gammas),
        "points": list(settings.points),
        "hidden share": {name: round(float((~of(truth.shape[1:])).double().mean()), 5) for name, of in MASKS.items()},
        "chosen": chosen,
        "spread": {name: outcome.metrics for name, outcome in spread.items()},
    }
    arrays = {"truth": _bytes(truth)} | sweep | compared
    arrays |= {
        f"spread/{name}/{key}": value for name, outcome in spread.items() for key, value in outcome.arrays.items()
    }
    return metrics, arrays


def hidden_psnr(x: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """PSNR in dB over the values that `mask` hides only, [batch], in float64 on the CPU.

    Args:
        x, truth: images [batch, C, H, W]; `x` is clipped to [0, 1] first.
        mask: boolean [C, H, W], True where a value is measured.

    Raises:
        ValueError: for other shapes, truths outside [0, 1], or a mask that hides nothing.
    """
    _support.images("truth", truth)
    _support.batch_of("x", x, truth.shape[1:])
    if tuple(mask.shape) != tuple(truth.shape[1:]) or mask.dtype != torch.bool or mask.all():
        raise ValueError(
            f"mask: got {mask.dtype} {tuple(mask.shape)}; allowed: boolean {tuple(truth.shape[1:])}, some False"
        )
    error = (x.detach().double().clamp(0, 1) - truth.double()).square().cpu()
    return -10 * torch.log10(error[:, ~mask.cpu()].mean(1))


def start_image(how: str, truth: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Images whose latents a search starts from: the truth outside the hole, in it what `how` says, [batch, C, H, W].

    "black": 0. "noise": noise of standard deviation 0.2, clipped. "noisy truth": the truth with that noise, and
    "turned truth": the truth's pixels after a half-turn of the image; these are what the published code calls
    noisy-filled and inverted-filled. ValueError for another name.
    """
    noise = FILL_STD * _support.normal(truth.shape, seed, truth)
    hole = {
        "black": lambda: torch.zeros_like(truth),
        "noise": lambda: noise.clamp(0, 1),
        "noisy truth": lambda: (truth + noise).clamp(0, 1),
        "turned truth": lambda: truth.flip(2, 3),
    }
    _support.one_of("how", how, hole)
    return torch.where(mask.to(truth.device), truth, hole[how]())


def _images(settings: Settings, split: str, number: int, spread: bool = False) -> Tensor:
    """The first images of a split, or, with `spread`, as many from all over it (its first ones are neighbours)."""
    images = data.load(settings.family.data, split=split, size=settings.family.size)
    return images[:: len(images) // number][:number] if spread else images[:number]


def _sweep(settings: Settings, context: Context, models: dict[str, Any], truth: Tensor) -> dict[str, np.ndarray]:
    """Every start with every γ for the centre mask; the GAN beside them."""
    mask = MASKS["centre"](truth.shape[1:])
    y = measure.Mask(mask)(truth)
    flow = models["glow"]
    starts = {"zero": recover.start(flow, y), "normal": recover.start(flow, y, "normal", NORMAL_STD, context.seed)}
    with torch.no_grad():
        starts |= {how: flow.encode(start_image(how, truth, mask, context.seed + 1)) for how in STARTS[2:]}
    rows: dict[str, list[Any]] = {}
    for how in context.progress(STARTS, "starts"):
        for gamma in settings.gammas:

            def part(how: str = how, gamma: float = gamma) -> tuple[dict, dict]:
                return {}, _latent_search(settings, context, flow, mask, truth, gamma, starts[how], pictures=2)

            for key, value in context.part(f"start={how}/gamma={gamma:g}", part).arrays.items():
                rows.setdefault(key, []).append(value)
    grid = (len(STARTS), len(settings.gammas))
    sweep = {f"sweep/{key}": np.stack(values).reshape(*grid, *values[0].shape) for key, values in rows.items()}
    if "gan" in models:
        begin = recover.start(models["gan"], y, "normal", GENERATOR_STD, context.seed)

        def generator() -> tuple[dict, dict]:
            found = [
                _latent_search(settings, context, models["gan"], mask, truth, gamma, begin, pictures=2)
                for gamma in settings.gammas
            ]
            return {}, {key: np.stack([each[key] for each in found]) for key in ("psnr", "hidden psnr")}

        sweep |= {f"gan/{key}": value for key, value in context.part("gan", generator).arrays.items()}
    return sweep


def _latent_search(
    settings: Settings,
    context: Context,
    model: Any,
    mask: Tensor,
    truth: Tensor,
    gamma: float,
    z0: Tensor,
    pictures: int,
) -> dict[str, np.ndarray]:
    operator = measure.Mask(mask)
    watch = {
        "psnr": lambda x, z: evaluate.psnr(torch.nan_to_num(x), truth),
        "hidden psnr": lambda x, z: hidden_psnr(torch.nan_to_num(x), truth, mask),
        "length": lambda x, z: torch.linalg.vector_norm(z.double(), dim=1).cpu(),
    }
    found = recover.flow_latent(
        model, operator, operator(truth), gamma, z0=z0, max_evaluations=settings.budget, watch=watch
    )
    context.count_evaluations(int(found.evaluations.sum()))
    spent = found.trace["evaluations"].mean(1).numpy()
    paths = [np.interp(settings.points, spent, found.trace[name].mean(1).numpy()) for name in watch]
    return {
        "psnr": evaluate.psnr(found.x, truth).numpy().round(3),
        "hidden psnr": hidden_psnr(found.x, truth, mask).numpy().round(3),
        "length": found.z.norm(dim=1).double().cpu().numpy().round(2),
        "path": np.stack(paths).round(3),  # mean over images of PSNR, hidden PSNR and ‖z‖: [3, points]
        "x": _bytes(found.x[:pictures]),
    }


def _compare(
    settings: Settings,
    context: Context,
    models: dict[str, Any],
    methods: list[str],
    truth: Tensor,
    tuning: Tensor,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Every mask with every method, its weight chosen by the hidden pixels of validation images."""
    chosen: dict[str, dict[str, float]] = {name: {} for name in MASKS}
    rows: dict[str, list[Any]] = {}
    for name, of in context.progress(MASKS.items(), "masks"):
        mask = of(truth.shape[1:])
        for method in methods:
            weights = settings.weights if method == "tv" else settings.gammas

            def choose(
                mask: Tensor = mask, method: str = method, weights: tuple[float, ...] = weights
            ) -> tuple[dict, dict]:
                scores = {
                    weight: float(
                        hidden_psnr(_fill(settings, context, models, method, mask, tuning, weight), tuning, mask).mean()
                    )
                    for weight in weights
                }
                return {"best": max(scores, key=lambda weight: scores[weight])}, {}

            best = context.part(f"mask={name}/{method}/weight", choose).metrics["best"]

            def part(mask: Tensor = mask, method: str = method, best: float = best) -> tuple[dict, dict]:
                x = _fill(settings, context, models, method, mask, truth, best)
                return {}, {
                    "psnr": evaluate.psnr(x, truth).numpy().round(3),
                    "hidden psnr": hidden_psnr(x, truth, mask).numpy().round(3),
                    "x": _bytes(x[:3]),
                }

            chosen[name][method] = best
            for key, value in context.part(f"mask={name}/{method}", part).arrays.items():
                rows.setdefault(key, []).append(value)
    grid = (len(MASKS), len(methods))
    return chosen, {f"masks/{key}": np.stack(values).reshape(*grid, *values[0].shape) for key, values in rows.items()}


def _fill(
    settings: Settings,
    context: Context,
    models: dict[str, Any],
    method: str,
    mask: Tensor,
    images: Tensor,
    weight: float,
) -> Tensor:
    """The estimates of one method: the flow from z = 0, a generator from near it, total variation from black."""
    operator = measure.Mask(mask)
    y = operator(images)
    if method == "tv":
        return recover.tv(operator, y, weight=weight, max_iterations=settings.iterations).x
    scale = 0.0 if method == "glow" else GENERATOR_STD
    z0 = recover.start(models[method], y, "normal", scale, context.seed)
    found = recover.flow_latent(models[method], operator, y, weight, z0=z0, max_evaluations=settings.budget)
    context.count_evaluations(int(found.evaluations.sum()))
    return found.x


def _spread(settings: Settings, context: Context, flow: Any, name: str, truth: Tensor) -> Any:
    """The answers of several random starts for the same hole, γ = 0: how far they are from the truth and each other."""
    images = truth[: settings.spread_images]
    mask = MASKS[name](truth.shape[1:])
    hidden = ~mask.to(truth.device)

    def part() -> tuple[dict, dict]:
        operator = measure.Mask(mask)
        y = operator(images)
        found = []
        for fill in range(settings.fills):
            z0 = recover.start(flow, y, "normal", NORMAL_STD, context.seed + 100 + fill)
            result = recover.flow_latent(flow, operator, y, z0=z0, max_evaluations=settings.budget)
            context.count_evaluations(int(result.evaluations.sum()))
            found.append(result.x.clamp(0, 1))
        fills = torch.stack(found).double()  # [fills, images, C, H, W]
        mean = fills.mean(0)
        inside = fills[:, :, hidden]
        rms = {
            "spread": inside.std(0).square().mean().sqrt(),
            "error of the mean": (mean - images)[:, hidden].square().mean().sqrt(),
            "misfit": (fills - images)[:, :, ~hidden].square().mean().sqrt(),
        }
        return (
            {key: round(float(value), 5) for key, value in rms.items()},
            {
                "hidden psnr": torch.stack([hidden_psnr(fill, images, mask) for fill in fills]).numpy().round(3),
                "hidden psnr of the mean": hidden_psnr(mean, images, mask).numpy().round(3),
                "deviation": inside.std(0).numpy().astype(np.float32).round(4),  # [images, hidden values]
                "error": (mean - images)[:, hidden].cpu().numpy().astype(np.float32).round(4),
                "x": _bytes(fills[:5, :2].flatten(0, 1)).reshape(-1, min(2, len(images)), *images.shape[1:]),
            },
        )

    return context.part(f"spread/{name}", part)


def _bytes(x: Tensor) -> np.ndarray:
    return (x.clamp(0, 1) * 255).round().byte().cpu().numpy()
