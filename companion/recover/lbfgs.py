"""L-BFGS for a batch of independent problems: no history, step or stopping is shared between images."""

import torch
from torch import Tensor

from companion.recover.descent import Descent, Verdict, largest
from companion.recover.linesearch import StrongWolfe
from companion.recover.run import scaling


class History:
    """The last steps s and gradient changes y of every image, and the quasi-Newton direction that they give.

    The vectors are read twice for a direction, once for their inner products with the gradient and the newest y, once
    for a sum of them; the recursion runs on small matrices of inner products, from the oldest pair to the newest.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        batch, n = like.shape
        kind = torch.float64 if like.device.type != "mps" else torch.float32
        self.size = size
        self.steps, self.changes = like.new_zeros(batch, size, n), like.new_zeros(batch, size, n)
        self.products = torch.eye(size, dtype=kind, device=like.device).repeat(batch, 1, 1)  # sᵢ·yⱼ for i <= j
        self.squares = torch.zeros_like(self.products)  # yᵢ·yⱼ
        self.scale = like.new_ones(batch, dtype=kind)
        self.pairs = torch.zeros(batch, dtype=torch.long, device=like.device)
        self.change, self.new = like, self.pairs > 0  # a newest y whose inner products are not known yet

    def keep(self, mask: Tensor) -> None:
        """Drop the images that have ended."""
        for name in ("steps", "changes", "products", "squares", "scale", "pairs", "change", "new"):
            setattr(self, name, getattr(self, name)[mask])

    def forget(self, which: Tensor) -> None:
        """Start afresh for some images."""
        if bool(which.any()):
            self.products[which] = torch.eye(self.size, device="cpu").to(self.products)
            self.squares[which] = 0
            self.scale[which] = 1
            self.pairs[which] = 0
            self.new[which] = False

    def add(self, which: Tensor, step: Tensor, change: Tensor) -> None:
        """Append a pair, [k, n], for some images, unless rounding has left it without positive curvature."""
        dot = torch.linalg.vecdot
        curvature, squared = dot(step, change), dot(change, change)
        least = torch.finfo(step.dtype).eps * dot(step, step).sqrt() * squared.sqrt()
        self.new = which & (curvature > least) & torch.isfinite(1 / curvature) & torch.isfinite(squared)
        self.change = change
        full = (self.new & (self.pairs >= self.size)).nonzero()[:, 0]
        for matrix in (self.products, self.squares) if len(full) else ():
            matrix[full, :-1, :-1] = matrix[full, 1:, 1:]
        rows = self.new.nonzero()[:, 0]
        slot = self.pairs[rows] % self.size
        self.steps[rows, slot], self.changes[rows, slot] = step[rows], change[rows]
        self.scale[rows] = (curvature / squared)[rows].to(self.scale)
        self.pairs[rows] += 1

    def direction(self, gradient: Tensor) -> Tensor:
        """−H g, [k, n], in the compact form of the two-loop recursion (Byrd, Nocedal & Schnabel 1994, eq. 3.1)."""
        if not (width := min(int(self.pairs.max()), self.size)):
            return -gradient
        vectors = (self.steps[:, :width], self.changes[:, :width])
        age = torch.arange(width, device=gradient.device)
        order = (torch.where(self.pairs > self.size, self.pairs % self.size, 0)[:, None] + age) % width
        there = (age < self.pairs[:, None])[:, None]
        both = torch.stack([gradient, self.change], 1)  # as rows: a product with two columns takes twice the time
        places = order[:, None].expand(-1, 2, -1)
        known = [torch.bmm(both, t.mT).to(self.products).gather(2, places) * there for t in vectors]
        rows = self.new.nonzero()[:, 0]
        newest = self.pairs[rows].clamp(max=self.size) - 1
        self.products[rows, :width, newest] = known[0][rows, 1]
        self.squares[rows, :width, newest] = self.squares[rows, newest, :width] = known[1][rows, 1]
        upper, scale = self.products[:, :width, :width], self.scale[:, None, None]
        along_steps, along_changes = (each[:, :1].mT for each in known)
        first = torch.linalg.solve_triangular(upper, along_steps, upper=True)
        middle = self.squares[:, :width, :width] @ first - along_changes
        middle = upper.diagonal(dim1=1, dim2=2)[:, :, None] * first + scale * middle
        second = torch.linalg.solve_triangular(upper.mT, middle * there.mT, upper=False)
        total = (-scale).to(gradient) * gradient[:, None]
        for weight, t in zip((-second, scale * first), vectors, strict=True):
            in_slots = torch.zeros_like(weight[:, :, 0]).scatter(1, order, weight[:, :, 0])
            total = torch.baddbmm(total, in_slots[:, None].to(gradient), t)
        return total[:, 0]


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of the rows of a and b, [k], added up in float64 where the device has it."""
    return (a * b).sum(1) if a.device.type == "mps" else torch.linalg.vecdot(a.double(), b.double())


