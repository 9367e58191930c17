"""Kernels: one step of every chain at once, from a state, step sizes and random numbers to a state.

All work with ``exp(−energy)`` in the coordinates of :class:`~companion.sample.state.Rows`, where a metric has become an
identity. A proposal whose position, energy or gradient is not finite is refused, and counted.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from companion import _support
from companion.sample.state import Rows, State

JITTER = 0.2  # Hamiltonian steps vary so much, so that no path length is in tune with the target's periods


class Random(NamedTuple):
    """Random numbers of one step: normal, [rows, n], and uniform on [0, 1), [rows, 2]."""

    normal: Tensor
    uniform: Tensor


class Info(NamedTuple):
    """What became of the proposals: probability of acceptance, and whether it was refused as not finite, [rows]."""

    acceptance: Tensor
    failed: Tensor


@dataclass(frozen=True)
class Kernel(ABC):
    """A Markov kernel; its `repr` says all that its result depends on besides the arguments of a step."""

    @property
    def target(self) -> float | None:
        """Acceptance to which a warm-up adapts the step size; None for a kernel that accepts everything."""
        return None

    @property
    def evaluations(self) -> int:
        """Evaluations of the energy for one step."""
        return 1

    @property
    def largest_step(self) -> float:
        """The largest step size that means anything."""
        return math.inf

    @property
    def gradients(self) -> bool:
        """Whether a step asks for the energy's gradient."""
        return True

    @abstractmethod
    def __call__(self, rows: Rows, state: State, step: Tensor, random: Random) -> tuple[State, Info]:
        """One step of size `step`, [rows]."""


@dataclass(frozen=True)
class Langevin(Kernel):
    """Unadjusted Langevin: z ← z − h²/2 ∇E + h √T ξ, whose stationary density is about exp(−E/T) for small h.

    With η = h²/2 this is z − η ∇E + √(2ηT) ξ. Algorithm 1 of Ang 2021 has √η instead of √(2η), so T = ½ there.
    """

    temperature: float = 1.0

    def __call__(self, rows: Rows, state: State, step: Tensor, random: Random) -> tuple[State, Info]:
        noise = math.sqrt(self.temperature) * random.normal
        proposal = rows.at(state.z - step[:, None] * (0.5 * step[:, None] * state.gradient - noise))
        fine = proposal.finite
        return proposal.where(fine, state), Info(fine.to(state.energy), ~fine)


@dataclass(frozen=True)
class Hamiltonian(Kernel):
    """Hamiltonian Monte Carlo with `leapfrogs` steps (Neal 2011, fig. 2); one leapfrog is MALA."""

    leapfrogs: int = 1

    @property
    def target(self) -> float | None:
        return 0.574 if self.leapfrogs == 1 else 0.75  # Roberts & Rosenthal 1998; Beskos et al. 2013: .65 or more

    @property
    def evaluations(self) -> int:
        return self.leapfrogs

    def __call__(self, rows: Rows, state: State, step: Tensor, random: Random) -> tuple[State, Info]:
        if self.leapfrogs > 1:
            step = step * (1 + JITTER * (2 * random.uniform[:, 1] - 1))
        h, momentum, at = step[:, None], random.normal, state
        kinetic = 0.5 * momentum.square().sum(1)
        fine = torch.ones_like(state.energy, dtype=torch.bool)
        momentum = momentum - 0.5 * h * at.gradient
        for leap in range(self.leapfrogs):
            proposal = rows.at(at.z + h * momentum)
            if not proposal.all_finite:  # row by row only then: it would cost a tenth of a small model's evaluation
                fine = fine & proposal.finite
                proposal = proposal.where(fine, at)
            at = proposal
            momentum = momentum - (0.5 if leap == self.leapfrogs - 1 else 1.0) * h * at.gradient
        change = state.energy + kinetic - at.energy - 0.5 * momentum.square().sum(1)
        acceptance = torch.where(fine, change.clamp(max=0).exp(), 0.0).nan_to_num(0.0)
        return at.where(random.uniform[:, 0] < acceptance, state), Info(acceptance, ~fine)


@dataclass(frozen=True)
class CrankNicolson(Kernel):
    """Preconditioned Crank–Nicolson (Cotter et al. 2013, eq. 4.5): u ← √(1 − h²) u + h ξ, step h in (0, 1].

    Its acceptance needs E − ‖u‖²/2 only, the misfit where u = z and the prior is N(0, I); with a metric it compares the
    energy with Laplace's approximation instead. No gradient is used.
    """

    @property
    def largest_step(self) -> float:
        return 1.0

    @property
    def gradients(self) -> bool:
        return False

    @property
    def target(self) -> float | None:
        return 0.3

    def __call__(self, rows: Rows, state: State, step: Tensor, random: Random) -> tuple[State, Info]:
        h = step.clamp(max=self.largest_step)[:, None]
        u = (1 - h.square()).sqrt() * state.z + h * random.normal
        energy = rows.value(u)
        fine = energy.isfinite()
        change = state.energy - energy - 0.5 * (state.z.square().sum(1) - u.square().sum(1))
        acceptance = torch.where(fine, change.clamp(max=0).exp(), 0.0).nan_to_num(0.0)
        proposal = State(u, energy, state.gradient)  # whose gradient nobody asks for
        return proposal.where(random.uniform[:, 0] < acceptance, state), Info(acceptance, ~fine)


class DualAveraging:
    """Step sizes adapted to an acceptance (Hoffman & Gelman 2014, eq. 6, with their constants), one for each image."""

    def __init__(self, step: Tensor, target: float, largest: float) -> None:
        self.target, self.largest = target, math.log(largest)
        self.centre = (10 * step).log().clamp(max=self.largest)
        self.numbers = torch.stack([torch.zeros_like(step), step.log(), step.log()])  # error, log step, its average
        self.count = 0

    def update(self, acceptance: Tensor) -> Tensor:
        """The next step sizes, [images], after so much acceptance, [images]."""
        self.count += 1
        error, _, average = self.numbers
        share, weight = 1 / (self.count + 10), self.count**-0.75
        error = (1 - share) * error + share * (self.target - acceptance)
        log_step = (self.centre - self.count**0.5 / 0.05 * error).clamp(max=self.largest)
        self.numbers = torch.stack([error, log_step, weight * log_step + (1 - weight) * average])
        return log_step.exp()

    @property
    def final(self) -> Tensor:
        """The step sizes to sample with, [images]."""
        return self.numbers[2].exp()


def random_block(seed: int, stream: tuple[str | int, ...], steps: int, rows: Rows, like: Tensor) -> list[Random]:
    """Random numbers of so many steps; a row's follow from the stream, its image and its chain alone."""
    normal, uniform, n = [], [], like.shape[1]
    for image in range(rows.images):
        for chain in range(rows.chains):
            source = _support.generator(seed, *stream, image, chain)
            normal.append(torch.randn(steps, n, generator=source, dtype=like.dtype, device="cpu"))
            uniform.append(torch.rand(steps, 2, generator=source, dtype=like.dtype, device="cpu"))
    wide, flat = torch.stack(normal, 1).to(like.device), torch.stack(uniform, 1).to(like.device)
    return [Random(*numbers) for numbers in zip(wide, flat, strict=True)]
