"""Loss landscapes: sections of the energy of compressed sensing for a flow and a GAN, over latents and over pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import _support, evaluate, measure, recover
from companion.experiments import Context, Part, experiment, gather, named, shared

WAYS = ("random", "natural")


@dataclass(frozen=True, kw_only=True)
class Settings(shared.OnImages):
    """Sizes of the study."""

    flow: str = "glow-photos32"
    gan: str = "gan-photos32"  # "" for none
    measurements: tuple[int, ...] = (307, 3072, 1229)  # without noise; planes and searches use the last
    directions: int = 8  # lines through each latent, of each kind, that reach as far as the latent is long
    steps: int = 20  # points on each side of the middle of lines and planes
    scales: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0)  # half-widths of the planes, in lengths of their middle
    # lengths of the steps in image space, as root mean squared change of a pixel
    pixel_steps: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
    searched: int = 3  # images for which a minimum is searched
    starts: int = 8  # random starts of each
    budget: int = 150  # evaluations for each
    fits: tuple[int, int] = (8, 200)  # starts and evaluations of the searches for the GAN's own latent of each image


@experiment(
    "asim.landscapes",
    paper="Asim et al. 2020",
    shows="Fig. 7, 52, 57",
    profiles={
        "quick": Settings(
            data="photos",
            images=2,
            measurements=(307, 1229),
            directions=2,
            steps=4,
            scales=(0.5, 1.0),
            pixel_steps=(0.001, 0.1),
            searched=1,
            starts=2,
            budget=8,
            fits=(2, 10),
        ),
        "laptop": Settings(),
        "paper": Settings(
            flow="glow-flowers64",
            gan="",
            data="flowers",
            size=64,
            measurements=(1250, 12288, 5000),
            directions=16,
            steps=50,
            searched=6,
            budget=600,
        ),
    },
)
def landscapes(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Cuts the energy along lines and planes through its low points, and searches from many starts."""
    models = [model for model in ("flow", "gan") if getattr(settings, model)]
    middles = context.map(_middle, models, "middles")
    kinds = [(model, way, middle.arrays["z"]) for model, middle in zip(models, middles, strict=True) for way in WAYS]
    arrays = gather(context.map(_cut, kinds, "cuts"), kind=[f"{model}, {way}" for model, way, _ in kinds])
    arrays |= gather(context.map(_pixel_steps, WAYS, "steps in image space"), way=WAYS)
    arrays |= gather(context.map(_search, models, "searches"), model=models)
    truth = settings.truth(context)
    return {"n": truth[0].numel()}, arrays | {"truth": shared.pictures(truth[:3])}


def shapes(energy: np.ndarray) -> dict[str, np.ndarray]:
    """What can be said of sections of an energy, from their values at 2k + 1 evenly spaced points, [..., 2k + 1].

    Returns arrays [...]: "monotone", the share of the two rays from the middle along which the energy rises at every
    step; "convex", the share of inner points with a second difference above 0; "minima", the number of local minima,
    the ends not counted.
    """
    middle = energy.shape[-1] // 2
    rises = np.diff(energy, axis=-1) > 0
    inner = energy[..., 1:-1]
    return {
        "monotone": (rises[..., middle:].all(-1).astype(float) + (~rises[..., :middle]).all(-1)) / 2,
        "convex": (np.diff(energy, 2, axis=-1) > 0).mean(-1),
        "minima": ((inner < energy[..., :-2]) & (inner < energy[..., 2:])).sum(-1),
    }


def count_minima(plane: np.ndarray) -> int:
    """Number of inner points of a grid, [rows, columns], that are lower than all of their eight neighbours."""
    rows, columns = plane.shape
    around = [
        plane[1 + i : rows - 1 + i, 1 + j : columns - 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)
    ]
    return int((plane[1:-1, 1:-1] < np.stack(around)).all(0).sum())


def directions(way: str, centre: Tensor, number: int, seed: int) -> Tensor:
    """Directions as long as the vectors `centre`, [images, n], that they start from: [images, number, n].

    Random ones, or "natural" ones, which point to the vectors of other images, two or more in all.
    """
    if way == "random":
        rays = _support.normal((len(centre), number, centre.shape[1]), seed, centre, "directions")
    else:
        others = [[(i + 1 + j % (len(centre) - 1)) % len(centre) for j in range(number)] for i in range(len(centre))]
        rays = centre[torch.tensor(others)] - centre[:, None]
    return rays / rays.norm(dim=2, keepdim=True) * centre.norm(dim=1)[:, None, None]


def _middle(settings: Settings, part: Part, model: str) -> tuple[dict, dict]:
    """The model's latent of each image: the flow's own, or the GAN's best for the measurements."""
    prior, truth = shared.prior(part, getattr(settings, model)), settings.truth(part)
    if model == "flow":
        return {}, {"z": prior.encode(truth).cpu().numpy()}
    a = measure.Gaussian(prior.shape, settings.measurements[-1], part.seed)
    starts, budget = settings.fits
    found = recover.gan_latent(prior, a, a(truth), restarts=starts, seed=part.seed, max_evaluations=budget)
    return {}, {"z": part.count(found).z.cpu().numpy()}


