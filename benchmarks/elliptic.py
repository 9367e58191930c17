"""The elliptic problem's solver beside SciPy's splu: a batch of 100 fields at 64 × 64, solve and adjoint solve."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from benchmarks.measure import interleaved_medians, milliseconds
from companion import _support
from companion.measure import EllipticPDE
from companion.measure.elliptic import paper_force
from companion.priors import GaussianField

SIDE, BATCH, SMOOTH = 64, 100, 0.35


@dataclass(frozen=True)
class Case:
    """Fields of a standard deviation, None for that of the prior itself, and how they are solved."""

    std: float | None
    dtype: torch.dtype
    tolerance: float
    method: str  # the faster one here


CASES = {
    "smooth, 1e-5, float32 (at most 0.125)": Case(SMOOTH, torch.float32, 1e-5, "pcg"),
    "smooth, 1e-10, float64 (at most 0.33)": Case(SMOOTH, torch.float64, 1e-10, "pcg"),
    "prior, 1e-10, float64 (at most 1)": Case(None, torch.float64, 1e-10, "direct"),
}


def compare_solvers(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of both, their ratio, and the largest residual and relative difference of u, by case."""
    found = {}
    for name, case in CASES.items():
        x = fields(case.std)
        matrices = [stiffness(one) for one in x.numpy()]  # SciPy's clock does not count the assembly, ours does
        pde = EllipticPDE(SIDE, method=case.method, tolerance=case.tolerance)
        ours, peer = partial(solve_and_adjoint, pde, x.to(case.dtype)), partial(scipy_solve_and_adjoint, matrices)
        difference = np.abs(ours().double().numpy() - peer()).max((1, 2)) / np.abs(peer()).max((1, 2))
        tasks: dict[str, Callable[[], float]] = {
            "companion, ms": partial(milliseconds, ours),
            "splu, ms": partial(milliseconds, peer),
        }
        times = interleaved_medians(tasks, rounds)
        found[name] = times | {
            "ratio": times["companion, ms"] / times["splu, ms"],
            "residual": float(pde.residual.max()),
            "difference": float(difference.max()),
        }
    return found


def fields(std: float | None) -> Tensor:
    """Draws of the elliptic problem's prior, scaled to a mean standard deviation, [100, 64²]; float64."""
    field = GaussianField(SIDE, alpha=0.5, beta=2.0)
    x = field.sample(BATCH, seed=_support.generator(0, "benchmark", "elliptic"))
    return x if std is None else x * std / x.std()


def solve_and_adjoint(pde: EllipticPDE, x: Tensor) -> Tensor:
    """u, [100, 63, 63], after the gradient of Σu in x, too."""
    x = x.detach().requires_grad_()
    u = pde.solve(x)
    u.sum().backward()
    return u.detach()


def scipy_solve_and_adjoint(matrices: list[scipy.sparse.csc_matrix]) -> np.ndarray:
    """u by one factorisation and two solves each, [100, 63, 63]; the gradient's products are not counted."""
    load = paper_force(SIDE).numpy().ravel() / SIDE**2
    ones, solutions = np.ones_like(load), []
    for matrix in matrices:
        factor = scipy.sparse.linalg.splu(
            matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
        solutions.append(factor.solve(load))
        factor.solve(ones)
    return np.stack(solutions).reshape(-1, SIDE - 1, SIDE - 1)


def stiffness(x: np.ndarray) -> scipy.sparse.csc_matrix:
    """The same matrix from differences along edges, D^T diag(conductivity) D, for a field [64²]."""
    conductivity = np.exp(x.reshape(SIDE, SIDE))
    along = scipy.sparse.diags([np.ones(SIDE - 1), -np.ones(SIDE - 1)], [0, -1], shape=(SIDE, SIDE - 1))
    inner = scipy.sparse.identity(SIDE - 1)
    rows = (conductivity[:, :-1] + conductivity[:, 1:]) / 2  # edges in s₁, [64, 63]
    columns = (conductivity[:-1] + conductivity[1:]) / 2  # in s₂, [63, 64]
    parts = [(scipy.sparse.kron(along, inner), rows), (scipy.sparse.kron(inner, along), columns)]
    return sum(d.T @ scipy.sparse.diags(edges.ravel()) @ d for d, edges in parts).tocsc()
