"""How long the latents of clean and of noisy photographs are, and how far an image moves when its latent does."""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from companion import _support, priors
from companion.experiments import Context, Part, experiment, gather, named, problems, shared

# Asim et al. 2020, Fig. 51 (a Glow for CelebA faces at 64×64, n = 12,288): mean ‖Δx‖ over 80 moves towards another
# face's latent and over 120 moves in random directions, at eight of the twenty lengths ‖Δz‖ that they publish.
PUBLISHED = {
    "dz": (0.01, 0.05, 0.09, 0.18, 0.30, 0.43, 0.59, 0.80),
    "natural": (0.0056, 0.0290, 0.0524, 0.0994, 0.1703, 0.2415, 0.3372, 0.4580),
    "random": (0.0040, 0.0204, 0.0373, 0.0699, 0.1207, 0.1711, 0.2360, 0.3184),
}
ANSWERS, WAYS = ("dx", "dz"), ("natural", "random")


@dataclass(frozen=True, kw_only=True)
class Settings(shared.OnImages):
    """Which images are moved, and how far."""

    prior: str = "glow-photos32"
    images: int = 72  # held-out images
    stds: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2)  # of the noise in each pixel
    # lengths of the moves, ‖Δz‖ in latent space and ‖Δx‖ in image space
    distances: tuple[float, ...] = (0.01, 0.09, 0.30, 0.80, 1.6, 3.2, 6.4, 12.8)


@experiment(
    "asim.latent-norms",
    paper="Asim et al. 2020",
    shows="Fig. 50, 51",
    profiles={
        "quick": Settings(data="photos", images=8, stds=(0.01, 0.1), distances=(0.01, 0.8)),
        "laptop": Settings(),
        "paper": Settings(images=1000, distances=(*PUBLISHED["dz"], 1.6, 3.2, 6.4, 12.8), **shared.FLOWERS),
    },
)
def latent_norms(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Encodes held-out images under more and more noise, and moves latents and images in two kinds of directions."""
    stds = (0.0, *settings.stds)
    arrays = gather(context.map(_score, stds, "levels of noise"), std=stds)
    moved = context.map(_move, list(product(ANSWERS, WAYS)), "moves")
    return {}, arrays | gather(moved, answer=ANSWERS, way=WAYS)


def _loaded(settings: Settings, part: Part) -> tuple[priors.Flow, Tensor]:
    """Flow and images in double precision: moves of 0.01 of vectors of thousands of entries drown in rounding else."""
    return priors.load(settings.prior, part.device, torch.float64), settings.truth(part).double()


@torch.no_grad()
def _score(settings: Settings, part: Part, std: float) -> tuple[dict, dict]:
    """‖z‖, and −log p(x) in nats, of images with the same noise at each level."""
    flow, x = _loaded(settings, part)
    if std:
        x = problems.denoising(part, x, std)[1]
    part.count_evaluations(len(x))
    found = [(flow.encode(some).norm(dim=1), -flow.log_prob(some)) for some in x.split(50)]
    norm, nats = (torch.cat(values) for values in zip(*found, strict=True))
    return {}, shared.by_image({"norm": norm, "nats": nats})


@torch.no_grad()
def _move(settings: Settings, part: Part, item: tuple[str, str]) -> tuple[dict, dict]:
    """How far images move when their latents do ("dx"), or latents when their images do ("dz").

    "natural" is the direction towards the next image, or its latent; "random" is uniform on the sphere.
    """
    answer, way = item
    flow, x = _loaded(settings, part)
    start = x.flatten(1) if answer == "dz" else torch.cat([flow.encode(some) for some in x.split(50)])

    def function(moved: Tensor) -> Tensor:
        return flow.encode(moved.view(-1, *x.shape[1:])) if answer == "dz" else flow.decode(moved).flatten(1)

    random = _support.normal(start.shape, part.seed, start, "directions", answer)
    along = start.roll(-1, 0) - start if way == "natural" else random
    along, rows = along / along.norm(dim=1, keepdim=True), []
    for some, unit in zip(start.split(50), along.split(50), strict=True):
        here = function(some)
        rows.append(torch.stack([(function(some + d * unit) - here).norm(dim=1) for d in settings.distances], 1))
    part.count_evaluations(len(x) * (1 + len(settings.distances)))
    return {}, {"move": named(torch.cat(rows).cpu().numpy(), image=len(x), distance=settings.distances)}
