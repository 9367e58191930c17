"""The estimators: which energy they minimise, from where, and what they refuse."""

import math

import pytest
import torch

from companion import measure, recover
from companion.energy import Energy, FlowLikelihood, SquaredMisfit
from companion.priors import Glow, load


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class LinearPrior(torch.nn.Module):
    """x = W z + b with a density: every estimator has a closed form."""

    def __init__(self, shape=(1, 3, 4), latent_dim=12):
        super().__init__()
        self.shape, self.latent_dim = shape, latent_dim
        self.weight, self.bias = normal(math.prod(shape), latent_dim, seed=5), normal(math.prod(shape), seed=6)

    def decode(self, z):
        return (z @ self.weight.T + self.bias).view(-1, *self.shape)

    def encode(self, x):
        return torch.linalg.solve(self.weight, (x.flatten(1) - self.bias).T).T

    domain = None

    def decode_with_log_det(self, z):
        return self.decode(z), self.weight.slogdet()[1].expand(len(z))

    def encode_with_log_det(self, x):
        return self.encode(x), -self.weight.slogdet()[1].expand(len(x))


class TwoWells(torch.nn.Module):
    """A generator in one dimension that is not monotonous: the misfit has a good and a bad minimum."""

    shape, latent_dim = (1, 1, 1), 1

    def decode(self, z):
        return (z**4 / 4 - z**2 / 2 + 0.3 * z).view(-1, 1, 1, 1)


PROBLEM = (measure.Gaussian((1, 3, 4), 5, seed=1), normal(3, 5, seed=2))


def forward(prior):
    operator, y = PROBLEM
    matrix = operator.matrix(y)
    return matrix @ prior.weight, y - prior.bias @ matrix.T


@pytest.mark.parametrize("gamma", [0.01, 3.0])
def test_flow_latent_with_squared_norm_is_ridge_regression(gamma):
    prior = LinearPrior()
    slope, offset = forward(prior)
    expected = torch.linalg.solve(slope.T @ slope + gamma * torch.eye(12, dtype=torch.float64), slope.T @ offset.T).T
    result = recover.flow_latent(prior, *PROBLEM, gamma, squared=True)
    assert result.converged.all() and (result.z - expected).abs().max() < 1e-6
    torch.testing.assert_close(result.x, prior.decode(result.z))


def test_flow_latent_without_penalty_finds_the_latents_nearest_to_the_start():
    prior = LinearPrior()
    slope, offset = forward(prior)
    nearest = (torch.linalg.pinv(slope) @ offset.T).T
    result = recover.flow_latent(prior, *PROBLEM)
    assert (result.z - nearest).abs().max() < 1e-5
    z0 = normal(3, 12, seed=9)
    start_kept = z0 + (torch.linalg.pinv(slope) @ (offset - z0 @ slope.T).T).T
    assert (recover.flow_latent(prior, *PROBLEM, z0=z0).z - start_kept).abs().max() < 1e-5


def test_flow_latent_with_the_plain_norm_meets_its_optimality_condition():
    prior, gamma = LinearPrior(), 0.4
    slope, offset = forward(prior)
    z = recover.flow_latent(prior, *PROBLEM, gamma).z
    gradient = 2 * (z @ slope.T - offset) @ slope + gamma * z / z.norm(dim=1, keepdim=True)
    assert gradient.abs().max() < 1e-5
    strong = recover.flow_latent(prior, *PROBLEM, 1e4)
    assert strong.z.abs().max() < 1e-3  # the penalty's kink holds the estimate at 0
    assert (strong.energy <= (offset.square().sum(1)) * (1 + 1e-9)).all()


def test_flow_image_is_ridge_regression_too_for_a_linear_prior():
    prior, gamma = LinearPrior(), 0.3
    slope, offset = forward(prior)
    expected = torch.linalg.solve(
        slope.T @ slope + gamma / 2 * torch.eye(12, dtype=torch.float64), slope.T @ offset.T
    ).T
    result = recover.flow_image(prior, *PROBLEM, gamma, max_iterations=2000)
    assert (result.z - expected).abs().max() < 1e-5
    torch.testing.assert_close(result.x, prior.decode(result.z))
    start = recover.flow_image(prior, *PROBLEM, gamma, max_evaluations=1)
    torch.testing.assert_close(start.x, prior.decode(torch.zeros(3, 12, dtype=torch.float64)))


