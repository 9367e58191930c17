"""The elliptic forward map against SciPy's sparse solver on an assembly of its own, and against known solutions."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import skfem
import torch
from scipy.interpolate import RegularGridInterpolator
from skfem.helpers import dot, grad

from companion import measure
from companion.measure import EllipticPDE, elliptic

METHODS = ("direct", "pcg")
OPERATORS = {  # fields are flat: of the images' shape the height alone counts
    measure.EllipticPDE: [
        lambda shape, seed: measure.EllipticPDE(shape[1]),
        lambda shape, seed: measure.EllipticPDE(shape[1], mesh=2 * shape[1], method="pcg"),
    ]
}


def fields(batch: int, side: int, std: float = 1.0, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, std, (batch, side**2)))


def assemble(x: np.ndarray) -> scipy.sparse.csc_matrix:
    """The stiffness matrix of linear elements, triangle by triangle; x [m, m] is constant on squares."""
    m, entries = len(x), {}
    for i in range(m):
        for j in range(m):
            square = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
            for triangle in (square[:3], [square[0], *square[2:]]):
                corners = np.array(triangle, float) / m
                affine = np.column_stack([np.ones(3), corners])
                gradients = np.linalg.inv(affine)[1:]  # of the three hat functions
                local = np.exp(x[i, j]) * abs(np.linalg.det(affine)) / 2 * gradients.T @ gradients
                for a, p in enumerate(triangle):
                    for b, q in enumerate(triangle):
                        entries[p, q] = entries.get((p, q), 0.0) + local[a, b]
    inner = [(i, j) for i in range(1, m) for j in range(1, m)]
    number = {node: k for k, node in enumerate(inner)}
    kept = [(number[p], number[q], v) for (p, q), v in entries.items() if p in number and q in number]
    rows, columns, values = zip(*kept, strict=True)
    return scipy.sparse.csc_matrix((values, (rows, columns)), shape=(len(inner), len(inner)))


def paper_force(s1: np.ndarray, s2: np.ndarray) -> np.ndarray:
    def bump(a: float, b: float) -> np.ndarray:
        return np.exp(-10 * ((s1 - a) ** 2 + (s2 - b) ** 2))

    return 50 / np.pi * (2 * bump(0.25, 0.3) + 2 * bump(0.25, 0.7) - bump(0.7, 0.3) - bump(0.7, 0.7))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("std", [0.35, 3.0])
def test_solutions_are_those_of_a_direct_sparse_solver(method: str, std: float) -> None:
    m = 12
    pde, x = EllipticPDE(m, method=method, tolerance=1e-12), fields(3, m, std)
    nodes = np.arange(1, m) / m
    load = paper_force(nodes[:, None], nodes[None]).ravel() / m**2
    for u, one in zip(pde.solve(x).numpy(), x.numpy(), strict=True):
        reference = scipy.sparse.linalg.spsolve(assemble(one.reshape(m, m)), load).reshape(m - 1, m - 1)
        np.testing.assert_allclose(u, reference, rtol=0, atol=1e-9 * np.abs(reference).max())
    assert (pde.residual < 1e-11).all()


def test_scikit_fem_assembles_the_same_matrix() -> None:
    m, x = 8, fields(1, 8)[0].numpy().reshape(8, 8)
    mesh = skfem.MeshTri.init_tensor(np.linspace(0, 1, m + 1), np.linspace(0, 1, m + 1))
    basis = skfem.Basis(mesh, skfem.ElementTriP1())

    @skfem.BilinearForm
    def conduct(u, v, w):
        i, j = (np.minimum((c * m).astype(int), m - 1) for c in w.x)
        return np.exp(x[i, j]) * dot(grad(u), grad(v))

    matrix = conduct.assemble(basis)
    inner = mesh.interior_nodes()
    load = paper_force(*mesh.p) / m**2
    u = skfem.solve(*skfem.condense(matrix, load, I=inner))[inner]
    i, j = np.rint(mesh.p[:, inner] * m).astype(int) - 1
    np.testing.assert_allclose(EllipticPDE(m).solve(torch.tensor(x.reshape(1, -1)))[0].numpy()[i, j], u, atol=1e-10)


def test_solutions_minimise_the_dirichlet_energy_on_the_other_diagonals() -> None:
    """Hessian of ½∫eˣ|∇u|², by autograd, of u linear on triangles whose diagonals run from (i + 1, j) to (i, j + 1)."""
    m, x = 8, fields(1, 8)
    conductivity = x[0].exp().view(m, m)

    def energy(inner: torch.Tensor) -> torch.Tensor:
        u = torch.nn.functional.pad(inner.view(m - 1, m - 1), (1, 1, 1, 1))
        corner, right, up, far = u[:-1, :-1], u[1:, :-1], u[:-1, 1:], u[1:, 1:]
        lower = ((right - corner) * m).square() + ((up - corner) * m).square()
        upper = ((far - up) * m).square() + ((far - right) * m).square()
        return (conductivity * (lower + upper) / 2).sum() / (2 * m**2)  # each triangle's area is 1/(2 m²)

    stiffness = torch.autograd.functional.hessian(energy, torch.zeros((m - 1) ** 2, dtype=torch.float64))
    nodes = np.arange(1, m) / m
    load = paper_force(nodes[:, None], nodes[None]).ravel() / m**2
    expected = np.linalg.solve(stiffness.numpy(), load).reshape(m - 1, m - 1)
    np.testing.assert_allclose(EllipticPDE(m).solve(x)[0].numpy(), expected, rtol=0, atol=1e-10)


def test_the_error_falls_with_the_square_of_the_mesh() -> None:
    def exact(s1: torch.Tensor, s2: torch.Tensor) -> torch.Tensor:
        return torch.sin(math.pi * s1) * torch.sin(2 * math.pi * s2)

    def log_conductivity(s1: torch.Tensor, s2: torch.Tensor) -> torch.Tensor:
        return 0.7 * torch.sin(2 * s1 + 3 * s2)

    def flux_divergence(s1: torch.Tensor, s2: torch.Tensor) -> torch.Tensor:
        s1, s2 = s1.requires_grad_(), s2.requires_grad_()
        gradient = torch.autograd.grad(exact(s1, s2).sum(), (s1, s2), create_graph=True)
        flux = [log_conductivity(s1, s2).exp() * g for g in gradient]
        return sum(torch.autograd.grad(f.sum(), s, retain_graph=True)[0] for f, s in zip(flux, (s1, s2), strict=True))

    errors = []
    for m in (8, 16, 32):
        points = torch.arange(1, m, dtype=torch.float64) / m
        middles = (torch.arange(m, dtype=torch.float64) + 0.5) / m
        x = log_conductivity(middles[:, None], middles[None]).reshape(1, -1)
        s1, s2 = torch.meshgrid(points, points, indexing="ij")
        force = -flux_divergence(s1.clone(), s2.clone()).detach()
        errors.append(float((EllipticPDE(m).solve(x, force)[0] - exact(s1, s2)).abs().max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (np.abs(orders - 2) < 0.1).all(), (errors, orders)


@pytest.mark.parametrize("mesh", [4, 16, 20])
def test_measurements_are_averages_of_the_bilinear_interpolant(mesh: int) -> None:
    pde, fine = EllipticPDE(mesh), 160  # sixteenths and every mesh line fall on lines of the fine grid
    u = np.zeros((mesh + 1, mesh + 1))
    u[1:-1, 1:-1] = np.random.default_rng(1).normal(size=(mesh - 1, mesh - 1))
    line, middles = np.linspace(0, 1, mesh + 1), (np.arange(fine) + 0.5) / fine
    values = RegularGridInterpolator((line, line), u)(np.stack(np.meshgrid(middles, middles, indexing="ij"), -1))
    expected = []
    inside = [(middles > k / 16) & (middles < (k + 2) / 16) for k in (3, 5, 7, 9, 11)]
    for column in inside:
        for rows in (inside[0] | inside[4], inside[1] | inside[3], inside[2]):
            patch = np.outer(column, rows)
            expected.append((values * patch).mean() / np.sqrt(patch.mean()))  # ∫φu with ‖φ‖ = 1
    np.testing.assert_allclose(pde.measurements.numpy() @ u[1:-1, 1:-1].ravel(), expected, atol=1e-12)


def slope(remainders: list[float], steps: list[float]) -> float:
    return float(np.polyfit(np.log(steps), np.log(remainders), 1)[0])


@pytest.mark.parametrize("method", METHODS)
def test_gradient_and_hessian_pass_taylor_tests(method: str) -> None:
    pde, x, direction = EllipticPDE(8, method=method, tolerance=1e-13), fields(2, 8), fields(2, 8, seed=1)
    weights = torch.linspace(-1, 2, 15, dtype=torch.float64)

    def gradient(at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        at = at.requires_grad_()
        value = (pde(at).square() @ weights).sum()
        return value, torch.autograd.grad(value, at, create_graph=True)[0]

    value, first = gradient(x.clone())
    _, hessian_vector = torch.autograd.functional.hvp(lambda v: (pde(v).square() @ weights).sum(), x, direction)
    steps, of_value, of_gradient = [0.1, 0.05, 0.025, 0.0125], [], []
    for step in steps:
        moved, moved_gradient = gradient((x + step * direction).detach())
        of_value.append((moved - value - step * (first * direction).sum()).abs().item())
        of_gradient.append((moved_gradient - first - step * hessian_vector).norm().item())
    assert slope(of_value, steps) == pytest.approx(2, abs=0.15)
    assert slope(of_gradient, steps) == pytest.approx(2, abs=0.15)


def test_gradients_of_all_orders_are_those_of_finite_differences() -> None:
    pde, x = EllipticPDE(2, mesh=4), fields(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(pde, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(pde, x)


@pytest.mark.parametrize("method", METHODS)
def test_torch_func_gives_the_ordinary_derivatives(method: str) -> None:
    pde, x, direction = EllipticPDE(4, method=method, tolerance=1e-12), fields(2, 4), fields(2, 4, seed=1)

    def value(at: torch.Tensor) -> torch.Tensor:
        return pde.forward(at).square().sum()

    def slope_along(at: torch.Tensor) -> torch.Tensor:
        return (torch.func.grad(value)(at) * direction).sum()

    first, second = torch.func.grad(value)(x), torch.func.grad(slope_along)(x)
    torch.testing.assert_close(first, torch.autograd.functional.jacobian(value, x), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(second, torch.autograd.functional.hvp(value, x, direction)[1], rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_a_wild_field_fails_alone(method: str) -> None:
    pde, x = EllipticPDE(8, method=method), fields(6, 8)
    x[1, 3], x[2], x[3, 5], x[4] = math.nan, 1e4, -1e4, 40 * fields(1, 8, seed=5)[0]
    x.requires_grad_()
    y = pde.apply(x)
    (gradient,) = torch.autograd.grad(y[[0, 5]].sum() + y[1:5].sum() * 2, x)
    wild, tame = [1, 2, 3], [0, 5]
    assert torch.isnan(y[wild]).all() and torch.isnan(pde.residual[wild]).all()
    assert torch.isnan(gradient[wild]).flatten(1).any(1).all()
    for row in tame:
        alone = x[row : row + 1].detach().requires_grad_()
        y_alone = pde(alone)
        torch.testing.assert_close(y[row : row + 1], y_alone, rtol=1e-9, atol=0)
        torch.testing.assert_close(
            gradient[row : row + 1], torch.autograd.grad(y_alone.sum(), alone)[0], rtol=1e-7, atol=1e-12
        )


def test_solves_are_counted_image_by_image() -> None:
    pde, x = EllipticPDE(4), fields(5, 4).requires_grad_()
    y = pde(x)
    assert pde.solves == 5
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert pde.solves == 10
    torch.autograd.grad(gradient[:, 0].sum(), x)
    assert pde.solves == 20


@pytest.mark.parametrize("method", METHODS)
def test_float32_agrees_to_its_tolerance_which_is_stated(method: str) -> None:
    pde, x = EllipticPDE(32, method=method), 0.35 * fields(20, 32)
    exact = pde(x)
    y = pde(x.float())
    assert y.dtype == torch.float32 and (pde.residual < 1e-5 + 2e-8 * 32**2).all()  # what stops it, and rounding
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_without_a_gradient_leaves_the_others_theirs(method: str) -> None:
    pde = measure.EllipticPDE(8, method=method, tolerance=1e-10)
    x = torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = torch.autograd.functional.jacobian(lambda one: pde(one[None]).square().sum(), x[1])
    together = torch.autograd.functional.jacobian(lambda every: pde(every)[1].square().sum(), x)
    torch.testing.assert_close(together, torch.zeros_like(x).index_copy(0, torch.tensor([1]), alone[None]))


@pytest.mark.parametrize("method", METHODS)
def test_autocast_rounds_neither_solve_nor_adjoint_solve(method: str) -> None:
    pde = measure.EllipticPDE(8, method=method)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (right,) = torch.autograd.grad(pde.solve(x).sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        (inside,) = torch.autograd.grad(pde.solve(x).sum(), x)
    torch.testing.assert_close(inside, right)


def test_a_smooth_scaling_saves_a_quarter_of_the_iterations_where_x_is_rough(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 32**2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    calls: list[Any] = []
    solve = elliptic._laplace
    monkeypatch.setattr(elliptic, "_laplace", lambda *given: calls.append(given) or solve(*given))
    counted = []
    for around in (1, elliptic._Piece.around):
        monkeypatch.setattr(elliptic._Piece, "around", around)
        measure.EllipticPDE(32, method="pcg", tolerance=1e-6).solve(x)
        counted.append(len(calls))
        calls.clear()
    assert counted[1] < 0.75 * counted[0], counted


def test_jumps_between_large_areas_are_solved_too() -> None:
    x = torch.zeros(2, 32, 32, dtype=torch.float64)
    x[0, 8:20, 10:26] = math.log(1e4)  # where a smoothed scaling alone takes ten times the diagonal's iterations
    pde, exact = (measure.EllipticPDE(32, method=method) for method in ("pcg", "direct"))
    torch.testing.assert_close(pde.solve(x.flatten(1)), exact.solve(x.flatten(1)), rtol=0, atol=1e-9)
    assert pde.residual.max() < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_small_and_large_loads_scale_the_solution(method: str) -> None:
    pde = measure.EllipticPDE(8, method=method)
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    u = pde.solve(x)
    for size in (1e-22, 1e-18, 1e19):
        torch.testing.assert_close(pde.solve(x, pde.force * size) / size, u, rtol=1e-4, atol=0)
        assert pde.residual.max() < 1e-3


def test_mirrored_fields_measure_the_same_and_coarse_fields_are_repeated() -> None:
    pde, x = EllipticPDE(8), fields(3, 8)
    torch.testing.assert_close(pde(x.view(-1, 8, 8).flip(2).flatten(1)), pde(x), rtol=1e-10, atol=0)
    coarse, repeated = fields(2, 4), np.kron(fields(2, 4).numpy().reshape(2, 4, 4), np.ones((2, 2)))
    torch.testing.assert_close(pde.coarsen()(coarse), pde(torch.from_numpy(repeated).flatten(1)), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EllipticPDE(8, mesh=12),
        lambda: EllipticPDE(1),
        lambda: EllipticPDE(8, method="lu"),
        lambda: EllipticPDE(8, tolerance=0),
        lambda: EllipticPDE(3).coarsen(),
        lambda: EllipticPDE(4)(torch.zeros(2, 15)),
        lambda: EllipticPDE(4)(torch.full((1, 16), math.nan)),
        lambda: EllipticPDE(4).solve(torch.zeros(1, 16, dtype=torch.int64)),
        lambda: EllipticPDE(4).solve(torch.zeros(1, 16, dtype=torch.float16)),
        lambda: EllipticPDE(4).solve(torch.zeros(1, 16), torch.ones(1, 1)),
        lambda: EllipticPDE(4).solve(torch.zeros(1, 16), np.ones((3, 3))),
    ],
)
def test_bad_arguments_say_what_is_allowed(make) -> None:
    with pytest.raises(ValueError, match=r"got .*; allowed: "):
        make()


def test_matrices_that_cannot_be_factorised_leave_the_rest_alone() -> None:
    """Pivots of exactly zero, which contrasts beyond the floating-point numbers make."""
    pde = EllipticPDE(4)
    x = 100 * torch.randn(400, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0] /= 100
    y = pde(x)
    torch.testing.assert_close(y[:1], pde(x[:1]), rtol=1e-9, atol=0)
    assert bool(y[[110, 146, 207]].isnan().all())


@pytest.mark.parametrize("level", [-100.0, 100.0])
def test_conductivities_beyond_float32_are_solved_in_float64(level: float) -> None:
    """exp(±100) is no number of the single precision in which conjugate gradients begin."""
    side = 16
    x = level + fields(1, side, 0.35)
    pde = EllipticPDE(side, method="pcg")
    u = pde.solve(x)
    assert float(pde.residual) < 1e-10
    matrix = assemble(x[0].view(side, side).numpy())
    nodes = np.arange(1, side) / side
    load = paper_force(*np.meshgrid(nodes, nodes, indexing="ij")).ravel() / side**2
    known = scipy.sparse.linalg.spsolve(matrix, load).reshape(side - 1, side - 1)
    np.testing.assert_allclose(u[0], known, rtol=0, atol=1e-8 * np.abs(known).max())
