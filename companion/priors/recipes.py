"""Recipes of the stored checkpoints: which model, which data, which budget. ``companion train NAME`` runs one."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import _support
from companion.priors import distributed
from companion.priors.base import Prior
from companion.priors.checkpoint import read_tensors, save
from companion.priors.gan import GAN
from companion.priors.glow import Glow
from companion.priors.networks import count_parameters
from companion.priors.objectives import Adversarial, Elbo, WeightNormLikelihood
from companion.priors.realnvp import RealNVP
from companion.priors.state import as_pixels
from companion.priors.training import Likelihood, Objective, Settings, fit
from companion.priors.vae import VAE

PROFILES = ("quick", "laptop", "paper")


@dataclass(frozen=True)
class Recipe:
    """A model, its data and its training budget in each profile."""

    model: dict[str, Callable[[], Prior]]  # by profile
    data: str
    size: int | None
    objective: Callable[[], Objective]
    settings: dict[str, Settings]  # by profile


# drawings: the weaker contraction saves most of the training time (see PixelMap)
_DRAWING: dict[str, Any] = {"shape": (1, 28, 28), "pixels": "logit", "contraction": 0.999}
_GLOW_64: dict[str, Callable[[], Prior]] = {
    "quick": partial(Glow, shape=(3, 64, 64), levels=4, steps=1, width=8),
    "laptop": partial(Glow, shape=(3, 64, 64), levels=4, steps=8, width=64),
    "paper": partial(Glow, shape=(3, 64, 64), levels=4, steps=48, width=512, bits=5),  # Asim et al. 2020
}
_PHOTO_VAE: dict[str, Any] = {"shape": (3, 32, 32), "kind": "conv", "likelihood": "gaussian"}


def _short(settings: Settings) -> Settings:
    return replace(settings, steps=20, warm_up=5, checkpoint_every=10, validate_every=20, patience=None)


# laptop budgets, for one core of a 2020s processor: flows 15 to 25 minutes, VAEs 4, GANs 8
_PHOTOS = Settings(steps=6000, batch_size=32, learning_rate=1e-3, warm_up=200, average=0.999, flip=True)
_PHOTOS_64 = replace(_PHOTOS, steps=4000, batch_size=16)
_EUROSAT = replace(_PHOTOS, steps=3000, validate_every=250, patience=6)  # 4,500 images: more epochs would overfit
_MNIST = replace(
    _PHOTOS, steps=12_000, learning_rate=2e-3, warm_up=100, flip=False, checkpoint_every=500, validate_every=1000
)
_VAE = Settings(steps=12_000, batch_size=100, learning_rate=1e-3, average=0.999, validate_every=1000)
_GAN = Settings(steps=6000, batch_size=64, learning_rate=2e-4, warm_up=0, decay=False, average=0.0, validate_every=1000)

_GLOW_64_SETTINGS = {
    "quick": _short(_PHOTOS_64),
    "laptop": _PHOTOS_64,
    "paper": replace(_PHOTOS_64, steps=60_000, batch_size=32, learning_rate=5e-4, warm_up=5000),
}

RECIPES: dict[str, Recipe] = {
    "glow-photos64": Recipe(_GLOW_64, "photos", 64, Likelihood, _GLOW_64_SETTINGS),
    "glow-flowers64": Recipe(_GLOW_64, "flowers", 64, Likelihood, _GLOW_64_SETTINGS),
    "glow-photos32": Recipe(
        model={
            "quick": partial(Glow, shape=(3, 32, 32), levels=3, steps=2, width=16),
            "laptop": partial(Glow, shape=(3, 32, 32), levels=3, steps=8, width=64),
            "paper": partial(Glow, shape=(3, 32, 32), levels=3, steps=32, width=256),
        },
        data="photos",
        size=32,
        objective=Likelihood,
        settings={
            "quick": _short(_PHOTOS),
            "laptop": _PHOTOS,
            "paper": replace(_PHOTOS, steps=40_000, batch_size=64, learning_rate=5e-4, warm_up=2000),
        },
    ),
    "glow-eurosat32": Recipe(
        model={
            "quick": partial(Glow, shape=(3, 32, 32), levels=3, steps=2, width=16),
            "laptop": partial(Glow, shape=(3, 32, 32), levels=3, steps=8, width=64),
            "paper": partial(Glow, shape=(3, 32, 32), levels=3, steps=16, width=128),
        },
        data="eurosat",
        size=32,
        objective=Likelihood,
        settings={
            "quick": _short(_EUROSAT),
            "laptop": _EUROSAT,
            "paper": replace(_EUROSAT, steps=20_000, batch_size=64, learning_rate=5e-4, warm_up=1000),
        },
    ),
    "glow-mnist": Recipe(
        model={
            "quick": partial(Glow, **_DRAWING, levels=2, steps=2, width=16),
            "laptop": partial(Glow, **_DRAWING, levels=2, steps=8, width=64),
            "paper": partial(Glow, **_DRAWING, levels=2, steps=32, width=256),
        },
        data="mnist",
        size=None,
        objective=Likelihood,
        settings={
            "quick": _short(_MNIST),
            "laptop": _MNIST,
            "paper": replace(_MNIST, steps=60_000, batch_size=128, learning_rate=1e-3, warm_up=2000),
        },
    ),
    "realnvp-mnist": Recipe(
        model={
            "quick": partial(RealNVP, **_DRAWING, scales=3, blocks=1, width=4),
            "laptop": partial(RealNVP, **_DRAWING, scales=3, blocks=1, width=16),
            "paper": partial(RealNVP, shape=(1, 28, 28), scales=3, blocks=6, width=64),  # Whang et al. 2020, Table 1
        },
        data="mnist",
        size=None,
        objective=WeightNormLikelihood,
        settings={
            "quick": _short(_MNIST),
            "laptop": replace(_MNIST, steps=4000),
            # Table 1 too: 200 epochs (the rate is halved every 40 epochs there)
            "paper": replace(_MNIST, steps=86_000, batch_size=128, learning_rate=1e-3, warm_up=1000),
        },
    ),
    "vae-mnist": Recipe(
        model={
            "quick": partial(VAE, shape=(1, 28, 28), latent_dim=20, hidden=(32, 32)),
            "laptop": partial(VAE, shape=(1, 28, 28), latent_dim=20),
            "paper": partial(VAE, shape=(1, 28, 28), latent_dim=20),
        },
        data="mnist",
        size=None,
        objective=Elbo,
        settings={
            "quick": _short(_VAE),
            "laptop": _VAE,
            "paper": replace(_VAE, steps=55_000),  # Bora et al. 2017: 100 epochs
        },
    ),
    "vae-photos32": Recipe(
        model={
            "quick": partial(VAE, **_PHOTO_VAE, latent_dim=16, hidden=(8, 8, 8)),
            "laptop": partial(VAE, **_PHOTO_VAE, latent_dim=128, hidden=(32, 64, 128)),
            "paper": partial(VAE, **_PHOTO_VAE, latent_dim=128, hidden=(64, 128, 256)),
        },
        data="photos",
        size=32,
        objective=Elbo,
        settings={
            "quick": _short(replace(_VAE, batch_size=64, flip=True)),
            "laptop": replace(_VAE, steps=1800, batch_size=64, flip=True, validate_every=200),
            "paper": replace(_VAE, steps=40_000, flip=True),
        },
    ),
    "gan-mnist": Recipe(
        model={
            "quick": partial(GAN, shape=(1, 28, 28), width=8),
            "laptop": partial(GAN, shape=(1, 28, 28), width=32),
            "paper": partial(GAN, shape=(1, 28, 28), width=64),
        },
        data="mnist",
        size=None,
        objective=Adversarial,
        settings={"quick": _short(_GAN), "laptop": _GAN, "paper": replace(_GAN, steps=40_000)},
    ),
    "gan-photos32": Recipe(
        model={
            "quick": partial(GAN, shape=(3, 32, 32), width=8),
            "laptop": partial(GAN, shape=(3, 32, 32), width=32),
            "paper": partial(GAN, shape=(3, 32, 32), width=64),
        },
        data="photos",
        size=32,
        objective=Adversarial,
        settings={
            "quick": _short(replace(_GAN, flip=True)),
            "laptop": replace(_GAN, steps=5500, flip=True, validate_every=500),
            "paper": replace(_GAN, steps=60_000, flip=True),
        },
    ),
}


def recipe_names() -> list[str]:
    """Names of the checkpoints that can be trained."""
    return sorted(RECIPES)


def train_recipe(
    name: str,
    profile: str = "laptop",
    out: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
    replace: bool = False,
) -> Path:
    """Train the prior `name` with the budget of `profile`; returns the path of its checkpoint.

    The file goes to the folder `out` (default: the package's store, where :func:`companion.priors.load` finds it). The
    state of the running training lies beside it as ``NAME.PROFILE.training``: started again, the command continues from
    there, and the file is removed once the checkpoint is written. Under
    ``torchrun --nproc-per-node N -m companion.cli train NAME`` the processes share each batch, and on CUDA each has its
    own GPU.

    Raises ValueError for an unknown name or profile, for a folder that cannot be written, and, unless `replace`, where
    the store's checkpoint is of a larger profile.
    """
    from companion import data  # here, so that building a prior does not load the data sets

    _support.one_of("prior", name, recipe_names())
    _support.one_of("profile", profile, PROFILES)
    folder = Path(out) if out else _support.store() / "checkpoints"
    _support.writable("out", folder)  # asked before the work, so that no training ends with nowhere to go
    if not out and not replace:
        _keep_larger(name, profile, folder / f"{name}.safetensors")
    recipe = RECIPES[name]
    options = {"size": recipe.size} if recipe.size else {}
    train, validation, test = (
        data.load(recipe.data, split=s, **options).images for s in ("train", "validation", "test")
    )
    running = folder / f"{name}.{profile}.training"
    model, objective, settings = recipe.model[profile](), recipe.objective(), recipe.settings[profile]
    with distributed.process_group(device) as own_device:
        history = fit(
            model,
            train,
            objective,
            settings,
            validation=validation[:500],
            checkpoint=running,
            device=own_device,
            progress=progress,
        )

        def store() -> Path:
            card = _card(name, profile, recipe, settings, model, objective, len(train), test)
            card["minutes"] = round(history.seconds / 60, 1)
            scores = [round(score, 4) for score in history.score]
            card["learning curve"] = {"step": history.validated, "validation score": scores}
            path = save(model.cpu(), folder / f"{name}.safetensors", card)
            running.unlink(missing_ok=True)
            return path

        return distributed.from_first(store)


def _keep_larger(name: str, profile: str, path: Path) -> None:
    """Raise ValueError where the checkpoint at `path` is of a larger profile; one that cannot be read is replaced."""
    try:
        stored = PROFILES.index(read_tensors(path)[1]["card"]["profile"])
    except (ValueError, KeyError):
        return
    if PROFILES.index(profile) < stored:
        raise ValueError(
            f"profile: got {profile!r}, but the stored {name} is of {PROFILES[stored]!r}; allowed: "
            f"{', '.join(PROFILES[stored:])}, another folder (--out), or replace=True (--replace)"
        )


def _card(
    name: str,
    profile: str,
    recipe: Recipe,
    settings: Settings,
    model: Prior,
    objective: Objective,
    trained_on: int,
    test: Tensor,
) -> dict[str, Any]:
    from companion import data

    device = model.like.device
    images = as_pixels(test[:2000], model.like)
    return {
        "name": name,
        "profile": profile,
        "data": f"{recipe.data}, training split, {trained_on} images"
        + (f" at {recipe.size}×{recipe.size}" if recipe.size else ""),
        "licence of the data": data.licence(recipe.data),
        "parameters": count_parameters(model),
        "settings": settings.__dict__,
        "test score": round(objective.score(model, images), 4),
        "test images": len(images),
        "unit": objective.unit,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "torch": torch.__version__.split("+")[0],
        "seed": settings.seed,
    }
