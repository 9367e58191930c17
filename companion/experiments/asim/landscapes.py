"""Loss landscapes: sections of the energy of compressed sensing for a flow and a GAN, over latents and over pixels."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import _support, data, evaluate, measure, priors, recover
from companion.experiments.context import Context
from companion.experiments.registry import experiment

KINDS = ("flow, random", "flow, natural", "gan, random", "gan, natural")


@dataclass(frozen=True)
class Settings:
    """Sizes of the study.

    Attributes:
        flow, gan, data, size: checkpoints trained on the same images, the data set and the side of its images.
        images: held-out images whose landscapes are looked at.
        measurements: numbers of measurements m, without noise; planes and searches use the last.
        directions: lines through each latent, of each kind, that reach as far as the latent is long.
        steps: points on each side of a line's middle, and of a plane's.
        scales: half-widths of the planes, in lengths of the latent at their middle.
        pixel_steps: lengths of the steps in image space, as root mean squared change of a pixel.
        searched: images for which a minimum is searched from several starts.
        starts, budget: number of those starts, and evaluations for each.
        fits: starts and evaluations of the searches for the GAN's own latent of each image.
    """

    flow: str
    gan: str
    data: str
    size: int
    images: int
    measurements: tuple[int, ...]
    directions: int
    steps: int
    scales: tuple[float, ...]
    pixel_steps: tuple[float, ...]
    searched: int
    starts: int
    budget: int
    fits: tuple[int, int]


@experiment(
    "asim.landscapes",
    paper="Asim et al. 2020",
    shows="Fig. 7, 52, 57",
    profiles={
        "quick": Settings(
            flow="glow-photos32",
            gan="gan-photos32",
            data="photos",
            size=32,
            images=2,
            measurements=(307, 1229),
            directions=2,
            steps=4,
            scales=(0.5, 1.0),
            pixel_steps=(0.001, 0.1),
            searched=1,
            starts=2,
            budget=15,
            fits=(2, 20),
        ),
        "laptop": Settings(
            flow="glow-photos32",
            gan="gan-photos32",
            data="photos",
            size=32,
            images=12,
            measurements=(307, 3072, 1229),
            directions=8,
            steps=20,
            scales=(0.05, 0.2, 0.5, 1.0),
            pixel_steps=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
            searched=3,
            starts=8,
            budget=150,
            fits=(8, 200),
        ),
        "paper": Settings(
            flow="glow-flowers64",
            gan="",
            data="flowers",
            size=64,
            images=12,
            measurements=(1250, 12288, 5000),
            directions=16,
            steps=50,
            scales=(0.05, 0.2, 0.5, 1.0),
            pixel_steps=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
            searched=6,
            starts=8,
            budget=600,
            fits=(8, 200),
        ),
    },
)
def landscapes(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Cuts the energy along lines and planes through its low points, counts minima, searches from many starts."""
    checkpoints = {"flow": settings.flow, "gan": settings.gan}
    models = {name: priors.load(each, context.device) for name, each in checkpoints.items() if each}
    truth = data.load(settings.data, split="test", size=settings.size)[: settings.images].to(context.device)
    shape = tuple(truth.shape[1:])
    operators = [measure.Gaussian(shape, m, context.seed) for m in settings.measurements]
    kinds = [kind for kind in KINDS if kind.split(",")[0] in models]
    centres = {"flow": _encode(models["flow"], truth)}
    if "gan" in models:
        fitted = context.part("gan latents", lambda: _fit(settings, context, models["gan"], operators[-1], truth))
        centres["gan"] = torch.from_numpy(fitted.arrays["z"]).to(truth)
    metrics: dict[str, Any] = {"kinds": kinds, "n": truth[0].numel(), "measurements": list(settings.measurements)}
    arrays: dict[str, np.ndarray] = {"truth": _bytes(truth[:3])}
    offsets = np.linspace(-1, 1, 2 * settings.steps + 1)
    lines, planes = [], []
    for kind in context.progress(kinds, "kinds"):
        model, centre = models[kind.split(",")[0]], centres[kind.split(",")[0]]
        rays = directions(kind, centre, settings.directions, context.seed)

        def cut_lines(model: Any = model, centre: Tensor = centre, rays: Tensor = rays) -> tuple[dict, dict]:
            z = centre[:, None, None] + torch.from_numpy(offsets).to(rays)[:, None] * rays[:, :, None]
            return {}, {"energy": _energies(context, model, operators, truth, z)}

        lines.append(context.part(f"lines/{kind}", cut_lines).arrays["energy"])
        for scale in settings.scales:

            def cut_plane(
                model: Any = model, centre: Tensor = centre, rays: Tensor = rays, scale: float = scale
            ) -> tuple[dict, dict]:
                t = torch.from_numpy(scale * offsets).to(rays)
                z = centre[:1, None] + t[:, None, None] * rays[:1, 0] + t[:, None] * rays[:1, 1]
                energy = _energies(context, model, operators[-1:], truth[:1], z[None])[0, 0]
                return {}, {"both": np.stack([energy, z.double().norm(dim=2).cpu().numpy()])}

            planes.append(context.part(f"plane/{kind}/{scale:g}", cut_plane).arrays["both"])
    cuts = np.stack(lines)  # [kinds, m, images, directions, points]
    arrays |= {"lines": cuts.astype(np.float32), "offsets": offsets}
    # energy and ‖z‖ over each plane: [kinds, scales, these two, points, points]
    arrays["planes"] = np.stack(planes).reshape(len(kinds), len(settings.scales), *planes[0].shape).astype(np.float32)
    metrics["lines"] = {
        kind: [{name: round(float(value.mean()), 4) for name, value in shapes(cut).items()} for cut in cuts[k]]
        for k, kind in enumerate(kinds)
    }
    metrics["minima of the planes"] = {
        kind: [count_minima(plane) for plane in arrays["planes"][k, :, 0]] for k, kind in enumerate(kinds)
    }
    for part in (_pixels, _searches):
        outcome = context.part(part.__name__, partial(part, settings, context, models, operators[-1], truth))
        metrics |= outcome.metrics
        arrays |= outcome.arrays
    return metrics, arrays


