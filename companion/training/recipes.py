"""Recipes of the stored checkpoints: which model, which data, which budget. ``companion train NAME`` runs one."""

import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from companion import _support, data
from companion._support import PROFILES
from companion.priors import GAN, VAE, Glow, Linear, Prior, RealNVP, gaussian_of, save
from companion.priors.checkpoint import read_tensors
from companion.priors.networks import count_parameters
from companion.priors.pixels import PixelMap
from companion.training import distributed
from companion.training.criteria import (
    Adversarial,
    Criterion,
    DenoisingScoreMatching,
    Elbo,
    Likelihood,
    SmoothedLikelihood,
)
from companion.training.criteria import WeightNormLikelihood as WeightNorm
from companion.training.loop import fit
from companion.training.schedule import LearningCurve, Schedule
from companion.training.state import as_pixels, averaged, digest

_QUICK: dict[str, Any] = dict(steps=20, warm_up=5, checkpoint_every=10, validate_every=20, patience=None)


Changes = dict[str, Any]
Budgets = dict[str, tuple[Changes, Changes]]  # by profile: what is added to the model, and to the schedule


@dataclass(frozen=True)
class Recipe:
    """A model, its data and its training."""

    data: str
    size: int | None
    criterion: Callable[[], Criterion]
    model: Callable[..., Prior]
    schedule: Schedule
    budgets: Budgets
    trial: str = ""  # data of the quick profile, where the others' data are not embedded but some like them are

    def build(self, profile: str) -> tuple[Prior, Schedule]:
        """The untrained model and the schedule of a profile; quick schedules are all alike."""
        model, changes = self.budgets[profile]
        return self.model(**model), replace(self.schedule, **changes, **(_QUICK if profile == "quick" else {}))


@dataclass(frozen=True)
class Covariance:
    """The Gaussian with the mean and covariance of training images and their mirror images: no training, one answer."""

    data: str
    size: int | None
    trial: str = ""  # as in :class:`Recipe`


# Laptop: for one core of a 2020s processor; flows 15 to 25 minutes, VAEs 4, GANs 8. Overnight: at most 6 hours there.
_PHOTOS = Schedule(steps=6000, batch_size=32, learning_rate=1e-3, warm_up=200, average=0.999, augment=("flip",))
_PHOTOS_64 = replace(_PHOTOS, steps=4000, batch_size=16)
_SCORE = replace(_PHOTOS, clip=1.0)
_EUROSAT = replace(_PHOTOS, steps=3000, validate_every=250, patience=6)  # 4,500 images: more epochs would overfit
_DRAWINGS = replace(_PHOTOS, steps=12_000, learning_rate=2e-3, augment=(), checkpoint_every=500, validate_every=1000)
_VAE = Schedule(steps=12_000, batch_size=100, learning_rate=1e-3, average=0.999, validate_every=1000)
_GAN = Schedule(steps=6000, batch_size=64, learning_rate=2e-4, warm_up=0, decay=False, average=0.0, validate_every=1000)
_ANY_PHOTO = ("flip", "turn", "colours", "brightness")
# what fits a flow of noisy photographs on, to values or to gradients alike
_FROM_NOISY: Changes = dict(steps=7000, batch_size=16, augment=("flip", "turn"), validate_every=500)
_NIGHT: Changes = dict(average=0.9995, precision="mixed", checkpoint_every=500, validate_every=1000)

_GLOW_28 = partial(Glow, shape=(1, 28, 28), levels=2)
_SMOOTH_28 = partial(_GLOW_28, squeeze="haar")
_GLOW_32 = partial(Glow, shape=(3, 32, 32), levels=3)
_GLOW_64 = partial(Glow, shape=(3, 64, 64), levels=4)
_VAE_28 = partial(VAE, shape=(1, 28, 28), latent_dim=20)
_VAE_32 = partial(VAE, shape=(3, 32, 32), kind="conv", likelihood="gaussian", latent_dim=128)
_GAN_32 = partial(GAN, shape=(3, 32, 32))
_DRAWING: Changes = dict(pixels="logit", contraction=0.999)  # why: see PixelMap
_COLOUR: Changes = dict(squeeze="haar", colours="opponent")
_MEDIUM, _LARGE = dict(steps=8, width=64, **_COLOUR), dict(steps=8, width=96, **_COLOUR)

