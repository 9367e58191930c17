"""Training of priors: one loop for every objective, with exact resumption.

Every random number is drawn from a generator seeded by (seed, step), so that a step depends on the step number
alone: a killed run continues from its last checkpoint as if it had never stopped; several processes share one batch.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from companion import _support
from companion.priors import distributed
from companion.priors.base import Prior
from companion.priors.precision import conditioners
from companion.priors.settings import History, Settings
from companion.priors.state import State, as_pixels

__all__ = ["History", "Likelihood", "Objective", "Settings", "as_pixels", "fit"]


class Objective(ABC):
    """What is minimised; its score is the number that validation compares (lower is better)."""

    unit: str

    @property
    def loss_unit(self) -> str:
        """Unit of the first player's loss, which the progress bar shows; that of the score for most objectives."""
        return self.unit

    def optimisers(self, model: Prior, settings: Settings) -> list[torch.optim.Optimizer]:
        """The optimisers, one per player; one for most models."""
        return [torch.optim.Adam([p for p in model.parameters() if p.requires_grad], settings.learning_rate)]

    def prepare(self, model: Prior, batch: Tensor) -> None:  # noqa: B027 - a hook, not a duty
        """Data-dependent initialisation from the first batch; nothing for most models."""

    def inputs(self, model: Prior, batch: Tensor, draw: torch.Generator) -> tuple[Tensor, ...]:
        """Everything random that one step needs, made for the whole batch: tensors with one row per image.

        Each process then takes its rows of them, so that any number of processes computes the same.
        """
        return (batch,)

    @abstractmethod
    def losses(self, model: Prior, *inputs: Tensor) -> list[Callable[[], Tensor]]:
        """For each optimiser, in turn, a function that returns its loss, a mean over the rows of `inputs`."""

    @abstractmethod
    def score(self, model: Prior, images: Tensor) -> float:
        """Score of held-out images, in `unit`."""


class Likelihood(Objective):
    """Maximum likelihood of dequantised images, in bits per dimension (flows)."""

    unit = "bits/dim"

    def prepare(self, model: Any, batch: Tensor) -> None:
        if not bool(model.initialised):
            model.initialise(model.pixels.dequantise(batch, 0))

    def inputs(self, model: Any, batch: Tensor, draw: torch.Generator) -> tuple[Tensor, ...]:
        return (model.pixels.dequantise(batch, draw),)

    def losses(self, model: Any, *inputs: Tensor) -> list[Callable[[], Tensor]]:
        return [lambda: model.pixels.bits_per_dim(model.log_prob(*inputs), model.latent_dim).mean()]

    @torch.no_grad()
    def score(self, model: Any, images: Tensor) -> float:
        draw = torch.Generator().manual_seed(0)
        return float(torch.cat([model.bits_per_dim(part, draw) for part in images.split(250)]).mean())


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

    With `checkpoint`, the state is written there every `checkpoint_every` steps and at the end, and a file that is
    already there is continued: on the CPU a run that was killed at any moment ends with the same weights as an unbroken
    one. Inside a process group (see :mod:`companion.priors.distributed`), the processes share each batch, and the first
    one alone validates, writes and shows progress.

    Raises ValueError where that file is corrupt or belongs to other settings, other data or another model, and
    FloatingPointError where the loss or its gradient turns into NaN or infinity (the last checkpoint is kept).
    """
    _check(model, images, validation, settings, torch.device(device))
    model.to(device).train().requires_grad_(True)
    state = State(model, objective, settings, images)
    path = Path(checkpoint) if checkpoint else None
    if path:
        state.restore(path)
    began, worked = time.perf_counter(), state.history.seconds
    silent = not progress or distributed.rank() > 0
    with tqdm(total=settings.steps, initial=state.step, disable=silent, unit="step", mininterval=2) as bar:
        while state.step < settings.steps and not state.history.stopped_early:
            loss = state.update(images)
            state.step += 1
            bar.update()
            if state.step % 20 == 0:
                speed = (state.step * settings.batch_size) / max(1e-9, time.perf_counter() - began + worked)
                bar.set_postfix_str(f"{loss:.3f} {objective.loss_unit}, {speed:.0f} images/s")
                state.history.steps.append(state.step)
                state.history.loss.append(loss)
            last = state.step == settings.steps
            if validation is not None and (last or state.step % settings.validate_every == 0):
                state.validate(validation)
            state.history.seconds = worked + time.perf_counter() - began
            if path and (last or state.history.stopped_early or state.step % settings.checkpoint_every == 0):
                state.write(path)
    state.finish()
    return state.history


def _check(model: Prior, images: Tensor, validation: Tensor | None, settings: Settings, device: torch.device) -> None:
    """Refuse, before the first step, what would only show after many."""
    for name, value in {"images": images, "validation": validation}.items():
        if value is None:
            continue
        _support.batch_of(name, value, model.shape)
        if value.dtype != torch.uint8:
            _support.finite(name, value) if len(model.shape) != 3 else _support.images(name, value)
    if settings.batch_size < distributed.world():
        raise ValueError(
            f"batch_size: got {settings.batch_size}; allowed: at least {distributed.world()}, the processes"
        )
    if settings.patience is not None and validation is None:
        raise ValueError(f"patience: got {settings.patience} without validation images; allowed: None, or both")
    if settings.flip and len(model.shape) != 3:
        raise ValueError(f"flip: got True for data of shape {model.shape}; allowed: True for images")
    if settings.precision == "mixed" and not conditioners(model):
        raise ValueError(
            f"precision: got 'mixed' for {type(model).__name__}; allowed: 'float32', or 'mixed' for a flow"
        )