def shapes(energy: np.ndarray) -> dict[str, np.ndarray]:
    """What can be said of sections of an energy, from their values at 2k + 1 evenly spaced points, [..., 2k + 1].

    Returns arrays [...]: "monotone", the share of the two rays from the middle along which the energy rises at every
    step; "convex", the share of inner points with a second difference above 0; "minima", the number of local minima,
    the ends not counted; "lowest in the middle", whether no point is lower than the middle.
    """
    middle = energy.shape[-1] // 2
    rises = np.diff(energy, axis=-1) > 0
    inner = energy[..., 1:-1]
    return {
        "monotone": (rises[..., middle:].all(-1).astype(float) + (~rises[..., :middle]).all(-1)) / 2,
        "convex": (np.diff(energy, 2, axis=-1) > 0).mean(-1),
        "minima": ((inner < energy[..., :-2]) & (inner < energy[..., 2:])).sum(-1),
        "lowest in the middle": energy[..., middle] <= energy.min(-1),
    }


def count_minima(plane: np.ndarray) -> int:
    """Number of inner points of a grid, [rows, columns], that are lower than all of their eight neighbours."""
    rows, columns = plane.shape
    around = [
        plane[1 + i : rows - 1 + i, 1 + j : columns - 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)
    ]
    return int((plane[1:-1, 1:-1] < np.stack(around)).all(0).sum())


def directions(kind: str, centre: Tensor, number: int, seed: int) -> Tensor:
    """Directions as long as the vectors `centre`, [images, n], that they start from: [images, number, n].

    They are random where `kind` ends with "random"; else they point to the vectors of other images, two or more in all.
    """
    if kind.endswith("random"):
        rays = _support.normal((len(centre), number, centre.shape[1]), seed + 1, centre)
    else:
        others = [[(i + 1 + j % (len(centre) - 1)) % len(centre) for j in range(number)] for i in range(len(centre))]
        rays = centre[torch.tensor(others)] - centre[:, None]
    return rays / rays.norm(dim=2, keepdim=True) * centre.norm(dim=1)[:, None, None]


@torch.no_grad()
def _encode(flow: Any, x: Tensor) -> Tensor:
    return flow.encode(x)


@torch.no_grad()
def _energies(
    context: Context, model: Any, operators: list[measure.Gaussian], truth: Tensor, z: Tensor, block: int = 256
) -> np.ndarray:
    """‖A G(z) − A x‖² for latents z [images, ..., n], in float64: [operators, images, ...]."""
    found = []
    for x, latents in zip(truth, z, strict=True):
        rows = latents.flatten(0, -2)
        context.count_evaluations(len(rows))
        difference = torch.cat([model.decode(part) for part in rows.split(block)]) - x
        found.append(torch.stack([a(difference).double().square().sum(1) for a in operators]))
    return torch.stack(found, 1).unflatten(2, z.shape[1:-1]).cpu().numpy()


