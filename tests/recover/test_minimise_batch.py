"""An image's result is the same alone and in any batch, whatever becomes of its neighbours."""

import pytest
import torch

from companion import measure, recover
from companion.energy import Energy, FlowLikelihood, LatentNorm, Objective, Point, SquaredMisfit
from companion.priors import Glow


@pytest.fixture(scope="module")
def flow():
    flow = Glow((3, 8, 8), levels=2, steps=1, width=16).double().eval().requires_grad_(False)
    source = torch.Generator().manual_seed(0)
    for parameter in flow.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=source)
    return flow


def measured(flow, m=60, batch=5):
    operator = measure.Gaussian(flow.shape, m, seed=1)
    source = torch.Generator().manual_seed(2)
    x = flow.decode(0.8 * torch.randn(batch, flow.latent_dim, generator=source).double())
    return operator, operator(x) + 0.02 * torch.randn(batch, m, generator=source).double()


class Select(Objective):
    """A function of rows with data of its own, evaluated for some of them only."""

    def __init__(self, function, data):
        self.function, self.data = function, data

    def at(self, variable):
        return Point(variable)

    def of(self, point):
        return self.function(point.z, self.data)

    def select(self, index):
        return Select(self.function, self.data[index])


def same(one, other, index):
    for a, b in ((one.x, other.x), (one.energy, other.energy)):
        torch.testing.assert_close(a, b[index], rtol=1e-5, atol=1e-5)
    assert one.converged.tolist() == other.converged[index].tolist()
    begin, steps = 3, len(one.trace["energy"])
    torch.testing.assert_close(one.trace["energy"][:begin], other.trace["energy"][:begin, index], rtol=1e-5, atol=1e-5)
    assert steps <= len(other.trace["energy"]) + 5


@pytest.mark.slow
@pytest.mark.parametrize("method", recover.METHODS)
@pytest.mark.parametrize(("penalty", "space"), [(None, "z"), (LatentNorm(0.05), "z"), (FlowLikelihood(0.01), "x")])
def test_a_flow_problem_alone_and_in_a_batch(flow, method, penalty, space):
    operator, y = measured(flow)
    energy = Energy(flow, SquaredMisfit(operator, y), penalty, space)
    start = torch.zeros(5, flow.latent_dim, dtype=torch.float64)
    start = start if space == "z" else flow.decode(start)
    options = {"max_iterations": 25, "learning_rate": 0.05}
    together = recover.minimise(energy, start, method, **options)
    assert (together.energy < 0.5 * together.trace["energy"][0]).all()
    for index in ([4], [3, 1]):
        same(recover.minimise(energy.select(index), start[index], method, **options), together, index)


@pytest.mark.slow
def test_the_same_through_hundreds_of_iterations(flow):
    operator, y = measured(flow, m=192, batch=2)
    together = recover.flow_latent(flow, operator, y, 0.02, max_iterations=140)
    assert together.evaluations.max() > 120
    hardest = int(together.evaluations.argmax())
    alone = recover.flow_latent(flow, operator, y[hardest : hardest + 1], 0.02, max_iterations=140)
    same(alone, together, [hardest])


@pytest.mark.parametrize("method", recover.METHODS)
def test_neighbours_that_overflow_change_nothing(flow, method):
    operator, y = measured(flow, batch=3)
    alone = recover.flow_latent(flow, operator, y[[0, 2]], method=method, max_iterations=20)
    y[1] = 1e300  # its squared misfit overflows everywhere
    together = recover.flow_latent(flow, operator, y, method=method, max_iterations=20)
    assert "not finite at z0" in together.reason[1] and not together.converged[1]
    assert torch.isfinite(together.x).all() and torch.isfinite(together.z).all()
    same(alone, together, [0, 2])


@pytest.mark.parametrize("method", recover.METHODS)
def test_neighbours_that_run_into_nan_change_nothing(method):
    def function(z, wall):
        value = (100 * (z[:, 1:] - z[:, :-1] ** 2) ** 2 + (1 - z[:, :-1]) ** 2).sum(1)
        return torch.where(z[:, 0] > wall, torch.nan, value)

    walls = torch.tensor([torch.inf, -0.5, 0.3, torch.inf])
    start = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) - 2
    options = {"max_iterations": 60, "learning_rate": 0.1}
    together = recover.minimise(Select(function, walls), start, method, **options)
    assert torch.isfinite(together.energy).all()
    for i in range(4):
        same(recover.minimise(Select(function, walls[i : i + 1]), start[i : i + 1], method, **options), together, [i])


def test_a_plain_function_is_evaluated_for_the_whole_batch_and_gives_the_same():
    target = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))

    def function(z, data):
        return ((z - data).abs() ** 1.5).sum(1) + (z[:, 0] * z[:, 1]) ** 2

    start = torch.zeros(4, 6)
    plain = recover.minimise(lambda z: function(z, target), start)
    same(plain, recover.minimise(Select(function, target), start), [0, 1, 2, 3])


def test_finished_images_are_left_out():
    sizes = []

    def function(z, steepness):
        sizes.append(len(z))
        return (steepness * (z - 1) ** 2).sum(1)

    steepness = torch.ones(3, 8)
    steepness[2] = torch.logspace(0, 3, 8)
    result = recover.minimise(Select(function, steepness), torch.zeros(3, 8))
    assert result.converged.all()
    assert sizes[0] == 3 and sizes[-1] == 1
    assert sum(sizes) == int(result.evaluations.sum())


@pytest.mark.slow
def test_hard_problems_never_return_nan(flow):
    """Far out of distribution, without a penalty, from large starts."""
    source = torch.Generator().manual_seed(3)
    wild = Glow((3, 8, 8), levels=1, steps=2, width=8).eval().requires_grad_(False)
    for parameter in wild.parameters():
        parameter += 0.5 * torch.randn(parameter.shape, generator=source)
    operator = measure.Gaussian(wild.shape, 40, seed=4)
    spread = torch.logspace(-1, 8, 200)[:, None]
    y = spread.flip(0) * torch.randn(200, 40, generator=source)
    z0 = spread * torch.randn(200, wild.latent_dim, generator=source)
    for method in recover.METHODS:
        result = recover.flow_latent(wild, operator, y, z0=z0, method=method, max_iterations=10)
        for value in (result.x, result.z, result.energy):
            assert torch.isfinite(value).all()
        assert all(result.reason)
        assert (result.energy <= result.trace["energy"][0].to(result.energy)).all()
