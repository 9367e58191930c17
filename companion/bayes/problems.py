"""The two inverse problems of Zhang et al. 2021, sec. 6.1, at every scale: y = F(x) + ε, x a Gaussian field.

Both are mirror-symmetric: q(x) = q(M x), where M swaps s₂ and 1 − s₂. At scale l the likelihood is that of the field
repeated to the finest scale, L_l(y | x) = L(y | B̂ x), and the prior the push-forward under pooling (App. D).
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from companion import _support
from companion.measure.base import Operator
from companion.measure.elliptic import EllipticPDE
from companion.priors.fields import GaussianField


class FieldProblem:
    """A posterior q(x) ∝ ρ(x) N(y; F(x), γ² I) of fields x, [batch, side²].

    It need not be mirror-symmetric. ValueError for what is no operator on the field, and for one whose measurements of
    a field are no vector, [m].

    Attributes
    ----------
    field : GaussianField
        The prior ρ.
    operator : Operator
        F, from fields [batch, side²] to measurements [batch, m]. For more scales than one it has a method `coarsen()`:
        the operator of fields of half the side that gives what F gives of them with each value repeated 2×2.
    truth, y : Tensor
        The field that made the data, at the finest scale, [finest²]; the data, [m].
    gamma : float
        Standard deviation of the noise.
    """

    def __init__(self, field: GaussianField, operator: Any, truth: Tensor, gamma: float, seed: int | None) -> None:
        self.field, self.operator, self.truth = field, operator, truth.to(field.like)
        self.gamma = _support.positive("gamma", gamma)
        if not isinstance(operator, Operator) or operator.shape != (field.finest**2,):
            given = f"{type(operator).__name__} on {getattr(operator, 'shape', 'anything')}"
            raise ValueError(f"operator: got {given}; allowed: a measure.Operator on the field, {(field.finest**2,)}")
        with torch.no_grad():
            exact = operator(self.truth[None])[0]
        if exact.dim() != 1:
            raise ValueError(f"operator: got measurements of shape {tuple(exact.shape)} of a field; allowed: [m]")
        noise = torch.zeros_like(exact) if seed is None else _support.normal(exact.shape, seed, exact, "noise")
        self.y = exact + self.gamma * noise
        self._counter = [0]

    @property
    def side(self) -> int:
        """Number of points of the field in each direction."""
        return self.field.side

    @property
    def simulations(self) -> int:
        """Forward simulations so far, at all scales: one for the value at each field, one more for its gradient."""
        return self._counter[0]

    def coarsen(self) -> Self:
        """The problem one scale coarser; it goes on counting simulations with this one.

        ValueError for an operator without `coarsen`.
        """
        if not hasattr(self.operator, "coarsen"):
            given = f"operator: got {type(self.operator).__name__}, which has no coarsen()"
            raise ValueError(f"{given}; allowed: one that gives its map of fields of half the side")
        coarse = copy.copy(self)
        coarse.field, coarse.operator = self.field.coarsen(), self.operator.coarsen()
        return coarse

    def scales(self, number: int | None = None) -> list[Self]:
        """This problem and coarser ones, the coarsest first: so many in all, by default down to fields of 2 × 2."""
        found = [self]
        while found[-1].side > 2 if number is None else len(found) < number:
            found.append(found[-1].coarsen())
        return found[::-1]

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log N(y; F(x), γ² I) in nats, [batch]; NaN where the simulation failed."""
        misfit = (_Counted.apply(self.operator.forward(x), self._counter) - self.y).square().sum(1)
        return -misfit / (2 * self.gamma**2) - len(self.y) * math.log(self.gamma * math.sqrt(2 * math.pi))

    @torch.no_grad()
    def symmetric_at(self, x: Tensor) -> bool:
        """Whether fields x, [batch, side²], explain y as well as their mirror images do, up to rounding.

        The simulations that it takes are not counted: they serve no method, and only ask which problem this is.
        """
        before = self.simulations
        here, there = self.log_likelihood(torch.cat([x, self.field.mirror(x)])).chunk(2)
        self._counter[0] = before
        return torch.allclose(here, there, rtol=1e-5, atol=1e-3, equal_nan=True)

    def log_density(self, x: Tensor) -> Tensor:
        """log ρ(x) + log N(y; F(x), γ² I) in nats, [batch]: the posterior's, without its normalising constant."""
        return self.field.log_prob(x) + self.log_likelihood(x)


