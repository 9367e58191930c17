"""Inpainting: what fills a hole, how much the start and the weight matter, and how unsure the answer is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import _support, evaluate, measure, recover
from companion.experiments import Context, Named, Part, experiment, gather, named, problems, shared

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
NORMAL_STD, FILL_STD, GENERATOR_STD = 0.7, 0.2, 0.1


@dataclass(frozen=True, kw_only=True)
class Settings(shared.OnImages):
    """Sizes of the comparison; the priors, trained on the same images, are (kind, checkpoint), the flow's first."""

    priors: tuple[tuple[str, str], ...] = (("glow", "glow-photos32"), ("gan", "gan-photos32"), ("vae", "vae-photos32"))
    budget: int = 80  # evaluations for one image, the same for every model
    iterations: int = 2000  # of total variation, each some hundred times cheaper than an evaluation of a model
    gammas: tuple[float, ...] = (0.0, 0.01, 0.1, 1.0)  # weights of ‖z‖, for the flow and the generators
    weights: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03)  # of total variation
    tuned_on: int = 4  # validation images on which γ and the weight are chosen, for every method and mask
    # numbers of evaluations at which the progress of each search is stored
    points: tuple[int, ...] = (1, 10, 20, 30, 40, 50, 60, 80)
    fills: int = 8  # random starts of each image for the spread of the answers
    spread_images: int = 4
    spread_masks: tuple[str, ...] = ("centre", "left")


_FEW = Settings(data="photos", images=1, budget=3, iterations=50, tuned_on=1, points=(1, 3), fills=2, spread_images=1)
_FLOWERS = Settings(priors=(("glow", "glow-flowers64"),), data="flowers", size=64, fills=16, spread_images=12)
_GAMMAS = (0.0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 30.0, 40.0, 50.0)
_LONG: dict[str, Any] = {"budget": 400, "iterations": 5000, "points": (1, 10, 20, 40, 60, 80, 100, 150, 200, 300, 400)}


