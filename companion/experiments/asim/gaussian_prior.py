"""A Gaussian prior, the linear flow with the photographs' covariance, on the problems of asim.compressed-sensing."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion import _support, evaluate, recover
from companion.experiments import Context, Part, experiment, gather, named, problems, shared


@dataclass(frozen=True, kw_only=True)
class Settings(shared.OnImages):
    """Sizes of the comparison, as in asim.compressed-sensing."""

    mirror: bool = True  # whether the covariance is that of the training images and their mirror images
    seeds: int = 3
    measurements: tuple[int, ...] = (154, 307, 614, 1229)
    images: int = 24  # one crop of each photograph
    tuned_on: int = 8
    # standard deviations τ of the τ² I added to the covariance; chosen on validation images, for every m
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
            measurements=shared.GRID,
            floors=(0.0, 0.003, 0.01, 0.03),
        ),
    },
)
def gaussian_prior(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers held-out photographs with the Gaussian that has the training images' mean and covariance."""
    arrays = gather(context.map(_recover, settings.measurements, "measurements"), m=settings.measurements)
    variances = _gaussian(settings, context.device, 0.0)[0].square().sum(0).cpu().numpy()
    arrays["variances"] = named(variances, component=range(1, len(variances) + 1))
    return {"n": len(variances)}, arrays | {"truth": shared.pictures(settings.truth(context))}


def _gaussian(settings: Settings, device: torch.device, floor: float) -> tuple[Tensor, Tensor]:
    return problems.gaussian(settings.data, settings.size, device, floor, settings.mirror)


def _recover(settings: Settings, part: Part, m: int) -> tuple[dict, dict]:
    """PSNR and ‖x̂ − x‖² for the images, and ‖x̂ − x‖² for as many draws from the Gaussian itself, for each draw of A."""

    def solve(a: Any, y: Tensor, floor: float) -> recover.Result:
        return recover.gaussian_map(a, y, *_gaussian(settings, part.device, floor), problems.NOISE_NORM / math.sqrt(m))

    tuning = settings.truth(part, "validation", settings.tuned_on)
    tuned, y = problems.compressed(part, tuning, m, "validation")
    best, _ = problems.choose(part, settings.floors, lambda floor: solve(tuned.operator, y, floor), tuning)
    floor = settings.floors[best]
    truth = settings.truth(part)
    factor, mean = _gaussian(settings, part.device, floor)
    own = mean + (_support.normal((len(truth), len(factor)), part.seed, factor, "own") @ factor.mT).view_as(truth)
    both, psnr, errors, recovered = torch.cat([truth, own.to(truth)]), [], [], []
    for draw in range(settings.seeds):
        problem, y = problems.compressed(part, truth, m, draw)
        drawn = problem.noise.sample(problem.operator(own.to(truth)), shared.seed_of(part, "own", draw))
        x = solve(problem.operator, torch.cat([y, drawn]), floor).x
        psnr.append(evaluate.psnr(x[: len(truth)], truth))
        errors.append((x - both).square().flatten(1).sum(1).double().view(2, -1))
        recovered.append(x[:4])
    images = {"draw": settings.seeds, "image": len(truth)}
    return {}, {
        "psnr": named(torch.stack(psnr).cpu().numpy(), **images),
        "error": named(torch.stack(errors, 1).cpu().numpy(), of=("held out", "own"), **images),
        "recovered": shared.pictures(recovered[0]),
        "floor": named(floor),
    }
