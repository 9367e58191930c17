"""Sequential Monte Carlo and Stein variational gradient descent against closed forms."""

import math

import pytest
import torch
from sampling_cases import LinearGaussian, normal
from scipy import integrate, stats

from companion import measure, priors, sample
from companion.energy import Energy, LatentNorm, NoiseMisfit
from companion.measure.base import Operator
from companion.sample.kernels import Hamiltonian
from companion.sample.stein import direction


class _Killed(Exception):
    pass


def test_smc_finds_evidence_mean_and_covariance():
    case, particles = LinearGaussian.of(images=4), 1000
    found = sample.smc(case.energy, particles=particles, seed=1)
    assert (found.log_evidence - case.log_evidence).abs().max() < 0.25
    width = case.covariance.diagonal().sqrt()
    assert ((found.samples.mean(0) - case.mean).abs() / width).max() < 5 / particles**0.5
    for k in range(4):
        torch.testing.assert_close(torch.cov(found.samples[:, k].T), case.covariance, atol=0.03, rtol=0.1)
    assert all(path == sorted(path) and path[0] == 0 and path[-1] == 1 for path in found.temperatures)


def test_the_acceptance_of_smc_is_the_mean_over_the_moves_at_the_last_temperature(monkeypatch):
    rates, step = [], Hamiltonian.__call__

    def noted(*arguments):
        state, info = step(*arguments)
        rates.append(float(info.acceptance.mean()))
        return state, info

    monkeypatch.setattr(Hamiltonian, "__call__", noted)
    found = sample.smc(LinearGaussian.of(images=1).energy, particles=20, moves=4)
    assert float(found.accept_rate) == pytest.approx(sum(rates[-4:]) / 4)
    assert len(set(rates[-4:])) == 4


class Absolute(Operator):
    """f(x) = |x|, whose posterior has two modes."""

    def apply(self, x):
        return x.abs()


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 7])  # moves, of which each temperature has three and is then written
def test_a_killed_smc_goes_on_to_the_same_particles(tmp_path, monkeypatch, after):
    energy, options = LinearGaussian.of(images=2).energy, {"particles": 30, "seed": 4}
    whole, step, moves = sample.smc(energy, **options), Hamiltonian.__call__, []

    def mortal(*arguments):
        moves.append(None)
        if len(moves) == after:
            raise _Killed
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(Hamiltonian, "__call__", mortal)
        sample.smc(energy, checkpoint=tmp_path / "particles", **options)
    assert (tmp_path / "particles").exists() == (after > 3) and max(map(len, whole.temperatures)) > 3
    resumed = sample.smc(energy, checkpoint=tmp_path / "particles", **options)
    for name, value in vars(whole).items():
        again = getattr(resumed, name)
        assert torch.equal(value, again) if isinstance(value, torch.Tensor) else value == again, name
    with pytest.raises(ValueError, match="checkpoint: got particles of another run"):
        sample.smc(energy, checkpoint=tmp_path / "particles", **options | {"seed": 5})


def test_a_checkpoint_of_another_energy_with_the_same_start_is_refused(tmp_path):
    class Clamped(Operator):
        def apply(self, x):
            return x.clamp(max=3.2)

    def energy(operator):
        misfit = NoiseMisfit(measure.Problem(operator, measure.GaussianNoise(0.5)), torch.tensor([[4.5]]))
        return Energy(priors.Linear(torch.eye(1)), misfit, LatentNorm(0.5, squared=True))

    path = tmp_path / "particles"
    sample.smc(energy(measure.Identity((1,))), particles=40, seed=1, checkpoint=path)
    with pytest.raises(ValueError, match="checkpoint: got particles of another energy"):
        sample.smc(energy(Clamped((1,), (1,), "real")), particles=40, seed=1, checkpoint=path)


