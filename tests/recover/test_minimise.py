"""Minimisers against closed forms and SciPy; budgets, traces, divergence and bad input."""

import math

import pytest
import torch
from scipy import optimize

from companion import measure, recover
from companion.energy import Energy, LatentNorm, NoiseMisfit, SquaredMisfit
from companion.recover.linesearch import StrongWolfe


def rosenbrock(z):
    return (100 * (z[:, 1:] - z[:, :-1] ** 2) ** 2 + (1 - z[:, :-1]) ** 2).sum(1)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class LinearPrior(torch.nn.Module):
    """x = W z + b on vectors: Gaussian posteriors in closed form."""

    def __init__(self, n=12, dtype=torch.float64):
        super().__init__()
        self.shape, self.latent_dim = (n,), n
        self.weight, self.bias = normal(n, n, seed=5).to(dtype), normal(n, seed=6).to(dtype)

    def decode(self, z):
        return z @ self.weight.T + self.bias


def energy_and_gradient(energy, z):
    z = z.clone().requires_grad_()
    value = energy(z)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def quadratic(n=30, batch=5, condition=1e2):
    basis = torch.linalg.qr(normal(batch, n, n, seed=1))[0]
    matrix = basis @ torch.diag(torch.logspace(0, math.log10(condition), n, dtype=torch.float64)) @ basis.mT
    centre = normal(batch, n, seed=2)

    def energy(z):
        offset = z - centre
        return 0.5 * (offset * (matrix @ offset[:, :, None])[:, :, 0]).sum(1) + 3

    return energy, centre


@pytest.mark.parametrize("slope_at_one", [-1.5, -0.2, 0.3, 5.0])
@pytest.mark.parametrize("first_step", [1e-4, 1.0, 300.0])
@pytest.mark.parametrize("wall", [math.inf, 2.0, 0.01])
def test_line_search_ends_at_the_strong_wolfe_conditions(slope_at_one, first_step, wall):
    def function(t):  # falls from 0, then rises; not finite beyond the wall
        if t > wall:
            return math.nan, math.nan
        growth = slope_at_one + 2.0
        return -2 * t + growth * t**2 / 2 + 0.05 * math.cos(9 * t) - 0.05, -2 + growth * t - 0.45 * math.sin(9 * t)

    value, slope = function(0.0)
    search = StrongWolfe(value, slope, first_step)
    trials = 0
    while not search.done:
        search.report(*function(search.step))
        trials += 1
    assert trials <= 20 and 0 < search.low.step <= wall
    assert search.low.value <= value + 1e-4 * search.low.step * slope
    if wall == math.inf:
        assert abs(search.low.slope) <= 0.9 * abs(slope)


def test_lbfgs_finds_the_minimum_of_quadratics():
    energy, centre = quadratic()
    result = recover.minimise(energy, torch.zeros_like(centre), tolerance_gradient=1e-9, tolerance_change=0)
    assert result.converged.all()
    assert (result.x - centre).abs().max() < 1e-6
    torch.testing.assert_close(result.energy, torch.full_like(result.energy, 3))


def test_float32_gets_as_near_as_its_gradients_allow():
    energy, centre = quadratic(condition=30)
    result = recover.minimise(lambda z: energy(z.double()).float(), torch.zeros_like(centre).float())
    assert result.x.dtype == torch.float32 and result.converged.all()
    assert (result.x - centre).abs().max() < 1e-4  # the energy alone, 3 with 7 digits, would tell no more than 1e-3


