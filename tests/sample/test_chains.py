"""Chains on the linear-Gaussian problem: moments, calibration, independence, resuming; and what diagnostics say."""

import math
import re

import numpy as np
import pytest
import torch
from sampling_cases import LinearGaussian, normal
from scipy import stats

from companion import energy, measure, priors, sample
from companion.sample.kernels import CrankNicolson, Hamiltonian, Langevin

SAMPLERS = {
    "mala": lambda e, z, **o: sample.mala(e, z, step=0.5, **o),
    "hmc": lambda e, z, **o: sample.hmc(e, z, leapfrogs=3, step=0.5, **o),
    "pcn": lambda e, z, **o: sample.pcn(e, z, **o),
    "langevin": lambda e, z, **o: sample.langevin(e, z, step=0.3, **o),
    "annealed": lambda e, z, warmup, **o: sample.annealed_langevin(e, z, step=0.3, levels=3, steps=warmup, **o),
}
UNADJUSTED = ("langevin", "annealed")


@pytest.mark.parametrize("name", SAMPLERS)
def test_mean_and_covariance_of_the_posterior(name):
    case, chains = LinearGaussian.of(), 150
    metric = sample.gauss_newton(case.energy, case.mean)
    z0 = metric.draw(chains)
    found = SAMPLERS[name](case.energy, z0, metric=metric, draws=40, warmup=40).samples  # [draw, image, chain, n]
    for values, exact in [
        (found, case.mean),
        ((found - case.mean[:, None])[..., :, None] * (found - case.mean[:, None])[..., None, :], case.covariance),
    ]:
        means = values.mean(0)  # chains are independent of each other
        error = means.std(1) / chains**0.5
        assert (
            (means.mean(1) - exact).abs() < 4 * error + (0.025 if name in UNADJUSTED else 0) * exact.abs().max()
        ).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_simulation_based_calibration(name):
    """Ranks of the truth among draws of its posterior are uniform (Talts et al. 2018), over 500 problems."""
    case, draws = LinearGaussian.of(images=500), 15
    metric = sample.gauss_newton(case.energy, case.mean)
    thin = {"hmc": 4, "mala": 8}.get(name, 60 if name in UNADJUSTED else 20)
    found = SAMPLERS[name](
        case.energy, normal(500, 1, 3, seed=9), metric=metric, draws=draws, warmup=8 * thin, thin=thin
    )
    check_ranks(found.samples[:, :, 0], case.truth)


@pytest.mark.slow
def test_simulation_based_calibration_of_particles():
    case = LinearGaussian.of(images=500)
    found = sample.smc(case.energy, particles=120, seed=4)
    check_ranks(found.samples[::8], case.truth)  # neighbours have one ancestor
    assert not found.failed.any()


