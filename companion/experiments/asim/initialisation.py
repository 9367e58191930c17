"""Where the search begins: several starts against the weight of ‖z‖, and the length of the start."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import data, evaluate, measure, priors, recover
from companion.experiments.context import Context
from companion.experiments.registry import experiment


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Attributes:
        prior, data, size: checkpoint, data set and side of its images.
        images: held-out images reported on.
        tuned_on: validation images, measured by the same A, on which a weight is chosen for each start.
        m: number of measurements, with √E‖δ‖² = 0.1.
        budget: evaluations for one image, the same for every start and weight.
        gammas: weights γ of ‖z‖.
        stds: of the normal starts z0 ~ N(0, std² I).
        lasso_weight: of the wavelet Lasso whose solution is one of the starts; the paper's, chosen on validation images
            for 32×32 photographs at this m by asim.compressed-sensing as well.
        perturbation: distance of the null-space neighbour from the true image.
        norms: ‖z0‖ of random starts, searched with γ = 0.
    """

    prior: str
    data: str
    size: int
    images: int
    tuned_on: int
    m: int
    budget: int
    gammas: tuple[float, ...]
    stds: tuple[float, ...]
    lasso_weight: float
    perturbation: float
    norms: tuple[float, ...]


@experiment(
    "asim.initialisation",
    paper="Asim et al. 2020",
    shows="Fig. 4 right, 19, 20 left",
    profiles={
        "quick": Settings("glow-photos32", "photos", 32, 2, 1, 1229, 12, (0.0, 0.25), (0.7,), 0.01, 2.5, (0.0, 40.0)),
        "laptop": Settings(
            "glow-photos32",
            "photos",
            32,
            12,
            3,
            1229,
            150,
            (0.0, 0.01, 0.1, 0.25, 1.0),
            (0.1, 0.7),
            0.01,
            2.5,
            (0.0, 5.0, 20.0, 40.0, 60.0),
        ),
        "paper": Settings(
            "glow-flowers64",
            "flowers",
            64,
            12,
            4,
            5000,
            600,
            (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.25, 0.5, 0.75, 1.0),
            (0.1, 0.7),
            0.01,
            5.0,
            (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 110.0, 120.0),
        ),
    },
)
def initialisation(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Recovers held-out photographs from starts good and bad, for several weights γ and lengths of the start."""
    prior = priors.load(settings.prior, context.device)
    test, tuning = (
        data.load(settings.data, split=split, size=settings.size)[:number]
        for split, number in (("test", settings.images), ("validation", settings.tuned_on))
    )
    truth = torch.cat([test, tuning]).to(context.device)
    operator = measure.Gaussian(tuple(truth.shape[1:]), settings.m, context.seed)
    y = measure.Problem(operator, measure.GaussianNoise.of_norm(0.1, settings.m)).observe(truth, context.seed + 1)
    starts = {
        name: context.part(f"start {name}", partial(_start, settings, context, prior, operator, y, truth, name)).arrays
        for name in start_names(settings)
    }
    grid: dict[str, list[np.ndarray]] = {name: [] for name in ("psnr", "length", "misfit", "converged", "x")}
    for name, given in context.progress(starts.items(), "starts"):
        z0 = torch.tensor(given["z0"], device=context.device)
        for gamma in settings.gammas:
            part = partial(_search, settings, context, prior, operator, y, truth, z0, gamma)
            outcome = context.part(f"{name} gamma={gamma:g}", part)
            for key, values in grid.items():
                values.append(outcome.arrays[key])
    shape = (len(starts), len(settings.gammas))
    stacked = {key: np.stack(values).reshape(*shape, *values[0].shape) for key, values in grid.items()}
    sweep: dict[str, list[np.ndarray]] = {name: [] for name in ("psnr", "length", "length path", "energy path", "x")}
    for norm in context.progress(settings.norms, "lengths"):
        part = partial(_search_from_sphere, settings, context, prior, operator, y, truth, norm)
        outcome = context.part(f"norm={norm:g}", part)
        for key, values in sweep.items():
            values.append(outcome.arrays[key])
    psnr, images = stacked["psnr"], settings.images
    chosen = psnr[..., images:].mean(-1).argmax(1)  # on the validation images
    metrics = {
        "starts": list(starts),
        "gammas": list(settings.gammas),
        "norms": list(settings.norms),
        "n": prior.latent_dim,
        "m": settings.m,
        "mean psnr": psnr[..., :images].mean(-1).round(3).tolist(),
        "gamma chosen on validation": [settings.gammas[k] for k in chosen],
        "mean psnr of the start": [round(float(given["psnr"][:images].mean()), 3) for given in starts.values()],
        "mean length of the start": [round(float(given["length"][:images].mean()), 2) for given in starts.values()],
        "mean misfit of the start": [round(float(given["misfit"][:images].mean()), 4) for given in starts.values()],
        "mean psnr of norms": [round(float(values[:images].mean()), 3) for values in sweep["psnr"]],
        "mean length of norms": [round(float(values[:images].mean()), 3) for values in sweep["length"]],
    }
    return (
        metrics,
        {
            "psnr": psnr[..., :images],  # [starts, gammas, images], as "length", "misfit" and "converged"
            "length": stacked["length"][..., :images],
            "misfit": stacked["misfit"][..., :images],
            "converged": stacked["converged"][..., :images],
            "recovered": stacked["x"],  # [starts, gammas, 2 images, C, H, W]
            "norms/psnr": np.stack(sweep["psnr"])[:, :images],  # [norms, images]
            "norms/length": np.stack(sweep["length"])[:, :images],
            "norms/length path": np.stack(sweep["length path"])[..., :images].mean(-1),  # [norms, evaluations]
            "norms/energy path": np.stack(sweep["energy path"])[..., :images].mean(-1),
            "norms/recovered": np.stack(sweep["x"]),  # [norms, 2 images, C, H, W]
            "truth": as_bytes(truth[:2]),
        },
    )


def start_names(settings: Settings) -> list[str]:
    """Names of the starts, in the order of the arrays."""
    return ["zero", *(f"normal {std:g}" for std in settings.stds), "lasso-wavelet", "pseudo-inverse", "null space"]


def starting_latents(
    settings: Settings,
    prior: priors.Flow,
    operator: measure.Gaussian,
    y: Tensor,
    truth: Tensor,
    name: str,
    seed: int = 0,
) -> Tensor:
    """Initial latents z0, [batch, n], by the name of the start (Asim et al. 2020, sec. 3.2 and fig. 4 right).

    "null space" is the latent of a neighbour of the true image that measures the same: no start for practice.
    """
    if name == "zero":
        return recover.start(prior, y)
    if name.startswith("normal "):
        return recover.start(prior, y, "normal", float(name.removeprefix("normal ")), seed)
    if name == "lasso-wavelet":
        return prior.encode(recover.lasso(operator, y, basis="wavelet", weight=settings.lasso_weight).x)
    if name == "pseudo-inverse":
        return prior.encode(recover.pseudo_inverse(operator, y).x)
    return prior.encode(recover.null_space_neighbour(operator, truth, settings.perturbation, seed))


def _start(
    settings: Settings,
    context: Context,
    prior: priors.Flow,
    operator: measure.Gaussian,
    y: Tensor,
    truth: Tensor,
    name: str,
) -> tuple[dict, dict]:
    with torch.no_grad():
        z0 = starting_latents(settings, prior, operator, y, truth, name, context.seed + 2)
        x0 = prior.decode(z0)
        misfit = (operator(x0) - y).square().sum(1)
    values = {"z0": z0, "psnr": evaluate.psnr(x0, truth), "length": z0.norm(dim=1), "misfit": misfit}
    return {}, {key: value.cpu().numpy() for key, value in values.items()}


def _search(
    settings: Settings,
    context: Context,
    prior: priors.Flow,
    operator: measure.Gaussian,
    y: Tensor,
    truth: Tensor,
    z0: Tensor,
    gamma: float,
) -> tuple[dict, dict]:
    """Asim et al. 2020, eq. 2, from the latents z0."""
    watch = {"length": lambda x, z: z.norm(dim=1)}
    found = recover.flow_latent(prior, operator, y, gamma, z0=z0, max_evaluations=settings.budget, watch=watch)
    context.count_evaluations(int(found.evaluations.sum()))
    with torch.no_grad():
        misfit = (operator(found.x) - y).square().sum(1)
    return {}, {
        "psnr": evaluate.psnr(found.x, truth).cpu().numpy(),
        "length": found.z.norm(dim=1).cpu().numpy(),
        "misfit": misfit.cpu().numpy(),
        "converged": found.converged.cpu().numpy(),
        "length path": along(found, "length", np.arange(1, settings.budget + 1)),
        "energy path": along(found, "energy", np.arange(1, settings.budget + 1)),
        "x": as_bytes(found.x[:2]),
    }


def _search_from_sphere(
    settings: Settings,
    context: Context,
    prior: priors.Flow,
    operator: measure.Gaussian,
    y: Tensor,
    truth: Tensor,
    norm: float,
) -> tuple[dict, dict]:
    z0 = recover.start(prior, y, "sphere", norm, context.seed + 3)
    return _search(settings, context, prior, operator, y, truth, z0, 0.0)


def along(found: recover.Result, name: str, evaluations: np.ndarray) -> np.ndarray:
    """A trace, read off after the given numbers of evaluations: [len(evaluations), batch]."""
    spent, values = found.trace["evaluations"].numpy(), found.trace[name].numpy()
    rows = [np.searchsorted(spent[:, k], evaluations, side="right") - 1 for k in range(spent.shape[1])]
    return np.stack([values[np.maximum(row, 0), k] for k, row in enumerate(rows)], 1)


def as_bytes(x: Tensor) -> np.ndarray:
    """Images clipped to [0, 1], as bytes."""
    return (x.clamp(0, 1) * 255).round().byte().cpu().numpy()