_GLOW_PHOTOS_32: Budgets = dict(
    quick=(dict(steps=2, width=16, **_COLOUR), {}),
    laptop=(_MEDIUM, {}),
    overnight=(_LARGE | dict(steps=12), dict(steps=17_500, **_NIGHT)),
    paper=(
        dict(steps=32, width=256, **_COLOUR),
        dict(steps=40_000, batch_size=64, learning_rate=5e-4, warm_up=2000, augment=_ANY_PHOTO),
    ),
)
_GLOW_PHOTOS_32_NOISY: Budgets = _GLOW_PHOTOS_32 | dict(
    laptop=(_LARGE | dict(steps=12), dict(steps=2000, learning_rate=3e-4, validate_every=250, precision="mixed")),
    overnight=(_LARGE | dict(steps=12), _FROM_NOISY),  # best begun at the laptop profile's weights
)
_GLOW_PHOTOS_32_SCORE: Budgets = _GLOW_PHOTOS_32 | dict(
    laptop=(_LARGE | dict(steps=12), _FROM_NOISY | dict(steps=1500, validate_every=250)),
    overnight=(_LARGE | dict(steps=12), _FROM_NOISY),
)
_GLOW_EUROSAT: Budgets = dict(
    quick=(dict(steps=2, width=16), {}),
    laptop=(_MEDIUM, {}),
    overnight=(_LARGE, dict(steps=30_000, augment=("flip", "turn"), **_NIGHT, patience=10)),
    paper=(dict(steps=16, width=128, **_COLOUR), dict(steps=20_000, batch_size=64, learning_rate=5e-4, warm_up=1000)),
)
_GLOW_PHOTOS_64: Budgets = dict(
    quick=(dict(steps=1, width=8), {}),
    laptop=(_MEDIUM, {}),
    overnight=(_LARGE, dict(steps=35_000, **_NIGHT)),
    # Asim et al. 2020
    paper=(dict(steps=48, width=512, bits=5), dict(steps=60_000, batch_size=32, learning_rate=5e-4, warm_up=5000)),
)
_GLOW_MNIST: Budgets = dict(
    quick=(dict(steps=2, width=16), {}),
    laptop=(dict(steps=8, width=64), {}),
    overnight=(dict(steps=12, width=96), dict(steps=80_000, learning_rate=1e-3, **_NIGHT)),
    paper=(dict(steps=32, width=256), dict(steps=60_000, batch_size=128, learning_rate=1e-3, warm_up=2000)),
)
_REALNVP: Budgets = dict(
    quick=(dict(blocks=1, width=4, **_DRAWING), {}),
    laptop=(dict(blocks=1, width=16, **_DRAWING), {}),
    overnight=(dict(blocks=2, width=32, **_DRAWING), dict(steps=40_000, **_NIGHT)),
    # Whang et al. 2020, Table 1: 200 epochs (the rate is halved every 40 epochs there)
    paper=(dict(blocks=6, width=64), dict(steps=86_000, batch_size=128, learning_rate=1e-3, warm_up=1000)),
)
_VAE_MNIST: Budgets = dict(
    quick=(dict(hidden=(32, 32)), {}),
    laptop=({}, {}),
    overnight=({}, dict(steps=55_000)),
    paper=({}, dict(steps=55_000)),  # Bora et al. 2017: 100 epochs
)
_VAE_PHOTOS: Budgets = dict(
    quick=(dict(latent_dim=16, hidden=(8, 8, 8)), dict(batch_size=64)),
    laptop=(dict(hidden=(32, 64, 128)), dict(steps=8000, batch_size=64)),
    overnight=(dict(hidden=(64, 128, 256)), dict(steps=40_000, augment=_ANY_PHOTO)),
    paper=(dict(hidden=(64, 128, 256)), dict(steps=40_000)),
)
_GAN_MNIST: Budgets = dict(
    quick=(dict(width=8), {}),
    laptop=(dict(width=32), {}),
    overnight=(dict(width=48), dict(steps=30_000)),
    paper=(dict(width=64), dict(steps=40_000)),
)
_GAN_PHOTOS: Budgets = dict(
    quick=(dict(width=8), {}),
    laptop=(dict(width=32), dict(steps=5500, validate_every=500)),
    overnight=(dict(width=48), dict(steps=30_000, augment=_ANY_PHOTO)),
    paper=(dict(width=64), dict(steps=60_000)),
)
RECIPES: dict[str, Recipe] = {
    "glow-photos32": Recipe("photographs", 32, Likelihood, _GLOW_32, _PHOTOS, _GLOW_PHOTOS_32, "photos"),
    # noisy photographs, for Tweedie's formula; best begun at the weights of glow-photos32
    "glow-photos32-noisy": Recipe(
        "photographs", 32, SmoothedLikelihood, _GLOW_32, _PHOTOS, _GLOW_PHOTOS_32_NOISY, "photos"
    ),
    # the same fitted to the gradients that Tweedie's formula takes; best begun at the weights of glow-photos32-noisy
    "glow-photos32-score": Recipe(
        "photographs", 32, DenoisingScoreMatching, _GLOW_32, _SCORE, _GLOW_PHOTOS_32_SCORE, "photos"
    ),
    "glow-eurosat32": Recipe("eurosat", 32, Likelihood, _GLOW_32, _EUROSAT, _GLOW_EUROSAT),
    "glow-photos64": Recipe("photos", 64, Likelihood, _GLOW_64, _PHOTOS_64, _GLOW_PHOTOS_64),
    "glow-flowers64": Recipe("flowers", 64, Likelihood, _GLOW_64, _PHOTOS_64, _GLOW_PHOTOS_64),
    "glow-mnist": Recipe("mnist", None, Likelihood, partial(_GLOW_28, **_DRAWING), _DRAWINGS, _GLOW_MNIST),
    # noisy drawings, for a smooth density: 0.1 is the noise of the chapters on MAP, 0.05 that of the one on two images
    "glow-mnist-smooth": Recipe("mnist", None, SmoothedLikelihood, _SMOOTH_28, _DRAWINGS, _GLOW_MNIST),
    "glow-mnist-smooth05": Recipe("mnist", None, partial(SmoothedLikelihood, 0.05), _SMOOTH_28, _DRAWINGS, _GLOW_MNIST),
    "realnvp-mnist": Recipe("mnist", None, WeightNorm, RealNVP, replace(_DRAWINGS, steps=4000), _REALNVP),
    "vae-mnist": Recipe("mnist", None, Elbo, _VAE_28, _VAE, _VAE_MNIST),
    "vae-photos32": Recipe("photographs", 32, Elbo, _VAE_32, replace(_VAE, augment=("flip",)), _VAE_PHOTOS, "photos"),
    "gan-mnist": Recipe("mnist", None, Adversarial, GAN, _GAN, _GAN_MNIST),
    "gan-photos32": Recipe(
        "photographs", 32, Adversarial, _GAN_32, replace(_GAN, augment=("flip",)), _GAN_PHOTOS, "photos"
    ),
}
_ROUNDING = 1 / (255 * math.sqrt(12))  # standard deviation of what an 8-bit pixel has lost
GAUSSIANS = {"gaussian-photos32": Covariance("photographs", 32, "photos")}