def test_flow_image_stays_where_the_flow_can_represent_pixels():
    flow = Glow((1, 8, 8), levels=1, steps=2, width=8, pixels="logit").double().eval().requires_grad_(False)
    operator = measure.Identity(flow.shape)
    y = 0.5 + 2 * torch.sign(normal(3, *flow.shape))  # far beyond black and white
    energy = Energy(flow, SquaredMisfit(operator, y), FlowLikelihood(0.01), space="x")
    result = recover.flow_image(flow, operator, y, 0.01, x0=torch.full_like(y, 0.5), max_iterations=40)
    assert torch.isfinite(result.x).all() and torch.isfinite(result.energy).all()
    torch.testing.assert_close(energy(result.x), result.energy)
    assert (result.energy < 0.7 * result.trace["energy"][0]).all()
    assert result.x.max() > 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["realnvp-mnist", "glow-mnist"])
def test_flow_image_stays_in_the_narrow_domain_of_the_stored_flows(name):
    flow = load(name)
    operator = measure.Gaussian(flow.shape, 100)
    y = operator(torch.rand(2, *flow.shape, generator=torch.Generator().manual_seed(1))) + 1
    result = recover.flow_image(flow, operator, y, 0.01, max_evaluations=30)
    low, high = flow.domain
    assert low < result.x.min() and result.x.max() < high
    assert (result.energy < result.trace["energy"][0]).all()


def test_gan_latent_keeps_the_best_restart_of_each_image():
    prior, y = TwoWells(), torch.tensor([-0.6, -0.5, -0.4], dtype=torch.float64).view(3, 1, 1, 1)
    operator = measure.Identity((1, 1, 1))
    single = [recover.gan_latent(prior, operator, y, restarts=1, seed=seed, scale=2.0) for seed in range(4)]
    assert len({round(float(r.energy[0]), 6) for r in single}) > 1  # the start decides
    many = [recover.gan_latent(prior, operator, y, restarts=r, scale=2.0) for r in (1, 2, 5)]
    assert (many[1].energy <= many[0].energy).all() and (many[2].energy <= many[1].energy).all()
    assert (many[2].evaluations > many[1].evaluations).all()
    best = many[2]
    torch.testing.assert_close((prior.decode(best.z) - y).square().flatten(1).sum(1), best.energy)
    torch.testing.assert_close(best.trace["energy"][-1], best.energy)
    alone = recover.gan_latent(prior, operator, y[:1], restarts=5, scale=2.0)
    torch.testing.assert_close(alone.z, best.z[:1])


def test_gan_latent_takes_every_seed_that_a_generator_takes():
    prior, y, operator = TwoWells(), torch.zeros(1, 1, 1, 1, dtype=torch.float64), measure.Identity((1, 1, 1))
    ends = [recover.gan_latent(prior, operator, y, restarts=2, seed=s, max_evaluations=1) for s in (10**13, 2**64 - 1)]
    assert not torch.equal(ends[0].z, ends[1].z)


def test_estimates_made_in_inference_mode_are_the_same():
    prior = LinearPrior()

    def estimates():
        operator = measure.Mask(measure.masks.centre((1, 3, 4), 0.5))
        y = operator(normal(2, 1, 3, 4, seed=3))
        return (
            recover.flow_latent(prior, operator, y, 0.1, max_iterations=5).x,
            recover.flow_image(prior, operator, y, 0.1, max_iterations=5).x,
            recover.minimise(lambda z: (z - 1).square().sum(1), y, watch={"norm": lambda x, z: z.norm(dim=1)}).x,
        )

    with torch.inference_mode():
        inside = estimates()
    assert all(torch.equal(a, b) for a, b in zip(inside, estimates(), strict=True))


def test_gan_latent_with_penalty_and_fewer_latents_than_pixels():
    prior = LinearPrior(latent_dim=4)
    slope, offset = forward(prior)
    expected = torch.linalg.solve(slope.T @ slope + 0.1 * torch.eye(4, dtype=torch.float64), slope.T @ offset.T).T
    result = recover.gan_latent(prior, *PROBLEM, 0.1, restarts=2)
    assert (result.z - expected).abs().max() < 1e-6


def test_starts():
    prior, y = LinearPrior(), torch.zeros(500, 5)
    assert torch.equal(recover.start(prior, y), torch.zeros(500, 12))
    drawn = recover.start(prior, y, "normal", 0.7, seed=1)
    assert drawn.dtype == torch.float32 and float(drawn.std()) == pytest.approx(0.7, rel=0.05)
    sphere = recover.start(prior, y.double(), "sphere", 10.0, seed=1)
    torch.testing.assert_close(sphere.norm(dim=1), torch.full((500,), 10.0, dtype=torch.float64))
    assert float(sphere.mean(0).norm()) < 2
    for how in ("normal", "sphere"):
        first = recover.start(prior, y[:3], how, seed=4)
        assert torch.equal(first, recover.start(prior, y, how, seed=4)[:3])
        assert not torch.equal(first, recover.start(prior, y[:3], how, seed=5))


