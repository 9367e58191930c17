"""The state of a running training: one update, one validation, and the file from which a killed run continues."""

import json
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from companion import _support
from companion.priors.base import Prior
from companion.priors.checkpoint import build, load, one_line, read_tensors, write_tensors
from companion.training import distributed
from companion.training.augment import augment
from companion.training.criteria import Criterion
from companion.training.precision import conditioners, mixed_precision
from companion.training.schedule import LearningCurve, Schedule


def as_pixels(images: Tensor, like: Tensor) -> Tensor:
    """Images in [0, 1] in the dtype and on the device of `like`, from uint8 or float."""
    return images.to(like) / (255.0 if images.dtype == torch.uint8 else 1.0)


def digest(images: Tensor) -> str:
    """What tells the images of a training from others."""
    return _support.sha256(f"{images.dtype} {tuple(images.shape)}", images)


class State:
    """Everything that a checkpoint of a running training holds."""

    def __init__(self, model: Prior, criterion: Criterion, schedule: Schedule, images: Tensor) -> None:
        self.model, self.criterion, self.schedule = model, criterion, schedule
        self.step = 0
        self.curve = LearningCurve()
        self.best_score, self.waited = math.inf, 0
        self.data = digest(images)  # a run goes on with these alone
        criterion.prepare(model, self._batch(images)[0], _support.generator(schedule.seed, "first batch"))
        distributed.copy_from_first(model.state_dict().values())
        self.optimisers = criterion.optimisers(model, schedule)
        self.players = distributed.players(model, len(self.optimisers))
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.best: dict[str, Tensor] = {}  # the average at the best validation; kept where patience asks for it

    def _batch(self, images: Tensor) -> tuple[Tensor, torch.Generator]:
        draw = _support.generator(self.schedule.seed, "step", self.step)
        chosen = images[torch.randint(len(images), (self.schedule.batch_size,), generator=draw, device="cpu")]
        return augment(as_pixels(chosen, self.model.like), self.schedule.augment, draw), draw

    def update(self, images: Tensor) -> float:
        """One update of every player; the first player's loss."""
        rows = distributed.own_rows(self.schedule.batch_size)
        # its mean over the processes is what DistributedDataParallel makes of the gradients
        share = distributed.world() * (rows.stop - rows.start) / self.schedule.batch_size
        inputs = [value[rows] for value in self.criterion.inputs(self.model, *self._batch(images))]
        losses = []
        for optimiser, loss_of in zip(self.optimisers, self.criterion.losses(self.model, *inputs), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = self.schedule.rate(self.step)
            optimiser.zero_grad(set_to_none=True)
            with self._precision():
                loss = share * self.players(loss_of)
                loss.backward()
            learned = [p for g in optimiser.param_groups for p in g["params"] if p.grad is not None]
            loss = distributed.mean(loss.detach())
            norm = nn.utils.clip_grad_norm_(learned, self.schedule.clip)
            # before the optimiser moves: a NaN in the weights could still reach a checkpoint
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise FloatingPointError(
                    f"step {self.step}: the loss is {float(loss)}, the norm of its gradient {float(norm)}; "
                    "lower the learning rate or the clip"
                )
            optimiser.step()
            losses.append(float(loss))
        # early steps count fully, so that the average forgets the initial weights
        keep = min(self.schedule.average, (1 + self.step) / (10 + self.step)) if self.schedule.average else 0.0
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.average[name].lerp_(p, 1 - keep)
        return losses[0]

    def _precision(self) -> AbstractContextManager[None]:
        if self.schedule.precision == "float32":
            return nullcontext()
        return mixed_precision(conditioners(self.model), self.model.like.device.type)

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
        pixels = as_pixels(images, self.model.like)
        score = distributed.from_first(lambda: self.criterion.score(self.model, pixels))
        self.model.train()
        self._swap()
        self.curve.validated.append(self.step)
        self.curve.score.append(score)
        if self.schedule.patience is None:
            return
        if score < self.best_score:
            self.best_score, self.waited = score, 0
            self.best = {name: value.clone() for name, value in self.average.items()}
        else:
            self.waited += 1
            self.curve.stopped_early = self.waited >= self.schedule.patience

    def finish(self) -> None:
        """Leave the averaged weights in the model (with `patience`, the best of them), frozen for use."""
        self.average = self.best or self.average
        self._swap()
        distributed.copy_from_first(self.model.buffers())
        self.model.eval().requires_grad_(False)

    def _about(self) -> dict[str, Any]:
        facts = {
            "model": type(self.model).__name__,
            "config": self.model.config,
            "dtype": str(self.model.like.dtype),
            "criterion": type(self.criterion).__name__,
            "schedule": asdict(self.schedule),
            "data": self.data,
        }
        return json.loads(json.dumps(facts))  # as it comes back from a file

    def write(self, path: Path) -> None:
        """Write the state to `path`; process 0 does, and where it fails, all stop."""
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        for i, optimiser in enumerate(self.optimisers):
            for j, slots in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser{i}/{j}/{slot}": torch.as_tensor(v) for slot, v in slots.items()}
        progress = {"step": self.step, "curve": asdict(self.curve), "best": self.best_score, "waited": self.waited}
        distributed.from_first(lambda: write_tensors(path, tensors, self._about() | {"progress": progress}))

    def restore(self, path: Path) -> None:
        """Continue from the file at `path` if there is one."""
        stored = distributed.from_first(lambda: read_tensors(path) if path.exists() else None)
        if stored is None:
            return
        tensors, about = stored
        for key, mine in self._about().items():
            if about.get(key) != mine:
                raise ValueError(
                    f"checkpoint: {path.name} was written with another {key}{_difference(about.get(key), mine)}; "
                    f"allowed: the same {key}, or another file"
                )
        parts = _parts(tensors)
        try:
            self.model.load_state_dict(parts["model"])
            self.average = {name: parts["average"][name].to(value) for name, value in self.average.items()}
            self.best = {k: v.to(self.model.like) for k, v in parts.get("best", {}).items()}
            for i, optimiser in enumerate(self.optimisers):
                slots = {int(j): each for j, each in _parts(parts[f"optimiser{i}"]).items()}
                optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
            progress = about["progress"]
            self.step, self.curve = progress["step"], LearningCurve(**progress["curve"])
            self.best_score, self.waited = progress["best"], progress["waited"]
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"checkpoint: got {path.name}, whose content does not fit the training it names ({one_line(error)}); "
                "allowed: what this training wrote; remove the file to start afresh"
            ) from None


def _parts(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors named "part/rest" by their parts."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = value
    return parts


def averaged(source: str | Path) -> Prior:
    """The prior with the averaged weights that a checkpoint (a name or a file) or a running training's file holds.

    Frozen, in evaluation mode, on the CPU; of a training's file its ``card`` says from which step it is.
    """
    if Path(source).suffix != ".training":
        return load(source)
    path = Path(source)
    tensors, about = read_tensors(path)
    parts = _parts(tensors)
    prior = build(path, about, parts.get("model", {}) | parts.get("average", {}))
    prior.card = {"step": about.get("progress", {}).get("step")}
    return prior.eval().requires_grad_(False)


def _difference(stored: object, mine: object) -> str:
    if not isinstance(stored, dict) or not isinstance(mine, dict):
        return ""
    changed = [key for key in sorted({*stored, *mine}) if stored.get(key) != mine.get(key)]
    return f" ({', '.join(f'{key}: {stored.get(key)!r}, now {mine.get(key)!r}' for key in changed)})"
