"""The one loop that runs all kernels: warm-up with steps adapted image by image, recording, and resuming."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from companion import _support
from companion.energy import Objective
from companion.priors.checkpoint import read_tensors, write_tensors
from companion.sample.chains import Chains
from companion.sample.kernels import DualAveraging, Kernel, Random, random_block
from companion.sample.metric import Metric
from companion.sample.state import Rows, State, chains_of

BLOCK = 50  # steps between two writings of the checkpoint


@torch.inference_mode(False)  # gradients are needed, whatever mode the caller is in
def run(
    kernel: Kernel,
    energy: Objective | Callable[[Tensor], Tensor],
    z0: Tensor,
    *,
    step: float | Tensor,
    draws: int = 1000,
    warmup: int = 500,
    thin: int = 1,
    metric: Metric | None = None,
    seed: int = 0,
    stream: tuple[str | int, ...] = (),
    checkpoint: Path | str | None = None,
    progress: bool = False,
) -> Chains:
    """Chains of a kernel, with stationary density ∝ exp(−energy); all images and chains move together, in one batch.

    Parameters
    ----------
    energy
        Usually a :class:`companion.energy.Energy`; or a plain function [rows, n] → [rows] of rows treated alike.
    z0
        Starts, [images, chains, *variable shape]; see :func:`~companion.sample.initialise`.
    step
        Size of a step, one for all or [images]; in the metric's coordinates where there is a metric. The warm-up starts
        from it and adapts it to the kernel's acceptance, pooled over the chains of an image. Langevin keeps it.
    draws, warmup, thin
        Draws recorded of each chain; steps before the first; every `thin`-th step after them is recorded.
    metric
        Of :func:`~companion.sample.gauss_newton`. Its cost is not among the result's evaluations.
    seed, stream
        Chain c of image k has its own random numbers, which do not depend on how many others there are. The step that
        a warm-up adapts is that of all chains of an image, so with a warm-up a chain depends on those beside it.
    checkpoint
        File from which a killed run goes on, to the very chains that it would have made; written every 50 steps.
    progress
        Show a bar.

    Raises ValueError for wrong shapes and numbers, for a start whose energy, or gradient where the kernel asks for it,
    is not finite, and for the checkpoint of another run.
    """
    z0 = chains_of(energy, z0)
    draws, thin = _support.count("draws", draws), _support.count("thin", thin)
    warmup = _support.count("warmup", warmup, least=0)
    rows = Rows(energy, z0, metric)
    u = rows.coordinates(z0)
    state = rows.at(u) if kernel.gradients else State(u, rows.value(u), torch.zeros_like(u))
    if bad := int((~state.finite).sum()):
        raise ValueError(f"z0: got {bad} of {len(state.z)} chains whose energy is not finite; allowed: finite ones")
    going = _Going(kernel, rows, state, _step_sizes(step, rows, kernel), draws, warmup, thin)
    settings = f"{kernel} {draws} {warmup} {thin} {seed} {stream}"
    target = (state.energy, state.gradient, *((metric.centre, metric.factor) if metric else ()))
    mine = _support.sha256(settings, z0, going.step, *target)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        going.restore(path, mine)
    total = warmup + draws * thin
    with tqdm(total=total, initial=going.done, desc=type(kernel).__name__, unit="step", disable=not progress) as bar:
        while going.done < total:
            steps = min(BLOCK, total - going.done)
            for random in random_block(seed, (*stream, "chain", going.done), steps, rows, state.z):
                going.advance(random)
            bar.update(steps)
            if path is not None:
                going.write(path, mine)
    return going.result()


def _step_sizes(step: float | Tensor, rows: Rows, kernel: Kernel) -> Tensor:
    """Step sizes of the images, [images]."""
    if not isinstance(step, Tensor) or not step.dim():
        step = torch.full((rows.images,), _support.positive("step", step), device="cpu")
    if step.shape != (rows.images,) or not (step.isfinite() & (step > 0)).all():
        raise ValueError(
            f"step: got {tuple(step.shape)}; allowed: a number > 0, or one for each of {rows.images} images"
        )
    return step.to(rows.like).clamp(max=kernel.largest_step)


@dataclass
class _Going:
    """A run on its way; every tensor in it is written to the checkpoint."""

    kernel: Kernel
    rows: Rows
    state: State
    step: Tensor  # [images]
    draws: int
    warmup: int
    thin: int
    done: int = 0

    def __post_init__(self) -> None:
        target, like = self.kernel.target, self.state.z
        self.adapt = DualAveraging(self.step, target, self.kernel.largest_step) if target and self.warmup else None
        self.samples = like.new_zeros(self.draws, *like.shape)
        self.energies = like.new_zeros(self.draws, len(like))
        self.accepted, self.failed = (like.new_zeros(len(like)) for _ in range(2))  # sums over the steps

    def advance(self, random: Random) -> None:
        self.state, info = self.kernel(self.rows, self.state, self.rows.per_row(self.step), random)
        self.failed += info.failed
        if self.done < self.warmup:
            if self.adapt:
                self.step = self.adapt.update(self.rows.per_image(info.acceptance))
                self.step = self.adapt.final if self.done == self.warmup - 1 else self.step
        else:
            self.accepted += info.acceptance
            draw, rest = divmod(self.done - self.warmup + 1, self.thin)
            if not rest:
                self.samples[draw - 1], self.energies[draw - 1] = self.state.z, self.state.energy
        self.done += 1

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {**vars(self.state), "step": self.step, "accepted": self.accepted, "failed": self.failed}
        recorded = max(0, self.done - self.warmup) // self.thin
        tensors |= {"samples": self.samples[:recorded], "energies": self.energies[:recorded]}
        return tensors | ({"adaptation": self.adapt.numbers} if self.adapt else {})

    def write(self, path: Path, settings: str) -> None:
        write_tensors(path, self._tensors(), {"settings": settings, "done": self.done})

    def restore(self, path: Path, settings: str) -> None:
        tensors, about = read_tensors(path)
        if about.get("settings") != settings:
            raise ValueError(f"checkpoint: got {path.name} of another run; allowed: this run's, or a new file")
        tensors = {name: tensor.to(self.state.z) for name, tensor in tensors.items()}
        self.state = State(tensors["z"], tensors["energy"], tensors["gradient"])
        # two energies may agree at the start, symmetric ones above all, and a kernel may ask for no gradient there
        if not torch.allclose(self.rows.value(self.state.z), self.state.energy, rtol=1e-3, atol=1e-3):
            raise ValueError(f"checkpoint: got {path.name} of another energy; allowed: this run's, or a new file")
        self.done = about["done"]
        self.step, self.accepted, self.failed = tensors["step"], tensors["accepted"], tensors["failed"]
        self.samples[: len(tensors["samples"])] = tensors["samples"]
        self.energies[: len(tensors["energies"])] = tensors["energies"]
        if self.adapt:
            self.adapt.numbers, self.adapt.count = tensors["adaptation"], min(self.done, self.warmup)

    def result(self) -> Chains:
        images, chains = self.rows.images, self.rows.chains
        spent = 1 + self.done * self.kernel.evaluations
        return Chains(
            samples=torch.stack([self.rows.variable(u) for u in self.samples]).unflatten(1, (images, chains)),
            energies=self.energies.unflatten(1, (images, chains)),
            accept_rate=(self.accepted / (self.draws * self.thin)).view(images, chains),
            failed=self.failed.long().view(images, chains),
            step=self.step,
            evaluations=torch.full((images, chains), spent, device="cpu"),
        )