def recipe_names() -> list[str]:
    """Names of the checkpoints that can be made."""
    return sorted([*RECIPES, *GAUSSIANS])


def train_recipe(
    name: str,
    profile: str = "laptop",
    out: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
    replace: bool = False,
    start: str | Path | None = None,
    export: bool = False,
    pictures: str | Path | None = None,
) -> Path:
    """Train the prior `name` with the budget of `profile`; returns the path of its checkpoint.

    With `pictures`, a folder, on those instead of the recipe's data (:func:`companion.data.folder`), as
    ``NAME-FOLDER.safetensors`` in a folder `out` of the caller's.

    The file goes to the folder `out` (default: the package's store, where :func:`companion.priors.load` finds it). The
    state of the running training lies beside it as ``NAME.PROFILE.training`` until then: started again, the command
    continues from there. `start` is that of :func:`companion.training.fit`. With `export` nothing is trained: the
    averaged weights that the running state holds become the checkpoint. A Gaussian is computed at once, the same in all
    profiles but quick, and has neither.

    Under ``torchrun --nproc-per-node N -m companion.cli train NAME`` the processes share each batch, and on CUDA each
    has its own GPU.

    Raises ValueError for an unknown name or profile, for a folder that cannot be written, for pictures with a prior of
    greyscale images or without `out`, and, unless `replace`, where the checkpoint that is there is of a larger profile.
    """
    _support.one_of("prior", name, recipe_names())
    _support.one_of("profile", profile, PROFILES)
    folder = Path(out) if out else _support.store() / "checkpoints"
    _support.writable("out", folder)  # asked before the work, so that no training ends with nowhere to go
    if not out and pictures is not None:
        raise ValueError("out: got none for a prior of other pictures than the store's; allowed: your own folder")
    if not replace:
        _keep_larger(profile, folder / f"{_stem(name, pictures)}.safetensors")
    if name in GAUSSIANS:
        if start is not None or export:
            raise ValueError(f"start, export: got one for {name}; allowed: neither, as nothing is trained")
        return _store_gaussian(folder, *_source(name, GAUSSIANS[name], profile, pictures))
    recipe = RECIPES[name]
    model, schedule = recipe.build(profile)
    if pictures is not None and model.shape[0] != 3:
        raise ValueError(f"pictures: got some for {name}, a prior of grey images; allowed: with a colour one")
    stem, (train, validation, test), facts = _source(name, recipe, profile, pictures)
    path, running = folder / f"{stem}.safetensors", folder / f"{stem}.{profile}.training"
    criterion = recipe.criterion()
    facts |= {"settings": asdict(schedule), "seed": schedule.seed}
    if export:
        _same_pictures(running, train)
        model = averaged(running)
        curve = LearningCurve(**read_tensors(running)[1]["progress"]["curve"])
        return save(model, path, facts | _card(model, criterion, curve, model.card["step"], test))
    with distributed.process_group(device) as own_device:
        if pictures is not None and progress and distributed.rank() == 0:
            tqdm.write(facts["data"])
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
            steps = curve.validated[-1] if curve.stopped_early else schedule.steps
            save(model.cpu(), path, facts | _card(model, criterion, curve, steps, test))
            running.unlink(missing_ok=True)
            return path

        return distributed.from_first(store)


