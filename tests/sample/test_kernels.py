"""Every adjusted kernel leaves its target as it is, and is reversible, on a density that is not Gaussian."""

import math

import numpy as np
import pytest
import torch
from sampling_cases import LinearGaussian, banana, banana_draws, normal, standardised
from scipy import stats

from companion import sample
from companion.sample.kernels import CrankNicolson, DualAveraging, Hamiltonian, Langevin, Random
from companion.sample.state import Rows

DRAWS = 20_000
ADJUSTED = {
    "mala": (Hamiltonian(1), 0.6),
    "hmc": (Hamiltonian(4), 0.4),
    "pcn": (CrankNicolson(), 0.6),
}
METRIC = sample.Metric(torch.tensor([[0.3, 0.5]]).double(), torch.tensor([[[1.0, 0.2], [0.0, 0.7]]]).double())


def one_step(kernel, step, metric=None):
    before = banana_draws(DRAWS, seed=3)
    rows = Rows(banana, before[None], metric)
    numbers = Random(
        normal(DRAWS, 2, seed=1), torch.rand(DRAWS, 2, generator=torch.Generator().manual_seed(2)).double()
    )
    sizes = torch.full((DRAWS,), step).double()
    after, info = kernel(rows, rows.at(rows.coordinates(before[None])), sizes, numbers)
    return before, rows.variable(after.z), float(info.acceptance.mean())


def asymmetry(before, after):
    """p-value of N_ij = N_ji for the transitions between the cells of a 4 × 4 grid of equal probabilities."""
    cells = [np.minimum(stats.norm.cdf(standardised(z)) * 4, 3).astype(int) @ [4, 1] for z in (before, after)]
    counts = np.zeros((16, 16))
    np.add.at(counts, tuple(cells), 1)
    there, back = counts[np.triu_indices(16, 1)], counts.T[np.triu_indices(16, 1)]
    busy = there + back >= 10
    return stats.chi2.sf(np.sum(((there - back) ** 2)[busy] / (there + back)[busy]), busy.sum())


def worst_marginal(z):
    return min(stats.kstest(column.numpy(), "norm").pvalue for column in standardised(z).T)


@pytest.mark.parametrize("metric", [None, METRIC], ids=["plain", "metric"])
@pytest.mark.parametrize("name", ADJUSTED)
def test_a_step_from_exact_draws_gives_exact_draws_and_is_reversible(name, metric):
    before, after, acceptance = one_step(*ADJUSTED[name], metric)
    assert 0.2 < acceptance < 0.98  # proposals that are refused are part of the test
    assert worst_marginal(after) > 0.01
    assert asymmetry(before, after) > 0.01


def test_these_tests_see_an_unadjusted_step():
    before, after, _ = one_step(Langevin(), 0.8)
    assert worst_marginal(after) < 1e-6
    assert asymmetry(before, after) < 1e-6


def test_preconditioned_crank_nicolson_asks_for_no_gradient():
    """A simulator has none; and at 0 the root's is NaN."""

    def simulated(z):
        with torch.no_grad():
            return banana(z)

    z0, options = banana_draws(3, seed=1)[None], {"draws": 5, "warmup": 2}
    assert torch.equal(sample.pcn(simulated, z0, **options).samples, sample.pcn(banana, z0, **options).samples)
    assert sample.pcn(lambda z: z.square().sum(1).sqrt(), 0 * z0, **options).samples.isfinite().all()
    with pytest.raises(ValueError, match="z0: got 3 of 3 chains whose energy is not finite"):
        sample.pcn(lambda z: z.sum(1) / 0, z0, **options)
    with pytest.raises(ValueError, match="energy: got values without a gradient"):
        sample.mala(simulated, z0, **options)


