"""Recipes of the stored checkpoints: which model, which data, which budget. ``companion train NAME`` runs one."""

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from companion import _support, data
from companion.priors import GAN, VAE, Glow, Prior, RealNVP, save
from companion.priors.checkpoint import read_tensors
from companion.priors.networks import count_parameters
from companion.training import distributed
from companion.training.criteria import Adversarial, Criterion, Elbo, Likelihood, SmoothedLikelihood
from companion.training.criteria import WeightNormLikelihood as WeightNorm
from companion.training.loop import fit
from companion.training.schedule import LearningCurve, Schedule
from companion.training.state import as_pixels, averaged

PROFILES = ("quick", "laptop", "overnight", "paper")
_QUICK: dict[str, Any] = {"steps": 20, "warm_up": 5, "checkpoint_every": 10, "validate_every": 20, "patience": None}


class Budget(NamedTuple):
    """What a profile adds to the arguments of the model, and changes in the schedule."""

    model: dict[str, Any]
    schedule: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A model, its data and its training; `budgets` by profile. Quick schedules are all alike."""

    data: str
    size: int | None
    criterion: Callable[[], Criterion]
    model: Callable[..., Prior]
    schedule: Schedule
    budgets: dict[str, Budget]

    def build(self, profile: str) -> tuple[Prior, Schedule]:
        """The untrained model and the schedule of a profile."""
        model, changes = self.budgets[profile]
        return self.model(**model), replace(self.schedule, **changes, **(_QUICK if profile == "quick" else {}))


def _budgets(**profiles: tuple[dict[str, Any], dict[str, Any]] | dict[str, Any]) -> dict[str, Budget]:
    """A budget of each profile: arguments of the model, or a pair of those and of changes in the schedule."""
    return {name: Budget(*(b if isinstance(b, tuple) else (b, {}))) for name, b in profiles.items()}


# Laptop: for one core of a 2020s processor; flows 15 to 25 minutes, VAEs 4, GANs 8. Overnight: at most 6 hours there.
_PHOTOS = Schedule(steps=6000, batch_size=32, learning_rate=1e-3, warm_up=200, average=0.999, augment=("flip",))
_DRAWINGS = replace(_PHOTOS, steps=12_000, learning_rate=2e-3, augment=(), checkpoint_every=500, validate_every=1000)
_VAE = Schedule(steps=12_000, batch_size=100, learning_rate=1e-3, average=0.999, validate_every=1000)
_GAN = Schedule(steps=6000, batch_size=64, learning_rate=2e-4, warm_up=0, decay=False, average=0.0, validate_every=1000)
_ANY_PHOTO = ("flip", "turn", "colours", "brightness")
_NIGHT: dict[str, Any] = {"average": 0.9995, "precision": "mixed", "checkpoint_every": 500, "validate_every": 1000}

_COLOUR: dict[str, Any] = {"squeeze": "haar", "colours": "opponent"}
_DRAWING: dict[str, Any] = {"shape": (1, 28, 28), "pixels": "logit", "contraction": 0.999}  # why: see PixelMap
_GLOW_32 = partial(Glow, shape=(3, 32, 32), levels=3)
_GLOW_64 = partial(Glow, shape=(3, 64, 64), levels=4)
_GLOW_64_BUDGETS = _budgets(
    quick={"steps": 1, "width": 8},
    laptop={"steps": 8, "width": 64, **_COLOUR},
    overnight=({"steps": 8, "width": 96, **_COLOUR}, {"steps": 35_000, **_NIGHT}),
    # Asim et al. 2020
    paper=(
        {"steps": 48, "width": 512, "bits": 5},
        {"steps": 60_000, "batch_size": 32, "learning_rate": 5e-4, "warm_up": 5000},
    ),
)
_SMOOTH_BUDGETS = _budgets(
    quick={"steps": 2, "width": 16},
    laptop={"steps": 8, "width": 64},
    overnight=({"steps": 12, "width": 96}, {"steps": 80_000, "learning_rate": 1e-3, **_NIGHT}),
    paper=({"steps": 32, "width": 256}, {"steps": 60_000, "batch_size": 128, "learning_rate": 1e-3, "warm_up": 2000}),
)
_SMALL_PHOTO_VAE = {"batch_size": 64, "augment": ("flip",)}

RECIPES: dict[str, Recipe] = {
    "glow-photos32": Recipe(
        "photos",
        32,
        Likelihood,
        _GLOW_32,
        _PHOTOS,
        _budgets(
            quick={"steps": 2, "width": 16, **_COLOUR},
            laptop={"steps": 8, "width": 64, **_COLOUR},
            overnight=({"steps": 8, "width": 96, **_COLOUR}, {"steps": 60_000, "augment": _ANY_PHOTO, **_NIGHT}),
            paper=(
                {"steps": 32, "width": 256, **_COLOUR},
                {"steps": 40_000, "batch_size": 64, "learning_rate": 5e-4, "warm_up": 2000, "augment": _ANY_PHOTO},
            ),
        ),
    ),
    "glow-eurosat32": Recipe(
        "eurosat",
        32,
        Likelihood,
        _GLOW_32,
        replace(_PHOTOS, steps=3000, validate_every=250, patience=6),  # 4,500 images: more epochs would overfit
        _budgets(
            quick={"steps": 2, "width": 16},
            laptop={"steps": 8, "width": 64, **_COLOUR},
            overnight=(
                {"steps": 8, "width": 96, **_COLOUR},
                {"steps": 30_000, "augment": ("flip", "turn"), **_NIGHT, "patience": 10},
            ),
            paper=(
                {"steps": 16, "width": 128, **_COLOUR},
                {"steps": 20_000, "batch_size": 64, "learning_rate": 5e-4, "warm_up": 1000},
            ),
        ),
    ),
    "glow-photos64": Recipe(
        "photos", 64, Likelihood, _GLOW_64, replace(_PHOTOS, steps=4000, batch_size=16), _GLOW_64_BUDGETS
    ),
    "glow-flowers64": Recipe(
        "flowers", 64, Likelihood, _GLOW_64, replace(_PHOTOS, steps=4000, batch_size=16), _GLOW_64_BUDGETS
    ),
    "glow-mnist": Recipe("mnist", None, Likelihood, partial(Glow, **_DRAWING, levels=2), _DRAWINGS, _SMOOTH_BUDGETS),
    "realnvp-mnist": Recipe(
        "mnist",
        None,
        WeightNorm,
        partial(RealNVP, scales=3),
        replace(_DRAWINGS, steps=4000),
        _budgets(
            quick={**_DRAWING, "blocks": 1, "width": 4},
            laptop={**_DRAWING, "blocks": 1, "width": 16},
            overnight=({**_DRAWING, "blocks": 2, "width": 32}, {"steps": 40_000, **_NIGHT}),
            # Whang et al. 2020, Table 1: 200 epochs (the rate is halved every 40 epochs there)
            paper=(
                {"blocks": 6, "width": 64},
                {"steps": 86_000, "batch_size": 128, "learning_rate": 1e-3, "warm_up": 1000},
            ),
        ),
    ),
    "vae-mnist": Recipe(
        "mnist",
        None,
        Elbo,
        partial(VAE, shape=(1, 28, 28), latent_dim=20),
        _VAE,
        _budgets(
            quick={"hidden": (32, 32)},
            laptop={},
            overnight=({}, {"steps": 55_000}),
            paper=({}, {"steps": 55_000}),  # Bora et al. 2017: 100 epochs
        ),
    ),
    "vae-photos32": Recipe(
        "photos",
        32,
        Elbo,
        partial(VAE, shape=(3, 32, 32), kind="conv", likelihood="gaussian", latent_dim=128),
        replace(_VAE, augment=("flip",)),
        _budgets(
            quick=({"latent_dim": 16, "hidden": (8, 8, 8)}, {"batch_size": 64}),
            laptop=({"hidden": (32, 64, 128)}, {"steps": 1800, "batch_size": 64, "validate_every": 200}),
            overnight=({"hidden": (64, 128, 256)}, {"steps": 40_000, "augment": _ANY_PHOTO}),
            paper=({"hidden": (64, 128, 256)}, {"steps": 40_000}),
        ),
    ),
    "gan-mnist": Recipe(
        "mnist",
        None,
        Adversarial,
        partial(GAN, shape=(1, 28, 28)),
        _GAN,
        _budgets(
            quick={"width": 8},
            laptop={"width": 32},
            overnight=({"width": 48}, {"steps": 30_000}),
            paper=({"width": 64}, {"steps": 40_000}),
        ),
    ),
    "gan-photos32": Recipe(
        "photos",
        32,
        Adversarial,
        partial(GAN, shape=(3, 32, 32)),
        replace(_GAN, augment=("flip",)),
        _budgets(
            quick={"width": 8},
            laptop=({"width": 32}, {"steps": 5500, "validate_every": 500}),
            overnight=({"width": 48}, {"steps": 30_000, "augment": _ANY_PHOTO}),
            paper=({"width": 64}, {"steps": 60_000}),
        ),
    ),
}
# noisy drawings, so that the density is smooth (see SmoothedLikelihood): 0.1 is the noise of the chapters on MAP
for _name, _std in {"glow-mnist-smooth": 0.1, "glow-mnist-smooth05": 0.05}.items():
    RECIPES[_name] = Recipe(
        "mnist",
        None,
        partial(SmoothedLikelihood, _std),
        partial(Glow, shape=(1, 28, 28), levels=2),
        _DRAWINGS,
        _SMOOTH_BUDGETS,
    )


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
    start: str | Path | None = None,
    export: bool = False,
) -> Path:
    """Train the prior `name` with the budget of `profile`; returns the path of its checkpoint.

    The file goes to the folder `out` (default: the package's store, where :func:`companion.priors.load` finds it). The
    state of the running training lies beside it as ``NAME.PROFILE.training``: started again, the command continues from
    there, and the file is removed once the checkpoint is written. Where that state was lost, the training can `start`
    from the averaged weights of a checkpoint (see :func:`companion.training.fit`). With `export` nothing is trained:
    the averaged weights that the running state holds so far become the checkpoint. Under
    ``torchrun --nproc-per-node N -m companion.cli train NAME`` the processes share each batch, and on CUDA each has its
    own GPU.

    Raises ValueError for an unknown name or profile, for a folder that cannot be written, and, unless `replace`, where
    the store's checkpoint is of a larger profile.
    """
    _support.one_of("prior", name, recipe_names())
    _support.one_of("profile", profile, PROFILES)
    folder = Path(out) if out else _support.store() / "checkpoints"
    _support.writable("out", folder)  # asked before the work, so that no training ends with nowhere to go
    path, running = folder / f"{name}.safetensors", folder / f"{name}.{profile}.training"
    if not out and not replace:
        _keep_larger(name, profile, path)
    recipe = RECIPES[name]
    options = {"size": recipe.size} if recipe.size else {}
    train, validation, test = (
        data.load(recipe.data, split=split, **options).images for split in ("train", "validation", "test")
    )
    model, schedule = recipe.build(profile)
    criterion = recipe.criterion()
    facts = {
        "name": name,
        "profile": profile,
        "data": f"{recipe.data}, training split, {len(train)} images"
        + (f" at {recipe.size}×{recipe.size}" if recipe.size else ""),
        "licence of the data": data.licence(recipe.data),
        "settings": asdict(schedule),
        "seed": schedule.seed,
    }
    if export:
        model = averaged(running)
        curve = LearningCurve(**read_tensors(running)[1]["progress"]["curve"])
        return save(model, path, facts | _card(model, criterion, curve, model.card["step"], test))
    with distributed.process_group(device) as own_device:
        curve = fit(
            model,
            train,
            criterion,
            schedule,
            validation=_spread(validation, 500),
            checkpoint=running,
            start=start,
            device=own_device,
            progress=progress,
        )

        def store() -> Path:
            card = _card(model, criterion, curve, curve.validated[-1] if curve.stopped_early else schedule.steps, test)
            save(model.cpu(), path, facts | card)
            running.unlink(missing_ok=True)
            return path

        return distributed.from_first(store)


def quality(path: str | Path) -> str:
    """One line on how good a checkpoint of a recipe is: its test score, after how many steps."""
    card = read_tensors(Path(path))[1]["card"]
    trial = ": a trial of the command, not a prior to use" if card["profile"] == "quick" else ""
    return (
        f"{card['test score']} {card['unit']} on {card['test images']} test images after {card['steps']} steps{trial}"
    )


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


def _spread(images: Tensor, most: int) -> Tensor:
    """At most `most` of the images, spread over all of them: neighbours may be crops of one picture."""
    return images[torch.linspace(0, len(images) - 1, min(most, len(images))).long()]


def _card(model: Prior, criterion: Criterion, curve: LearningCurve, steps: int, test: Tensor) -> dict[str, Any]:
    """What training made of a model."""
    device = model.like.device
    images = as_pixels(_spread(test, 2000), model.like)
    return {
        "parameters": count_parameters(model),
        "steps": steps,
        "minutes": round(curve.seconds / 60, 1),
        "learning curve": {"step": curve.validated, "validation score": [round(score, 4) for score in curve.score]},
        "test score": round(criterion.score(model, images), 4),
        "test images": len(images),
        "unit": criterion.unit,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "torch": torch.__version__.split("+")[0],
    }