@pytest.mark.parametrize(
    "operator", [measure.Gaussian((1, 6, 6), 20, seed=1), measure.Mask(measure.masks.centre((1, 6, 6), 0.5))]
)
def test_null_space_neighbours_measure_the_same(operator):
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    other = recover.null_space_neighbour(operator, x, 5.0, seed=2)
    torch.testing.assert_close(operator(other), operator(x), rtol=0, atol=1e-5)
    torch.testing.assert_close((other - x).flatten(1).norm(dim=1), torch.full((3,), 5.0, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-4, 2.0**-13, 1e4])
def test_a_multiple_of_the_operator_ends_where_the_operator_does(scale):
    class Scaled(measure.base.LinearOperator):
        def apply(self, x):
            return scale * PROBLEM[0].apply(x)

        def apply_adjoint(self, y):
            return scale * PROBLEM[0].apply_adjoint(y)

    prior, (operator, y) = LinearPrior(), PROBLEM
    plain = recover.flow_latent(prior, operator, y)
    scaled = recover.flow_latent(prior, Scaled(operator.shape, operator.output_shape), scale * y)
    assert scaled.converged.all() and (scaled.evaluations > 3).all()
    torch.testing.assert_close(scaled.x, plain.x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("estimator", [recover.flow_latent, recover.flow_image, recover.gan_latent])
def test_each_image_may_have_a_weight_of_its_own(estimator):
    prior, (operator, y), weights = LinearPrior(), PROBLEM, torch.tensor([0.1, 0.5, 2.0]).double()
    found = estimator(prior, operator, y, weights, max_evaluations=20)
    for k, weight in enumerate(weights.tolist()):
        alone = estimator(prior, operator, y, weight, max_evaluations=20)
        torch.testing.assert_close(found.x[k], alone.x[k], rtol=1e-6, atol=1e-6)


def test_starts_of_restarts_and_operators_share_no_stream():
    prior, y = LinearPrior(), torch.zeros(2, 5)
    rows = measure.Gaussian((1, 3, 4), 2, seed=0).matrix(torch.zeros(1))
    starts = [recover.start(prior, y, "normal", seed=0, restart=restart) for restart in range(3)]
    both = torch.cat([*starts, rows])
    correlations = torch.corrcoef(both) - torch.eye(len(both))
    assert correlations.abs().max() < 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, a, y: recover.flow_latent(p, a, y[:, :4]), "y: got shape"),
        (lambda p, a, y: recover.flow_latent(p, a, y * torch.nan), "y: got 15 NaN"),
        (lambda p, a, y: recover.flow_latent(p, a, y, -1.0), "gamma: got -1.0"),
        (lambda p, a, y: recover.flow_latent(p, a, y, z0=y), "z0: got shape"),
        (lambda p, a, y: recover.flow_latent(p, a, y, z0=y.new_zeros(2, 12)), "z0: got 2 starts for 3 images"),
        (lambda p, a, y: recover.flow_latent(p, a, y, method="sgd"), "method: got 'sgd'"),
        (lambda p, a, y: recover.flow_latent(p, measure.Identity((1, 4, 4)), y), "y: got shape"),
        (lambda p, a, y: recover.flow_image(p, a, y, x0=y), "x0: got shape"),
        (
            lambda p, a, y: recover.flow_image(TwoWells(), measure.Identity((1, 1, 1)), y.new_ones(1, 1, 1, 1)),
            "density",
        ),
        (lambda p, a, y: recover.gan_latent(p, a, y, restarts=0), "restarts: got 0"),
        (lambda p, a, y: recover.gan_latent(p, a, y, seed=-3), "seed: got -3"),
        (lambda p, a, y: recover.start(p, y, "ones"), "how: got 'ones'"),
        (lambda p, a, y: recover.start(p, y, "normal", -1.0), "scale: got -1.0"),
        (lambda p, a, y: recover.start(p, y.long(), "normal"), "y: got torch.int64 tensor"),
        (lambda p, a, y: recover.start(p, y.numpy()), "y: got ndarray"),
        (
            lambda p, a, y: recover.null_space_neighbour(measure.Identity((1, 3, 4)), y.new_ones(1, 1, 3, 4), 1.0),
            "without a null space",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(LinearPrior(), *PROBLEM)
