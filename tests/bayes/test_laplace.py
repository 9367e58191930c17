"""The Laplace approximation against SciPy and a dense Hessian; what aiming makes of a model without any training."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize

from companion.bayes import Elliptic, FieldProblem, Synthetic, Training, jeffreys, laplace, train_msign
from companion.bayes.modes import aim
from companion.measure.base import Operator
from companion.priors.fields import GaussianField
from companion.priors.msign import Mirrored, MsIGN


def dense_hessian(problem, z: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.hessian(lambda v: -problem.log_likelihood(problem.field.decode(v[None])).sum(), z)


@pytest.mark.parametrize("make", [lambda: Elliptic(4), lambda: Synthetic(8)])
def test_mode_and_covariance_are_those_of_the_exact_hessian(make) -> None:
    problem = make()
    found = laplace(problem, rank=16, starts=1)
    z = found.mode[None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.log_density(problem.field.decode(z)).sum(), z)
    assert float(slope.norm()) < 1e-3 * float(found.curvatures[0]) ** 0.5
    d = len(found.mode)
    exact = torch.linalg.inv(torch.eye(d) + dense_hessian(problem, found.mode))
    torch.testing.assert_close(found.covariance(torch.eye(d).double()), exact, rtol=0, atol=1e-6)
    x = found.model().sample(20_000, seed=1)
    latents = problem.field.encode(x)
    error = (latents.T.cov() - exact).abs().max()
    assert float(error) < 5 * np.sqrt(2 / 20_000) * float(exact.diag().max())
    assert float((latents.mean(0) - found.mode).abs().max()) < 5 * np.sqrt(float(exact.diag().max()) / 20_000)


def test_the_mixture_has_the_divergence_of_its_critical_direction() -> None:
    """In the integral convention all but c is the prior's, so a one-dimensional quadrature gives D_J."""
    problem = Synthetic(8)
    mixture = laplace(problem).mixture()
    own, reference = mixture.sample(20_000, seed=1), problem.sample(20_000, seed=2)
    found = jeffreys(mixture.log_prob, problem.log_density, own, reference)
    tau, gamma, y = problem.tau, problem.gamma, float(problem.y)

    def loss(c: float) -> float:
        return c**2 / (2 * tau**2) + (y - c**2) ** 2 / (2 * gamma**2)

    top = abs(float(optimize.minimize_scalar(loss, bounds=(0.05, 1), method="bounded", options={"xatol": 1e-10}).x))
    curvature = 1 / tau**2 + (6 * top**2 - 2 * y) / gamma**2
    grid = np.linspace(-2, 2, 200_001)
    log_q = -np.vectorize(loss)(grid)
    log_q -= np.log(np.trapezoid(np.exp(log_q), grid))
    log_p = np.logaddexp(-curvature * (grid - top) ** 2 / 2, -curvature * (grid + top) ** 2 / 2)
    log_p -= np.log(np.trapezoid(np.exp(log_p), grid))
    exact = np.trapezoid((np.exp(log_p) - np.exp(log_q)) * (log_p - log_q), grid)
    assert found.value == pytest.approx(exact, abs=4.5 * found.error)


def elliptic() -> Elliptic:
    return Elliptic(4, 3.2)  # a barrier of 17 nats between two modes, in neither of which x is its own mirror image