class Synthetic(FieldProblem):
    """F(x) = ⟨φ, x⟩², φ(s) = sin πs₁ sin 2πs₂ (Zhang et al. 2021, sec. 6.1.1): all directions but one are Gaussian.

    φ is taken at the prior's lattice (i/(side + 1), j/(side + 1)), where it is an eigenvector of the prior, and is the
    truth too. So c = ⟨φ, x⟩ ~ N(0, τ²) under the prior, q(c) ∝ exp(−c²/2τ² − (y − c²)²/2γ²), and x given c is Gaussian
    and ignorant of y: exact samples and a normalised density, at every scale. q(c) has two modes iff y > γ²/2τ², at
    c = ±√(y − γ²/2τ²).

    Parameters
    ----------
    side
        Of the finest field; the scales below come from ``coarsen``.
    convention
        What ⟨φ, x⟩ is: "integral", h² Σ φx with h = 1/side, as printed; or "isometric", h Σ φx, whose Jeffreys
        divergences are of the published size. As printed, with γ = 0.2, the posterior has one mode.
    gamma
        Noise; None for 0.02 in "integral" and 0.2 in "isometric".
    alpha, beta
        Of the prior (Table 3).
    seed
        Of the noise in y; None for exact data, y = F(truth).
    dtype
        Of everything.
    """

    def __init__(
        self,
        side: int = 64,
        convention: str = "integral",
        gamma: float | None = None,
        alpha: float = 0.1,
        beta: float = 2.0,
        seed: int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.convention = str(_support.one_of("convention", convention, _CONVENTIONS))
        power, default = _CONVENTIONS[self.convention]
        field = GaussianField(side, alpha, beta).to(dtype)
        truth = lattice_wave(side)
        operator = SquaredProjection(truth * side**-power)
        super().__init__(field, operator, truth, default if gamma is None else gamma, seed)

    @property
    def direction(self) -> Tensor:
        """The weights w of c = wᵀx, the critical direction, [side²]."""
        return self.operator.weights.to(self.field.like)

    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x) in nats, normalised, [batch]."""
        return self.log_density(x) - self.log_evidence

    @property
    def log_evidence(self) -> float:
        """log Z = log ∫ρ(x) N(y; F(x), γ²) dx, by quadrature in c."""
        grid, log_density = self._critical()
        top = log_density.max()
        return float(top + np.log(2 * np.trapezoid(np.exp(log_density - top), grid)))

    def critical_density(self, c: Tensor) -> Tensor:
        """The normalised marginal density of c = wᵀx, as c."""
        values = np.exp(self._log_critical(c.detach().cpu().double().numpy()) - self.log_evidence)
        return torch.from_numpy(values).to(c)

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """Draw n independent fields of the posterior, [n, side²]: c by its quantile function, then x given c."""
        grid, log_density = self._critical()
        density = np.exp(log_density - log_density.max())
        cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
        draws = _support.generator(seed, "critical")
        uniform = torch.rand(2, _support.count("n", n), generator=draws, dtype=torch.float64, device="cpu").numpy()
        c = np.interp(uniform[0] * cumulative[-1], cumulative, grid) * np.where(uniform[1] < 0.5, -1, 1)
        x, w = self.field.sample(n, seed=seed), self.direction
        gain = self._gain()
        return x + (torch.from_numpy(c).to(x) - x @ w)[:, None] * gain

    def _gain(self) -> Tensor:
        """Σw/τ²: how x follows c under the prior, [side²]."""
        spread = (self.field.modes.project(self.direction[None]) * self.field.std).square()  # of c, mode by mode
        along = self.field.modes.expand(self.field.modes.project(self.direction[None]) * self.field.std.square())[0]
        return along / spread.sum()

    @property
    def tau(self) -> float:
        """τ: the standard deviation of c under the prior."""
        return float((self.field.modes.project(self.direction[None]) * self.field.std).norm())

    def _log_critical(self, c: np.ndarray) -> np.ndarray:
        """log of N(c; 0, τ²) N(y; c², γ²)."""
        y, tau = float(self.y[0]), self.tau
        constant = math.log(2 * math.pi * tau * self.gamma)
        return -(c**2) / (2 * tau**2) - (y - c**2) ** 2 / (2 * self.gamma**2) - constant

    def _critical(self, points: int = 20_001) -> tuple[np.ndarray, np.ndarray]:
        """A grid of c >= 0 that holds all but e⁻⁵⁰ of the mass, and the logarithms of the density there."""
        low, high = 0.0, 10 * self.tau + abs(float(self.y[0])) ** 0.5
        for _ in range(4):  # each pass narrows the grid to where the density matters
            grid = np.linspace(low, high, points)
            log_density = self._log_critical(grid)
            inside = np.flatnonzero(log_density > log_density.max() - 50)
            low, high = grid[max(inside[0] - 1, 0)], grid[min(inside[-1] + 1, points - 1)]
        return grid, log_density


class Elliptic(FieldProblem):
    """F is :class:`companion.measure.EllipticPDE` (Zhang et al. 2021, sec. 6.1.2).

    Parameters
    ----------
    side
        Of the finest field, and of the mesh at every scale.
    amplitude
        The truth is amplitude · sin πs₁ sin 2πs₂ on the prior's lattice. With 1, the paper's, the posterior is hardly
        bimodal: :func:`barrier`. With 4 the barrier is 12.6, 9.1, 6.7 and 5.1 nats for side 8, 16, 32 and 64 (with 3
        it is 6.3, 4.5 and 3.3 for the first three): the finer the lattice, the wider this prior.
    alpha, beta
        Of the prior; the paper leaves α out.
    gamma
        Standard deviation of the noise (Table 3).
    seed
        Of the noise in y; None for exact data.
    method
        Solver of the PDE.
    dtype
        Of everything; float32 is fit for smooth fields only.
    """

    def __init__(
        self,
        side: int = 64,
        amplitude: float = 4.0,
        alpha: float = 0.5,
        beta: float = 2.0,
        gamma: float = 0.02,
        seed: int | None = 0,
        method: str = "direct",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        field = GaussianField(side, alpha, beta).to(dtype)
        self.amplitude = _support.positive("amplitude", amplitude, zero=True)
        super().__init__(field, EllipticPDE(side, method=method), self.amplitude * lattice_wave(side), gamma, seed)


class SquaredProjection(Operator):
    """F(x) = (wᵀx)², [batch, 1], for weights w, [side²]."""

    domain = "real"

    def __init__(self, weights: Tensor) -> None:
        super().__init__(weights.shape, (1,))
        self.weights = weights

    def apply(self, x: Tensor) -> Tensor:
        return (x @ self.weights.to(x)).square()[:, None]

    def coarsen(self) -> "SquaredProjection":
        """The same map for fields of half the side, each value repeated 2×2."""
        side = math.isqrt(len(self.weights)) // 2
        return SquaredProjection(self.weights.view(side, 2, side, 2).sum((1, 3)).flatten())


@dataclass(frozen=True)
class Barrier:
    """What keeps the two mirror modes of a posterior apart.

    Attributes
    ----------
    height : float
        log q at the mode less the largest log q among fields that are their own mirror image, in nats. Where it is
        positive, the mode and its mirror image are two, and a path between them through a field that is its own
        mirror image sinks by at least that much. One that goes around such fields may sink less.
    mode, saddle : Tensor
        The fields where the two maxima were found, [side²].
    """

    height: float
    mode: Tensor
    saddle: Tensor


def barrier(problem: FieldProblem, starts: int = 3, seed: int = 0) -> Barrier:
    """The barrier between the mirror modes: the maximum a posteriori estimate less the one constrained to M x = x.

    For a mirror-symmetric posterior; of another (`Laplace.symmetric`) it says nothing, as the mirror image of a mode is
    none.

    Both searches are L-BFGS in the prior's principal coordinates, from z = 0, from the pooled truth and from draws
    of the prior, `starts` in all; the best counts. ValueError if a search fails from every start.
    """
    _support.count("starts", starts)
    field = problem.field
    pooled = problem.truth.view(problem.side, field.finest // problem.side, problem.side, -1).mean((1, 3)).flatten()
    draws = _support.normal((max(starts - 2, 0), field.latent_dim), seed, field.like, "start")
    first = torch.stack([field.encode(pooled[None])[0], torch.zeros_like(pooled)])[:starts]
    z = torch.cat([first, 0.3 * draws])
    mode, top = maximise(problem, z, symmetric=False)
    saddle, least = maximise(problem, z, symmetric=True)
    return Barrier(top - least, mode, saddle)


@torch.inference_mode(False)  # gradients are needed, whatever mode the caller is in
def maximise(problem: FieldProblem, starts: Tensor, symmetric: bool = False) -> tuple[Tensor, float]:
    """The field [side²] of largest log-density found by L-BFGS from latents `starts` [n, side²], and that log-density.

    With `symmetric`, among fields that are their own mirror image.
    """

    def field_of(z: Tensor) -> Tensor:
        x = problem.field.decode(z)
        return (x + problem.field.mirror(x)) / 2 if symmetric else x

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        z = torch.from_numpy(values).to(starts)[None].requires_grad_()
        value = -problem.log_density(field_of(z)).sum()
        gradient = torch.autograd.grad(value, z)[0][0].cpu().double().numpy()
        if not (math.isfinite(value.item()) and np.isfinite(gradient).all()):
            return 1e10, np.zeros_like(values)  # a step too far: the line search turns back
        return value.item(), gradient

    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-6}
    runs = [
        scipy.optimize.minimize(loss, z.cpu().double().numpy(), jac=True, method="L-BFGS-B", options=options)
        for z in starts
    ]
    best = min(runs, key=lambda run: run.fun)
    return field_of(torch.from_numpy(best.x).to(starts)[None])[0].detach(), -float(best.fun)


class _Counted(torch.autograd.Function):
    """The identity; counts the rows of values and of gradients that pass."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, counter: list[int]) -> Tensor:
        counter[0] += len(y)
        ctx.counter = counter
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Counted.apply(grads[0], ctx.counter), None


_CONVENTIONS = {"integral": (2, 0.02), "isometric": (1, 0.2)}  # power of the mesh size h before Σ φx, noise


def lattice_wave(side: int) -> Tensor:
    """sin πs₁ sin 2πs₂ at the prior's lattice, s = (i, j)/(side + 1), [side²]; float64."""
    line = math.pi * torch.arange(1, side + 1, dtype=torch.float64, device="cpu") / (side + 1)
    return torch.outer(line.sin(), (2 * line).sin()).flatten()
