"""A quarter of the sub-pixels of large photographs is missing: a flow of small crops fills them in.

As in the paper there is no noise, so that what is seen stays as it is, and the search is over what is missing only.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from skimage.restoration import inpaint_biharmonic
from torch import Tensor

from companion import _reads, evaluate, measure, priors, recover
from companion._support import store
from companion.data._decode import picture
from companion.experiments import Context, Part, experiment, gather, named, problems, shared
from companion.experiments.hand.memory import METHODS, kept_bytes, peak_bytes
from companion.experiments.whang import sets
from companion.measure import masks

TILE = 32  # side of the Gaussian's crops, as the flow's


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    flow: str = "glow-photos32"  # trained on crops of 32 × 32 pixels
    data: str = "photographs"  # whose training crops give the Gaussian, and validation crops choose
    size: int = 248  # side of the photographs that are filled in, nearly all of Kodak's at half size
    images: int = 1
    missing: float = 0.25
    tv_weights: tuple[float, ...] = (1e-4, 1e-3, 1e-2)  # chosen from on validation crops
    tuned_on: int = 8
    budget: int = 20  # evaluations for one image
    depths: tuple[int, ...] = (2, 4, 8)  # steps of flow whose memory is measured, with random weights


@experiment(
    "whang.subpixel",
    paper="Whang et al. 2021",
    shows="Fig. 9",
    profiles={
        "quick": Settings(data="photos", size=64, images=1, tv_weights=(1e-3,), tuned_on=1, budget=10, depths=(1, 2)),
        "laptop": Settings(),
    },
    tolerances={"psnr*": 0.03, "seconds": None, "kept": 0.1, "peak": 0.1, "nats": 0.03},
)
def subpixel(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Fills in missing sub-pixels of photographs far larger than the flow's crops; time and memory beside rivals'.

    Arrays: psnr over the missing values, and over all, "nats" (−log p), processor seconds and estimates by method and
    image; and bytes "kept" for the backward pass, and held at the "peak", by method ("ordinary", "rebuilt") and depth.
    """
    methods = ("map", "gaussian", "tv", "biharmonic")
    weight = context.map(_choose, ["tv"], "weights")[0].metrics["weight"]
    items = [(name, weight, image) for name in methods for image in range(settings.images)]
    arrays = gather(context.map(_fill, items, "images"), method=methods, image=settings.images)
    arrays |= gather(context.map(_memory, settings.depths, "depths"), depth=settings.depths)
    pictures = [_photograph(settings, context, image)[0] for image in range(settings.images)]
    return {"tv weight": weight}, arrays | {"truth": shared.pictures(torch.stack(pictures))}


