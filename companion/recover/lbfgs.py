"""L-BFGS for a batch of independent problems: no history, step or stopping is shared between images."""

import torch
from torch import Tensor

from companion.recover.linesearch import StrongWolfe
from companion.recover.objective import Evaluation, Objective, Outcome, Recorder, Stopping


class History:
    """The last steps s and gradient changes y of every image, and the quasi-Newton direction that they give."""

    def __init__(self, like: Tensor, size: int) -> None:
        batch, n = like.shape
        self.size = size
        self.steps = like.new_zeros(batch, size, n)
        self.changes = like.new_zeros(batch, size, n)
        self.inverse_curvature = like.new_zeros(batch, size)  # 1 / (s · y); 0 where there is no pair
        self.scale = like.new_ones(batch)
        self.pairs = torch.zeros(batch, dtype=torch.long, device=like.device)

    def forget(self, rows: Tensor) -> None:
        """Start afresh for some images."""
        self.inverse_curvature[rows] = 0
        self.scale[rows] = 1
        self.pairs[rows] = 0

    def add(self, rows: Tensor, step: Tensor, change: Tensor) -> None:
        """Append a pair for each of the images `rows`, unless rounding has left it without positive curvature."""
        curvature, squared = (step * change).sum(1), change.square().sum(1)
        least = torch.finfo(step.dtype).eps * step.square().sum(1).sqrt() * squared.sqrt()
        good = (curvature > least) & torch.isfinite(1 / curvature) & torch.isfinite(squared)
        rows, slot = rows[good], self.pairs[rows[good]] % self.size
        self.steps[rows, slot] = step[good]
        self.changes[rows, slot] = change[good]
        self.inverse_curvature[rows, slot] = 1 / curvature[good]
        self.scale[rows] = curvature[good] / squared[good]
        self.pairs[rows] += 1

    def direction(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """−H g by the two-loop recursion (Nocedal & Wright 2006, algorithm 7.4), [k, n]."""
        pairs = self.pairs[rows]
        slots = [(pairs - 1 - age) % self.size for age in range(min(int(pairs.max()), self.size))]
        weights = [self.inverse_curvature[rows, slot, None] for slot in slots]
        q, alphas = -gradient, []
        for slot, weight in zip(slots, weights, strict=True):
            alpha = weight * (self.steps[rows, slot] * q).sum(1, keepdim=True)
            alphas.append(alpha)
            q = q - alpha * self.changes[rows, slot]
        q = q * self.scale[rows, None]
        for slot, weight, alpha in reversed(list(zip(slots, weights, alphas, strict=True))):
            beta = weight * (self.changes[rows, slot] * q).sum(1, keepdim=True)
            q = q + (alpha - beta) * self.steps[rows, slot]
        return q


class LBFGS:
    """The state of all images; :meth:`run` takes every image to its end.

    Every evaluation is shared by all images at work, each at a trial step of its own line search: none waits for
    another. An image whose line search finds nothing better forgets its history and tries steepest descent once
    before it gives up.
    """

    def __init__(
        self,
        objective: Objective,
        start: Tensor,
        first: Evaluation,
        recorder: Recorder,
        stopping: Stopping,
        history: int,
    ) -> None:
        self.objective, self.recorder, self.stopping = objective, recorder, stopping
        self.outcome = Outcome.at_start(start, first)
        self.start, self.first = start, first
        self.gradient = first.gradient.clone()
        self.direction = torch.zeros_like(start)
        self.history = History(start, min(history, stopping.max_iterations))
        self.searches: dict[int, StrongWolfe] = {}
        self.low = (start.clone(), first.gradient.clone())  # variable and gradient at the best step of each line search
        self.low_seen = first.seen and (first.seen[0].clone(), first.seen[1].clone())
        self.least = list(first.value)
        self.rounding = 4 * torch.finfo(start.dtype).eps

    def run(self) -> Outcome:
        """Minimise; each image ends with its own verdict."""
        finite = [row for row, value in enumerate(self.outcome.value) if value < float("inf")]
        self._begin(finite)
        while self.searches:
            rows = list(self.searches)
            ended = self._advance(rows)
            found = [row for row in ended if self.searches[row].low.step > 0]
            lost = [row for row in ended if self.searches[row].low.step == 0]
            self._accept(found)
            self._give_up(lost)
        for row, value in enumerate(self.first.value):
            if self.outcome.value[row] > value:  # by no more than rounding, yet nobody asks for worse than the start
                self.outcome.variable[row], self.outcome.value[row] = self.start[row], value
        return self.outcome

    def _index(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.direction.device)

    def _begin(self, rows: list[int]) -> None:
        """Judge the images `rows` where they stand, and start a line search for those that go on."""
        if not rows:
            return
        largest = self.gradient[self._index(rows)].abs().amax(1).tolist()
        going = []
        for row, gradient in zip(rows, largest, strict=True):
            verdict = self.stopping.verdict(
                row,
                self.outcome.value[row],
                gradient,
                self.recorder.iterations(row),
                self.objective.evaluations[row],
            )
            if verdict is None:
                going.append(row)
            else:
                self.outcome.close(row, verdict)
                self.searches.pop(row, None)
        self._search(going)

    def _search(self, rows: list[int]) -> None:
        if not rows:
            return
        index = self._index(rows)
        gradient = self.gradient[index]
        direction = self.history.direction(index, gradient)
        slope = (gradient.double() * direction.double()).sum(1)
        lost = ~(slope < 0) | ~torch.isfinite(slope) | ~torch.isfinite(direction).all(1)
        self.history.forget(index[lost])
        direction = torch.where(lost[:, None], -gradient, direction)
        slope = (gradient.double() * direction.double()).sum(1)
        self.direction[index] = direction
        fresh = self.history.pairs[index] == 0
        # without curvature, the first guess is a step of length 1 at most: a latent's own scale
        step = torch.where(fresh, (-slope).rsqrt().clamp(max=1), 1)
        for row, slope_, step_ in zip(rows, slope.tolist(), step.tolist(), strict=True):
            hidden = self.rounding * max(1.0, abs(self.least[row]))
            self.searches[row] = StrongWolfe(self.outcome.value[row], slope_, step_, self.least[row] + hidden, hidden)

    def _advance(self, rows: list[int]) -> list[int]:
        """Evaluate one trial step of every search; return the images whose search has ended."""
        index = self._index(rows)
        step = torch.tensor([self.searches[row].step for row in rows], dtype=torch.float64).to(self.direction)
        trial = self.outcome.variable[index] + step[:, None] * self.direction[index]
        result = self.objective(trial, rows)
        slopes = (result.gradient.double() * self.direction[index].double()).sum(1).tolist()
        for row, value, slope in zip(rows, result.value, slopes, strict=True):
            self.searches[row].report(value, slope)
        better = [k for k, row in enumerate(rows) if self.searches[row].improved]
        where = self._index([rows[k] for k in better])
        self.low[0][where], self.low[1][where] = trial[better], result.gradient[better]
        if result.seen and self.low_seen:
            for whole, part in zip(self.low_seen, result.seen, strict=True):
                whole[where] = part[better]
        return [r for r in rows if self.searches[r].done or self.stopping.spent(self.objective.evaluations[r])]

    def _accept(self, rows: list[int]) -> None:
        if not rows:
            return
        index = self._index(rows)
        variable, gradient = self.low[0][index], self.low[1][index]
        self.history.add(index, variable - self.outcome.variable[index], gradient - self.gradient[index])
        self.outcome.variable[index], self.gradient[index] = variable, gradient
        for row in rows:
            self.outcome.value[row] = self.searches[row].low.value
            self.least[row] = min(self.least[row], self.outcome.value[row])
        seen = self.low_seen and (self.low_seen[0][index], self.low_seen[1][index])
        self.recorder.note(rows, [self.outcome.value[row] for row in rows], self.objective, seen)
        self._begin(rows)

    def _give_up(self, rows: list[int]) -> None:
        again = []
        for row in rows:
            if self.stopping.spent(self.objective.evaluations[row]):
                verdict = (False, f"stopped after {self.objective.evaluations[row]} evaluations")
            elif int(self.history.pairs[row]):
                again.append(row)
                continue
            elif self.searches[row].promise <= 100 * self.searches[row].resolution:
                verdict = (True, "steps along the gradient change the energy by no more than its rounding")
            else:
                verdict = (False, "no step along the gradient gives a finite, lower energy")
            self.outcome.close(row, verdict)
            del self.searches[row]
        self.history.forget(self._index(again))
        self._search(again)
