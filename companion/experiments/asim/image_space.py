"""Latent against image space on photographs: the same flow, problems and number of evaluations for both."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import data, energy, evaluate, measure, priors, recover
from companion.experiments.context import Context
from companion.experiments.registry import experiment


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Attributes:
        prior, data, size: checkpoint, data set and side of its images.
        images: held-out images.
        budget: evaluations for one image, the same in every space.
        measurements: numbers of measurements m, with √E‖δ‖² = 0.1.
        image_gammas: weights of −log p(x) for compressed sensing; in latent space γ = 0.
        noisy_m, noise_norms, norm_gammas: m, √E‖δ‖² and weights of ‖z‖ for compressed sensing under noise.
        stds: noise of the denoising problems, each solved from z = 0 and from the noisy image.
        denoising_latent, denoising_image: weights of ‖z‖ and of −log p(x) for them.
    """

    prior: str
    data: str
    size: int
    images: int
    budget: int
    measurements: tuple[int, ...]
    image_gammas: tuple[float, ...]
    noisy_m: int
    noise_norms: tuple[float, ...]
    norm_gammas: tuple[float, ...]
    stds: tuple[float, ...]
    denoising_latent: tuple[float, ...]
    denoising_image: tuple[float, ...]


@experiment(
    "asim.image-space",
    paper="Asim et al. 2020",
    shows="Fig. 58-61",
    profiles={
        "quick": Settings(
            "glow-photos32", "photos", 32, 2, 20, (614,), (1e-3,), 614, (0.1,), (0.0,), (0.1,), (1.0,), (1e-2,)
        ),
        "laptop": Settings(
            "glow-photos32",
            "photos",
            32,
            6,
            100,
            (307, 1229),
            (1e-5, 1e-4, 1e-3, 1e-2),
            1229,
            (1.0,),
            (0.0, 0.1, 1.0),
            (0.05, 0.1),
            (0.1, 0.3, 1.0),
            (0.005, 0.02),
        ),
        "paper": Settings(
            "glow-flowers64",
            "flowers",
            64,
            12,
            600,
            (500, 1000, 2500, 5000),
            (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
            5000,
            (0.1, 1.0),
            (0.0, 0.01, 0.1, 1.0),
            (0.05, 0.1),
            (0.0, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
            (0.001, 0.005, 0.02, 0.05, 0.1),
        ),
    },
)
def image_space(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Recovers held-out photographs by search over latents, over pixels, or over both in turn, at equal evaluations."""
    prior = priors.load(settings.prior, context.device)
    truth = data.load(settings.data, split="test", size=settings.size)[: settings.images].to(context.device)
    shape = tuple(truth.shape[1:])
    problems: dict[str, measure.Problem] = {}
    runs: list[tuple[str, str, float, str]] = []
    for m in settings.measurements:
        name = f"m={m}"
        problems[name] = _compressed(shape, m, 0.1, context.seed)
        runs.append((name, "latent", 0.0, "zero"))
        runs += [(name, space, gamma, "zero") for space in ("image", "both") for gamma in settings.image_gammas]
    for norm in settings.noise_norms:
        name = f"noise norm={norm:g}"
        problems[name] = _compressed(shape, settings.noisy_m, norm, context.seed)
        runs += [(name, "latent", gamma, "zero") for gamma in settings.norm_gammas]
    for std in settings.stds:
        name = f"std={std:g}"
        problems[name] = measure.Problem(measure.Identity(shape), measure.GaussianNoise(std))
        for start in ("zero", "noisy image"):
            runs += [(name, "latent", gamma, start) for gamma in settings.denoising_latent]
            runs += [(name, "image", gamma, start) for gamma in settings.denoising_image]
    listed, psnr, paths, recovered = [], [], [], []
    for name, space, gamma, start in context.progress(runs, "searches"):
        solve = partial(_solve, settings, context, prior, problems[name], truth, space, gamma, start)
        outcome = context.part(f"{name} {space} {gamma:g} from {start}", solve)
        listed.append({"problem": name, "space": space, "gamma": gamma, "start": start} | outcome.metrics)
        psnr.append(outcome.arrays["psnr"])
        path = outcome.arrays["path"]  # shorter where all images stopped early: then the last value stays
        paths.append(np.pad(path, ((0, settings.budget - len(path)), (0, 0)), "edge"))
        recovered.append(outcome.arrays["x"])
    observed = {
        f"observed psnr/{name}": evaluate.psnr(problem.observe(truth, context.seed + 1), truth).numpy()
        for name, problem in problems.items()
        if isinstance(problem.operator, measure.Identity)
    }
    return {"runs": listed, "n": truth[0].numel()}, {
        "psnr": np.stack(psnr),  # [runs, images]
        "path": np.stack(paths),  # PSNR after 1, 2, … evaluations: [runs, budget, images]
        "recovered": np.stack(recovered),  # [runs, 3 images, C, H, W]
        "truth": _bytes(truth),
    } | observed


def _compressed(shape: tuple[int, ...], m: int, norm: float, seed: int) -> measure.Problem:
    return measure.Problem(measure.Gaussian(shape, m, seed), measure.GaussianNoise.of_norm(norm, m))


def _solve(
    settings: Settings,
    context: Context,
    prior: priors.Flow,
    problem: measure.Problem,
    truth: Tensor,
    space: str,
    gamma: float,
    start: str,
) -> tuple[dict, dict]:
    """One search for all images, from z = 0 and its image G(0), or from the noisy image and its latent.

    In space "both", the first half of the budget goes to latents with γ = 0, the other to the image that they lead to.
    """
    y = problem.observe(truth, context.seed + 1)
    x0 = y if start == "noisy image" else None
    options: dict[str, Any] = {"watch": {"psnr": lambda x, z: evaluate.psnr(torch.nan_to_num(x), truth)}}
    stages, budget = [], settings.budget
    if space != "image":
        spend = budget // 2 if space == "both" else budget
        z0 = None if x0 is None else prior.encode(x0)
        weight = gamma if space == "latent" else 0.0
        stages.append(recover.flow_latent(prior, problem.operator, y, weight, z0=z0, max_evaluations=spend, **options))
        x0, budget = stages[0].x, budget - spend
    if space != "latent":
        stages.append(recover.flow_image(prior, problem.operator, y, gamma, x0=x0, max_evaluations=budget, **options))
    found, evaluations = stages[-1], torch.stack([stage.evaluations for stage in stages]).sum(0)
    context.count_evaluations(int(evaluations.sum()))
    psnr = evaluate.psnr(found.x, truth)
    fit = energy.SquaredMisfit(problem.operator, y)
    likelihood = energy.Energy(prior, fit, energy.FlowLikelihood(1.0), space="x")
    with torch.no_grad():
        point = likelihood.at(found.x)
        nats, misfit = -point.log_prob, fit(found.x)
    return {
        "mean psnr": round(float(psnr.mean()), 3),
        "converged": int(found.converged.sum()),
        "mean evaluations": round(float(evaluations.double().mean()), 1),
        "mean misfit": float(misfit.mean()),
        "mean negative log-likelihood": float(nats.mean()),
    }, {
        "psnr": psnr.numpy(),
        "path": np.concatenate([_path(stage, int(stage.evaluations.max())) for stage in stages]),
        "x": _bytes(found.x[:3]),
    }


def _path(found: recover.Result, budget: int) -> np.ndarray:
    """PSNR of the iterate that each number of evaluations, from 1 to `budget`, had led to; [budget, images]."""
    spent, scores = found.trace["evaluations"].numpy(), found.trace["psnr"].numpy()
    last = [np.searchsorted(spent[:, k], np.arange(1, budget + 1), side="right") - 1 for k in range(spent.shape[1])]
    return np.stack([scores[np.maximum(rows, 0), k] for k, rows in enumerate(last)], 1)


def _bytes(x: Tensor) -> np.ndarray:
    return (x.clamp(0, 1) * 255).round().byte().cpu().numpy()
