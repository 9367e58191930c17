"""The elliptic inverse problem's forward map: −∇·(eˣ ∇u) = f, and 15 averages of u (Zhang et al. 2021, sec. 6.1.2)."""

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from companion import _sines, _support
from companion.measure.base import Operator


class EllipticPDE(Operator):
    """y = (∫φ₁u, …, ∫φ₁₅u), where −∇·(eˣ∇u) = f on the unit square and u = 0 on its boundary.

    Linear finite elements on the triangles of a square mesh, and x constant on squares: then an edge of the mesh
    conducts with the mean of eˣ in the two squares beside it, whichever way the diagonals run. The right-hand side is
    f at the nodes (trapezoidal rule), of the elements' order, 1/mesh². Mirroring x in s₂ leaves y as it is.

    The paper leaves f and φ garbled or undrawn. Here f = (50/π)(2 g(f₁) + 2 g(f₂) − g(f₃) − g(f₄)), with
    g(c) = exp(−10 ‖s − c‖²), f₁ = (.25, .3), f₂ = (.25, .7), f₃ = (.7, .3) and f₄ = (.7, .7). The φ live on squares of
    side 1/8 that start at 3/16, 5/16, 7/16, 9/16 and 11/16 in either direction: for each of the five columns (s₁) an
    outer pair of them, an inner pair, mirror images, and one in the middle (s₂); constant there, with ‖φ‖ = 1 in L₂.

    Gradients cost one adjoint solve, Hessian-vector products two more. An image whose x is NaN, overflows, or has
    contrasts beyond the solver (residual above 1000 tolerances) gets NaN, and leaves the rest of its batch alone.

    Parameters
    ----------
    side
        Fields x are [batch, side²], x[i · side + j] in the square at row i of s₁ and column j of s₂.
    mesh
        Number of squares in each direction, a multiple of `side`; None for `side`. The paper has 64 at every scale.
    method
        "direct" (block elimination: high contrasts, too; its adjoint is nearly free; keeps mesh³ numbers an image until
        the gradient is taken), or "pcg" (conjugate gradients preconditioned by a sine transform: faster where x is
        smooth and the mesh fine).
    tolerance
        Relative residual ‖b − A u‖/‖b‖ at which "pcg" stops; "direct" ends near rounding. None for 1e-10 in float64 and
        1e-5 in float32, where rounding u alone leaves 2e-8 · mesh², and more where x is rough.

    Attributes
    ----------
    solves : int
        Number of fields solved for so far, adjoint ones too.
    residual : Tensor
        Relative residual of each image in the latest solve, [batch]; NaN where it failed.
    """

    domain = "real"

    def __init__(
        self, side: int = 64, mesh: int | None = None, method: str = "direct", tolerance: float | None = None
    ) -> None:
        self.side = _support.count("side", side)
        self.mesh = self.side if mesh is None else _support.count("mesh", mesh, least=2)
        if self.mesh % self.side or self.mesh < 2:
            raise ValueError(f"mesh: got {self.mesh}; allowed: a multiple of side = {self.side}, at least 2")
        super().__init__((self.side**2,), (15,))
        self.method = str(_support.one_of("method", method, SOLVERS))
        self.tolerance = None if tolerance is None else _support.positive("tolerance", tolerance)
        self.solves = 0
        self.residual = torch.empty(0, device="cpu")
        self.force = paper_force(self.mesh)
        self.measurements = paper_measurements(self.mesh)

    def apply(self, x: Tensor) -> Tensor:
        return self.solve(x).flatten(1) @ self.measurements.to(x).T

    def solve(self, x: Tensor, force: Tensor | None = None) -> Tensor:
        """u at the inner nodes (i, j)/mesh, [batch, mesh − 1, mesh − 1], of fields x, [batch, side²].

        `force` replaces the paper's f: its values at the same nodes, [mesh − 1, mesh − 1]. ValueError for another shape
        of either, and for x of another dtype than float32 or float64, which the solvers know; x may hold NaN.
        """
        if _support.batch_of("x", x, self.shape).dtype not in (torch.float32, torch.float64):
            raise ValueError(f"x: got {x.dtype} tensor; allowed: torch.float32 or torch.float64")
        force = self.force if force is None else force
        if not isinstance(force, Tensor) or force.shape != self.force.shape or force.is_complex():
            given = tuple(force.shape) if isinstance(force, Tensor) else type(force).__name__
            raise ValueError(f"force: got {given}; allowed: a real tensor of shape {tuple(self.force.shape)}")
        load = force.to(x) / self.mesh**2
        conductivity = x.unflatten(1, (self.side, self.side)).exp()
        sound = _sound(conductivity)
        conductivity = conductivity * torch.ones_like(sound, dtype=x.dtype).where(sound, torch.nan)[:, None, None]
        repeat = self.mesh // self.side
        conductivity = conductivity.repeat_interleave(repeat, 1).repeat_interleave(repeat, 2)
        rows = (conductivity[:, :, :-1] + conductivity[:, :, 1:]) / 2
        columns = (conductivity[:, :-1] + conductivity[:, 1:]) / 2
        return _Solve.apply(rows, columns, load.expand(len(x), *load.shape), _System(self))

    def coarsen(self) -> "EllipticPDE":
        """The same map for fields of half the side, each value repeated 2×2, on the same mesh."""
        if self.side % 2:
            raise ValueError(f"coarsen: got side {self.side}; allowed: even sides")
        coarse = EllipticPDE(self.side // 2, self.mesh, self.method, self.tolerance)
        coarse.force, coarse.measurements = self.force, self.measurements
        return coarse


def _sound(conductivity: Tensor) -> Tensor:
    """Whether all of an image's conductivities are positive and finite, [batch]."""
    least, most = conductivity.detach().flatten(1).aminmax(dim=1)  # both are NaN where one value is
    return (least > 0) & torch.isfinite(most)


class _System:
    """The stiffness matrices A of a batch, factorised by the first solve, for the adjoint ones that follow.

    They are given by the conductivities of the mesh's edges: `rows` [batch, m, m − 1] between nodes (i, j) and
    (i + 1, j), `columns` [batch, m − 1, m] between (i, j) and (i, j + 1).
    """

    def __init__(self, pde: EllipticPDE) -> None:
        self.pde = pde
        self.solver: _Solver | None = None
        self.sound = torch.empty(0, device="cpu")

    def solve(self, rows: Tensor, columns: Tensor, load: Tensor) -> Tensor:
        """u with A u = load, [batch, m − 1, m − 1]; NaN where A or the load is not finite, or the solver failed."""
        tolerance = self.pde.tolerance or (1e-10 if load.dtype == torch.float64 else 1e-5)
        with _support.own_precision(load):  # adjoint solves, too, where `backward` is called inside autocast
            if self.solver is None:
                self.sound = _sound(rows) & _sound(columns)
                weights = [w.where(self.sound[:, None, None], 1.0) for w in (rows, columns)]
                self.solver = SOLVERS[self.pde.method](*weights)
            size = load.abs().amax((1, 2), keepdim=True)  # squares of small loads would be 0, of large ones infinite
            size = size.where(size > 0, 1.0)
            u, residual = self.solver.solve(load / size, tolerance)
            u = u * size
        self.pde.solves += len(load)
        self.pde.residual = residual.where(self.sound, torch.nan)
        return u.where((self.pde.residual < 1000 * tolerance)[:, None, None], torch.nan)


class _Solve(torch.autograd.Function):
    """u = A⁻¹ b as a function of A's conductivities and of b.

    Backward as often as one likes, and forward over backward; but torch differentiates what is below once in forward
    mode, so forward over forward is wrong without a warning.
    """

    @staticmethod
    def forward(rows: Tensor, columns: Tensor, load: Tensor, system: _System) -> Tensor:
        return system.solve(rows, columns, load)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, _System], output: Tensor) -> None:
        rows, columns, _, ctx.system = inputs
        ctx.save_for_backward(rows, columns, output)
        ctx.save_for_forward(rows, columns, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, columns, u = ctx.saved_tensors
        adjoint = _Solve.apply(rows, columns, grads[0], ctx.system)  # A is symmetric
        steps = [-a * b for a, b in zip(_differences(u), _differences(adjoint), strict=True)]
        return steps[0], steps[1], adjoint, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        rows, columns, u = ctx.saved_tensors
        along_rows, along_columns = (change * step for change, step in zip(tangents[:2], _differences(u), strict=True))
        return _Solve.apply(rows, columns, tangents[2] + _divergence(along_rows, along_columns), ctx.system)


def _differences(u: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of u along the edges in s₁, [batch, m, m − 1], and in s₂, [batch, m − 1, m]; u is 0 outside."""
    return F.pad(u, (0, 0, 1, 1)).diff(dim=1), F.pad(u, (1, 1)).diff(dim=2)


def _divergence(along_rows: Tensor, along_columns: Tensor) -> Tensor:
    """What flows into each node along its edges, [batch, m − 1, m − 1]."""
    return along_rows.diff(dim=1) + along_columns.diff(dim=2)


class _Solver(ABC):
    """Solves A u = b for a batch of matrices A."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns

    @cached_property
    def diagonal(self) -> Tensor:
        """Of A, [batch, m − 1, m − 1]."""
        return self.rows[:, :-1] + self.rows[:, 1:] + self.columns[:, :, :-1] + self.columns[:, :, 1:]

    @abstractmethod
    def solve(self, load: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """u, [batch, m − 1, m − 1], and its relative residual, [batch]."""

    def multiply(self, u: Tensor) -> Tensor:
        """A u, [batch, m − 1, m − 1]."""
        along_rows, along_columns = _differences(u)
        return -_divergence(self.rows * along_rows, self.columns * along_columns)


class _Direct(_Solver):
    """Elimination of one row of nodes after the other: A is block tridiagonal, and its off-diagonal blocks diagonal.

    The Schur complements are S_r = T_r − C_r S_{r−1}⁻¹ C_r; their inverses are kept, so that every further right-hand
    side costs two sweeps of products.
    """

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        super().__init__(rows, columns)
        self.inverses: list[Tensor] = []
        for r, inner in enumerate(columns[:, :, 1:-1].unbind(1)):
            block = torch.diag_embed(self.diagonal[:, r])
            block -= torch.diag_embed(inner, 1) + torch.diag_embed(inner, -1)
            if r:
                link = rows[:, r]
                block -= link[:, :, None] * self.inverses[-1] * link[:, None]
            factor, failed = torch.linalg.cholesky_ex(block)
            # an image too wild to factorise is solved wrongly, which its residual tells, rather than abort the batch
            factor = factor.where(
                (failed == 0)[:, None, None], torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
            )
            self.inverses.append(torch.cholesky_inverse(factor))

    def solve(self, load: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        down: list[Tensor] = []
        for r, inverse in enumerate(self.inverses):
            down.append(_times(inverse, load[:, r] + self.rows[:, r] * down[-1] if r else load[:, 0]))
        u = [down[-1]]
        for r in range(len(down) - 2, -1, -1):
            u.append(down[r] + _times(self.inverses[r], self.rows[:, r + 1] * u[-1]))
        solution = torch.stack(u[::-1], 1)
        return solution, _relative(load - self.multiply(solution), load)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors[:, :, None])[:, :, 0]


class _ConjugateGradients(_Solver):
    """Conjugate gradients, preconditioned by √D L √D with the graph Laplacian L and smoothed conductivities D.

    The scaling takes out what is smooth in eˣ, however large (Concus and Golub 1973): what is iterated on is
    M = D^(−1/2) A D^(−1/2), with the preconditioner L. D is the geometric mean of A's diagonal, over 4, around a node:
    from afar, a rough log-normal medium in the plane conducts like that (Matheron 1967). On draws of the elliptic
    problem's prior, one value a square of the mesh, that takes a quarter to two fifths fewer iterations than the
    diagonal itself. It takes more where x jumps by several units between areas that are larger than the mean's: images
    that have not arrived after `patience` iterations go on with the diagonal.

    In float64 the iterations run in float32, each round on what float64 finds left (iterative refinement); images for
    which a round gains nothing are finished in float64.
    """

    cached = 1_700_000  # bytes of an array of which a dozen stay in the cache: 100 images at 64 × 64 in float32

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        super().__init__(rows, columns)
        size = len(rows) if rows.is_cuda else max(1, self.cached // (rows[0].numel() * rows.element_size()))
        self.pieces = [_Piece(*pair) for pair in zip(rows.split(size), columns.split(size), strict=True)]

    def solve(self, load: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Solve; each image stops by itself."""
        loads = load.split([len(piece.rows) for piece in self.pieces])
        solved = [piece.solve(right, tolerance) for piece, right in zip(self.pieces, loads, strict=True)]
        u, residual = (torch.cat(each) for each in zip(*solved, strict=True))
        return u, residual


class _Piece(_Solver):
    """As many images as stay in the cache.

    M's entries, the scalings and all vectors of an iteration stand in arrays of m × m numbers an image, whose last row
    and column are zeros that stay: products of even sizes are a third faster than those of m − 1.
    """

    limit = 2000  # iterations with the diagonal
    patience = 150  # and with its mean before them
    around = 5  # nodes in each direction of which D is the mean, at first
    gain = 1e-5  # of a round in float32, about where rounding ends it

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        super().__init__(rows, columns)
        self.scaled: dict[tuple[torch.dtype, int], tuple[Tensor, ...]] = {}  # for the adjoint solves that follow

    def solve(self, load: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        u, left = torch.zeros_like(load), _relative(load, load)
        gaining, residual = left > tolerance, load
        while load.dtype == torch.float64 and gaining.any():
            # a residual of 1 keeps float32 from underflow
            size = _dot(residual, residual).sqrt().clamp_min(torch.finfo(load.dtype).tiny)[:, None, None]
            wanted = (tolerance / left).clamp(self.gain, 0.5)
            found = size * self._iterate((residual / size).float(), wanted.float(), gaining).double()
            trial = u + found
            remains = load - self.multiply(trial)
            after = _relative(remains, load)
            gaining = gaining & (after < left / 2)  # false where NaN
            u, residual = (torch.where(gaining[:, None, None], *pair) for pair in ((trial, u), (remains, residual)))
            left = torch.where(gaining, after, left)
            gaining = gaining & (left > tolerance)
        if (left > tolerance).any():
            u = u + self._iterate(residual, tolerance / left, left > tolerance)
        return u, _relative(load - self.multiply(u), load)

    def _iterate(self, load: Tensor, tolerance: Tensor, wanted: Tensor) -> Tensor:
        """u with ‖load − A u‖ ≤ tolerance ‖load‖, in the load's dtype, of the images wanted; 0 of the others."""
        smooth = self.around > 1
        u, late = self._descend(load, tolerance, wanted, self.around, self.patience if smooth else self.limit)
        if smooth and late.any():
            self.around = 1  # in what follows, too
            left = (load - self.multiply(u)).to(load)
            sound = torch.isfinite(left.flatten(1)).all(1)
            u = u.where((sound | ~late)[:, None, None], 0.0)
            left = left.where(sound[:, None, None], load)
            tolerance = tolerance / _relative(left, load).clamp_min(torch.finfo(load.dtype).tiny)
            u = u + self._descend(left, tolerance, late, self.around, self.limit)[0]
        return u

    def _descend(
        self, load: Tensor, tolerance: Tensor, wanted: Tensor, around: int, limit: int
    ) -> tuple[Tensor, Tensor]:
        """The same after at most so many iterations, and which images have not arrived; 0 of those not wanted."""
        nodes = load.shape[1]
        scale, unscale, diagonal, *links = self._scaled(load, around)
        sines, inverse = _framed(_sines.sines(nodes).to(load)), _framed(1 / _sines.laplacian_spectrum(nodes).to(load))
        # the iterate is √D u, the residual D^(−1/2) (load − A u)
        residual = scale * _framed(load)
        iterate, direction = torch.zeros_like(residual), torch.zeros_like(residual)
        target = tolerance * _dot(load, load).sqrt()
        slope = torch.full_like(target, torch.inf)
        for _ in range(limit):
            size = torch.linalg.vector_norm(unscale * residual, dim=(1, 2))
            active = wanted & (size > target)  # not where it is NaN
            if not active.any():
                break
            preconditioned = _laplace(residual, sines, inverse)
            before, slope = slope, _dot(residual, preconditioned)
            # an image that has stopped may have slopes of 0
            direction = torch.addcmul(preconditioned, (slope / before).where(active, 0.0)[:, None, None], direction)
            product = _five_points(direction, diagonal, *links)
            step = (slope / _dot(direction, product)).where(active, 0.0)[:, None, None]
            iterate.addcmul_(step, direction)
            residual.addcmul_(step, product, value=-1)
        return (scale * iterate)[:, :nodes, :nodes], wanted & ~(size <= target)

    def _scaled(self, like: Tensor, around: int) -> tuple[Tensor, ...]:
        """D^(−1/2), D^(1/2), M's diagonal, and what it has between neighbours in either direction, without its sign."""
        if (like.dtype, around) not in self.scaled:
            diagonal = self.diagonal.to(like)
            weight = _geometric_mean(diagonal / 4, around)
            scale = weight.rsqrt()
            rows = self.rows[:, 1:-1].to(like) * scale[:, :-1] * scale[:, 1:]
            columns = self.columns[:, :, 1:-1].to(like) * scale[:, :, :-1] * scale[:, :, 1:]
            self.scaled[like.dtype, around] = (
                _framed(scale),
                _framed(weight.sqrt()),
                _framed(diagonal / weight),
                F.pad(rows, (0, 1, 0, 2)).flatten(1),
                F.pad(columns, (0, 2, 0, 1)).flatten(1),
            )
        return self.scaled[like.dtype, around]


def _framed(x: Tensor) -> Tensor:
    """With a row and a column of zeros at the end."""
    return F.pad(x, (0, 1, 0, 1))


def _geometric_mean(x: Tensor, around: int) -> Tensor:
    """Of positive values around each place, around × around of them, fewer at the border, [batch, n, n]."""
    index = torch.arange(x.shape[1], device=x.device)
    near = ((index[:, None] - index).abs() <= around // 2).to(x)
    near /= near.sum(1, keepdim=True)
    return (near @ x.log() @ near.T).exp()


def _five_points(x: Tensor, diagonal: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """M x for a matrix with a diagonal, and −`rows`, −`columns` between neighbours in the two directions.

    x and the diagonal are framed; so are `rows` and `columns`, which are flat, [batch, m²], and zero where there is no
    neighbour: whole images are one run of numbers each.
    """
    flat, product = x.flatten(1), diagonal * x
    for links, step in ((rows, x.shape[2]), (columns, 1)):
        links, ahead, behind = links[:, :-step], product.flatten(1)[:, step:], product.flatten(1)[:, :-step]
        ahead.addcmul_(links, flat[:, :-step], value=-1)
        behind.addcmul_(links, flat[:, step:], value=-1)
    return product


def _laplace(x: Tensor, sines: Tensor, inverse: Tensor) -> Tensor:
    """L⁻¹ x for the graph Laplacian L, with the inverse of its spectrum."""
    return _sines.transform(_sines.transform(x, sines) * inverse, sines)


SOLVERS: dict[str, type[_Solver]] = {"direct": _Direct, "pcg": _ConjugateGradients}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))


def _relative(residual: Tensor, load: Tensor) -> Tensor:
    return (_dot(residual, residual) / _dot(load, load).clamp_min(torch.finfo(load.dtype).tiny)).sqrt()


def paper_force(mesh: int) -> Tensor:
    """The paper's f (App. F.1, as :class:`EllipticPDE` reads it) at the inner nodes, [mesh − 1, mesh − 1]; float64."""
    nodes = torch.arange(1, mesh, dtype=torch.float64, device="cpu") / mesh
    total = torch.zeros(mesh - 1, mesh - 1, dtype=torch.float64, device="cpu")
    for weight, s1, s2 in [(2, 0.25, 0.3), (2, 0.25, 0.7), (-1, 0.7, 0.3), (-1, 0.7, 0.7)]:
        total += weight * torch.exp(-10 * ((nodes[:, None] - s1).square() + (nodes - s2).square()))
    return 50 / math.pi * total


def paper_measurements(mesh: int) -> Tensor:
    """∫φ_k u for nodal values u, bilinear in each square: the rows of a matrix, [15, (mesh − 1)²]; float64."""
    starts = [k / 16 for k in (3, 5, 7, 9, 11)]
    lines = torch.stack([_hat_integrals(mesh, start, start + 1 / 8) for start in starts])
    pairs = [(lines[0] + lines[4]) / 2**0.5, (lines[1] + lines[3]) / 2**0.5, lines[2]]
    return torch.stack([torch.outer(column, pair).flatten() * 8 for column in lines for pair in pairs])


def _hat_integrals(mesh: int, start: float, end: float) -> Tensor:
    """∫ of each inner node's hat function over [start, end], [mesh − 1]; float64."""
    nodes = torch.arange(1, mesh, dtype=torch.float64, device="cpu")

    def up_to(s: float) -> Tensor:
        t = (s * mesh - nodes).clamp(-1, 1)
        return (0.5 + t - t * t.abs() / 2) / mesh

    return up_to(end) - up_to(start)
