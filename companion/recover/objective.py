"""What the minimisers share: evaluating an energy for the images still at work, recording, and when to stop."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

Watch = Mapping[str, Callable[[Tensor, Tensor], Tensor]]


@dataclass
class Evaluation:
    """Energy and gradient of some images, as the minimisers need them.

    Attributes
    ----------
    value : list[float]
        Energies; +inf where energy or gradient is not finite.
    gradient : Tensor
        [k, n]; 0 where energy or gradient is not finite.
    seen : tuple[Tensor, Tensor] | None
        Images and latents, for the functions that watch.
    """

    value: list[float]
    gradient: Tensor
    seen: tuple[Tensor, Tensor] | None


class Objective:
    """An energy with its gradient, evaluated for chosen images of the batch, and the number of evaluations of each.

    An energy with a ``select`` method (:class:`companion.energy.Energy`) is evaluated for those images only; any
    other function of the batch is evaluated for all of them.
    """

    def __init__(self, energy: Callable[[Tensor], Tensor], start: Tensor, keep_seen: bool) -> None:
        self.energy, self.keep_seen = energy, keep_seen
        self.shape = tuple(start.shape[1:])
        self.batch = len(start)
        self.evaluations = [0] * self.batch
        self._last = start.detach().clone()
        self._chosen: tuple[list[int], Any] = (list(range(self.batch)), energy)

    def __call__(self, variable: Tensor, rows: list[int]) -> Evaluation:
        """Evaluate at `variable`, [k, n], for the images `rows`: one pass forward and one back."""
        for row in rows:
            self.evaluations[row] += 1
        usable = torch.isfinite(variable).all(1)
        safe = torch.where(usable[:, None], variable, 0).unflatten(1, self.shape)
        if hasattr(self.energy, "select"):
            value, gradient, seen = self._differentiate(self._select(rows), safe)
        else:
            everything = self._last.clone()
            everything[rows] = safe
            value, gradient, seen = self._differentiate(self.energy, everything)
            value, gradient = value[rows], gradient[rows]
            seen = seen and (seen[0][rows], seen[1][rows])
        gradient = gradient.flatten(1)
        usable = usable & torch.isfinite(value) & torch.isfinite(gradient).all(1)
        value = torch.where(usable, value.double(), torch.inf)
        return Evaluation(value.tolist(), torch.where(usable[:, None], gradient, 0), seen)

    def _select(self, rows: list[int]) -> Any:
        if rows != self._chosen[0]:
            self._chosen = (list(rows), self.energy.select(rows))  # type: ignore[attr-defined]
        return self._chosen[1]

    def _differentiate(self, energy: Any, variable: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        variable = variable.detach().requires_grad_()
        with torch.enable_grad():
            if hasattr(energy, "at"):
                point = energy.at(variable)
                value = energy.of(point)
            else:
                value = energy(variable)
            if not isinstance(value, Tensor) or tuple(value.shape) != (len(variable),):
                given = f"values of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"energy: got {given}; allowed: a tensor of one value per image, [{len(variable)}]")
            found = torch.autograd.grad(value.sum(), variable, allow_unused=True) if value.requires_grad else (None,)
            if (gradient := found[0]) is None:
                raise ValueError("energy: got values without a gradient in z; allowed: a differentiable function of z")
        if not self.keep_seen:
            return value.detach(), gradient, None
        with torch.no_grad():
            x, z = (point.x, point.z) if hasattr(energy, "at") else (variable, variable)
        return value.detach(), gradient, (x.detach(), z.detach())


class Recorder:
    """Traces of the energy, the evaluations spent, and whatever is watched, by image and its own iterations."""

    def __init__(self, batch: int, watch: Watch, bar: "tqdm[Any] | None" = None) -> None:
        self.watch, self.bar = watch, bar
        self._entries: dict[str, list[list[float]]] = {
            name: [[] for _ in range(batch)] for name in ("energy", "evaluations", *watch)
        }
        self._seen: tuple[Tensor, Tensor] | None = None

    def note(
        self, rows: list[int], values: list[float], objective: Objective, seen: tuple[Tensor, Tensor] | None
    ) -> None:
        """Append one iteration of the images `rows`."""
        for row, value in zip(rows, values, strict=True):
            self._entries["energy"][row].append(value)
            self._entries["evaluations"][row].append(objective.evaluations[row])
        if self.bar is not None:
            self.bar.update(max(self.iterations(row) for row in rows) - self.bar.n)
        if seen is None:
            return
        if self._seen is None:
            self._seen = (seen[0].clone(), seen[1].clone())
        for whole, part in zip(self._seen, seen, strict=True):
            whole[rows] = part
        for name, function in self.watch.items():
            watched = function(*self._seen)
            if not isinstance(watched, Tensor) or tuple(watched.shape) != (len(self._seen[0]),):
                given = f"shape {tuple(watched.shape)}" if isinstance(watched, Tensor) else type(watched).__name__
                raise ValueError(f"watch[{name!r}]: got {given}; allowed: a tensor of one value per image, [batch]")
            for row, value in zip(rows, watched[rows].tolist(), strict=True):
                self._entries[name][row].append(value)

    def iterations(self, row: int) -> int:
        """Iterations of one image so far; its start is none."""
        return len(self._entries["energy"][row]) - 1

    def trace(self) -> dict[str, Tensor]:
        """Every trace as [steps, batch] in float64; an image that stopped early keeps its last value."""
        steps = max(len(entries) for entries in self._entries["energy"])
        return {
            name: torch.tensor([e + e[-1:] * (steps - len(e)) for e in entries], dtype=torch.float64).T.contiguous()
            for name, entries in self._entries.items()
        }


@dataclass
class Stopping:
    """When an image is done, and what to say then."""

    max_iterations: int
    max_evaluations: int | None
    tolerance_gradient: float
    tolerance_change: float
    patience: int

    def __post_init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}

    def verdict(
        self, row: int, value: float, gradient: float, iterations: int, evaluations: int
    ) -> tuple[bool, str] | None:
        """(converged, reason) if the image is done, given its energy and its largest gradient entry; else None."""
        recent = self._recent.setdefault(row, deque(maxlen=self.patience + 1))
        recent.append(value)
        if gradient <= self.tolerance_gradient:
            return True, f"largest gradient entry {gradient:.1e} <= {self.tolerance_gradient:.1e}"
        if len(recent) > self.patience and recent[0] - value <= self.tolerance_change * abs(value):
            return True, f"energy fell by less than {self.tolerance_change:.1e} of itself in {self.patience} iterations"
        if iterations >= self.max_iterations:
            return False, f"stopped after {iterations} iterations"
        if self.spent(evaluations):
            return False, f"stopped after {evaluations} evaluations"
        return None

    def spent(self, evaluations: int) -> bool:
        """Whether the budget is used up."""
        return self.max_evaluations is not None and evaluations >= self.max_evaluations


@dataclass
class Outcome:
    """Where a minimiser left each image."""

    variable: Tensor
    value: list[float]
    converged: list[bool]
    reason: list[str]

    @classmethod
    def at_start(cls, variable: Tensor, first: Evaluation) -> "Outcome":
        """Nothing done yet."""
        return cls(variable.clone(), list(first.value), [False] * len(variable), [""] * len(variable))

    def close(self, row: int, verdict: tuple[bool, str]) -> None:
        """Write down how the image ended."""
        self.converged[row], self.reason[row] = verdict