@experiment(
    "asim.inpainting",
    paper="Asim et al. 2020",
    shows="Fig. 6, 47, 48",
    profiles={
        "quick": replace(_FEW, gammas=(0.0, 0.05), weights=(0.001, 0.01), spread_masks=("centre",)),
        "laptop": Settings(),
        "paper": replace(_FLOWERS, gammas=_GAMMAS, spread_masks=("centre", "left", "bottom"), **_LONG),
    },
)
def inpainting(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Fills holes of six kinds in held-out photographs by a flow, a GAN, a VAE and total variation.

    Arrays: psnr, hidden psnr (of the hidden pixels), the chosen weight and pictures by mask and method; "sweep", of the
    flow, and "gan", of the GAN, by start and γ for the centre mask; "spread" and others for each mask with many fills.
    """
    kinds = [kind for kind, _ in settings.priors]
    starts = [("glow", how) for how in STARTS] + [("gan", "normal")] * ("gan" in kinds)
    items = [(*start, gamma) for start in starts for gamma in settings.gammas]
    swept = context.map(_search, items, "starts")
    length, methods = len(STARTS) * len(settings.gammas), [*kinds, "tv"]
    filled = context.map(_fill, [(mask, method) for mask in MASKS for method in methods], "masks")
    spread = context.map(_spread, settings.spread_masks, "spreads")

    arrays = gather(filled, mask=MASKS, method=methods)
    sweep = gather(swept[:length], start=STARTS, gamma=settings.gammas)
    arrays |= {f"sweep {key}": array for key, array in sweep.items()}
    if swept[length:]:
        generator = gather(swept[length:], gamma=settings.gammas)
        arrays |= {f"gan {key}": generator[key] for key in ("psnr", "hidden psnr")}
    for mask, outcome in zip(settings.spread_masks, spread, strict=True):
        arrays |= {f"{mask} {key}": array for key, array in outcome.named.items()}
    truth = settings.truth(context)
    hidden = {name: round(float((~of(truth.shape[1:])).double().mean()), 5) for name, of in MASKS.items()}
    metrics = {
        "hidden share": hidden,
        "spread": dict(zip(settings.spread_masks, [each.metrics for each in spread], strict=True)),
    }
    return metrics, arrays | {"truth": shared.pictures(truth)}


def start_image(how: str, truth: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Images whose latents a search starts from: the truth outside the hole, in it what `how` says, [batch, C, H, W].

    "black": 0. "noise": noise of standard deviation 0.2, clipped. "noisy truth": the truth with that noise, and
    "turned truth": the truth's pixels after a half-turn of the image; these are what the published code calls
    noisy-filled and inverted-filled. ValueError for another name.
    """
    noise = FILL_STD * _support.normal(truth.shape, seed, truth, "fill")
    hole = {
        "black": lambda: torch.zeros_like(truth),
        "noise": lambda: noise.clamp(0, 1),
        "noisy truth": lambda: (truth + noise).clamp(0, 1),
        "turned truth": lambda: truth.flip(2, 3),
    }
    _support.one_of("how", how, hole)
    return torch.where(mask.to(truth.device), truth, hole[how]())


def _problem(settings: Settings, part: Part, name: str, split: str, number: int) -> tuple[Tensor, measure.Mask, Tensor]:
    """The first images of a split, of validation images from all over it; their mask, and which pixels it hides."""
    truth = settings.truth(part, split, number, spread=split == "validation")
    mask = MASKS[name](tuple(truth.shape[1:])).to(part.device)
    return truth, measure.Mask(mask), ~mask


def _search(settings: Settings, part: Part, item: tuple[str, str, float]) -> tuple[dict, dict]:
    """A search by the flow from one of STARTS, or by the GAN from near zero, for the centre mask."""
    kind, how, gamma = item
    model = shared.prior(part, dict(settings.priors)[kind])
    truth, operator, hidden = _problem(settings, part, "centre", "test", settings.images)
    y = operator(truth)
    if how in ("zero", "normal"):
        z0 = recover.start(model, y, how, NORMAL_STD if kind == "glow" else GENERATOR_STD, part.seed)
    else:
        z0 = model.encode(start_image(how, truth, ~hidden, part.seed))
    watch = problems.watch_psnr(truth) | {
        "hidden psnr": lambda x, z: evaluate.psnr(torch.nan_to_num(x), truth, hidden),
        "length": lambda x, z: torch.linalg.vector_norm(z.double(), dim=1).cpu(),
    }
    found = part.count(
        recover.flow_latent(model, operator, y, gamma, z0=z0, max_evaluations=settings.budget, watch=watch)
    )
    paths = {f"{name} path": found.at(name, settings.points).mean(1).numpy().round(3) for name in watch}
    return {}, _scores(found.x, truth, hidden) | {
        "length": named(shared.numpy(found.z.norm(dim=1).double(), 2), image=len(truth)),
        **{name: named(path, evaluation=settings.points) for name, path in paths.items()},
    }


def _scores(x: Tensor, truth: Tensor, hidden: Tensor) -> dict[str, Named]:
    scores = {"psnr": evaluate.psnr(x, truth), "hidden psnr": evaluate.psnr(x, truth, hidden)}
    return shared.by_image(scores, digits=3)


def _fill(settings: Settings, part: Part, item: tuple[str, str]) -> tuple[dict, dict]:
    """A mask and a method: the weight that is best for the hidden pixels of validation images, and what it fills.

    The flow starts from z = 0, a generator from near it, total variation from black.
    """
    name, method = item
    weights = settings.weights if method == "tv" else settings.gammas

    def solve(images: Tensor, weight: float) -> recover.Result:
        y = operator(images)
        if method == "tv":
            return recover.tv(operator, y, weight=weight, max_iterations=settings.iterations)
        model, scale = shared.prior(part, dict(settings.priors)[method]), 0.0 if method == "glow" else GENERATOR_STD
        z0 = recover.start(model, y, "normal", scale, part.seed)
        return recover.flow_latent(model, operator, y, weight, z0=z0, max_evaluations=settings.budget)

    tuning, operator, hidden = _problem(settings, part, name, "validation", settings.tuned_on)
    score = partial(evaluate.psnr, where=hidden)
    best, _ = problems.choose(part, weights, lambda weight: solve(tuning, weight), tuning, score)
    truth, _, _ = _problem(settings, part, name, "test", settings.images)
    x = part.count(solve(truth, weights[best])).x
    return {}, _scores(x, truth, hidden) | {"weight": named(weights[best]), "recovered": shared.pictures(x[:3])}


def _spread(settings: Settings, part: Part, name: str) -> tuple[dict, dict]:
    """The answers of several random starts for the same hole, γ = 0: how far they are from the truth and each other."""
    flow = shared.prior(part, settings.priors[0][1])
    truth, operator, hidden = _problem(settings, part, name, "test", settings.spread_images)
    y, found = operator(truth), []
    for fill in range(settings.fills):
        z0 = recover.start(flow, y, "normal", NORMAL_STD, part.seed, fill)
        result = part.count(recover.flow_latent(flow, operator, y, z0=z0, max_evaluations=settings.budget))
        found.append(result.x.clamp(0, 1))
    fills = torch.stack(found).double()  # [fills, images, C, H, W]
    mean = fills.mean(0)
    deviation, error = fills[:, :, hidden].std(0), (mean - truth)[:, hidden]  # [images, hidden values]
    misfit = (fills - truth)[:, :, ~hidden]
    rms = {"spread": deviation, "error of the mean": error, "misfit": misfit}
    psnr = np.stack([evaluate.psnr(fill, truth, hidden).numpy() for fill in fills])
    return {key: round(float(value.square().mean().sqrt()), 5) for key, value in rms.items()}, {
        "hidden psnr": named(psnr.round(3), fill=settings.fills, image=len(truth)),
        "hidden psnr of the mean": named(evaluate.psnr(mean, truth, hidden).numpy().round(3), image=len(truth)),
        "deviation": named(shared.numpy(deviation.float(), 4), image=len(truth), value=deviation.shape[1]),
        "error": named(shared.numpy(error.float(), 4), image=len(truth), value=error.shape[1]),
    }