def test_lbfgs_needs_no_more_evaluations_than_scipys():
    starts = 2 * normal(8, 10, seed=3)
    result = recover.minimise(rosenbrock, starts, history=10, tolerance_gradient=1e-6, tolerance_change=0)
    assert result.converged.all()
    spent = 0
    for start in starts:

        def value_and_gradient(v):
            z = torch.from_numpy(v)[None].requires_grad_()
            value = rosenbrock(z)
            return value.item(), torch.autograd.grad(value.sum(), z)[0][0].numpy()

        options = {"maxcor": 10, "gtol": 1e-6, "ftol": 0, "maxiter": 1000}
        reference = optimize.minimize(value_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", options=options)
        spent += reference.nfev
    assert int(result.evaluations.sum()) <= 1.1 * spent


def test_adam_is_torchs_adam():
    energy, centre = quadratic(condition=10)
    result = recover.minimise(energy, torch.zeros_like(centre), "adam", max_iterations=50, learning_rate=0.05)
    steepest = energy_and_gradient(energy, torch.zeros_like(centre))[1].abs().amax(1)
    z = [torch.zeros_like(row).requires_grad_() for row in centre]
    # ε counts gradients in the power of two below their largest entry at the start
    optimiser = torch.optim.Adam(
        [{"params": [row], "eps": 1e-8 * 2.0 ** math.floor(math.log2(s))} for row, s in zip(z, steepest, strict=True)],
        lr=0.05,
    )
    energies = [energy(torch.stack(z)).detach()]
    for _ in range(50):
        optimiser.zero_grad()
        energy(torch.stack(z)).sum().backward()
        optimiser.step()
        energies.append(energy(torch.stack(z)).detach())
    torch.testing.assert_close(result.trace["energy"], torch.stack(energies), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(result.energy, torch.stack(energies).amin(0), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("method", recover.METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_posterior_mean_of_the_linear_gaussian_problem(method, dtype):
    prior = LinearPrior(dtype=dtype)
    operator, std = measure.Gaussian((12,), 7, seed=1), 1.0
    problem = measure.Problem(operator, measure.GaussianNoise(std))
    y = normal(4, 7, seed=2, dtype=dtype)
    forward = operator.matrix(prior.bias.double()) @ prior.weight.double()
    precision = torch.eye(12, dtype=torch.float64) + forward.T @ forward / std**2
    shifted = (y - prior.bias @ operator.matrix(y).T).double()
    mean = torch.linalg.solve(precision, (shifted @ forward / std**2).T).T
    options = {"max_iterations": 3000, "learning_rate": 0.02} if method == "adam" else {}
    tolerance = 1e-3 if method == "adam" and dtype == torch.float32 else 1e-4  # Adam follows energies, not slopes
    energy = Energy(prior, NoiseMisfit(problem, y), LatentNorm(0.5, squared=True))
    result = recover.minimise(energy, torch.zeros_like(mean).to(dtype), method, **options)
    assert result.converged.all()
    assert (result.z - mean).abs().max() < tolerance
    torch.testing.assert_close(result.x, prior.decode(result.z))
    energy = Energy(prior, SquaredMisfit(operator, y), LatentNorm(std**2, squared=True))
    result = recover.minimise(energy, torch.zeros_like(mean).to(dtype), method, **options)
    assert (result.z - mean).abs().max() < tolerance


@pytest.mark.parametrize("method", recover.METHODS)
def test_trace_and_watch_follow_each_image_without_extra_evaluations(method):
    prior, calls = LinearPrior(), []

    class Counting(LinearPrior):
        def decode(self, z):
            calls.append(len(z))
            return prior.decode(z)

    y = normal(3, 5, seed=2)
    energy = Energy(Counting(), SquaredMisfit(measure.Gaussian((12,), 5), y), LatentNorm(0.1))
    watch = {"norm": lambda x, z: z.norm(dim=1), "first": lambda x, z: x[:, 0]}
    result = recover.minimise(energy, normal(3, 12), method, max_iterations=30, watch=watch)
    trace = result.trace
    assert set(trace) == {"energy", "evaluations", "norm", "first"}
    assert all(values.shape == (len(trace["energy"]), 3) for values in trace.values())
    torch.testing.assert_close(trace["energy"][0], energy(normal(3, 12)))
    best = trace["energy"].argmin(0)
    columns = torch.arange(3)
    torch.testing.assert_close(trace["energy"][best, columns], result.energy)
    torch.testing.assert_close(trace["norm"][best, columns], result.z.norm(dim=1))
    torch.testing.assert_close(trace["first"][best, columns], result.x[:, 0])
    assert (trace["evaluations"].diff(dim=0) >= 0).all()
    assert int(trace["evaluations"][-1].max()) <= int(result.evaluations.max())
    rounds = int(result.evaluations.max())
    assert len(calls) == rounds + 2  # one more to decode the result, one for the check above
    if method == "lbfgs":
        assert (trace["energy"].diff(dim=0) <= 1e-12).all()


@pytest.mark.parametrize("method", recover.METHODS)
@pytest.mark.parametrize("budget", [1, 2, 7, 23])
def test_budget_of_evaluations_is_kept(method, budget):
    counted = []

    def energy(z):
        counted.append(1)
        return rosenbrock(z)

    start = 2 * normal(4, 6)
    result = recover.minimise(energy, start, method, max_evaluations=budget)
    assert len(counted) == budget and result.evaluations.tolist() == [budget] * 4
    assert not result.converged.any()
    assert all(reason == f"stopped after {budget} evaluations" for reason in result.reason)
    assert (result.energy <= rosenbrock(start)).all()
    torch.testing.assert_close(rosenbrock(result.x), result.energy)


def test_iterations_are_limited():
    result = recover.minimise(rosenbrock, 2 * normal(4, 6), max_iterations=5)
    assert result.trace["energy"].shape == (6, 4) and not result.converged.any()
    assert result.reason == ["stopped after 5 iterations"] * 4


def test_the_best_iterate_survives_an_adam_that_overshoots():
    result = recover.minimise(rosenbrock, 1 + 0.01 * normal(3, 4), "adam", learning_rate=3.0, max_iterations=40)
    torch.testing.assert_close(result.energy, result.trace["energy"].amin(0))
    torch.testing.assert_close(rosenbrock(result.x), result.energy)
    assert (result.trace["energy"][-1] > 10 * result.energy).all()


CLIFFS = {
    "nan beyond a wall": lambda z: torch.where(z[:, 0] > 1, torch.nan, -z.sum(1) + z.square().sum(1) / 9),
    "falls to minus infinity": lambda z: -z.exp().sum(1),
    "infinite slope": lambda z: -(z[:, :1].abs().sqrt() + z.square()).sum(1),
    "nan everywhere but at the start": lambda z: torch.where((z == 0.5).all(1), z.sum(1), torch.nan),
    "huge": lambda z: (z - 1).square().sum(1) * 1e300,
}


@pytest.mark.parametrize("method", recover.METHODS)
@pytest.mark.parametrize("cliff", CLIFFS)
def test_diverging_energies_end_with_a_finite_best_iterate(method, cliff):
    start = torch.full((3, 4), 0.5, dtype=torch.float64)
    energy = CLIFFS[cliff]
    result = recover.minimise(energy, start, method, max_iterations=60, learning_rate=0.3)
    assert torch.isfinite(result.x).all() and torch.isfinite(result.energy).all()
    assert (result.energy <= energy(start)).all()
    torch.testing.assert_close(energy(result.x), result.energy)
    assert all(result.reason)
    if cliff in ("falls to minus infinity", "nan everywhere but at the start"):
        assert not result.converged.any()


def test_a_start_that_is_not_finite_is_moved_towards_the_origin():
    def energy(z):
        return torch.where(z.norm(dim=1) > 3, torch.inf, (z - 1).square().sum(1))

    start = torch.tensor([[0.5, 0.5], [100.0, 100.0]], dtype=torch.float64)
    result = recover.minimise(energy, start)
    torch.testing.assert_close(result.x, torch.ones_like(start))
    assert result.converged.tolist() == [True, False]
    assert "started at 0.016 z0" in result.reason[1]


def test_an_energy_that_is_never_finite_returns_its_start():
    def energy(z):
        return torch.where(z[:, 0] > 0, torch.nan, z.square().sum(1))

    for method in recover.METHODS:
        result = recover.minimise(energy, torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), method, max_iterations=5)
        assert result.energy[0] == torch.inf and torch.isfinite(result.x).all()
        assert "not finite at z0" in result.reason[0] and not result.converged[0]
        assert result.energy[1] < 2


@pytest.mark.parametrize("method", recover.METHODS)
def test_an_image_says_why_it_stopped_where_the_budget_allows_no_other_start(method):
    result = recover.minimise(lambda z: (z * torch.nan).sum(1), torch.ones(2, 3), method, max_evaluations=1)
    assert result.reason == ["energy or gradient not finite at z0"] * 2 and not result.converged.any()


@pytest.mark.slow
@pytest.mark.parametrize("method", recover.METHODS)
@pytest.mark.parametrize("scale", [1e-9, 2.0**-30, 1e9])
def test_the_scale_of_the_energy_changes_nothing(method, scale):
    start = 2 * normal(4, 6)
    options = {"max_iterations": 300, "learning_rate": 0.1}
    plain = recover.minimise(rosenbrock, start, method, **options)
    scaled = recover.minimise(lambda z: scale * rosenbrock(z), start, method, **options)
    torch.testing.assert_close(scaled.x, plain.x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scaled.trace["energy"][0], scale * plain.trace["energy"][0])
    assert scaled.converged.tolist() == plain.converged.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_the_floating_point_minimum_of_a_quadratic_is_one(seed, offset):
    basis = torch.linalg.qr(normal(50, 50, seed=seed))[0]
    matrix = basis @ torch.diag(torch.logspace(0, 3, 50, dtype=torch.float64)) @ basis.T
    b = normal(2, 50, seed=seed + 10)

    def energy(z):  # its value is rounded at the size of its terms, which cancel
        return 0.5 * (z @ matrix * z).sum(1) - (b * z).sum(1) + offset

    for options in ({}, {"tolerance_gradient": 0.0, "tolerance_change": 0.0}):
        result = recover.minimise(energy, torch.zeros_like(b), max_iterations=2000, **options)
        assert result.converged.all(), result.reason
        torch.testing.assert_close(result.x, torch.linalg.solve(matrix, b.T).T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", recover.METHODS)
def test_a_plateau_at_the_start_is_no_minimum(method):
    def saturated(z):
        return (torch.tanh(z) - 0.5).square().sum(1)

    start = torch.tensor([[100.0, 100.0], [0.3, 0.3], [0.5, 0.5]], dtype=torch.float64).atanh().nan_to_num(100)
    result = recover.minimise(saturated, start, method)
    assert result.converged.tolist() == [False, True, True]
    assert result.reason[0] == "gradient is zero at the start"


def test_a_trace_is_read_at_numbers_of_evaluations():
    result = recover.minimise(rosenbrock, 2 * normal(3, 4), max_evaluations=40, watch={"first": lambda x, z: x[:, 0]})
    spent, wanted = result.trace["evaluations"], [0, 1, 7, 8, 40, 1000]
    for name in ("energy", "first"):
        found = result.at(name, wanted)
        for k in range(3):
            for i, number in enumerate(wanted):
                step = max(int((spent[:, k] <= number).sum()) - 1, 0)
                assert found[i, k] == result.trace[name][step, k]
        assert torch.equal(result.at(name, 7), found[2])
    with pytest.raises(ValueError, match="name: got 'psnr'; allowed: energy, evaluations, first"):
        result.at("psnr", 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recover.minimise(rosenbrock, torch.zeros(3)), "z0: got shape"),
        (lambda: recover.minimise(rosenbrock, torch.zeros(0, 3)), "z0: got shape"),
        (lambda: recover.minimise(rosenbrock, torch.tensor([[0.0, torch.nan]])), "z0: got 1 NaN"),
        (lambda: recover.minimise(rosenbrock, torch.zeros(1, 2, dtype=torch.int64)), "z0: got torch.int64"),
        (lambda: recover.minimise(rosenbrock, torch.zeros(1, 2), "newton"), "method: got 'newton'"),
        (lambda: recover.minimise(rosenbrock, torch.zeros(1, 2), max_iterations=0), "max_iterations: got 0"),
        (lambda: recover.minimise(rosenbrock, torch.zeros(1, 2), max_evaluations=0), "max_evaluations: got 0"),
        (lambda: recover.minimise(rosenbrock, torch.zeros(1, 2), history=0), "history: got 0"),
        (lambda: recover.minimise(rosenbrock, torch.zeros(1, 2), learning_rate=-1.0), "learning_rate: got -1.0"),
        (lambda: recover.minimise(rosenbrock, torch.zeros(1, 2), tolerance_gradient=-1.0), "tolerance_gradient"),
        (lambda: recover.minimise(None, torch.zeros(1, 2)), "energy: got NoneType"),
        (lambda: recover.minimise(lambda z: z.sum(), torch.zeros(2, 2)), r"energy: got values of shape \(\); allowed"),
        (
            lambda: recover.minimise(rosenbrock, torch.zeros(2, 2), watch={"bad": lambda x, z: z.sum()}),
            r"watch\['bad'\]: got values of shape",
        ),
        (
            lambda: recover.minimise(rosenbrock, torch.zeros(2, 2), watch={"bad": lambda x, z: 1.0}),
            r"watch\['bad'\]: got float",
        ),
        (lambda: recover.minimise(rosenbrock, torch.zeros(2, 2), watch={"bad": 3}), "watch: got 'bad': int"),
        (
            lambda: recover.minimise(rosenbrock, torch.zeros(2, 2), watch={"energy": lambda x, z: z.sum(1)}),
            "watch: got 'energy': function; allowed: functions, under other names",
        ),
        (
            lambda: recover.minimise(rosenbrock, torch.zeros(2, 2), watch={"evaluations": lambda x, z: z.sum(1)}),
            "watch: got 'evaluations'",
        ),
        (lambda: recover.minimise(lambda z: torch.zeros(len(z)), torch.zeros(2, 2)), "energy: got values without a"),
        (lambda: recover.minimise(lambda z: 1.0, torch.zeros(2, 2)), "energy: got float; allowed: a tensor of shape"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
