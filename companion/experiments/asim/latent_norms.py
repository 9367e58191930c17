"""How long the latents of clean and of noisy photographs are, and how far an image moves when its latent does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import _support, data, measure, priors
from companion.experiments.context import Context
from companion.experiments.registry import experiment

# Asim et al. 2020, Fig. 51 (a Glow for CelebA faces at 64×64, n = 12,288): mean ‖Δx‖ over 80 moves towards another
# face's latent and over 120 moves in random directions, at eight of the twenty lengths ‖Δz‖ that they publish.
PUBLISHED = {
    "dz": (0.01, 0.05, 0.09, 0.18, 0.30, 0.43, 0.59, 0.80),
    "natural": (0.0056, 0.0290, 0.0524, 0.0994, 0.1703, 0.2415, 0.3372, 0.4580),
    "random": (0.0040, 0.0204, 0.0373, 0.0699, 0.1207, 0.1711, 0.2360, 0.3184),
}
DIRECTIONS = ("natural", "random")


@dataclass(frozen=True)
class Settings:
    """Which images are moved, and how far.

    Attributes:
        prior, data, size: checkpoint, data set and side of its images.
        images: held-out images, at most; fewer where the split has fewer.
        stds: standard deviations of the noise in each pixel.
        distances: lengths of the moves, ‖Δz‖ in latent space and ‖Δx‖ in image space.
    """

    prior: str
    data: str
    size: int
    images: int
    stds: tuple[float, ...]
    distances: tuple[float, ...]


@experiment(
    "asim.latent-norms",
    paper="Asim et al. 2020",
    shows="Fig. 50, 51",
    profiles={
        "quick": Settings("glow-photos32", "photos", 32, 8, (0.01, 0.1), (0.01, 0.8)),
        "laptop": Settings(
            "glow-photos32",
            "photos",
            32,
            95,
            (0.01, 0.05, 0.1, 0.2),
            (0.01, 0.09, 0.30, 0.80, 1.6, 3.2, 6.4, 12.8),
        ),
        "paper": Settings(
            "glow-flowers64",
            "flowers",
            64,
            1000,
            (0.01, 0.05, 0.1, 0.2),
            (0.01, 0.05, 0.09, 0.18, 0.30, 0.43, 0.59, 0.80, 1.6, 3.2, 6.4, 12.8),
        ),
    },
)
def latent_norms(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Encodes held-out images under more and more noise, and moves latents and images in two kinds of directions."""
    # double precision: moves as small as 0.01 of vectors of thousands of entries drown in rounding else
    flow = priors.load(settings.prior, context.device).double()
    images = data.load(settings.data, split="test", size=settings.size)[: settings.images].to(context.device).double()

    def levels() -> tuple[dict, dict]:
        context.count_evaluations(len(images) * (1 + len(settings.stds)))
        scored = [score(flow, y) for y in observed(images, settings.stds, context.seed)]
        return {}, {name: np.stack([each[name] for each in scored]) for name in scored[0]}

    def moves() -> tuple[dict, dict]:
        context.count_evaluations(4 * len(images) * (1 + len(settings.distances)))
        return {}, movements(flow, images, settings.distances, context.seed)

    scored, moved = context.part("levels", levels).arrays, context.part("moves", moves).arrays
    metrics = {
        "n": flow.latent_dim,
        "stds": [0.0, *settings.stds],
        "mean norm": scored["norm"].mean(1).round(3).tolist(),
        "mean nats": scored["nats"].mean(1).round(1).tolist(),
        "mean move": {name: values.mean(0).round(5).tolist() for name, values in moved.items()},
    }
    # norm, nats: [1 + stds, images], clean images first; "dx natural", …: [images, distances]
    return metrics, scored | moved


def observed(images: Tensor, stds: tuple[float, ...], seed: int) -> list[Tensor]:
    """The images, and the same images with the same noise at each standard deviation."""
    identity = measure.Identity(tuple(images.shape[1:]))
    noisy = [measure.Problem(identity, measure.GaussianNoise(std)).observe(images, seed + 1) for std in stds]
    return [images, *noisy]


@torch.no_grad()
def score(flow: priors.Flow, x: Tensor) -> dict[str, np.ndarray]:
    """‖z‖ and −log p(x) in nats of images x, each [batch]."""
    found = [(flow.encode(some).norm(dim=1), -flow.log_prob(some)) for some in x.split(50)]
    norm, nats = (torch.cat(values).cpu().numpy() for values in zip(*found, strict=True))
    return {"norm": norm, "nats": nats}


@torch.no_grad()
def movements(flow: priors.Flow, x: Tensor, distances: tuple[float, ...], seed: int) -> dict[str, np.ndarray]:
    """How far images move when their latents do ("dx …"), and latents when their images do ("dz …").

    "natural" is the direction towards the next image, or its latent; "random" is uniform on the sphere. Each array is
    [batch, distances].
    """
    z = torch.cat([flow.encode(some) for some in x.split(50)])
    flat = x.flatten(1)
    draw = _support.generator(seed + 2)

    def decode(latents: Tensor) -> Tensor:
        return flow.decode(latents).flatten(1)

    def encode(pixels: Tensor) -> Tensor:
        return flow.encode(pixels.view(-1, *x.shape[1:]))

    moved = {}
    for answer, start, function in (("dx", z, decode), ("dz", flat, encode)):
        random = torch.stack([_support.normal(start.shape[1:], draw, start) for _ in start])
        for kind, way in zip(DIRECTIONS, (start.roll(-1, 0) - start, random), strict=True):
            moved[f"{answer} {kind}"] = _answers(function, start, way, distances)
    return moved


def _answers(
    function: Callable[[Tensor], Tensor], start: Tensor, way: Tensor, distances: tuple[float, ...]
) -> np.ndarray:
    """Distance between function(start) and function(start + distance · unit vector along `way`), [batch, distances]."""
    unit = way / way.norm(dim=1, keepdim=True)
    rows = []
    for some, along in zip(start.split(50), unit.split(50), strict=True):
        here = function(some)
        rows.append(torch.stack([(function(some + d * along) - here).norm(dim=1) for d in distances], 1))
    return torch.cat(rows).cpu().numpy()