def check_ranks(samples, truth):
    """Ranks of truths, [problem, n], among draws, [15, problem, n], are uniform: each latent's and that of ‖z‖²."""
    quantities = [lambda z: z, lambda z: z.square().sum(-1, keepdim=True)]
    for of in quantities:
        ranks = (of(samples) < of(truth)).sum(0)  # [problems, quantities], 0 to 15
        for column in ranks.T.numpy():
            assert stats.chisquare(np.bincount(column // 2, minlength=8)).pvalue > 0.01
            smooth = (column + np.random.default_rng(0).random(len(truth))) / (len(samples) + 1)
            assert stats.kstest(smooth, "uniform").pvalue > 0.01


def test_the_metric_is_the_posterior_covariance_and_matches_autograd():
    case = LinearGaussian.of()
    metric = sample.gauss_newton(case.energy, normal(2, 3))
    torch.testing.assert_close(metric.factor @ metric.factor.mT, case.covariance.expand(2, -1, -1))
    torch.testing.assert_close(metric.log_volume, 0.5 * torch.logdet(case.covariance).expand(2))
    torch.testing.assert_close(metric.inward(metric.outward(normal(2, 5, 3, seed=1))), normal(2, 5, 3, seed=1))

    vae = priors.VAE((1, 4, 4), latent_dim=3, hidden=(8,)).double().eval().requires_grad_(False)
    problem = measure.Problem(measure.Gaussian((1, 4, 4), 5), measure.SinusoidalNoise(0.2))
    y, z = problem.observe(vae.decode(normal(2, 3))), normal(2, 3, seed=2)
    target = energy.Energy(vae, energy.NoiseMisfit(problem, y), energy.LatentNorm(0.5, squared=True))
    metric = sample.gauss_newton(target, z)
    weights = problem.noise.std_map((5,)) ** -2
    for k in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: problem.operator(vae.decode(v[None]))[0], z[k])
        expected = torch.linalg.inv(torch.eye(3) + jacobian.T @ (weights[:, None] * jacobian))
        torch.testing.assert_close(metric.factor[k] @ metric.factor[k].T, expected)
    misfit = energy.SquaredMisfit(measure.Identity((3,), "real"), y[:, :3])
    image_space = energy.Energy(priors.Linear(torch.eye(3).double()), misfit, space="x")
    with pytest.raises(ValueError, match="energy: got one in space 'x'"):
        sample.gauss_newton(image_space, z)


class Abrupt(measure.AdditiveNoise):
    """Laplace noise, which says nothing of a precision."""

    def residual(self, shape, source):
        return torch.randn(shape, generator=source, dtype=torch.float64)

    def residual_log_prob(self, residual):
        return -residual.abs().flatten(1).sum(1) - residual[0].numel() * math.log(2)


class Thrice(measure.IndependentNoise):
    """A level for each of three images."""

    def std_map(self, shape):
        return torch.tensor([[0.1], [0.2], [0.4]], dtype=torch.float64)


@pytest.mark.parametrize("noise", [measure.PoissonGaussianNoise(0.1, 0.05), Thrice()], ids=["camera", "each image"])
def test_a_metric_weighs_measurements_by_the_precision_of_their_noise(noise):
    prior, z = priors.Linear(normal(6, 2), torch.ones(6).double()), normal(3, 2, seed=1)
    problem = measure.Problem(measure.Identity((6,), "real"), noise)
    misfit = energy.NoiseMisfit(problem, prior.decode(z))
    metric = sample.gauss_newton(energy.Energy(prior, misfit, energy.LatentNorm(0.5, squared=True)), z)
    weights = noise.precision(prior.decode(z))
    expected = torch.linalg.inv(torch.eye(2) + torch.einsum("mi,km,mj->kij", normal(6, 2), weights, normal(6, 2)))
    torch.testing.assert_close(metric.factor @ metric.factor.mT, expected)


def test_a_noise_without_a_precision_is_refused_before_the_jacobian_is_paid_for():
    prior, calls = priors.Linear(torch.eye(40).double()), []
    decode = prior.decode
    prior.decode = lambda z: calls.append(len(z)) or decode(z)
    for misfit, message in (
        (
            energy.NoiseMisfit(measure.Problem(measure.Identity((40,), "real"), Abrupt()), normal(1, 40)),
            "noise: got Ab",
        ),
        (
            type("Own", (energy.Misfit,), {"__call__": None})(measure.Identity((40,), "real"), normal(1, 40)),
            "energy: got",
        ),
    ):
        with pytest.raises(ValueError, match=rf"{message}.*; allowed: "):
            sample.gauss_newton(energy.Energy(prior, misfit), normal(1, 40))
    assert len(calls) <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_sampled_alone_as_in_a_batch(name):
    case, run = LinearGaussian.of(images=3), SAMPLERS[name]
    options = {"draws": 20, "warmup": 20}
    z0 = normal(3, 2, 3, seed=3)
    together, alone = run(case.energy, z0, **options), run(case.energy.select([0]), z0[:1], **options)
    torch.testing.assert_close(together.samples[:, :1], alone.samples)
    torch.testing.assert_close(together.accept_rate[:1], alone.accept_rate)
    assert not torch.allclose(together.samples[:, 0], together.samples[:, 1])


def test_a_metric_is_learned_alone_as_in_a_batch():
    case = LinearGaussian.of(images=3)
    metric, z0 = sample.gauss_newton(case.energy, case.mean), normal(3, 2, 3, seed=3)
    together, last = sample.adapted(case.energy, z0, metric, windows=(10, 20))
    alone, last_alone = sample.adapted(
        case.energy.select([0]), z0[:1], metric.select(torch.tensor([0])), windows=(10, 20)
    )
    torch.testing.assert_close(together.factor[:1], alone.factor)
    torch.testing.assert_close(last[:1], last_alone)


class _Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("after", [70, 130])  # steps: in the warm-up, and while recording
@pytest.mark.parametrize(
    ("walk", "kernel", "options"),
    [
        (sample.mala, Hamiltonian, {"warmup": 100, "thin": 2}),
        (sample.hmc, Hamiltonian, {"warmup": 100, "thin": 2}),
        (sample.pcn, CrankNicolson, {"warmup": 100, "thin": 2}),
        (sample.langevin, Langevin, {"warmup": 100, "thin": 2, "step": 0.01}),
        (sample.annealed_langevin, Langevin, {"steps": 50, "levels": 3, "step": 0.01}),
    ],
    ids=["mala", "hmc", "pcn", "langevin", "annealed"],
)
def test_a_killed_run_goes_on_to_the_same_chains(tmp_path, monkeypatch, walk, kernel, options, after):
    case, z0 = LinearGaussian.of(), normal(2, 2, 3, seed=3)
    options = {"draws": 40, "seed": 5} | options
    whole = walk(case.energy, z0, **options)
    steps, step = [0], kernel.__call__

    def mortal(*arguments):
        steps[0] += 1
        if steps[0] == after:
            raise _Killed
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(kernel, "__call__", mortal)
        walk(case.energy, z0, checkpoint=tmp_path / "chains", **options)
    resumed = walk(case.energy, z0, checkpoint=tmp_path / "chains", **options)
    for name, value in vars(whole).items():
        assert torch.equal(value, getattr(resumed, name)), name
    first = min(tmp_path.iterdir()).name  # annealed Langevin has a file for each level
    with pytest.raises(ValueError, match=f"checkpoint: got {re.escape(first)} of another run"):
        walk(case.energy, z0 + 1, checkpoint=tmp_path / "chains", **options)


def test_a_checkpoint_of_another_energy_or_metric_is_refused(tmp_path):
    """Though at the start both energies are 12.5, and both metrics have one factor."""
    z0, metric = torch.zeros(1, 4, 1).double(), sample.Metric(torch.ones(1, 1).double(), torch.ones(1, 1, 1).double())

    def well(centre, power=1):
        return lambda z: 0.5 * (z.pow(power) - centre).square().sum(1)

    for energies, metrics in [
        ((well(5), well(-5)), (None, None)),
        ((well(5, power=3), well(-5, power=3)), (None, None)),  # whose gradients agree there, too
        ((well(5), well(5)), (metric, sample.Metric(torch.zeros(1, 1).double(), metric.factor))),
    ]:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        options = {"step": 0.5, "draws": 20, "warmup": 0, "checkpoint": path}
        whole, again = (sample.mala(energies[0], z0, metric=metrics[0], **options) for _ in range(2))
        assert torch.equal(whole.samples, again.samples)
        with pytest.raises(ValueError, match=f"checkpoint: got {path.name} of another"):
            sample.mala(energies[1], z0, metric=metrics[1], **options)


def test_annealing_is_tempered_langevin_level_by_level():
    """The step of each level is r h, and its misfit is divided by r² (Jalal et al.: lr ∝ σ², m / 2σ²)."""
    case, z0 = LinearGaussian.of(), normal(2, 2, 3, seed=3)
    found = sample.annealed_langevin(case.energy, z0, step=0.05, levels=2, ratio=3.0, steps=10, draws=5)
    options = {"seed": 0}
    first = sample.langevin(
        case.energy.tempered(1 / 9), z0, step=0.15, warmup=9, draws=1, stream=("level", 0), **options
    )
    second = sample.langevin(case.energy, first.last, step=0.05, warmup=10, draws=5, stream=("level", 1), **options)
    torch.testing.assert_close(found.samples, second.samples)
    assert found.evaluations.tolist() == (first.evaluations + second.evaluations).tolist()


def chains_of(samples):
    _, images, chains = samples.shape[:3]
    rate = torch.ones(images, chains)
    return sample.Chains(samples, samples[..., 0].square(), rate, rate.long() * 0, torch.ones(images), rate.long())


def test_diagnostics_tell_independent_draws_from_stuck_chains():
    samples = normal(500, 3, 4, 2)
    samples[:, 1, 0] += 3  # one chain elsewhere
    samples[:, 2] = normal(1, 1, 4, 2, seed=1)[0]  # none moves
    found = chains_of(samples).diagnostics()
    assert found.converged.tolist() == [True, False, False]
    assert abs(found.ess_bulk[0] / 2000 - 1).max() < 0.25
    assert found.rhat[0].max() < 1.01 and found.rhat[1].max() > 1.3 and found.rhat[2].max() > 1000
    text = str(found).splitlines()
    assert "image 0: converged" in text[0] and all("has not converged" in line for line in text[1:])
    with pytest.raises(ValueError, match="draws: got 3; allowed: at least 4"):
        chains_of(samples[:3]).diagnostics()


def test_a_chain_alone_is_judged_by_its_halves():
    samples = normal(4000, 3, 1, 2)
    samples[2000:, 1] += 1  # it drifts
    samples[:, 2] = 0.5  # it never moves
    found = chains_of(samples).diagnostics()
    assert found.converged.tolist() == [True, False, False]
    assert found.rhat[0].max() < 1.01 and found.rhat[1].max() > 1.1 and found.rhat[2].max() > 1000
    with pytest.raises(ValueError, match="draws: got 7; allowed: at least 8"):
        chains_of(samples[:7]).diagnostics()


def test_effective_sample_size_of_an_autoregression():
    """AR(1) with coefficient ρ has N (1 − ρ) / (1 + ρ) effective draws of its mean."""
    rho, noise = 0.6, normal(4000, 1, 4, 1)
    samples = noise.clone()
    for t in range(1, len(samples)):
        samples[t] = rho * samples[t - 1] + (1 - rho**2) ** 0.5 * noise[t]
    ess = chains_of(samples).diagnostics(of=lambda z: z).ess_bulk[0, 0]
    assert abs(ess / (16000 * (1 - rho) / (1 + rho)) - 1) < 0.15


def test_autocorrelation_times_are_those_of_autoregressions():
    source, chain = np.random.default_rng(0), []
    rho = np.array([0.0, 0.5, 0.9])
    x = source.normal(size=(4, 3))
    for _ in range(40_000):
        x = rho * x + np.sqrt(1 - rho**2) * source.normal(size=(4, 3))
        chain.append(x)
    found = sample.autocorrelation_time(np.stack(chain))
    np.testing.assert_allclose(found.mean(0), (1 + rho) / (1 - rho), rtol=0.1)
    few = np.stack(chain[:4000])
    np.testing.assert_allclose(sample.autocorrelation_time(1e-17 * few), sample.autocorrelation_time(few))
    assert sample.autocorrelation_time(torch.ones(50, 1, 1)) == 50  # it never moved
    assert np.isnan(sample.autocorrelation_time([[[0.0]], [[1.0]], [[np.inf]], [[2.0]]])).all()


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_a_descent_has_arrived_when_its_formula_says(rate):
    steps, window = torch.arange(2000.0), 20
    energies = torch.stack([5 + 100 * (-rate * steps).exp(), torch.full((2000,), 50.0)], 1)
    found = sample.mixing_time(energies, torch.tensor([5.0, 5.0]), torch.tensor([1.0, 1.0]), window)
    # the mean over a window that begins at t is 5 + 100 exp(−rate t) · mean of exp(−rate k)
    begins = np.log(100 * np.exp(-rate * np.arange(window)).mean()) / rate
    assert found.tolist() == [int(np.ceil(begins)) + window, 2000]


def test_times_of_too_few_draws_are_refused():
    with pytest.raises(
        ValueError, match=r"series: got shape \(3, 1, 1\); allowed: \[draw, image, quantity\] of at least 4"
    ):
        sample.autocorrelation_time(np.ones((3, 1, 1)))
    for energies, mean in ((torch.zeros(9, 1), torch.zeros(1)), (torch.zeros(50, 1, 4), torch.zeros(1))):
        with pytest.raises(ValueError, match=r"energies, mean, spread: got .*; allowed: \[draw, image\] of at"):
            sample.mixing_time(energies, mean, torch.ones(1))


def test_estimates_are_means_of_images():
    case = LinearGaussian.of()
    chains = chains_of(normal(7, 2, 3, 3))
    prior = case.energy.prior
    x = torch.stack([torch.stack([prior.decode(chains.samples[:, k, c]) for c in range(3)], 1) for k in range(2)], 1)
    torch.testing.assert_close(chains.images(prior, rows=5), x)
    torch.testing.assert_close(chains.estimate(prior), x.mean((0, 2)))
    torch.testing.assert_close(chains.estimate(prior, "last"), x[-1].mean(1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_whatever_mode_starts_come_from(mode):
    case, flow = LinearGaussian.of(), priors.Linear(torch.eye(3).double())
    with mode():
        z0, options = torch.ones(2, 2, 3).double(), {"draws": 3, "warmup": 1}
        inside = sample.hmc(case.energy, z0, metric=sample.gauss_newton(case.energy, z0[:, 0]), **options).samples
        assert sample.svgd(case.energy, z0, iterations=2).isfinite().all()
        torch.testing.assert_close(sample.tweedie(flow, z0[0], 0.5), 0.75 * z0[0])
    z0 = torch.ones(2, 2, 3).double()
    outside = sample.hmc(case.energy, z0, metric=sample.gauss_newton(case.energy, z0[:, 0]), **options).samples
    assert torch.equal(inside, outside)


def test_wrong_arguments_are_named():
    case = LinearGaussian.of()
    for arguments, message in [
        ((case.energy, normal(3, 2, 3)), r"z0: got shape \(3, 2, 3\)"),
        ((case.energy, normal(2, 2, 4)), "z0: got shape"),
        (("energy", normal(2, 2, 3)), "energy: got str"),
    ]:
        with pytest.raises(ValueError, match=message):
            sample.mala(*arguments)
    for options, message in [
        ({"step": 0.0}, "step: got 0.0"),
        ({"step": torch.ones(3)}, r"step: got \(3,\)"),
        ({"draws": 0}, "draws: got 0"),
        ({"warmup": -1}, "warmup: got -1"),
        ({"metric": sample.Metric(torch.zeros(1, 3), torch.eye(3)[None])}, "metric: got one for latents of shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            sample.mala(case.energy, normal(2, 3), **options)


def test_what_works_for_an_energy_of_a_prior_alone_says_so():
    case, z = LinearGaussian.of(images=1), normal(1, 1, 3)

    def plain(z):
        return z.square().sum(1)

    for call, message in [
        (lambda: sample.smc(plain), "energy: got function"),
        (lambda: sample.gauss_newton(plain, z[0]), "energy: got function"),
        (lambda: sample.initialise(plain), "energy: got function"),
        (lambda: sample.annealed_langevin(plain, z, step=0.1), "energy: got function"),
        (lambda: sample.gauss_newton(case.energy, normal(2, 3)), "z: got 2 rows; allowed: 1"),
        (lambda: sample.hmc(case.energy, z, metric=torch.eye(3)), "metric: got Tensor"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_chains_and_particles_sample_the_posterior_under_a_flow():
    """A flow of the plane with random weights, both coordinates measured: moments in x by quadrature of its density."""
    flow = priors.PointFlow(couplings=4, width=16, seed=3).double().eval()
    with torch.no_grad():
        for k, weight in enumerate(flow.parameters()):
            weight.add_(0.3 * normal(*weight.shape, seed=k))
    flow.requires_grad_(False)
    problem = measure.Problem(measure.Identity((2,), "real"), measure.GaussianNoise(0.7))
    truth = flow.decode(normal(1, 2, seed=40))
    y = problem.observe(truth, seed=5)
    target = energy.Energy(flow, energy.NoiseMisfit(problem, y), energy.LatentNorm(0.5, squared=True))

    side = torch.linspace(-5, 5, 401, dtype=torch.float64) * 0.7
    offsets = torch.cartesian_prod(side, side)
    x = y + offsets
    log_weight = flow.log_prob(x) - 0.5 * (offsets / 0.7).square().sum(1)
    weight = log_weight.softmax(0)
    mean = weight @ x
    covariance = (x - mean).T @ (weight[:, None] * (x - mean))

    z0 = sample.initialise(target, "best", chains=40, seed=1)
    metric = sample.gauss_newton(target, z0[:, 0])
    chains = sample.hmc(target, metric.draw(40, seed=2), metric=metric, leapfrogs=3, step=0.5, draws=300, warmup=200)
    particles = sample.smc(target, particles=3000, seed=3)
    evidence = torch.logsumexp(log_weight, 0) + 2 * torch.log(side[1] - side[0]) - math.log(2 * math.pi * 0.7**2)
    assert abs(float(particles.log_evidence[0] - evidence)) < 0.1
    for drawn in (flow.decode(chains.samples.reshape(-1, 2)), flow.decode(particles.samples[:, 0])):
        assert ((drawn.mean(0) - mean).abs() < 0.1 * covariance.diagonal().sqrt()).all()
        torch.testing.assert_close(torch.cov(drawn.T), covariance, rtol=0.15, atol=0.01)
