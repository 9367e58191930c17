"""Likelihood, and four ways to model images: samples, interpolations and representation errors side by side."""

from dataclasses import dataclass

import torch
from torch import Tensor

from companion import evaluate, measure, priors, recover
from companion.experiments import Context, Named, Part, experiment, gather, named, shared


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison: data sets, and for each the checkpoints trained on it."""

    data: tuple[str, ...] = ("mnist", "photos")
    priors: tuple[tuple[str, ...], ...] = (
        ("vae-mnist", "gan-mnist", "realnvp-mnist", "glow-mnist"),
        ("vae-photos32", "gan-photos32", "glow-photos32"),
    )
    images: int = 12  # held-out images that are projected onto the range of each model
    restarts: int = 2  # random starts of that projection
    budget: int = 150  # evaluations for each of them
    samples: int = 8  # drawn from each model
    steps: int = 7  # pictures on the way from one held-out image to another


@experiment(
    "hand.four-models",
    paper="Hand, lecture notes",
    shows="VAE, GAN and invertible network: dimension of the range, representation error",
    profiles={
        "quick": Settings(
            data=("photos",),
            priors=(("vae-photos32", "gan-photos32", "glow-photos32"),),
            images=2,
            restarts=1,
            budget=5,
            samples=4,
            steps=3,
        ),
        "laptop": Settings(),
    },
    tolerances={"*psnr": 0.05},  # a flow's are those of rounding errors
)
def four_models(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Draws, interpolates and projects held-out images onto the range of each stored model, for each data set."""
    arrays: dict[str, Named] = {}
    for name, models in zip(settings.data, settings.priors, strict=True):
        found = gather(context.map(_show, [(name, model) for model in models], name), model=models)
        size = found["nearest"].values.shape[-1]
        found["truth"] = shared.pictures(_held_out(settings, context, name, size))
        arrays |= {f"{name} {key}": array for key, array in found.items()}
    return {}, arrays


@torch.no_grad()
def _show(settings: Settings, part: Part, item: tuple[str, str]) -> tuple[dict, dict]:
    """What one model makes: samples, the images nearest to held-out ones, and those between the first two of these."""
    name, model = item
    prior = shared.prior(part, model)
    x = _held_out(settings, part, name, prior.shape[-1])
    z = project(settings, part, prior, x)
    nearest, way = prior.decode(z), torch.linspace(0, 1, settings.steps, device=z.device)[:, None]
    return {}, {
        "psnr": named(evaluate.psnr(nearest, x).cpu().numpy(), image=len(x)),
        "nearest": shared.pictures(nearest),
        "between": shared.pictures(prior.decode((1 - way) * z[:1] + way * z[1:2])),
        "samples": shared.pictures(prior.sample(settings.samples, seed=shared.seed_of(part, "samples"))),
    }


def _held_out(settings: Settings, part: Part, name: str, size: int) -> Tensor:
    """Digits from all over the test split, or a crop of each of the first photographs."""
    return shared.images(part, name, "test", settings.images, size, spread=name != "photos")


def project(settings: Settings, part: Part, prior: priors.Prior, x: Tensor) -> Tensor:
    """Latents of the images nearest to x in the range of the prior, [batch, latent_dim].

    A flow encodes. For others the squared distance is minimised over z (Bora et al. 2017, eq. 4 with A = I) from random
    starts, and for a VAE also from its encoder's answer; the best is kept.
    """
    if isinstance(prior, priors.Flow):
        part.count_evaluations(len(x))
        return prior.encode(x)
    operator, seed, budget = measure.Identity(prior.shape), shared.seed_of(part, "start"), settings.budget
    found = recover.gan_latent(prior, operator, x, restarts=settings.restarts, seed=seed, max_evaluations=budget)
    if not isinstance(prior, priors.VAE):
        return part.count(found).z
    encoded = recover.flow_latent(prior, operator, x, z0=prior.encode(x), max_evaluations=budget)
    return torch.where((part.count(encoded).energy < part.count(found).energy)[:, None], encoded.z, found.z)
