"""A quarter of the sub-pixels of large photographs is missing: a flow of small crops fills them in."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from skimage.restoration import inpaint_biharmonic
from torch import Tensor

from companion import _reads, evaluate, measure, priors, recover
from companion._support import store
from companion.data._decode import picture
from companion.experiments import Context, Part, experiment, gather, named, problems, shared
from companion.experiments.hand.memory import kept_bytes
from companion.experiments.whang import sets
from companion.measure import masks


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    flow: str = "glow-photos32"  # trained on crops of 32 × 32 pixels
    size: int = 256  # side of the photographs that are filled in, the middle of Kodak's at half size
    images: int = 2
    missing: float = 0.25
    std: float = 0.01  # of the noise on the values seen
    betas: tuple[float, ...] = (0.1, 0.3, 1.0)  # chosen from on validation crops
    tv_weights: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    tuned_on: int = 8
    budget: int = 60  # evaluations for one image
    depths: tuple[int, ...] = (2, 4, 8)  # steps of flow whose memory is measured, with random weights


@experiment(
    "whang.subpixel",
    paper="Whang et al. 2021",
    shows="Fig. 9",
    profiles={
        "quick": Settings(size=64, images=1, betas=(0.3,), tv_weights=(1e-3,), tuned_on=1, budget=10, depths=(1, 2)),
        "laptop": Settings(),
    },
    tolerances={"psnr": 0.03, "seconds": None, "kept": 0.1},
)
def subpixel(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Fills in missing sub-pixels of photographs far larger than the flow's crops; time and memory beside rivals'.

    Arrays: psnr over the missing values, and over all, seconds and estimates by method and image; and bytes "kept" for
    the backward pass by method ("ordinary", "rebuilt") and depth.
    """
    methods = ("map", "tv", "biharmonic")
    choices = context.map(_choose, methods, "weights")
    chosen = [(name, choice.metrics["weight"]) for name, choice in zip(methods, choices, strict=True)]
    items = [(name, weight, image) for name, weight in chosen for image in range(settings.images)]
    arrays = gather(context.map(_fill, items, "images"), method=methods, image=settings.images)
    arrays |= gather(context.map(_memory, settings.depths, "depths"), depth=settings.depths)
    return {"chosen": dict(chosen)}, arrays


def _photograph(settings: Settings, part: Part, image: int) -> Tensor:
    """The middle of one of Kodak's photographs, [1, 3, size, size]."""
    file = sorted((store() / "images").glob("kodim*.webp"))[image]
    whole = picture(_reads.note(file)).to(part.device)
    top, left = ((side - settings.size) // 2 for side in whole.shape[1:])
    return whole[None, :, top : top + settings.size, left : left + settings.size].float() / 255


def _problem(settings: Settings, part: Part, truth: Tensor, *stream: Any) -> tuple[measure.Problem, Tensor]:
    mask = masks.random_subpixels(tuple(truth.shape[1:]), settings.missing, shared.seed_of(part, "mask", *stream))
    problem = measure.Problem(measure.Mask(mask), measure.GaussianNoise(settings.std))
    return problem, problem.observe(truth, shared.seed_of(part, "noise", *stream))


def _solve(
    settings: Settings, part: Part, problem: measure.Problem, y: Tensor, method: str, weight: float
) -> recover.Result:
    operator: Any = problem.operator
    if method == "tv":
        return recover.tv(operator, y, weight, max_iterations=1000)
    seen = operator.adjoint(y)
    filled = torch.stack([torch.from_numpy(_biharmonic(x, ~operator.mask)) for x in seen]).to(y)
    if method == "biharmonic":
        return sets.closed_form(filled)
    flow = priors.memory_saving(priors.resized(shared.prior(part, settings.flow), operator.shape))
    return recover.flow_map(flow, problem, y, weight, start=flow.encode(filled), max_evaluations=settings.budget)


def _biharmonic(x: Tensor, missing: Tensor) -> np.ndarray:
    """Each channel's missing pixels by the biharmonic equation."""
    pairs = zip(x.double().cpu().numpy(), missing.cpu().numpy(), strict=True)
    return np.stack([inpaint_biharmonic(channel, hidden) for channel, hidden in pairs])


def _choose(settings: Settings, part: Part, method: str) -> tuple[dict, dict]:
    """The weight of a method on small validation crops: that of a pixel does not depend on the size."""
    weights = {"map": settings.betas, "tv": settings.tv_weights}.get(method, (0.0,))
    if len(weights) == 1:
        return {"weight": weights[0]}, {}
    truth = shared.images(part, "photos", "validation", settings.tuned_on, 32, spread=True)
    problem, y = _problem(settings, part, truth, "validation")
    best, _ = problems.choose(part, weights, partial(_solve, settings, part, problem, y, method), truth)
    return {"weight": weights[best]}, {}


def _fill(settings: Settings, part: Part, item: tuple[str, float, int]) -> tuple[dict, dict]:
    method, weight, image = item
    truth = _photograph(settings, part, image)
    problem, y = _problem(settings, part, truth, image)
    began = time.perf_counter()
    found = part.count(_solve(settings, part, problem, y, method, weight))
    seconds = time.perf_counter() - began
    hidden = ~problem.operator.mask  # type: ignore[attr-defined]
    return {}, {
        "psnr": named(float(evaluate.psnr(found.x, truth, where=hidden))),
        "psnr of all": named(float(evaluate.psnr(found.x, truth))),
        "seconds": named(seconds),
        "evaluations": named(int(found.evaluations.sum())),
        "recovered": shared.pictures(found.x[0]),
    }


def _memory(settings: Settings, part: Part, depth: int) -> tuple[dict, dict]:
    """Bytes kept for the backward pass of a flow with that many steps a level, at the photographs' size."""
    random = priors.Glow(**{**shared.prior(part, settings.flow).config, "steps": depth}).requires_grad_(False)
    plain = priors.resized(random.to(part.device), (3, settings.size, settings.size))
    x = _photograph(settings, part, 0).requires_grad_()
    flows = plain, priors.memory_saving(plain)
    kept = [kept_bytes(partial(_density, flow, x), plain) for flow in flows]
    return {}, {"kept": named(kept, method=("ordinary", "rebuilt"))}


def _density(flow: priors.Flow, x: Tensor) -> Tensor:
    return flow.log_prob(x).sum()