def _same_pictures(running: Path, train: Tensor) -> None:
    """ValueError where the state of a training was written with other images: its card would name the wrong ones."""
    if read_tensors(running)[1].get("data") != digest(train):
        raise ValueError(f"export: {running.name} was written with another data; allowed: the pictures of its training")


def _source(
    name: str, recipe: Recipe | Covariance, profile: str, pictures: str | Path | None
) -> tuple[str, list[Tensor], dict[str, Any]]:
    """Name of the checkpoint, images of the three splits, and what its card says of them."""
    chosen = (profile == "quick" and recipe.trial) or recipe.data
    stem, source, licence = _stem(name, pictures), chosen, data.licence(chosen)
    read = partial(data.load, chosen)
    if pictures is not None:
        own = stem.removeprefix(f"{name}-")
        source, licence = f"the folder {own}", "that of the pictures; not known here"
        read = partial(data.folder, pictures)
    sets = [read(split, recipe.size) for split in data.SPLITS]
    sides = f" at {recipe.size}×{recipe.size}" if recipe.size else ""
    about = f"{source}, training split, {len(sets[0].images)} images{sides}"
    if pictures is not None and (photo := sets[0].photo) is not None:
        about += f" of {len(photo.unique())} pictures"
    splits = [each.images for each in sets]
    return stem, splits, {"name": stem, "profile": profile, "data": about, "licence of the data": licence}


def _stem(name: str, pictures: str | Path | None) -> str:
    """Name of the checkpoint's file."""
    return name if pictures is None else f"{name}-{Path(pictures).expanduser().resolve().name}"


def _store_gaussian(folder: Path, stem: str, splits: list[Tensor], facts: dict[str, Any]) -> Path:
    """A Gaussian's checkpoint, its score that of flows: bits per dimension of dequantised test images."""
    began = time.perf_counter()
    train, test = as_pixels(splits[0], torch.empty(0)), as_pixels(_spread(splits[2], 2000), torch.empty(0))
    factor, mean = gaussian_of(train, mirror=True)
    if factor[:, -1].norm() < _ROUNDING:  # too few images, or pixels that are all alike: a density needs some spread
        factor, mean = gaussian_of(train, _ROUNDING, mirror=True)
    model, pixels = Linear(factor.float(), mean.float(), tuple(mean.shape)), PixelMap()
    nats = model.log_prob(pixels.dequantise(test, _support.generator(0, "validation")))
    card = {
        "fitted by": "mean and covariance of the images and their mirror images, in closed form",
        "steps": 0,
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "test score": round(float(pixels.bits_per_dim(nats, model.latent_dim).mean()), 4),
        "test images": len(test),
        "unit": Likelihood.unit,
        "torch": torch.__version__.split("+")[0],
    }
    return save(model, folder / f"{stem}.safetensors", facts | card, half=True)


def quality(path: str | Path) -> str:
    """One line on how good a checkpoint of a recipe is: its test score, after how many steps."""
    card = read_tensors(Path(path))[1]["card"]
    trial = ": a trial of the command, not a prior to use" if card["profile"] == "quick" else ""
    score, images = f"{card['test score']} {card['unit']}", card["test images"]
    steps = f" after {card['steps']} steps" if card["steps"] else ""
    return f"{score} on {images} test images{steps}{trial}"


def _keep_larger(profile: str, path: Path) -> None:
    """Raise ValueError where the checkpoint at `path` is of a larger profile; one that cannot be read is replaced."""
    try:
        stored = PROFILES.index(read_tensors(path)[1]["card"]["profile"])
    except (ValueError, KeyError):
        return
    if PROFILES.index(profile) < stored:
        raise ValueError(
            f"profile: got {profile!r}, but the stored {path.stem} is of {PROFILES[stored]!r}; allowed: "
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
