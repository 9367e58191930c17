"""Training of priors: one loop for every criterion, with exact resumption.

Every random number is drawn from the stream (seed, "step", step), so that a step depends on the step number alone: a
killed run continues from its last checkpoint as if it had never stopped; several processes share one batch.
"""

import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from companion import _support
from companion.data import Images
from companion.priors.base import Prior
from companion.training import distributed
from companion.training.criteria import Criterion
from companion.training.precision import conditioners
from companion.training.schedule import LearningCurve, Schedule
from companion.training.state import State, averaged


def fit(
    model: Prior,
    images: Tensor | Images,
    criterion: Criterion,
    schedule: Schedule,
    *,
    validation: Tensor | Images | None = None,
    checkpoint: str | Path | None = None,
    start: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> LearningCurve:
    """Train `model` in place; returns its learning curve.

    Parameters
    ----------
    images, validation
        Training and held-out images: what :func:`companion.data.load` gives, or [N, *shape] as uint8 or float in
        [0, 1].
    checkpoint
        File for the state of the running training, written every `checkpoint_every` steps and at the end. One that is
        already there is continued: on the CPU a run that was killed at any moment ends with the same weights as an
        unbroken one.
    start
        Name or file of a checkpoint, or file of another training's state, with the same architecture: the training
        begins with its averaged weights (and with step 0, a new optimiser and the whole schedule). For a run whose
        state was lost. Ignored where `checkpoint` is continued.

    Inside a process group (see :mod:`companion.training.distributed`), the processes share each batch, and the first
    one alone validates, writes and shows progress.

    Raises ValueError where a file is corrupt or belongs to another schedule, other data or another model, and
    FloatingPointError where the loss or its gradient turns into NaN or infinity (the last checkpoint is kept).
    """
    path = Path(checkpoint) if checkpoint else None
    train = _tensor("images", images, model)
    held_out = None if validation is None else _tensor("validation", validation, model)
    _check(model, held_out, schedule)
    if start is not None and not (path and path.exists()):
        _take_weights(model, start)
    model.to(device).train().requires_grad_(True)
    state = State(model, criterion, schedule, train)
    if path:
        state.restore(path)
    curve = state.curve
    began, worked = time.perf_counter(), curve.seconds
    silent = not progress or distributed.rank() > 0
    with tqdm(total=schedule.steps, initial=state.step, disable=silent, unit="step", mininterval=2) as bar:
        while state.step < schedule.steps and not curve.stopped_early:
            loss = state.update(train)
            state.step += 1
            bar.update()
            if state.step % 20 == 0:
                speed = (state.step * schedule.batch_size) / max(1e-9, time.perf_counter() - began + worked)
                bar.set_postfix_str(f"{loss:.3f} {criterion.loss_unit}, {speed:.0f} images/s")
                curve.steps.append(state.step)
                curve.loss.append(loss)
            last = state.step == schedule.steps
            if held_out is not None and (last or state.step % schedule.validate_every == 0):
                state.validate(held_out)
            curve.seconds = worked + time.perf_counter() - began
            if path and (last or curve.stopped_early or state.step % schedule.checkpoint_every == 0):
                state.write(path)
    state.finish()
    return curve


def _tensor(name: str, images: Tensor | Images, model: Prior) -> Tensor:
    """The images of a data set, checked before the first step; else ValueError."""
    if isinstance(images, Dataset) and not isinstance(images, Images):
        given = type(images).__name__
        raise ValueError(f"{name}: got a {given}; allowed: a data set of companion.data, or a tensor of its images")
    value = images.images if isinstance(images, Images) else images
    _support.batch_of(name, value, model.shape)
    if value.dtype != torch.uint8:
        _support.finite(name, value) if len(model.shape) != 3 else _support.images(name, value)
    return value


def _check(model: Prior, validation: Tensor | None, schedule: Schedule) -> None:
    """Refuse, before the first step, what would only show after many."""
    if schedule.batch_size < distributed.world():
        raise ValueError(
            f"batch_size: got {schedule.batch_size}; allowed: at least {distributed.world()}, the processes"
        )
    if schedule.patience is not None and validation is None:
        raise ValueError(f"patience: got {schedule.patience} without validation images; allowed: None, or both")
    if schedule.augment and len(model.shape) != 3:
        raise ValueError(f"augment: got {schedule.augment} for data of shape {model.shape}; allowed: () but for images")
    if "turn" in schedule.augment and model.shape[1] != model.shape[2]:
        raise ValueError(f"augment: got 'turn' for images of shape {model.shape}; allowed: 'turn' for square images")
    if schedule.precision == "mixed" and not conditioners(model):
        raise ValueError(
            f"precision: got 'mixed' for {type(model).__name__}; allowed: 'float32', or 'mixed' for a flow"
        )


def _take_weights(model: Prior, start: str | Path) -> None:
    given = averaged(start)
    # Weights that fit are not enough: a squeeze or a map of pixels has none, and makes another function of the same.
    (theirs, own) = ((type(each), each.config | {"seed": None}) for each in (given, model))
    if theirs != own:
        raise ValueError(
            f"start: got a {type(given).__name__} with {given.config}; allowed: the model's own architecture, "
            f"{model.config}"
        )
    model.load_state_dict(given.state_dict())