class Beyond:
    """z as it is, but infinite below `bound` in its first coordinate."""

    shape, latent_dim = (2,), 2

    def __init__(self, bound):
        self.bound = bound

    def decode(self, z):
        return torch.where(z[:, :1] < self.bound, torch.inf, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound", [-1.0, 1.0])  # 16 and 84 % of the prior have an infinite misfit
def test_smc_takes_particles_of_infinite_misfit_for_impossible(bound, dtype):
    """Evidence ∫ N(0; z, I) N(z; 0, I) over z₁ >= bound: the tail of N(0, ½) times the density of N(0, 2 I) at 0."""
    problem = measure.Problem(measure.Identity((2,), "real"), measure.GaussianNoise(1.0))
    energy = Energy(Beyond(bound), NoiseMisfit(problem, torch.zeros(1, 2, dtype=dtype)), LatentNorm(0.5, squared=True))
    found = sample.smc(energy, particles=1000, moves=5, seed=1)
    expected = stats.norm.logsf(bound, scale=0.5**0.5) + 2 * stats.norm.logpdf(0, scale=2**0.5)
    assert float(found.log_evidence) == pytest.approx(expected, abs=0.3)
    assert (found.samples[..., 0] >= bound).all()


def test_smc_keeps_both_modes_and_a_chain_does_not():
    """y = |z| + δ in one dimension; the evidence by quadrature."""
    std, y = 0.1, torch.tensor([[1.2]], dtype=torch.float64)
    problem = measure.Problem(Absolute((1,), (1,), "real"), measure.GaussianNoise(std))
    prior = priors.Linear(torch.eye(1, dtype=torch.float64))
    energy = Energy(prior, NoiseMisfit(problem, y), LatentNorm(0.5, squared=True))

    def density(z):
        return math.exp(-0.5 * z**2 - 0.5 * ((abs(z) - 1.2) / std) ** 2) / (2 * math.pi * std)

    evidence = math.log(integrate.quad(density, -3, 3, points=[-1.2, 0, 1.2])[0])
    found = sample.smc(energy, particles=1000)
    assert abs(float(found.log_evidence[0]) - evidence) < 0.2
    assert 0.42 < float((found.samples > 0).double().mean()) < 0.58
    chain = sample.hmc(energy, torch.ones(1, 4, 1).double(), draws=200, warmup=100)
    assert (chain.samples > 0).all()  # all four agree, and miss half of the posterior
    assert chain.diagnostics().rhat.max() < 1.05


def test_smc_treats_images_apart_and_names_what_it_cannot_do():
    case = LinearGaussian.of(images=3)
    together, alone = sample.smc(case.energy, particles=30), sample.smc(case.energy.select([0]), particles=30)
    torch.testing.assert_close(together.samples[:, :1], alone.samples)
    torch.testing.assert_close(together.log_evidence[:1], alone.log_evidence)
    other = Energy(case.energy.prior, case.energy.terms[0][1], LatentNorm(1.0, squared=True))
    with pytest.raises(ValueError, match="energy: got another penalty"):
        sample.smc(other, particles=10)


def test_the_direction_of_svgd_is_liu_and_wangs():
    """Their eq. 8, particle by particle, with the kernel's gradient by automatic differentiation."""
    z, score = normal(1, 5, 2), normal(1, 5, 2, seed=1)
    squared = torch.cdist(z[0], z[0]).square()
    width = squared.flatten().median() / math.log(6)
    expected = torch.zeros(5, 2).double()
    for i in range(5):
        for j in range(5):
            at = z[0, j].clone().requires_grad_()
            kernel = torch.exp(-(at - z[0, i]).square().sum() / width)
            expected[i] += (kernel.detach() * score[0, j] + torch.autograd.grad(kernel, at)[0]) / 5
    torch.testing.assert_close(direction(z, score, torch.ones(1, 5).bool())[0], expected)


@pytest.mark.parametrize(("centre", "std", "particles"), [(3.0, 0.01, 50), (1000.0, 0.1, 10)])
def test_the_direction_of_svgd_is_the_same_in_single_precision_far_from_zero(centre, std, particles):
    z = (centre + std * normal(1, particles, 20)).float()
    score, everyone = -(z.double() - centre) / std**2, torch.ones(1, particles).bool()
    exact = direction(z.double(), score, everyone)
    assert (direction(z, score.float(), everyone) - exact).norm() < 1e-5 * exact.norm()


def test_svgd_finds_mean_and_width_of_a_gaussian():
    case = LinearGaussian.of(images=2, n=2)
    found = sample.svgd(case.energy, normal(2, 60, 2), iterations=150, step=0.05)
    found = sample.svgd(case.energy, found, iterations=150, step=0.005)
    width = case.covariance.diagonal().sqrt()
    assert ((found.mean(1) - case.mean).abs() / width).max() < 0.15
    assert (found.std(1) / width - 1).abs().max() < 0.25


def test_projected_svgd_moves_the_informed_direction_alone():
    """One measurement of 6 latents: along its row the posterior, across it the draws of the prior."""
    case = LinearGaussian.of(images=1, n=6, m=1, std=0.3)
    z0 = normal(1, 80, 6, seed=2)
    problem = case.energy.terms[0][1].problem
    row = (problem.operator.matrix(z0) @ case.energy.prior.weight)[0]
    along = row / row.norm()
    # the posterior is 0.047 wide, and particles sway together by about a step
    found = sample.projected_svgd(case.energy, z0, iterations=500, step=0.01)
    across = torch.eye(6).double() - torch.outer(along, along)
    torch.testing.assert_close(found @ across, z0 @ across)
    mean, std = case.mean[0] @ along, (along @ case.covariance @ along).sqrt()
    assert abs(float(((found @ along).mean() - mean) / std)) < 0.25
    assert abs(float((found @ along).std() / std) - 1) < 0.25


@pytest.mark.parametrize("iterations", [3, 9, 20])
def test_projected_svgd_makes_as_many_evaluations_as_iterations(iterations):
    count = [0]

    def counted(z):
        count[0] += 1
        return 0.5 * (z - 1).square().sum(1)

    sample.projected_svgd(counted, normal(1, 8, 4), iterations=iterations, tolerance=1e-9)
    assert count == [iterations]


def test_a_particle_without_energy_stays_and_repels_nobody():
    def half(z):
        return torch.where(z[:, 0] < 5, 0.5 * z[:, 0].square(), torch.nan)

    z0 = normal(1, 20, 1)
    lost = torch.cat([z0, torch.full((1, 1, 1), 9.0).double()], 1)
    found = sample.svgd(half, lost, iterations=20)
    assert found[0, -1] == 9 and found.isfinite().all()