def _cut(settings: Settings, part: Part, item: tuple[str, str, np.ndarray]) -> tuple[dict, dict]:
    """Energies along lines through the latents of all images; energy and ‖z‖ over planes through the first."""
    model, way, middle = item
    truth, offsets = settings.truth(part), np.linspace(-1, 1, 2 * settings.steps + 1)
    t, centre = torch.from_numpy(offsets).to(truth), torch.from_numpy(middle).to(truth)
    rays = directions(way, centre, settings.directions, part.seed)
    z = centre[:, None, None] + t[:, None] * rays[:, :, None]
    lines = _energies(settings, part, model, settings.measurements, truth, z)
    planes = []
    for scale in settings.scales:
        z = centre[:1, None] + scale * (t[:, None, None] * rays[:1, 0] + t[:, None] * rays[:1, 1])
        energy = _energies(settings, part, model, settings.measurements[-1:], truth[:1], z[None])[0, 0]
        planes.append(np.stack([energy, z.double().norm(dim=2).cpu().numpy()]))
    along: dict[str, Any] = {"image": len(truth), "direction": settings.directions, "offset": offsets}
    over: dict[str, Any] = {"quantity": ("energy", "length"), "row": len(t), "column": len(t)}
    return {}, {
        "lines": named(lines.astype(np.float32), m=settings.measurements, **along),
        "planes": named(np.stack(planes).astype(np.float32), scale=settings.scales, **over),
    }


@torch.no_grad()
def _energies(
    settings: Settings, part: Part, model: str, counts: tuple[int, ...], truth: Tensor, z: Tensor
) -> np.ndarray:
    """‖A G(z) − A x‖² for latents z [images, ..., n] and every number of measurements: [counts, images, ...]."""
    prior, found = shared.prior(part, getattr(settings, model)), []
    operators = [measure.Gaussian(prior.shape, m, part.seed) for m in counts]
    for x, latents in zip(truth, z, strict=True):
        rows = latents.flatten(0, -2)
        part.count_evaluations(len(rows))
        difference = torch.cat([prior.decode(some) for some in rows.split(256)]) - x
        found.append(torch.stack([a(difference).double().square().sum(1) for a in operators]))
    return torch.stack(found, 1).unflatten(2, z.shape[1:-1]).cpu().numpy()


@torch.no_grad()
def _pixel_steps(settings: Settings, part: Part, way: str) -> tuple[dict, dict]:
    """By how much −log p, the misfit and ‖z‖ rise with steps in image space, from every image in several directions."""
    flow, truth = shared.prior(part, settings.flow), settings.truth(part)
    a, steps = measure.Gaussian(flow.shape, settings.measurements[-1], part.seed), torch.tensor(settings.pixel_steps)
    rays = directions(way, truth.flatten(1), settings.directions, shared.seed_of(part, "pixels"))
    rays = rays / rays.norm(dim=2, keepdim=True) * truth[0].numel() ** 0.5  # a pixel changes by 1, root mean square
    changes = (steps.to(truth)[:, None] * rays[:, :, None]).view(len(truth), -1, *truth.shape[1:])
    rises = []
    for x, change in zip(truth, changes, strict=True):
        moved = torch.cat([x[None], x + change]).split(256)
        nats = -torch.cat([flow.log_prob(some) for some in moved])
        length = torch.cat([flow.encode(some) for some in moved]).norm(dim=1)
        part.count_evaluations(2 * len(nats))
        misfit = a(change).double().square().sum(1).to(nats)
        rises.append(torch.stack([nats[1:] - nats[0], misfit, length[1:] - length[0]]))
    values = torch.stack(rises, 1).unflatten(2, (settings.directions, len(steps))).cpu().numpy()
    axes: dict[str, Any] = {"image": len(truth), "direction": settings.directions, "step": settings.pixel_steps}
    return {}, {"pixel steps": named(values, quantity=("nats", "misfit", "length"), **axes)}


def _search(settings: Settings, part: Part, model: str) -> tuple[dict, dict]:
    """Where searches from random latents end."""
    some = settings.truth(part)[: settings.searched].repeat_interleave(settings.starts, 0)
    prior = shared.prior(part, getattr(settings, model))
    a = measure.Gaussian(prior.shape, settings.measurements[-1], part.seed)
    y = a(some)
    z0 = recover.start(prior, y, "normal", 1.0, shared.seed_of(part, "start"))
    found = part.count(recover.flow_latent(prior, a, y, z0=z0, max_evaluations=settings.budget))
    ends = {"relative misfit": found.energy.double() / y.double().square().sum(1), "psnr": evaluate.psnr(found.x, some)}
    shape = (settings.searched, settings.starts)
    return {}, {
        name: named(shared.numpy(end.view(shape)), image=shape[0], start=shape[1]) for name, end in ends.items()
    }
