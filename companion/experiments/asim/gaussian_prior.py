"""A Gaussian prior, the linear flow with the photographs' covariance, on the problems of asim.compressed-sensing."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import _support, data, evaluate, measure
from companion.experiments.context import Context
from companion.experiments.registry import experiment
from companion.recover.gaussian import gaussian_map

NOISE = 0.1  # √E‖δ‖², as in asim.compressed-sensing


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Attributes:
        data, size: data set and side of its images.
        mirror: whether the covariance is that of the training images and their mirror images.
        images, seeds, measurements, tuned_on: as in asim.compressed-sensing.
        floors: standard deviations τ of the τ² I added to the covariance; chosen on validation images, for every m.
    """

    data: str
    size: int
    mirror: bool
    images: int
    seeds: int
    measurements: tuple[int, ...]
    tuned_on: int
    floors: tuple[float, ...]


@experiment(
    "asim.gaussian-prior",
    paper="Hand, lecture notes; Asim et al. 2020",
    shows="Fig. 4 left, with the linear flow of the theorem",
    profiles={
        "quick": Settings("digits", 8, False, 8, 2, (8, 16, 32), 8, (0.01, 0.1)),
        "laptop": Settings("photos", 32, True, 12, 3, (154, 307, 614, 922, 1229, 1536), 8, (0.0, 0.003, 0.01)),
        "paper": Settings(
            "flowers",
            64,
            True,
            12,
            1,
            (20, 30, 50, 100, 200, 300, 400, 500, 750, 1000, 2500, 5000, 7500, 10000, 12288),
            8,
            (0.0, 0.003, 0.01, 0.03),
        ),
    },
)
def gaussian_prior(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Recovers held-out photographs with the Gaussian that has the training images' mean and covariance."""
    truth, tuning = (
        data.load(settings.data, split=split, size=settings.size)[:number].to(context.device)
        for split, number in (("test", settings.images), ("validation", settings.tuned_on))
    )
    mean, vectors, variances = _principal_components(settings, context.device)
    factors = {floor: vectors * (variances + floor**2).sqrt() for floor in settings.floors}
    chosen: list[float] = []
    collected: dict[str, list[np.ndarray]] = {"psnr": [], "error held out": [], "error own": [], "recovered": []}
    for m in context.progress(settings.measurements, "measurements"):

        def part(m: int = m) -> tuple[dict, dict]:
            floor = _choose_floor(context, m, tuning, mean, factors)
            return {"floor": floor}, _recovered(settings, context, m, truth, mean, factors[floor])

        outcome = context.part(f"m={m}", part)
        chosen.append(outcome.metrics["floor"])
        for name, values in collected.items():
            values.append(outcome.arrays[name])
    # psnr and errors: [m, draws, images]; recovered: [m, 4 images, C, H, W] of the first draw
    arrays = {name: np.stack(values) for name, values in collected.items()}
    metrics = {"m": list(settings.measurements), "n": truth[0].numel(), "floor": chosen}
    metrics["mean psnr"] = arrays["psnr"].mean((1, 2)).round(3).tolist()
    return metrics, arrays | {"variances": variances.double().cpu().numpy(), "truth": _bytes(truth)}


def _choose_floor(context: Context, m: int, images: Tensor, mean: Tensor, factors: dict[float, Tensor]) -> float:
    """The floor with the best mean PSNR on validation images, from measurements of their own."""
    operator, y = _observe(m, images, 1000 * context.seed + 900)
    scores = {
        floor: float(evaluate.psnr(gaussian_map(operator, y, factor, mean, NOISE / math.sqrt(m)).x, images).mean())
        for floor, factor in factors.items()
    }
    return max(scores, key=lambda floor: scores[floor])


def _recovered(
    settings: Settings, context: Context, m: int, truth: Tensor, mean: Tensor, factor: Tensor
) -> dict[str, np.ndarray]:
    """PSNR, and ‖x̂ − x‖² for the images and for as many draws from the Gaussian itself, for each draw of A."""
    z = _support.normal((len(truth), factor.shape[1]), 60_000 + context.seed, truth)
    own = mean + (z @ factor.mT).unflatten(1, mean.shape)
    drawn: dict[str, list[np.ndarray]] = {"psnr": [], "error held out": [], "error own": []}
    recovered = []
    for draw in range(settings.seeds):
        seed = 1000 * context.seed + draw
        operator, y = _observe(m, truth, seed)
        noisy = measure.GaussianNoise(NOISE / math.sqrt(m)).sample(operator(own), 50_000 + seed)
        both = torch.cat([y, noisy])
        x = gaussian_map(operator, both, factor, mean, NOISE / math.sqrt(m)).x
        held_out, sampled = x[: len(truth)], x[len(truth) :]
        drawn["psnr"].append(evaluate.psnr(held_out, truth).numpy())
        drawn["error held out"].append((held_out - truth).square().flatten(1).sum(1).double().cpu().numpy())
        drawn["error own"].append((sampled - own).square().flatten(1).sum(1).double().cpu().numpy())
        recovered.append(_bytes(held_out[:4]))
    return {name: np.stack(values) for name, values in drawn.items()} | {"recovered": recovered[0]}


def _bytes(x: Tensor) -> np.ndarray:
    return (x.clamp(0, 1) * 255).round().byte().cpu().numpy()


def _observe(m: int, x: Tensor, seed: int) -> tuple[measure.Gaussian, Tensor]:
    """The operator and the measurements that asim.compressed-sensing has for this seed."""
    operator = measure.Gaussian(tuple(x.shape[1:]), m, seed)
    return operator, measure.Problem(operator, measure.GaussianNoise.of_norm(NOISE, m)).observe(x, seed + 1)


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
