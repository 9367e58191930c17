"""Training of priors: one loop for every objective, with exact resumption.

Every random number is drawn from a generator seeded by (seed, purpose, step), so that a step depends on the step number alone:
a killed run continues from its last checkpoint as if it had never stopped, and several processes share one batch.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from companion import _support
from companion.priors.base import Prior
from companion.priors.checkpoint import read_tensors, write_tensors


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes
    ----------
    steps, batch_size
        Number of updates, and images in each.
    learning_rate, warm_up, decay
        Adam's step size, reached linearly over `warm_up` steps; with `decay` it falls to 0 along a half cosine.
    clip
        Largest norm of the gradient.
    average
        Decay of the exponential moving average of the weights, which the trained model gets (0: no averaging).
    flip
        Mirror half of the images, chosen at random.
    checkpoint_every, validate_every, patience
        Steps between checkpoints and between validations; with `patience`, training stops after that many validations
        without a better score.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warm_up: int = 100
    decay: bool = True
    clip: float = 100.0
    average: float = 0.99
    flip: bool = False
    seed: int = 0
    checkpoint_every: int = 200
    validate_every: int = 200
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "validate_every"):
            _support.count(name, getattr(self, name))
        _support.count("warm_up", self.warm_up, least=0)
        _support.positive("learning_rate", self.learning_rate)
        _support.positive("clip", self.clip)
        if not 0 <= self.average < 1:
            raise ValueError(f"average: got {self.average!r}; allowed: a number in [0, 1)")

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        rise = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.decay else 1.0
        return self.learning_rate * rise * fall


class Objective(ABC):
    """What is minimised; its score is the number that validation compares (lower is better)."""

    unit: str

    def optimisers(self, model: Prior, settings: Settings) -> list[torch.optim.Optimizer]:
        """The optimisers, one per player; one for most models."""
        return [torch.optim.Adam([p for p in model.parameters() if p.requires_grad], settings.learning_rate)]

    def prepare(self, model: Prior, batch: Tensor) -> None:
        """Data-dependent initialisation from the first batch; nothing for most models."""

    @abstractmethod
    def losses(self, model: Prior, batch: Tensor, draw: torch.Generator) -> list[Callable[[], Tensor]]:
        """For each optimiser, in turn, a function that returns its loss (a scalar)."""

    @abstractmethod
    def score(self, model: Prior, images: Tensor) -> float:
        """Score of held-out images, in `unit`."""


class Likelihood(Objective):
    """Maximum likelihood of dequantised images, in bits per dimension (flows)."""

    unit = "bits/dim"

    def prepare(self, model: Any, batch: Tensor) -> None:
        if not bool(model.initialised):
            model.initialise(model.pixels.dequantise(batch, 0))

    def losses(self, model: Any, batch: Tensor, draw: torch.Generator) -> list[Callable[[], Tensor]]:
        return [lambda: model.bits_per_dim(batch, draw).mean()]

    @torch.no_grad()
    def score(self, model: Any, images: Tensor) -> float:
        draw = torch.Generator().manual_seed(0)
        return float(torch.cat([model.bits_per_dim(part, draw) for part in images.split(250)]).mean())


@dataclass
class History:
    """What training did: step and training loss, validation scores, and whether it went on to the last step."""

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    seconds: float = 0.0
    stopped_early: bool = False


def fit(
    model: Prior,
    images: Tensor,
    objective: Objective,
    settings: Settings,
    *,
    validation: Tensor | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> History:
    """Train `model` in place on `images`, [N, *shape] as uint8 or float in [0, 1]; returns its history.

    With `checkpoint`, the state is written there every `checkpoint_every` steps and at the end, and a file that is already
    there is continued: on the CPU a run that was killed at any moment ends with the same weights as an unbroken one.
    Raises ValueError where that file belongs to other settings or another model, and FloatingPointError where the loss
    turns into NaN (the last checkpoint is kept).
    """
    if tuple(images.shape[1:]) != model.shape or len(images) < 1:
        raise ValueError(f"images: got shape {tuple(images.shape)}; allowed: [N, {', '.join(map(str, model.shape))}]")
    model.to(device).train().requires_grad_(True)
    state = _State(model, objective, settings, images)
    path = Path(checkpoint) if checkpoint else None
    if path and path.exists():
        state.restore(path)
    began, worked = time.perf_counter(), state.history.seconds
    bar = tqdm(total=settings.steps, initial=state.step, disable=not progress, unit="step", mininterval=2)
    while state.step < settings.steps and not state.history.stopped_early:
        loss = state.update(images)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} at step {state.step}; lower the learning rate or the clip"
            )
        state.step += 1
        bar.update()
        if state.step % 20 == 0:
            speed = (state.step * settings.batch_size) / max(1e-9, time.perf_counter() - began + worked)
            bar.set_postfix_str(f"{loss:.3f} {objective.unit}, {speed:.0f} images/s")
            state.history.steps.append(state.step)
            state.history.loss.append(loss)
        last = state.step == settings.steps
        if validation is not None and (last or state.step % settings.validate_every == 0):
            state.validate(validation)
        state.history.seconds = worked + time.perf_counter() - began
        if path and (last or state.history.stopped_early or state.step % settings.checkpoint_every == 0):
            state.write(path)
    bar.close()
    state.finish()
    return state.history


def as_pixels(images: Tensor, like: Tensor) -> Tensor:
    """Images in [0, 1] in the dtype and on the device of `like`, from uint8 or float."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    return images.to(like.device, like.dtype) / scale