def test_one_leapfrog_is_mala():
    """The acceptance of Roberts & Tweedie's proposal density, written out."""
    z, h = banana_draws(50, seed=4), 0.5
    rows = Rows(banana, z[None])
    state, noise = rows.at(z), normal(50, 2, seed=5)
    uniform = torch.rand(50, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    new, info = Hamiltonian(1)(rows, state, torch.full((50,), h).double(), Random(noise, uniform))
    proposal = z - 0.5 * h**2 * state.gradient + h * noise
    there = (proposal - z + 0.5 * h**2 * state.gradient).square().sum(1) / (2 * h**2)
    back = (z - proposal + 0.5 * h**2 * rows.at(proposal).gradient).square().sum(1) / (2 * h**2)
    expected = (banana(z) - banana(proposal) + there - back).exp().clamp(max=1)
    torch.testing.assert_close(info.acceptance, expected)
    accepted = uniform[:, 0] < expected
    torch.testing.assert_close(new.z, torch.where(accepted[:, None], proposal, z))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_unadjusted_langevin_has_the_stationary_law_of_its_recursion(temperature):
    """On N(0, 1/p): variance T / (p (1 − p h²/4)); the printed algorithm, with noise √η, is T = ½."""
    precision, h = torch.tensor([1.0, 4.0]).double(), 0.6
    start = normal(1, 3000, 2, seed=7)
    chains = sample.langevin(
        lambda z: 0.5 * (precision * z.square()).sum(1), start, step=h, temperature=temperature, draws=1, warmup=40
    )
    exact = temperature / (precision * (1 - precision * h**2 / 4))
    found = chains.samples[0, 0].var(0)
    assert ((found - exact).abs() < 4 * math.sqrt(2 / 3000) * exact).all()


def test_a_region_without_density_is_never_entered_and_refusals_are_counted():
    def half(z):
        x = z[:, 0]
        return torch.where(x > 0, 0.5 * x.square(), torch.log(x.clamp(max=0) - 1))  # NaN for x <= 0

    for sampler in (sample.mala, sample.hmc, sample.pcn):
        chains = sampler(half, normal(1, 1000, 1).abs() + 0.1, step=0.5, draws=1, warmup=30)
        assert (chains.samples > 0).all() and chains.energies.isfinite().all()
        assert stats.kstest(chains.samples.flatten().numpy(), "halfnorm").pvalue > 0.01
    unadjusted = sample.langevin(half, normal(1, 50, 1).abs() + 0.1, step=0.5, draws=20)
    assert (unadjusted.samples > 0).all()
    assert unadjusted.failed.sum() > 0
    with pytest.raises(ValueError, match="z0: got 1 of 2 chains whose energy is not finite"):
        sample.mala(half, torch.tensor([[[1.0], [-1.0]]]))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["mala", "hmc", "pcn"])
def test_steps_are_adapted_to_the_acceptance_image_by_image(sampler):
    target = {"mala": Hamiltonian(1), "hmc": Hamiltonian(5), "pcn": CrankNicolson()}[sampler].target
    case = LinearGaussian.of(images=2, std=0.3)
    chains = getattr(sample, sampler)(case.energy, normal(2, 30, 3), draws=30, warmup=150)
    assert (chains.accept_rate.mean(1) - target).abs().max() < 0.15
    assert chains.step[0] != chains.step[1]


def test_dual_averaging_is_hoffman_and_gelmans():
    """Their recursion, eq. 6, by hand."""
    step, target = torch.tensor([0.3]), 0.8
    adapt, error, average = DualAveraging(step, target, math.inf), 0.0, math.log(0.3)
    for t, acceptance in enumerate((0.1, 0.9, 1.0, 0.7), 1):
        error = (1 - 1 / (t + 10)) * error + (target - acceptance) / (t + 10)
        log_step = math.log(10 * 0.3) - math.sqrt(t) / 0.05 * error
        average = t**-0.75 * log_step + (1 - t**-0.75) * average
        torch.testing.assert_close(adapt.update(torch.tensor([acceptance])), torch.tensor([log_step]).exp())
    torch.testing.assert_close(adapt.final, torch.tensor([average]).exp())
