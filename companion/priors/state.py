"""The state of a running training: one update, one validation, and the file from which a killed run continues."""

import hashlib
import json
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from companion.priors import distributed
from companion.priors.base import Prior
from companion.priors.checkpoint import one_line, read_tensors, write_tensors
from companion.priors.precision import conditioners, mixed_precision
from companion.priors.settings import History, Settings

if TYPE_CHECKING:
    from companion.priors.training import Objective


def as_pixels(images: Tensor, like: Tensor) -> Tensor:
    """Images in [0, 1] in the dtype and on the device of `like`, from uint8 or float."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    return images.to(like.device, like.dtype) / scale


class State:
    """Everything that a checkpoint of a running training holds."""

    def __init__(self, model: Prior, objective: "Objective", settings: Settings, images: Tensor) -> None:
        self.model, self.objective, self.settings = model, objective, settings
        self.step = 0
        self.history = History()
        self.best_score, self.waited = math.inf, 0
        self.data = _fingerprint(images)
        objective.prepare(model, self._batch(images)[0])
        distributed.copy_from_first(model.state_dict().values())
        self.optimisers = objective.optimisers(model, settings)
        self.players = distributed.players(model, len(self.optimisers))
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.best: dict[str, Tensor] = {}  # the average at the best validation; kept where patience asks for it

    def _batch(self, images: Tensor) -> tuple[Tensor, torch.Generator]:
        draw = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
        chosen = images[torch.randint(len(images), (self.settings.batch_size,), generator=draw)]
        if self.settings.flip:
            mirrored = torch.rand(len(chosen), generator=draw) < 0.5
            chosen = torch.where(mirrored.view(-1, 1, 1, 1), chosen.flip(-1), chosen)
        return as_pixels(chosen, self.model.like), draw

    def update(self, images: Tensor) -> float:
        """One update of every player; the first player's loss."""
        rows = distributed.own_rows(self.settings.batch_size)
        # its mean over the processes is what DistributedDataParallel makes of the gradients
        share = distributed.world() * (rows.stop - rows.start) / self.settings.batch_size
        inputs = [value[rows] for value in self.objective.inputs(self.model, *self._batch(images))]
        first = math.nan
        for index, (optimiser, loss_of) in enumerate(
            zip(self.optimisers, self.objective.losses(self.model, *inputs), strict=True)
        ):
            for group in optimiser.param_groups:
                group["lr"] = self.settings.rate(self.step)
            optimiser.zero_grad(set_to_none=True)
            with self._precision():
                loss = share * self.players(loss_of)
                loss.backward()
            learned = [p for g in optimiser.param_groups for p in g["params"] if p.grad is not None]
            loss = distributed.mean(loss.detach())
            norm = nn.utils.clip_grad_norm_(learned, self.settings.clip)
            # before the optimiser moves: a NaN in the weights could still reach a checkpoint
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise FloatingPointError(
                    f"step {self.step}: the loss is {float(loss)}, the norm of its gradient {float(norm)}; "
                    "lower the learning rate or the clip"
                )
            optimiser.step()
            first = float(loss) if index == 0 else first
        # early steps count fully, so that the average forgets the initial weights
        keep = min(self.settings.average, (1 + self.step) / (10 + self.step)) if self.settings.average else 0.0
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.average[name].lerp_(p, 1 - keep)
        return first

    def _precision(self) -> AbstractContextManager[None]:
        if self.settings.precision == "float32":
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
        score = distributed.from_first(lambda: self.objective.score(self.model, pixels))
        self.model.train()
        self._swap()
        self.history.validated.append(self.step)
        self.history.score.append(score)
        if self.settings.patience is None:
            return
        if score < self.best_score:
            self.best_score, self.waited = score, 0
            self.best = {name: value.clone() for name, value in self.average.items()}
        else:
            self.waited += 1
            self.history.stopped_early = self.waited >= self.settings.patience

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
            "objective": type(self.objective).__name__,
            "settings": asdict(self.settings),
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
        progress = {"step": self.step, "history": asdict(self.history), "best": self.best_score, "waited": self.waited}
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
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = value
        try:
            self.model.load_state_dict(parts["model"])
            self.average = {name: parts["average"][name].to(value) for name, value in self.average.items()}
            self.best = {k: v.to(self.model.like) for k, v in parts.get("best", {}).items()}
            for i, optimiser in enumerate(self.optimisers):
                slots: dict[int, dict[str, Tensor]] = {}
                for name, value in parts[f"optimiser{i}"].items():
                    j, slot = name.split("/")
                    slots.setdefault(int(j), {})[slot] = value
                optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
            progress = about["progress"]
            self.step, self.history = progress["step"], History(**progress["history"])
            self.best_score, self.waited = progress["best"], progress["waited"]
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"checkpoint: got {path.name}, whose content does not fit the training it names ({one_line(error)}); "
                "allowed: what this training wrote; remove the file to start afresh"
            ) from None


def _fingerprint(images: Tensor) -> str:
    """Digest of the training images, so that a run goes on with the data it began with (about 1 s for 1 GB)."""
    digest = hashlib.sha256(f"{images.dtype} {tuple(images.shape)}".encode())
    digest.update(images.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _difference(stored: object, mine: object) -> str:
    if not isinstance(stored, dict) or not isinstance(mine, dict):
        return ""
    changed = [key for key in sorted({*stored, *mine}) if stored.get(key) != mine.get(key)]
    return f" ({', '.join(f'{key}: {stored.get(key)!r}, now {mine.get(key)!r}' for key in changed)})"
