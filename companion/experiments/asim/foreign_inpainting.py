"""Inpainting of images that no prior was trained on: what fills the hole, from near to far."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from companion import evaluate, measure, recover
from companion.experiments import Context, Part, experiment, gather, named, problems, shared
from companion.experiments.asim.image_sets import image_set


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison; the priors are (kind, checkpoint), the flow's first."""

    priors: tuple[tuple[str, str], ...] = (("glow", "glow-photos32"), ("gan", "gan-photos32"), ("vae", "vae-photos32"))
    gaussian: str = "gaussian-photos32"  # of the covariance of the same training images; "" for none
    sets: tuple[str, ...] = ("photographs", "satellite", "textures", "text")  # from near to far of the training images
    images: int = 12  # of each set
    budget: int = 400  # evaluations for one image, the same for all priors
    restarts: int = 4  # of a generator, which share the budget
    iterations: int = 2000  # of total variation, each some hundred times cheaper than an evaluation of a prior
    weights: tuple[float, ...] = (0.0001, 0.0003, 0.001, 0.003, 0.01)  # of total variation
    tuned_on: int = 12  # validation images of the first set, whose hidden pixels choose the weight
    shown: int = 7  # which image of each set is stored as a picture


_LAPTOP = Settings()
_QUICK = Settings(
    sets=("photos", "text"), images=2, budget=4, restarts=2, iterations=50, weights=(0.001, 0.01), tuned_on=2, shown=1
)
_FLOWERS = (("glow", "glow-flowers64"),)


@experiment(
    "asim.foreign-inpainting",
    paper="Asim et al. 2020",
    shows="Fig. 49",
    profiles={
        "quick": _QUICK,
        "laptop": _LAPTOP,
        "paper": replace(
            _LAPTOP, priors=_FLOWERS, gaussian="", sets=("flowers", *_LAPTOP.sets), budget=600, iterations=5000
        ),
    },
)
def foreign_inpainting(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Fills the centre of images from near to far of what a flow, a GAN and a VAE were trained on.

    Arrays by set and method: psnr, hidden psnr (of the hidden pixels), residual (length of the misfit), and the picture
    of one image; truth by set.
    """
    weight = context.map(_choose, settings.sets[:1], "weights")[0].metrics["weight"]
    filled = context.map(_fill, [(name, weight) for name in settings.sets], "sets")
    arrays = gather(filled, set=settings.sets)
    hidden = arrays["hidden psnr"]
    means = dict(zip(settings.sets, hidden.values.mean(2).round(3).tolist(), strict=True))
    table = {name: dict(zip(hidden.axes["method"], row, strict=True)) for name, row in means.items()}
    return {"weight": weight, "mean hidden psnr": table}, arrays


def _observed(
    settings: Settings, part: Part, name: str, number: int, split: str = "test"
) -> tuple[Tensor, measure.Mask, measure.GaussianNoise, Tensor, Tensor]:
    """Images of a set, the centre's mask, the paper's √E‖δ‖² = 0.1, which pixels the mask hides, and measurements."""
    shape = shared.prior(part, settings.priors[0][1]).shape
    truth, mask = image_set(name, number, shape, split).to(part.device), measure.masks.centre(shape).to(part.device)
    operator = measure.Mask(mask)
    noise = measure.GaussianNoise.of_norm(problems.NOISE_NORM, operator.output_shape[0])
    return truth, operator, noise, ~mask, measure.Problem(operator, noise).observe(truth, shared.seed_of(part, split))


def _choose(settings: Settings, part: Part, name: str) -> tuple[dict, dict]:
    """The weight of total variation with the best mean PSNR over the hidden pixels of validation images."""
    truth, operator, _, hidden, y = _observed(settings, part, name, settings.tuned_on, "validation")
    solve = partial(recover.tv, operator, y, max_iterations=settings.iterations)
    score = partial(evaluate.psnr, where=hidden)
    best, _ = problems.choose(part, settings.weights, lambda weight: solve(weight=weight), truth, score)
    return {"weight": settings.weights[best]}, {}


def _fill(settings: Settings, part: Part, item: tuple[str, float]) -> tuple[dict, dict]:
    """All methods on the images of one set: flow from z = 0 and generators with restarts, γ = 0; Gaussian; TV."""
    name, weight = item
    truth, operator, noise, hidden, y = _observed(settings, part, name, settings.images)
    flow, *generators = settings.priors
    found = {"glow": recover.flow_latent(shared.prior(part, flow[1]), operator, y, max_evaluations=settings.budget)}
    for kind, checkpoint in generators:
        prior = shared.prior(part, checkpoint)
        found[kind] = problems.restarted(part, prior, operator, y, restarts=settings.restarts, budget=settings.budget)
    for result in found.values():
        part.count(result)
    if settings.gaussian:
        gaussian = shared.stored_gaussian(part, settings.gaussian)
        found["gaussian"] = recover.gaussian_map(operator, y, *gaussian, noise.std)
    found["tv"] = recover.tv(operator, y, weight=weight, max_iterations=settings.iterations)

    x = torch.stack([result.x for result in found.values()])
    axes: dict[str, Any] = {"method": list(found), "image": len(truth)}
    return {}, {
        "psnr": named(torch.stack([evaluate.psnr(each, truth) for each in x]).numpy(), **axes),
        "hidden psnr": named(torch.stack([evaluate.psnr(each, truth, hidden) for each in x]).numpy(), **axes),
        "residual": named(shared.numpy(torch.stack([(operator(each) - y).norm(dim=1) for each in x])), **axes),
        "recovered": shared.pictures(x[:, settings.shown], method=found),
        "truth": shared.pictures(truth[settings.shown]),
    }