def _photograph(settings: Settings, part: Part, image: int) -> Tensor:
    """The middle of one of Kodak's photographs, [1, 3, size, size]."""
    file = sorted((store() / "images").glob("kodim*.webp"))[image]
    whole = picture(_reads.note(file)).to(part.device)
    top, left = ((side - settings.size) // 2 for side in whole.shape[1:])
    return whole[None, :, top : top + settings.size, left : left + settings.size].float() / 255


def _problem(settings: Settings, part: Part, truth: Tensor, *stream: str | int) -> tuple[measure.Mask, Tensor]:
    """The mask, the same for a whole batch, and what is seen."""
    mask = masks.random_subpixels(tuple(truth.shape[1:]), settings.missing, shared.seed_of(part, "mask", *stream))
    operator = measure.Mask(mask)
    return operator, operator(truth)


def _solve(
    settings: Settings, part: Part, operator: measure.Mask, y: Tensor, method: str, weight: float
) -> recover.Result:
    if method == "tv":
        return recover.tv(operator, y, weight)
    if method == "biharmonic":
        return problems.closed_form(biharmonic(operator, y))
    exact = conditional_mean(operator, y, *_gaussian(settings.data, part.device))
    if method == "gaussian":
        return problems.closed_form(exact)
    flow = priors.memory_saving(priors.resized(shared.prior(part, settings.flow), operator.shape))
    return likeliest(flow, operator, y, exact, settings.budget)


def likeliest(flow: Any, operator: measure.Mask, y: Tensor, start: Tensor, budget: int) -> recover.Result:
    """The images that are likeliest under a flow, or another density, among those with the values seen.

    argmax p(x) subject to A x = y: the search, from `start`, is over the hidden values alone.
    """
    seen, hidden = operator.adjoint(y), ~operator.mask.to(y.device)

    def image(values: Tensor) -> Tensor:
        return seen.masked_scatter(hidden, values)

    found = recover.minimise(lambda values: -flow.log_prob(image(values)), start[:, hidden], max_evaluations=budget)
    return replace(found, x=image(found.x))


def biharmonic(operator: measure.Mask, y: Tensor) -> Tensor:
    """Each channel's missing pixels by the biharmonic equation."""
    hidden = ~operator.mask.numpy()
    seen = operator.adjoint(y).double().cpu().numpy()
    filled = [[inpaint_biharmonic(*pair) for pair in zip(image, hidden, strict=True)] for image in seen]
    return torch.from_numpy(np.array(filled)).to(y)


@lru_cache(maxsize=1)
def _gaussian(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean, [C, TILE, TILE], and precision, [n, n], of training crops."""
    factor, mean = sets.gaussian(name, TILE, device)
    return mean, torch.cholesky_inverse(torch.linalg.cholesky(factor @ factor.T))


def conditional_mean(operator: measure.Mask, y: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """What a Gaussian of tiles expects where nothing is seen; tiles overlap by half and are averaged.

    With the precision P, the mean of hidden values given the others is μ_h − P_hh⁻¹ P_hs (x_s − μ_s).
    """
    side, mask = mean.shape[-1], operator.mask.to(y.device)
    seen = operator.adjoint(y).double()
    total, count = torch.zeros_like(seen), torch.zeros_like(seen)
    # the last tile of a row or column ends where the picture does
    tops, lefts = ([*range(0, size - side, side // 2), size - side] for size in seen.shape[2:])
    for top in tops:
        for left in lefts:
            place = (..., slice(top, top + side), slice(left, left + side))
            hidden = ~mask[place].flatten()
            offset = (seen[place] - mean).flatten(1) * ~hidden
            pull = (offset @ precision)[:, hidden]
            offset[:, hidden] = -torch.linalg.solve(precision[hidden][:, hidden], pull.T).T
            total[place] += offset.view_as(seen[place]) + mean
            count[place] += 1
    return torch.where(mask, seen, total / count).to(y)


def _choose(settings: Settings, part: Part, _: str) -> tuple[dict, dict]:
    """The weight of total variation on small validation crops: that of a pixel does not depend on the size."""
    truth = shared.images(part, settings.data, "validation", settings.tuned_on, TILE, spread=True)
    operator, y = _problem(settings, part, truth, "validation")
    best = problems.choose(part, settings.tv_weights, lambda w: recover.tv(operator, y, w), truth)[0]
    return {"weight": settings.tv_weights[best]}, {}


def _fill(settings: Settings, part: Part, item: tuple[str, float, int]) -> tuple[dict, dict]:
    method, weight, image = item
    truth = _photograph(settings, part, image)
    operator, y = _problem(settings, part, truth, image)
    _gaussian(settings.data, part.device)  # as trained as the flow, so on nobody's time
    began = time.process_time()  # of all threads, whatever else the machine does
    found = part.count(_solve(settings, part, operator, y, method, weight))
    seconds = time.process_time() - began
    flow = priors.resized(shared.prior(part, settings.flow), operator.shape)
    with torch.no_grad():
        nats = [-float(flow.log_prob(x.to(truth))) for x in (found.x, truth)]
    return {}, {
        "psnr": named(float(evaluate.psnr(found.x, truth, where=~operator.mask))),
        "psnr of all": named(float(evaluate.psnr(found.x, truth))),
        "nats": named(nats, of=("estimate", "truth")),
        "seconds": named(seconds),
        "evaluations": named(int(found.evaluations.sum())),
        "recovered": shared.pictures(found.x[0]),
    }


def _memory(settings: Settings, part: Part, depth: int) -> tuple[dict, dict]:
    """Bytes for the gradient of log p of a flow with that many steps a level, at the photographs' size."""
    random = priors.Glow(**{**shared.prior(part, settings.flow).config, "steps": depth}).requires_grad_(False)
    plain = priors.resized(random.to(part.device), (3, settings.size, settings.size))
    x = _photograph(settings, part, 0).requires_grad_()
    passes: list[Callable[[], Tensor]] = [partial(_density, flow, x) for flow in (plain, priors.memory_saving(plain))]
    return {}, {
        "kept": named([kept_bytes(forward, plain) for forward in passes], method=METHODS),
        "peak": named([peak_bytes(forward, plain) for forward in passes], method=METHODS),
    }


def _density(flow: priors.Flow, x: Tensor) -> Tensor:
    return flow.log_prob(x).sum()
