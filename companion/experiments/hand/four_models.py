"""Likelihood, and four ways to model images: samples, interpolations and representation errors side by side."""

from dataclasses import dataclass
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
        data: data sets.
        priors: for each data set, the checkpoints trained on it.
        images: held-out images that are projected onto the range of each model.
        restarts, budget: random starts of that projection, and evaluations allowed for each of them.
        samples: samples drawn from each model.
        steps: pictures on the way from one held-out image to another.
    """

    data: tuple[str, ...]
    priors: tuple[tuple[str, ...], ...]
    images: int
    restarts: int
    budget: int
    samples: int
    steps: int


@experiment(
    "hand.four-models",
    paper="Hand, lecture notes",
    shows="VAE, GAN and invertible network: dimension of the range, representation error",
    profiles={
        "quick": Settings(("photos",), (("vae-photos32", "gan-photos32", "glow-photos32"),), 2, 1, 5, 4, 3),
        "laptop": Settings(
            ("mnist", "photos"),
            (
                ("vae-mnist", "gan-mnist", "realnvp-mnist", "glow-mnist"),
                ("vae-photos32", "gan-photos32", "glow-photos32"),
            ),
            12,
            2,
            150,
            8,
            7,
        ),
    },
)
def four_models(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Draws, interpolates and projects held-out images onto the range of each stored model, for each data set."""
    metrics: dict[str, Any] = {"data": list(settings.data)}
    arrays: dict[str, np.ndarray] = {}
    for name, models in zip(settings.data, settings.priors, strict=True):
        metrics[name] = {"models": list(models), "mean psnr": {}, "latent_dim": {}, "parameters": {}}
        for model in context.progress(models, name):

            def part(name: str = name, model: str = model) -> tuple[dict, dict]:
                prior = priors.load(model, context.device)
                x = spread_out(name, prior.shape, settings.images).to(context.device)
                z, evaluations = project(prior, x, settings, context.seed)
                context.count_evaluations(evaluations)
                with torch.no_grad():
                    nearest = prior.decode(z)
                    way = torch.linspace(0, 1, settings.steps, device=z.device)[:, None]
                    between = prior.decode((1 - way) * z[:1] + way * z[1:2])
                facts = {"latent_dim": prior.latent_dim, "parameters": prior.card["parameters"]}
                return facts, {
                    "psnr": evaluate.psnr(nearest, x).numpy(),
                    "nearest": _bytes(nearest),
                    "between": _bytes(between),
                    "samples": _bytes(prior.sample(settings.samples, seed=context.seed)),
                }

            done = context.part(f"{name}/{model}", part)
            finite = np.isfinite(done.arrays["psnr"]).all()
            metrics[name]["mean psnr"][model] = round(float(done.arrays["psnr"].mean()), 2) if finite else None
            for fact in ("latent_dim", "parameters"):
                metrics[name][fact][model] = done.metrics[fact]
            arrays |= {f"{model} {key}": values for key, values in done.arrays.items()}
        arrays[f"{name} truth"] = _bytes(spread_out(name, priors.load(models[0]).shape, settings.images))
    # of each model: psnr [images], nearest [images, C, H, W], between [steps, C, H, W], samples [samples, C, H, W]
    return metrics, arrays


def spread_out(name: str, shape: tuple[int, ...], number: int) -> Tensor:
    """Held-out images from all over the test split, [number, *shape]: neighbours may be crops of one photograph."""
    images = data.load(name, "test", size=shape[-1])
    return images[:: max(1, len(images) // number)][:number]


def project(prior: priors.Prior, x: Tensor, settings: Settings, seed: int) -> tuple[Tensor, int]:
    """Latents of the images nearest to x in the range of the prior, [batch, latent_dim], and evaluations spent.

    A flow encodes. For others the squared distance is minimised over z (Bora et al. 2017, eq. 4 with A = I) from random
    starts, and for a VAE also from its encoder's answer; the best is kept.
    """
    if isinstance(prior, priors.Flow):
        with torch.no_grad():
            return prior.encode(x), len(x)
    operator = measure.Identity(prior.shape)
    found = recover.gan_latent(
        prior, operator, operator(x), restarts=settings.restarts, seed=seed, max_evaluations=settings.budget
    )
    z, energy, evaluations = found.z, found.energy, int(found.evaluations.sum())
    if isinstance(prior, priors.VAE):
        encoded = recover.flow_latent(
            prior, operator, operator(x), z0=prior.encode(x).detach(), max_evaluations=settings.budget
        )
        z = torch.where((encoded.energy < energy)[:, None], encoded.z, z)
        evaluations += int(encoded.evaluations.sum())
    return z, evaluations


def _bytes(x: Tensor) -> np.ndarray:
    return (x.clamp(0, 1) * 255).round().byte().cpu().numpy()
