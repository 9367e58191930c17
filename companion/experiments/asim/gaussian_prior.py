"""A Gaussian prior, the linear flow with the photographs' covariance, on the problems of asim.compressed-sensing."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from companion import _support, data, evaluate
from companion.experiments import shared
from companion.experiments.arrays import Named, named
from companion.experiments.context import Context
from companion.experiments.parts import Part, gather
from companion.experiments.registry import experiment
from companion.recover.gaussian import gaussian_map


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison.

    Attributes
    ----------
    data, size
        Data set and side of its images.
    mirror
        Whether the covariance is that of the training images and their mirror images.
    images, seeds, measurements, tuned_on
        As in asim.compressed-sensing.
    floors
        Standard deviations τ of the τ² I added to the covariance; chosen on validation images, for every m.
    """

    data: str = "photos"
    size: int = 32
    mirror: bool = True
    images: int = 12
    seeds: int = 3
    measurements: tuple[int, ...] = (154, 307, 614, 922, 1229, 1536)
    tuned_on: int = 8
    floors: tuple[float, ...] = (0.0, 0.003, 0.01)


@experiment(
    "asim.gaussian-prior",
    paper="Hand, lecture notes; Asim et al. 2020",
    shows="Fig. 4 left, with the linear flow of the theorem",
    profiles={
        "quick": Settings(
            data="digits", size=8, mirror=False, images=8, seeds=2, measurements=(8, 16, 32), floors=(0.01, 0.1)
        ),
        "laptop": Settings(),
        "paper": Settings(
            data="flowers",
            size=64,
            seeds=1,
            measurements=(20, 30, 50, 100, 200, 300, 400, 500, 750, 1000, 2500, 5000, 7500, 10000, 12288),
            floors=(0.0, 0.003, 0.01, 0.03),
        ),
    },
)
def gaussian_prior(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, Named]]:
    """Recovers held-out photographs with the Gaussian that has the training images' mean and covariance."""
    arrays = gather(context.map(_recover, settings.measurements, "measurements"), m=settings.measurements)
    variances = _principal_components(settings, context.device)[2].double().cpu().numpy()
    arrays["variances"] = named(variances, component=range(1, len(variances) + 1))
    truth = shared.images(context, settings.data, "test", settings.images, settings.size)
    return {"n": len(variances)}, arrays | {"truth": shared.pictures(truth)}


def _recover(settings: Settings, part: Part, m: int) -> tuple[dict, dict]:
    """PSNR and ‖x̂ − x‖² for the images, and ‖x̂ − x‖² for as many draws from the Gaussian itself, for each draw of A."""
    mean, vectors, variances = _principal_components(settings, part.device)
    tuning = shared.images(part, settings.data, "validation", settings.tuned_on, settings.size)
    tuned, y = shared.compressed(part, tuning, m, "validation")
    std = shared.NOISE_NORM / math.sqrt(m)
    factors = [vectors * (variances + floor**2).sqrt() for floor in settings.floors]
    best, _ = shared.choose(part, factors, lambda factor: gaussian_map(tuned.operator, y, factor, mean, std), tuning)
    truth = shared.images(part, settings.data, "test", settings.images, settings.size)
    own = mean + (_support.normal((len(truth), len(vectors)), part.seed, truth, "own") @ factors[best].mT).view_as(
        truth
    )
    psnr, error, recovered = [], [], []
    for draw in range(settings.seeds):
        problem, y = shared.compressed(part, truth, m, draw)
        both = torch.cat([y, problem.observe(own, shared.seed_of(part, "own", draw))])
        found = gaussian_map(problem.operator, both, factors[best], mean, std).x
        held_out = found[: len(truth)]
        psnr.append(evaluate.psnr(held_out, truth))
        error.append((found - torch.cat([truth, own])).square().flatten(1).sum(1).double().view(2, -1))
        recovered.append(held_out[:4])
    images = {"draw": settings.seeds, "image": len(truth)}
    return {}, {
        "psnr": named(torch.stack(psnr).cpu().numpy(), **images),
        "error": named(torch.stack(error, 1).cpu().numpy(), of=("held out", "own"), **images),
        "recovered": shared.pictures(recovered[0]),
        "floor": named(settings.floors[best]),
    }


@lru_cache(maxsize=1)
def _principal_components(settings: Settings, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Mean image, eigenvectors [n, n] and variances, largest first, of the training images."""
    images = data.load(settings.data, split="train", size=settings.size)[:].to(device)
    mean, shape = images.mean(0), images.shape[1:]
    second = torch.zeros(mean.numel(), mean.numel(), dtype=torch.float64, device=device)
    for part in images.flatten(1).split(4096):
        second += (part.mT @ part).double() / len(images)
    if settings.mirror:
        places = torch.arange(len(second), device=device).view(shape).flip(-1).flatten()
        mean = (mean + mean.flip(-1)) / 2
        second = (second + second[places][:, places]) / 2
    centre = mean.flatten().double()
    variances, vectors = torch.linalg.eigh(second - torch.outer(centre, centre))
    return mean, vectors.flip(1).float(), variances.flip(0).clamp_min(0).float()
