"""Where chains begin."""

import pytest
import torch
from sampling_cases import LinearGaussian, normal

from companion import energy, measure, priors, sample
from companion.sample.start import HOW


def test_a_mode_of_a_gaussian_is_its_mean():
    case = LinearGaussian.of()
    found = sample.initialise(case.energy, "map", chains=3)
    torch.testing.assert_close(found, case.mean[:, None].expand(-1, 3, -1), atol=1e-5, rtol=1e-5)


def square_case():
    """An invertible linear flow on 3 × 3 images in which 4 pixels are seen."""
    prior = priors.Linear(torch.eye(9) + 0.1 * normal(9, 9, dtype=torch.float32), shape=(1, 3, 3))
    seen = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    seen[0, 0, 0, :2] = seen[0, 0, 2, 1:] = seen[1, 0, 1, :] = seen[1, 0, 0, 0] = True
    problem = measure.Problem(measure.Mask(seen), measure.GaussianNoise(0.1))
    y = problem.observe(torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)))
    return energy.Energy(prior, energy.NoiseMisfit(problem, y), energy.LatentNorm(0.5, squared=True)), seen, y


def test_gaps_are_filled_with_the_mean_of_what_is_seen_nearby():
    target, seen, y = square_case()
    x = sample.first_guess(target)
    for k in range(2):
        assert torch.equal(x[k][seen[k]], y[k].clamp(0, 1))
        # 5 × 5 neighbourhoods on 3 × 3 pixels: a corner's ends two pixels away, so everywhere
        torch.testing.assert_close(x[k][~seen[k]], y[k].mean().clamp(0, 1).expand(5))
    torch.testing.assert_close(target.prior.decode(sample.initialise(target, "posterior", chains=2)[:, 1]), x)


@pytest.mark.parametrize("how", HOW)
def test_a_start_depends_on_no_other_image(how):
    target, _, _ = square_case()
    found, alone = (sample.initialise(e, how, chains=3, budget=20) for e in (target, target.select([0])))
    assert found.shape == (2, 3, 9)
    torch.testing.assert_close(found[:1], alone, atol=2e-4, rtol=1e-3)


def test_the_best_start_is_the_lowest_of_all():
    target, _, _ = square_case()
    rows = target.select([0, 0, 0, 1, 1, 1])
    best = sample.initialise(target, "best", chains=3, budget=6)
    assert (best == best[:, :1]).all()
    each = rows(sample.initialise(target, "map", chains=3, budget=6).flatten(0, 1)).view(2, 3)
    assert (rows(best.flatten(0, 1)).view(2, 3)[:, 0] <= each[:, 1:].amin(1) + 1e-4).all()


def test_a_generator_without_an_encoder_is_refused():
    gan = priors.GAN((1, 28, 28), width=4).eval()
    operator = measure.Identity((1, 28, 28))
    target = energy.Energy(gan, energy.SquaredMisfit(operator, torch.zeros(1, 1, 28, 28)))
    with pytest.raises(ValueError, match="prior: got GAN, which encodes nothing"):
        sample.initialise(target, "posterior")


def test_a_metric_learned_from_exact_draws_is_their_covariance():
    problem = LinearGaussian.of(images=2, n=3)
    start = sample.gauss_newton(problem.energy, problem.mean)
    wrong = sample.Metric(problem.mean + 1, 5 * torch.eye(3, dtype=torch.float64).repeat(2, 1, 1))
    draws = start.draw(20_000, seed=3).transpose(0, 1).unflatten(0, (5000, 4)).transpose(1, 2)
    learned = wrong.learned(draws)
    covariance = learned.factor @ learned.factor.mT
    assert torch.allclose(covariance, problem.covariance.expand(2, 3, 3), rtol=0.05, atol=0.02)
    assert torch.allclose(learned.centre, problem.mean, atol=0.03)


def test_few_draws_leave_a_metric_nearly_as_it_is():
    metric = sample.Metric(torch.zeros(1, 4), torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]))[None])
    learned = metric.learned(metric.draw(2)[None], prior_draws=1e6)
    assert torch.allclose(learned.factor @ learned.factor.mT, metric.factor @ metric.factor.mT, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"samples: got \(1, 2, 4\); allowed: \[draws, 1, chains, 4\]"):
        metric.learned(metric.draw(2))


def test_chains_learn_a_metric_that_laplace_gets_wrong():
    """Where a target is ten times as wide one way as a metric says, chains crawl; with their own they do not."""
    widths = torch.tensor([10.0, 1.0, 1.0, 0.1], dtype=torch.float64)
    target = sample.Metric(torch.zeros(1, 4, dtype=torch.float64), torch.diag(widths)[None])
    wrong = sample.Metric(target.centre, torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.1], dtype=torch.float64))[None])

    def narrow(z):
        return 0.5 * (z / widths).square().sum(1)

    metric, last = sample.adapted(narrow, target.draw(4, seed=1), wrong, seed=2)
    assert torch.allclose(metric.widths[0].flip(0), widths, rtol=0.4)
    assert metric.evaluations == 4 * (3 * 280 + 3)  # chains × (leapfrogs × steps, and a start for each window)
    options = {"leapfrogs": 3, "step": 0.5, "draws": 200, "warmup": 50, "seed": 3}
    ess = [sample.hmc(narrow, last, metric=m, **options).diagnostics().ess_bulk[0, :-1].min() for m in (wrong, metric)]
    assert ess[1] > 5 * ess[0]
