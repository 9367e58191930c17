"""What the minimisers share: an energy evaluated for the images still at work, in their own units, and when to stop."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from companion.energy import Objective
from companion.recover.run import Result, Run, Verdict, Watch, power_of_two

Seen = tuple[Tensor, Tensor] | None


@dataclass
class Stopping:
    """When an image is done; see :func:`companion.recover.minimise`."""

    max_iterations: int
    max_evaluations: int | None
    tolerance_gradient: float
    tolerance_change: float
    patience: int


class Descent:
    """The images of a batch on their way down.

    Energies and gradients are counted in a unit of each image's own, the power of two below the largest entry of its
    gradient at the start: no threshold depends on the scale of the energy, nor does what a dtype can hold. `start` and
    `gradient` are those of the images at work, [k, n], and `value` their energies.
    """

    def __init__(
        self, energy: Objective, z0: Tensor, stopping: Stopping, watch: Watch, bar: "tqdm[Any] | None"
    ) -> None:
        self.energy, self.stopping, self.watched = energy, stopping, bool(watch)
        self.shape, self.chosen = tuple(z0.shape[1:]), energy
        start = z0.detach().flatten(1).clone()
        spent = torch.ones(len(start), dtype=torch.long, device="cpu")
        # of z0, where it had to be brought nearer to 0
        self.factor = torch.ones(len(start), dtype=torch.float64, device="cpu")
        self.unit = torch.ones(1, dtype=torch.float64, device="cpu")
        values, gradient, seen = self.evaluate(start)
        for _ in range(12):
            bad = [
                row
                for row, value in enumerate(values)
                if value == math.inf and int(spent[row]) < (stopping.max_evaluations or math.inf)
            ]
            if not bad:
                break
            start[bad], self.factor[bad] = start[bad] / 4, self.factor[bad] / 4
            spent[bad] += 1
            self.chosen = energy.select(bad)
            again, gradient[bad], looked = self.evaluate(start[bad])
            for row, value in zip(bad, again, strict=True):
                values[row] = value
            if seen and looked:
                for whole, part in zip(seen, looked, strict=True):
                    whole[bad] = part
        self.chosen = energy
        steepest = largest(gradient).cpu().double()
        unit = power_of_two(steepest)
        self.steepest = (steepest / unit).tolist()
        self.unit, self.start = unit, start
        self.gradient = gradient / unit.to(gradient)[:, None]
        self.value = [value / u for value, u in zip(values, unit.tolist(), strict=True)]
        self.recent = [deque([value], maxlen=stopping.patience + 1) for value in self.value]
        energies, most = torch.tensor(self.value, dtype=torch.float64, device="cpu"), stopping.max_evaluations
        self.run = Run(start, energies, spent, stopping.max_iterations, most, unit, watch, seen, bar)
        self._judge_start()

    def evaluate(self, variable: Tensor) -> tuple[list[float], Tensor, Seen]:
        """Energies (+inf where not finite) and gradients (0 there), [k, n], and images and latents if watched."""
        usable = torch.isfinite(largest(variable))
        if not bool(usable.all()):
            variable = torch.where(usable[:, None], variable, 0)
        value, gradient, point = self.chosen.evaluate(variable.unflatten(1, self.shape))
        gradient = gradient.flatten(1)
        usable = usable & torch.isfinite(value) & torch.isfinite(largest(gradient))
        value = torch.where(usable, value, torch.inf).cpu().double() / self.unit
        gradient = gradient / self.unit.to(gradient)[:, None]
        if not bool(usable.all()):
            gradient = torch.where(usable[:, None], gradient, 0)
        if not self.watched:
            return value.tolist(), gradient, None
        with torch.no_grad():
            return value.tolist(), gradient, (point.x.detach(), point.z.detach())

    def _judge_start(self) -> None:
        verdicts: list[Verdict | None] = []
        for value, steepest, factor in zip(self.value, self.steepest, self.factor.tolist(), strict=True):
            if value == math.inf:
                tried = f", nor at any multiple down to {factor:.1e} z0" if factor < 1 else ""
                verdicts.append((False, f"energy or gradient not finite at z0{tried}"))
            elif steepest == 0:  # a minimum for sure where the energy is 0; else it may be a plateau
                verdicts.append((value == 0, "gradient is zero at the start"))
            else:
                verdicts.append(None)
        keep = self._end(verdicts)
        if keep is not None:
            self.start, self.gradient = self.start[keep], self.gradient[keep]
        self.value = [self.value[row] for row in self.run.rows.tolist()]

    def advance(
        self,
        variable: Tensor,
        value: list[float],
        gradient: Tensor,
        seen: Seen,
        stepped: list[bool] | None = None,
        verdicts: list[Verdict | None] | None = None,
    ) -> Tensor | None:
        """Take in the iteration of the images that `stepped`, and stop those that are done or have a verdict already.

        The mask of those to go on with, [k], or None when all do.
        """
        verdicts = verdicts or [None] * len(value)
        which = [True] * len(value) if stepped is None else stepped
        if any(which):
            energies = torch.tensor(value, dtype=torch.float64, device="cpu")
            mask = None if stepped is None else torch.tensor(stepped, device="cpu")
            self.run.record(variable, energies, mask, stepped is not None, seen)
            best, slopes = self.run.energy[self.run.rows].tolist(), largest(gradient).tolist()
            for k, row in enumerate(self.run.rows.tolist()):
                if which[k] and verdicts[k] is None:
                    verdicts[k] = self._verdict(row, value[k], best[k], slopes[k])
        return self._end(verdicts)

    def _verdict(self, row: int, value: float, best: float, slope: float) -> Verdict | None:
        recent, rules = self.recent[row], self.stopping
        recent.append(best)
        if value == math.inf:
            return False, f"energy or gradient not finite at iteration {int(self.run.iterations[row])}"
        if (ratio := slope / self.steepest[row]) <= rules.tolerance_gradient:
            return True, f"largest gradient entry {ratio:.1e} of that at the start <= {rules.tolerance_gradient:.1e}"
        if len(recent) > rules.patience and recent[0] - best <= rules.tolerance_change * abs(best):
            fell = f"energy fell by less than {rules.tolerance_change:.1e} of itself"
            return True, f"{fell} in {rules.patience} iterations"
        return None

    def _end(self, verdicts: list[Verdict | None]) -> Tensor | None:
        keep = self.run.end(verdicts)
        if keep is not None and len(self.run.active):
            self.chosen = self.energy.select(self.run.active)
            self.unit = self.run.unit[self.run.rows]
        return keep

    def result(self, x: Tensor, z: Tensor | None) -> Result:
        """The result, with images and latents of the best iterates; what was started elsewhere than at z0 says so."""
        for row, factor in enumerate(self.factor.tolist()):
            if factor < 1 and self.run.first[row] < math.inf:
                self.run.converged[row] = False
                started = f"energy or gradient not finite at z0, so started at {factor:.2g} z0"
                self.run.reason[row] = f"{started}; {self.run.reason[row]}"
        return self.run.result(x, z)


def largest(rows: Tensor) -> Tensor:
    """The largest absolute value in each row, [k]; NaN where there is one."""
    return rows.abs().amax(1)
