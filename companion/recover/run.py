"""What all iterative methods keep of their images: who is still at work, best iterates, traces and reasons."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from companion import _support
from companion.energy import shaped

Watch = Mapping[str, Callable[[Tensor, Tensor], Tensor]]
Verdict = tuple[bool, str]  # converged, and why the image stops


@dataclass(frozen=True)
class Result:
    """What a method found, image by image.

    Attributes
    ----------
    x : Tensor
        Images, [batch, *shape], not clipped; the variable itself where the energy is a plain function.
    z : Tensor | None
        Their latents, [batch, n]; None where there are none.
    energy : Tensor
        Energy of the best iterate, which x and z are, [batch].
    trace : dict[str, Tensor]
        "energy" and "evaluations" (spent so far) at each iteration, from the start on, and whatever was watched;
        [steps, batch], float64. An image that stopped early keeps its last value. Infinite where it was not finite.
    evaluations : Tensor
        Evaluations of energy and gradient spent on each image, [batch].
    converged : Tensor
        Boolean, [batch].
    reason : list[str]
        Why each image stopped.
    """

    x: Tensor
    z: Any  # a Tensor to who knows that there are latents
    energy: Tensor
    trace: dict[str, Tensor]
    evaluations: Tensor
    converged: Tensor
    reason: list[str]

    @classmethod
    def of_one_step(
        cls, x: Tensor, z: Tensor | None, energy: Tensor, evaluations: int, converged: Tensor, reason: list[str]
    ) -> "Result":
        """The result of a method without iterations."""
        spent = torch.full((len(x),), evaluations, device="cpu")
        trace = {"energy": energy[None].clone().cpu().double(), "evaluations": spent[None].double()}
        return cls(x, z, energy, trace, spent, converged.cpu(), reason)

    def at(self, name: str, evaluations: float | Sequence[float] | Tensor) -> Tensor:
        """A trace after given numbers of evaluations: at the last iterate reached within each.

        [len(evaluations), batch], or [batch] for one number; before the first iterate, the start's value. ValueError
        for a name that is not in the trace.
        """
        values = self.trace[str(_support.one_of("name", name, self.trace))].T
        wanted = torch.as_tensor(evaluations, dtype=torch.float64, device="cpu")
        spent = self.trace["evaluations"].T.contiguous()
        place = torch.searchsorted(spent, wanted.reshape(1, -1).repeat(len(spent), 1), right=True) - 1
        found = values.gather(1, place.clamp(min=0)).T
        return found if wanted.dim() else found[0]


class Run:
    """The images of a batch that a method still works on, and what became of the others.

    A method keeps state only for the images in `active`, and drops the state of those that stop (:meth:`end`): an easy
    image costs nothing while its neighbours go on, and its result is the one that it would have had alone.

    It begins with one iterate per image, `start`, [batch, ...], their energies, and the evaluations spent on them;
    energies are counted in `unit`, [batch], which the result undoes. `seen` are images and latents of the start for
    the functions that `watch`; `bar` shows iterations.
    """

    def __init__(
        self,
        start: Tensor,
        energy: Tensor,
        evaluations: int | Tensor,
        max_iterations: int,
        max_evaluations: int | None = None,
        unit: Tensor | None = None,
        watch: Watch | None = None,
        seen: tuple[Tensor, Tensor] | None = None,
        bar: "tqdm[Any] | None" = None,
    ) -> None:
        batch = len(start)
        self.active = torch.arange(batch, device=start.device)
        self.rows = torch.arange(batch, device="cpu")  # the same, on the CPU
        self.best = start.clone()
        self.energy = _finite_or_infinite(energy)
        self.first = self.energy.clone()
        self.evaluations = torch.zeros(batch, dtype=torch.long, device="cpu") + evaluations
        self.iterations = torch.zeros(batch, dtype=torch.long, device="cpu")
        self.max_iterations, self.max_evaluations = max_iterations, max_evaluations
        self.unit = torch.ones(batch, dtype=torch.float64, device="cpu") if unit is None else unit
        self.converged = torch.zeros(batch, dtype=torch.bool, device="cpu")
        self.reason = [""] * batch
        self.watch, self.bar = watch or {}, bar
        self._seen = seen and (seen[0].clone(), seen[1].clone())
        self._entries: list[tuple[Tensor, dict[str, Tensor]]] = []
        self._note(self.rows, self.energy)

    def spend(self) -> Tensor:
        """Count one evaluation for each image at work; whether its budget is used up now, [k]."""
        self.evaluations[self.rows] += 1
        if self.max_evaluations is None:
            return torch.zeros(len(self.rows), dtype=torch.bool, device="cpu")
        return self.evaluations[self.rows] >= self.max_evaluations

    def record(
        self,
        iterate: Tensor,
        energy: Tensor,
        which: Tensor | None = None,
        prefer: Tensor | bool = False,
        seen: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Take in an iteration of the images at work, or of `which` of them, [k]; everything given is of all k.

        Near the minimum energies differ by rounding only: iterates to `prefer` are then the best whatever their energy,
        if only it is no higher than at the start.
        """
        rows, active, energy = self.rows, self.active, _finite_or_infinite(energy)
        prefer = torch.zeros_like(rows, dtype=torch.bool) | (prefer.cpu() if isinstance(prefer, Tensor) else prefer)
        if which is not None and not bool(which.all()):
            rows, energy, prefer = rows[which], energy[which], prefer[which]
            which = which.to(active.device)
            active, iterate, seen = active[which], iterate[which], seen and (seen[0][which], seen[1][which])
        better = (energy <= self.energy[rows]) | (energy <= self.first[rows]) & prefer
        better &= energy < torch.inf
        self.best[active] = torch.where(scaling(better.to(active.device), iterate), iterate, self.best[active])
        self.energy[rows] = torch.where(better, energy, self.energy[rows])
        self.iterations[rows] += 1
        if self._seen is not None and seen is not None:
            for whole, part in zip(self._seen, seen, strict=True):
                whole[active] = part
        self._note(rows, energy)

    def _note(self, rows: Tensor, energy: Tensor) -> None:
        entry = {"energy": energy * self.unit[rows], "evaluations": self.evaluations[rows].double()}
        for name, function in self.watch.items():
            watched = shaped(f"watch[{name!r}]", function(*self._seen), (len(self.best),))  # type: ignore[misc]
            entry[name] = watched.detach().cpu().double()[rows]
        self._entries.append((rows, entry))
        if self.bar is not None:
            self.bar.update(int(self.iterations.max()) - self.bar.n)

    def end(self, verdicts: Sequence[Verdict | None]) -> Tensor | None:
        """Stop the images at work that have a verdict or no budget left.

        The mask, [k], of those to go on with, or None when all of them do.
        """
        keep = [True] * len(self.active)
        for k, (row, verdict) in enumerate(zip(self.rows.tolist(), verdicts, strict=True)):
            spent, done = int(self.evaluations[row]), int(self.iterations[row])
            if verdict is None and done >= self.max_iterations:
                verdict = (False, f"stopped after {done} iterations")
            if verdict is None and self.max_evaluations is not None and spent >= self.max_evaluations:
                verdict = (False, f"stopped after {spent} evaluations")
            if verdict is not None:
                (self.converged[row], self.reason[row]), keep[k] = verdict, False
        if all(keep):
            return None
        mask = torch.tensor(keep, device=self.active.device)
        self.active, self.rows = self.active[mask], self.rows[torch.tensor(keep, device="cpu")]
        return mask

    def advance(self, iterate: Tensor, energy: Tensor, met: Tensor, reason: str) -> Tensor | None:
        """One evaluation and iteration of all images at work, of which `met` satisfy the rule that `reason` names."""
        self.spend()
        self.record(iterate, energy, prefer=met)
        sound = torch.isfinite(energy).tolist()
        failed = (False, "energy not finite")
        return self.end(
            [((True, reason) if m else None) if s else failed for m, s in zip(met.tolist(), sound, strict=True)]
        )

    def result(self, x: Tensor, z: Tensor | None) -> Result:
        """The result, with the images and latents made from `best`."""
        energy = (self.energy * self.unit).to(x.dtype).to(x.device)
        return Result(x, z, energy, self._trace(), self.evaluations, self.converged, self.reason)

    def _trace(self) -> dict[str, Tensor]:
        """Every trace as [steps, batch], from entries of some images each."""
        rows = torch.cat([rows for rows, _ in self._entries])
        order = rows.argsort(stable=True)
        counts = rows.bincount(minlength=len(self.best))
        step = torch.arange(len(rows), device="cpu") - (counts.cumsum(0) - counts).repeat_interleave(counts)
        last = torch.arange(int(counts.max()), device="cpu")[:, None].minimum(counts - 1)
        trace = {}
        for name in self._entries[0][1]:
            values = torch.cat([entry[name] for _, entry in self._entries])[order]
            table = values.new_zeros(last.shape)
            table[step, rows[order]] = values
            trace[name] = table.gather(0, last)
        return trace


def _finite_or_infinite(energy: Tensor) -> Tensor:
    energy = energy.cpu().double()
    return torch.where(torch.isfinite(energy), energy, torch.inf)


def scaling(value: Tensor, like: Tensor) -> Tensor:
    """One value per image, [batch], as [batch, 1, ..., 1], to scale the images of `like`."""
    return value.view(-1, *[1] * (like.dim() - 1))


def power_of_two(size: Tensor) -> Tensor:
    """The power of two at or below positive numbers, a unit that changes no digit; 1 for 0 and what is not finite."""
    unit = size / (2 * torch.frexp(size).mantissa)
    return torch.where((size > 0) & torch.isfinite(unit) & (unit > 0), unit, 1)