def _fit(
    settings: Settings, context: Context, gan: Any, operator: measure.Gaussian, truth: Tensor
) -> tuple[dict, dict]:
    """The GAN's best latent for the measurements of each image."""
    starts, budget = settings.fits
    found = recover.gan_latent(
        gan, operator, operator(truth), restarts=starts, seed=context.seed, max_evaluations=budget
    )
    context.count_evaluations(int(found.evaluations.sum()))
    return {}, {"z": found.z.cpu().numpy()}


@torch.no_grad()
def _pixels(
    settings: Settings, context: Context, models: dict[str, Any], operator: measure.Gaussian, truth: Tensor
) -> tuple[dict, dict]:
    """How much −log p(x), the misfit and ‖z‖ change with a step in image space, in directions random and natural."""
    flow = models["flow"]
    reference, length = flow.log_prob(truth), flow.encode(truth).norm(dim=1)
    found = []
    for kind in ("random", "natural"):
        rays = directions(kind, truth.flatten(1), settings.directions, context.seed + 2)
        rays = rays / rays.norm(dim=2, keepdim=True) * truth[0].numel() ** 0.5  # a pixel changes by 1, root mean square
        steps = torch.tensor(settings.pixel_steps).to(truth)
        change = (steps[:, None] * rays[:, :, None]).view(len(truth), -1, *truth.shape[1:])
        rows = []
        for i, x in enumerate(truth):
            moved = x + change[i]
            context.count_evaluations(2 * len(moved))
            nats, far = (torch.cat([f(part) for part in moved.split(256)]) for f in (flow.log_prob, flow.encode))
            misfit = operator(change[i]).double().square().sum(1)
            rows.append(torch.stack([reference[i] - nats, misfit.to(nats), far.norm(dim=1) - length[i]]))
        found.append(torch.stack(rows, 1).unflatten(2, (settings.directions, len(steps))))
    quantities = torch.stack(found, 1).cpu().numpy()  # [−log p, misfit, ‖z‖; kinds; images; directions; steps]
    scale = 3 * settings.pixel_steps[-1] * np.linspace(-1, 1, 2 * settings.steps + 1)
    t = torch.from_numpy(scale).to(truth)
    x_rays = _support.normal((2, *truth.shape[1:]), context.seed + 3, truth)
    plane = (truth[0] + t[:, None, None, None, None] * x_rays[0] + t[:, None, None, None] * x_rays[1]).flatten(0, 1)
    context.count_evaluations(len(plane))
    nats = torch.cat([flow.log_prob(part) for part in plane.split(256)])
    misfit = operator(plane - truth[0]).double().square().sum(1)
    grids = torch.stack([reference[0] - nats, misfit.to(nats)]).view(2, len(t), len(t))
    return {"finite": bool(np.isfinite(quantities).all() and torch.isfinite(grids).all())}, {
        "pixel steps": quantities.astype(np.float32),
        "pixel plane": grids.cpu().numpy().astype(np.float32),
        "pixel offsets": scale,
    }


def _searches(
    settings: Settings, context: Context, models: dict[str, Any], operator: measure.Gaussian, truth: Tensor
) -> tuple[dict, dict]:
    """Where searches from random latents end: relative misfit and PSNR, [models, these two, images, starts]."""
    some = truth[: settings.searched].repeat_interleave(settings.starts, 0)
    y = operator(some)
    rows = []
    for model in models.values():
        z0 = recover.start(model, y, "normal", 1.0, context.seed + 4)
        found = recover.flow_latent(model, operator, y, z0=z0, max_evaluations=settings.budget)
        context.count_evaluations(int(found.evaluations.sum()))
        relative = (found.energy.double() / y.double().square().sum(1)).cpu()
        rows.append(torch.stack([relative, evaluate.psnr(found.x, some)]).view(2, settings.searched, settings.starts))
    ends = torch.stack(rows).numpy()
    return {
        "ends": {
            name: {"relative misfit": float(ends[k, 0].mean()), "psnr": round(float(ends[k, 1].mean()), 3)}
            for k, name in enumerate(models)
        }
    }, {"ends": ends}


def _bytes(x: Tensor) -> np.ndarray:
    return (x.clamp(0, 1) * 255).round().byte().cpu().numpy()