class _State:
    """Everything that a checkpoint of a running training holds."""

    def __init__(self, model: Prior, objective: Objective, settings: Settings, images: Tensor) -> None:
        self.model, self.objective, self.settings = model, objective, settings
        self.step = 0
        self.history = History()
        self.best_score, self.waited = math.inf, 0
        objective.prepare(model, self._batch(images)[0])
        self.optimisers = objective.optimisers(model, settings)
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}

    def _draw(self, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.settings.seed * 1_000_003 + self.step) * 7 + purpose)

    def _batch(self, images: Tensor) -> tuple[Tensor, torch.Generator]:
        draw = self._draw(0)
        chosen = images[torch.randint(len(images), (self.settings.batch_size,), generator=draw)]
        if self.settings.flip:
            mirrored = torch.rand(len(chosen), generator=draw) < 0.5
            chosen = torch.where(mirrored.view(-1, 1, 1, 1), chosen.flip(-1), chosen)
        return as_pixels(chosen, self.model.like), draw

    def update(self, images: Tensor) -> float:
        """One update of every player; the first player's loss."""
        batch, draw = self._batch(images)
        first = math.nan
        for index, (optimiser, loss_of) in enumerate(
            zip(self.optimisers, self.objective.losses(self.model, batch, draw), strict=True)
        ):
            for group in optimiser.param_groups:
                group["lr"] = self.settings.rate(self.step)
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of()
            loss.backward()
            nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], self.settings.clip)
            optimiser.step()
            first = float(loss.detach()) if index == 0 else first
        # early steps count fully, so that the average forgets the initial weights
        keep = min(self.settings.average, (1 + self.step) / (10 + self.step)) if self.settings.average else 0.0
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.average[name].lerp_(p, 1 - keep)
        return first

    def _swap(self) -> None:
        """Exchange the model's weights with their moving average (twice: back again)."""
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                kept = p.clone()
                p.copy_(self.average[name])
                self.average[name].copy_(kept)

    def validate(self, images: Tensor) -> None:
        """Score the averaged weights; stop where `patience` has run out."""
        self._swap()
        self.model.eval()
        score = self.objective.score(self.model, as_pixels(images, self.model.like))
        self.model.train()
        self._swap()
        self.history.validated.append(self.step)
        self.history.score.append(score)
        self.waited = 0 if score < self.best_score else self.waited + 1
        self.best_score = min(score, self.best_score)
        if self.settings.patience is not None and self.waited >= self.settings.patience:
            self.history.stopped_early = True

    def finish(self) -> None:
        """Leave the averaged weights in the model, frozen for use."""
        self._swap()
        self.model.eval().requires_grad_(False)

    def _about(self) -> dict[str, Any]:
        facts = dict(self.settings.__dict__)
        return {"model": type(self.model).__name__, "config": self.model.config, "settings": facts}

    def write(self, path: Path) -> None:
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.items()}
        for i, optimiser in enumerate(self.optimisers):
            for j, slots in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser{i}/{j}/{slot}": torch.as_tensor(v) for slot, v in slots.items()}
        progress = {"step": self.step, "history": self.history.__dict__, "best": self.best_score, "waited": self.waited}
        write_tensors(path, tensors, self._about() | {"progress": progress})

    def restore(self, path: Path) -> None:
        tensors, about = read_tensors(path)
        for key, mine in self._about().items():
            if about.get(key) != mine:
                raise ValueError(
                    f"checkpoint: {path.name} was written with another {key}; allowed: the same {key}, or another file"
                )
        progress = about["progress"]
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
        for name, value in self.average.items():
            value.copy_(tensors[f"average/{name}"])
        for i, optimiser in enumerate(self.optimisers):
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimiser{i}/"):
                    _, j, slot = key.split("/")
                    slots.setdefault(int(j), {})[slot] = value
            optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
        self.step, self.history = progress["step"], History(**progress["history"])
        self.best_score, self.waited = progress["best"], progress["waited"]
