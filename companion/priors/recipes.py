"""Recipes of the stored checkpoints: which model, which data, which budget. ``companion train NAME`` runs one."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import _support
from companion.priors.base import Prior
from companion.priors.checkpoint import save
from companion.priors.glow import Glow
from companion.priors.networks import count_parameters
from companion.priors.training import Likelihood, Objective, Settings, fit

PROFILES = ("quick", "laptop", "paper")


@dataclass(frozen=True)
class Recipe:
    """A model, its data and its training budget in each profile."""

    model: dict[str, Callable[[], Prior]]  # by profile
    data: str
    size: int | None
    objective: Callable[[], Objective]
    settings: dict[str, Settings]  # by profile


def _glow(**config: Any) -> Callable[[], Prior]:
    return lambda: Glow(**config)


def _same(model: Callable[[], Prior]) -> dict[str, Callable[[], Prior]]:
    return dict.fromkeys(PROFILES, model)


_PHOTOS = Settings(steps=6000, batch_size=32, learning_rate=1e-3, warm_up=200, average=0.999, flip=True)

RECIPES: dict[str, Recipe] = {
    "glow-photos32": Recipe(
        model={
            "quick": _glow(shape=(3, 32, 32), levels=3, steps=2, width=16),
            "laptop": _glow(shape=(3, 32, 32), levels=3, steps=8, width=64),
            "paper": _glow(shape=(3, 32, 32), levels=3, steps=32, width=256),
        },
        data="photos",
        size=32,
        objective=Likelihood,
        settings={
            "quick": replace(_PHOTOS, steps=20, warm_up=5, checkpoint_every=10, validate_every=20),
            "laptop": _PHOTOS,
            "paper": replace(_PHOTOS, steps=40_000, batch_size=64, learning_rate=5e-4, warm_up=2000),
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
) -> Path:
    """Train the prior `name` with the budget of `profile`; returns the path of its checkpoint.

    The file goes to the folder `out` (default: the package's store, where :func:`companion.priors.load` finds it). The state of
    the running training lies beside it as ``NAME.PROFILE.training``: started again, the command continues from there, and the
    file is removed once the checkpoint is written. Raises ValueError for an unknown name or profile.
    """
    from companion import data  # here, so that building a prior does not load the data sets

    _support.one_of("prior", name, recipe_names())
    _support.one_of("profile", profile, PROFILES)
    recipe = RECIPES[name]
    options = {"size": recipe.size} if recipe.size else {}
    train, validation, test = (
        data.load(recipe.data, split=s, **options).images for s in ("train", "validation", "test")
    )
    folder = Path(out) if out else _support.store() / "checkpoints"
    running = folder / f"{name}.{profile}.training"
    model, objective, settings = recipe.model[profile](), recipe.objective(), recipe.settings[profile]
    history = fit(
        model,
        train,
        objective,
        settings,
        validation=validation[:500],
        checkpoint=running,
        device=device,
        progress=progress,
    )
    card = _card(name, profile, recipe, settings, model, objective, len(train), test)
    card["minutes"] = round(history.seconds / 60, 1)
    card["learning curve"] = {"step": history.validated, "validation score": [round(s, 4) for s in history.score]}
    path = save(model.cpu(), folder / f"{name}.safetensors", card)
    running.unlink(missing_ok=True)
    return path


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
    device = model.like.device
    images = (test.to(device, model.like.dtype) / (255 if test.dtype == torch.uint8 else 1))[:2000]
    return {
        "name": name,
        "profile": profile,
        "data": f"{recipe.data}, training split, {trained_on} images"
        + (f" at {recipe.size}×{recipe.size}" if recipe.size else ""),
        "parameters": count_parameters(model),
        "settings": settings.__dict__,
        "test score": round(objective.score(model, images), 4),
        "test images": len(images),
        "unit": objective.unit,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "torch": torch.__version__.split("+")[0],
        "seed": settings.seed,
    }