class LBFGS:
    """The state of the images at work; :meth:`run` takes every image to its end.

    Every evaluation is shared by all images at work, each at a trial step of its own line search: none waits for
    another. An image whose line search finds nothing better forgets its history and tries steepest descent once
    before it gives up.
    """

    def __init__(self, descent: Descent, history: int) -> None:
        self.descent = descent
        self.variable, self.gradient, self.value = descent.start, descent.gradient, list(descent.value)
        self.direction = torch.zeros_like(self.variable)
        self.low = [self.variable, self.gradient]  # variable and gradient at the best step of each line search,
        self.low_seen: list[Tensor] = []  # and the images and latents there, if watched
        self.first, self.least = [abs(value) for value in self.value], list(self.value)
        self.history = History(self.variable, history)
        self.rounding = 4 * torch.finfo(self.variable.dtype).eps
        self.searches: list[StrongWolfe] = []

    def run(self) -> None:
        """Minimise; each image ends with its own verdict."""
        if len(self.variable):
            self.searches = [StrongWolfe(0.0, 0.0, 0.0)] * len(self.variable)
            self._search([True] * len(self.variable))
        while self.searches:
            self._round()

    def _search(self, fresh: list[bool]) -> None:
        """Start a line search for some images."""
        new = torch.tensor(fresh, device=self.direction.device)
        direction = self.history.direction(self.gradient)
        slope = inner(self.gradient, direction)
        lost = ~((slope < 0) & torch.isfinite(slope + largest(direction)))
        if bool(lost.any()):
            self.history.forget(new & lost)
            direction = choose(lost, -self.gradient, direction)
            slope = inner(self.gradient, direction)
        self.direction = choose(new, direction, self.direction)
        # without curvature, the first guess is a step of length 1 at most: a latent's own scale
        step = torch.where(self.history.pairs == 0, (-slope).rsqrt().clamp(max=1), 1)
        for k, (slope_, step_) in enumerate(zip(slope.tolist(), step.tolist(), strict=True)):
            if fresh[k]:
                # a misfit near 0 has the rounding of its square root, the residual, times the residual
                size = max(abs(self.least[k]), (abs(self.least[k]) * self.first[k]) ** 0.5)
                hidden = self.rounding * size
                self.searches[k] = StrongWolfe(self.value[k], slope_, step_, self.least[k] + hidden, hidden)

    def _round(self) -> None:
        """Evaluate one trial step of every search, accept the steps of those that have ended, and search on."""
        step = torch.tensor([search.step for search in self.searches], dtype=torch.float64, device="cpu")
        trial = self.variable + step.to(self.variable)[:, None] * self.direction
        values, gradient, seen = self.descent.evaluate(trial)
        spent = self.descent.run.spend().tolist()
        for search, value, slope in zip(self.searches, values, inner(gradient, self.direction).tolist(), strict=True):
            search.report(value, slope)
        better = torch.tensor([search.improved for search in self.searches], device=trial.device)
        self.low = [choose(better, new, old) for new, old in zip((trial, gradient), self.low, strict=True)]
        if seen:
            self.low_seen = [choose(better, new, old) for new, old in zip(seen, self.low_seen or seen, strict=True)]
        ended = [search.done or over for search, over in zip(self.searches, spent, strict=True)]
        found = [over and search.low.step > 0 for search, over in zip(self.searches, ended, strict=True)]
        verdicts: list[Verdict | None] = [None] * len(found)
        for k, search in enumerate(self.searches):
            if found[k]:
                self.value[k] = search.low.value
                self.least[k] = min(self.least[k], self.value[k])
            elif ended[k] and not spent[k] and not int(self.history.pairs[k]):
                verdicts[k] = self._given_up(k)
        stepped = torch.tensor(found, device=trial.device)
        again = torch.tensor(ended, device=trial.device) & ~stepped
        if any(found):
            self.history.add(stepped, self.low[0] - self.variable, self.low[1] - self.gradient)
            self.variable = choose(stepped, self.low[0], self.variable)
            self.gradient = choose(stepped, self.low[1], self.gradient)
        if not any(ended):
            return
        self.history.forget(again)
        looked = (self.low_seen[0], self.low_seen[1]) if self.low_seen else None
        keep = self.descent.advance(self.variable, self.value, self.gradient, looked, found, verdicts)
        if keep is not None:
            ended = self._drop(keep, ended)
        if any(ended):
            self._search(ended)

    def _given_up(self, k: int) -> Verdict:
        """Whether the image is at its minimum, as far as the rounding of its energy can tell.

        Either steepest descent promises no visible decrease, or it has been tried down to where the energy shows no
        change, and the gradient is small too (so that a gradient which is not the energy's is not taken for this).
        """
        search, descent = self.searches[k], self.descent
        ratio = float(largest(self.gradient[k : k + 1])) / descent.steepest[int(descent.run.rows[k])]
        visible = 100 * self.rounding * max(self.first[k], abs(search.value))
        flat = search.high is not None and abs(search.high.value - search.value) <= visible
        small = ratio <= torch.finfo(self.gradient.dtype).eps ** (1 / 3)
        if search.promise <= 100 * search.resolution or (flat and small):
            return True, "steps along the gradient change the energy by no more than its rounding"
        return False, "no step along the gradient gives a finite, lower energy"

    def _drop(self, keep: Tensor, ended: list[bool]) -> list[bool]:
        """Forget the images that have stopped; what `ended` says of the others."""
        self.variable, self.gradient, self.direction = (t[keep] for t in (self.variable, self.gradient, self.direction))
        self.low, self.low_seen = [t[keep] for t in self.low], [t[keep] for t in self.low_seen]
        self.history.keep(keep)
        kept = [k for k, going in enumerate(keep.tolist()) if going]
        self.searches, self.value = [self.searches[k] for k in kept], [self.value[k] for k in kept]
        self.first, self.least = [self.first[k] for k in kept], [self.least[k] for k in kept]
        return [ended[k] for k in kept]


def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of `new` where the mask says so, else of `old`."""
    return new if bool(mask.all()) else torch.where(scaling(mask, new), new, old)