def test_the_approximation_at_the_other_mode_is_the_mirror_image() -> None:
    problem = elliptic()
    one = laplace(problem)
    other = one.towards(problem.field.encode(problem.field.mirror(problem.field.decode(one.mode[None])))[0])
    x = one.model().sample(200, seed=1)
    mirrored = problem.field.mirror(x)
    torch.testing.assert_close(other.model().log_prob(mirrored), one.model().log_prob(x))
    assert float((one.model().log_prob(x) - other.model().log_prob(x)).mean().detach()) > 10  # these are two modes
    assert one.towards(one.mode) is one
    # its curvatures are the Hessian's there, which couples what is even in s₂ with what is odd
    exact = torch.linalg.inv(torch.eye(16) + dense_hessian(problem, other.mode))
    torch.testing.assert_close(other.covariance(torch.eye(16).double()), exact, rtol=0, atol=1e-5)
    assert float((one.covariance(torch.eye(16).double()) - exact).abs().max()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("side", [1, -1])
def test_a_proposal_in_either_mode_is_aimed_at_that_one(side: int) -> None:
    problem = elliptic()
    model = Mirrored(MsIGN(problem.field, steps=0, rank=16))
    coarse = laplace(problem.coarsen())
    start = coarse.mode if side > 0 else coarse._mirrored(coarse.mode[None])[0]
    first = model.half_model.scheme.flows[0]
    eye = torch.eye(4, dtype=torch.float64)
    gaussian = coarse.towards(start)
    root = torch.linalg.cholesky(gaussian.covariance(eye))
    first.aim(coarse.field, eye, root, start)  # z₁ = start + root · N(0, I): the coarse Laplace approximation itself
    aim(problem, model, 40_000, rounds=0)
    expected = laplace(problem).towards(problem.field.encode(model.half_model.sample(100)).mean(0))
    latents = problem.field.encode(model.half_model.sample(40_000, seed=3))
    spread = expected.covariance(torch.eye(16).double())
    assert float((latents.mean(0) - expected.mode).abs().max()) < 0.05
    assert float((latents.T.cov() - spread).abs().max()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("convention", ["integral", "isometric"])
def test_aiming_alone_carries_a_good_coarse_model_to_the_finest_scale(convention: str) -> None:
    problem = Synthetic(8, convention)
    model = Mirrored(MsIGN(problem.field, steps=0, rank=2))
    stages = train_msign(problem, model, Training(iterations=0, pool=4000))
    assert all(stage.simulations > 4000 for stage in stages)
    own, reference = model.sample(4000, seed=1), problem.sample(4000, seed=2)
    found = jeffreys(model.log_prob, problem.log_density, own, reference)
    assert found.value < (0.03 if convention == "isometric" else 0.2) + 3 * found.error, found
    share = float((own @ problem.direction > 0).double().mean())
    assert share == pytest.approx(0.5, abs=0.04)


def test_a_model_without_an_affine_layer_cannot_be_aimed() -> None:
    problem = Synthetic(4)
    with pytest.raises(ValueError, match=r"model: got none of rank 1 or more; allowed: "):
        aim(problem, MsIGN(problem.field, steps=1), 100)


@pytest.mark.parametrize(("samples", "moves"), [(2, 0), (8, 1)])
def test_moments_of_no_more_samples_than_directions_are_refused(samples: int, moves: int) -> None:
    problem = Synthetic(2)
    with pytest.raises(ValueError, match=rf"samples \(pool\): got {samples}.*; allowed: more than .* rank, 2"):
        aim(problem, MsIGN(problem.field, steps=1, rank=2), samples, moves=moves)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_whatever_mode_the_caller_is_in(mode) -> None:
    problem, coarse = Synthetic(4), Synthetic(4).coarsen()  # made outside, as what a mode makes stays in it
    model = Mirrored(MsIGN(problem.field, steps=1, width=2, rank=2))
    how = Training(iterations=1, batch=5, pool=40, least_ess=5, moves=1)
    with mode():
        inside = laplace(coarse, starts=1)
        assert len(train_msign(problem, model, how, [1])) == 1
    outside = laplace(coarse, starts=1)
    assert torch.equal(inside.mode, outside.mode) and torch.equal(inside.directions, outside.directions)


class Sensors(Operator):
    """W times the field, each value repeated up to the finest lattice: linear, and not its own mirror image."""

    domain = "real"

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__(weights.shape[1:], weights.shape[:1])
        self.weights = weights

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights.T

    def coarsen(self) -> "Sensors":
        side = math.isqrt(self.shape[0]) // 2
        return Sensors(self.weights.view(-1, side, 2, side, 2).sum((2, 4)).flatten(1))


def lopsided(seed: int | None = 0) -> tuple[FieldProblem, torch.Tensor, torch.Tensor]:
    """A linear problem with normal noise, and its posterior's mean and covariance in closed form."""
    field = GaussianField(4)
    weights = torch.eye(16, dtype=torch.float64)[[0, 5, 9, 12]]
    truth = torch.zeros(16) if seed is None else field.sample(1, seed=5)[0]
    problem = FieldProblem(field, Sensors(weights), truth, gamma=0.05, seed=seed)
    prior = field.covariance()
    gain = prior @ weights.T @ torch.linalg.inv(weights @ prior @ weights.T + 0.05**2 * torch.eye(4).double())
    return problem, gain @ problem.y, prior - gain @ weights @ prior


@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_layer_is_aimed_at_the_only_mode_of_a_posterior_without_symmetry(scales: int, seed: int) -> None:
    problem, mean, covariance = lopsided()
    model = MsIGN(problem.field, scales, steps=0, rank=16)
    train_msign(problem, model, Training(iterations=0, pool=2000), seed=seed)
    with torch.no_grad():
        shift = model.decode(torch.zeros(1, 16, dtype=torch.float64))[0]
        root = model.decode(torch.eye(16, dtype=torch.float64)) - shift
    own = root.T @ root
    traces = torch.linalg.solve(own, covariance).trace() + torch.linalg.solve(covariance, own).trace()
    precision = torch.linalg.inv(own) + torch.linalg.inv(covariance)
    divergence = float(traces / 2 - 16 + (shift - mean) @ precision @ (shift - mean) / 2)
    assert divergence < 3 * (16 * 19 / 2) / 2000  # what the moments of so many samples leave


@pytest.mark.parametrize("seed", [0, None])
def test_a_posterior_without_symmetry_has_no_mirror_mixture(seed: int | None) -> None:
    """Without noise its mode is 0, which is its own mirror image; the Gaussian's covariance is not."""
    problem, mean, covariance = lopsided(seed)
    found, before = laplace(problem), problem.simulations
    latents = torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(problem.field.decode(found.mode[None])[0], mean, rtol=0, atol=1e-6)
    root = problem.field.decode(latents)
    torch.testing.assert_close(root.T @ found.covariance(latents) @ root, covariance, rtol=0, atol=1e-9)
    assert not found.symmetric and found.towards(-found.mode) is found and problem.simulations == before
    with pytest.raises(ValueError, match=r"problem: got one whose likelihood is not .*; allowed: a mirror-symmetric"):
        found.mixture()


def test_a_layer_may_have_as_many_directions_as_the_field() -> None:
    """More than the 40 that an approximation has by itself, and than those of this scale and the one below."""
    problem = Synthetic(8)
    model = MsIGN(problem.field, 2, steps=0, rank=64)
    aim(problem, model, 100, rounds=0)
    assert torch.isfinite(model.log_prob(problem.sample(2))).all()
