"""Choosing measurements: against brute force, and on a Gaussian, whose posterior is known."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from sampling_cases import normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from companion import _support, measure, priors, recover, sample

SHAPE, STD = (1, 3, 4), 0.2
WEIGHT = normal(12, 3) / 2
IMAGES = (WEIGHT @ normal(3, 2, seed=1)).T.reshape(2, *SHAPE)


def gaussian(draws=4000):
    return sample.GaussianPosterior(torch.zeros(12).double(), WEIGHT @ WEIGHT.T, STD, draws=draws)


def some_pixels():
    mask = torch.zeros(2, *SHAPE, dtype=torch.bool)
    mask[:, 0, 0], mask[1, 0, 0, 0], mask[1, 0, 2, 3] = True, False, True
    return mask, IMAGES[mask].view(2, 4)


def exact(mask, y, k):
    operator = measure.Mask(mask[k], domain="real")
    return recover.gaussian_map(operator, y[k : k + 1], WEIGHT, None, STD).x.flatten()


@pytest.mark.parametrize("kind", ["gaussian", "latent"])
def test_draws_of_the_posterior_have_its_mean_and_covariance(kind):
    mask, y = some_pixels()
    if kind == "gaussian":
        drawn, least = gaussian()(mask, y, 1), 0.06
    else:
        prior = priors.Linear(WEIGHT, shape=SHAPE)
        drawn, least = sample.LatentPosterior(prior, STD, chains=20, draws=60, search=40)(mask, y, 1), 0.12
    for k in range(2):
        seen = WEIGHT[mask[k].flatten()]
        covariance = WEIGHT @ torch.linalg.inv(torch.eye(3) + seen.T @ seen / STD**2) @ WEIGHT.T
        widths = covariance.diagonal().sqrt()
        assert ((drawn[:, k].mean(0) - exact(mask, y, k)).abs() / widths).max() < least
        assert (drawn[:, k].std(0) / widths - 1).abs().max() < least


def test_draws_of_a_gaussian_have_the_moments_that_scikit_learn_predicts(monkeypatch):
    """With unit vectors for its noise, and zeros once, draws less the last are a factor of the covariance: exactly."""
    mask, y = some_pixels()
    at = np.indices(SHAPE[1:]).reshape(2, -1).T.astype(float)
    kernel, seen = ConstantKernel(0.7) * Matern(1.5, nu=2.5), mask[1].flatten()
    covariance, mean = torch.as_tensor(kernel(at)), torch.linspace(-1, 1, 12).double()
    units = torch.eye(17, 16).double()  # for 12 pixels of the prior's draw, and 4 measurements' noise
    monkeypatch.setattr(_support, "normal", lambda shape, *stream: units[:, :12] if shape[1] == 12 else units[:, 12:])
    *factor, centre = sample.GaussianPosterior(mean, covariance, STD, draws=17)(mask[1:], y[1:], 1)[:, 0]
    model = GaussianProcessRegressor(kernel, alpha=STD**2, optimizer=None).fit(at[seen], y[1] - mean[seen])
    expected, left = model.predict(at, return_cov=True)
    np.testing.assert_allclose(centre - mean, expected, rtol=0, atol=1e-8)
    columns = torch.stack(factor) - centre
    np.testing.assert_allclose(columns.T @ columns, left, rtol=0, atol=1e-8)


def test_a_posterior_begins_anew_with_each_design():
    class Waves:
        shape, latent_dim = (1, 2, 2), 4

        def decode(self, z):
            return (3 * z).sin().view(-1, *self.shape)

    def design(truth, posterior):
        return sample.adaptive_sensing(truth, posterior, rounds=3, pixels=1).estimates

    truth, again = Waves().decode(normal(2, 4)), Waves().decode(normal(3, 4, seed=1))
    used, fresh = (sample.LatentPosterior(Waves(), STD, chains=2, search=3, draws=4) for _ in range(2))
    design(truth, used)
    assert torch.equal(design(again, used), design(again, fresh))


def test_hypotheses_that_the_pixels_contradict_are_dropped():
    bright = priors.Linear(WEIGHT, torch.full((12,), 3.0).double(), SHAPE)
    mask, y = some_pixels()
    right, both = (
        sample.LatentPosterior(p, STD, chains=3, draws=20)(mask, y, 1)
        for p in ([priors.Linear(WEIGHT, shape=SHAPE)], [priors.Linear(WEIGHT, shape=SHAPE), bright])
    )
    assert (both.mean(0) - right.mean(0)).abs().max() < 0.2


def test_greedy_takes_the_largest_variance_given_those_before():
    covariance, taken = WEIGHT @ WEIGHT.T + 0.1 * torch.eye(12), torch.arange(12) == 4
    chosen = sample.greedy(covariance, 4, STD, taken).tolist()
    for number, pixel in enumerate(chosen):
        before = chosen[:number]
        inner = covariance[before][:, before] + STD**2 * torch.eye(number)
        left = covariance - covariance[:, before] @ torch.linalg.inv(inner) @ covariance[before]
        left = left.diagonal().clone()
        left[[4, *before]] = -1
        assert pixel == int(left.argmax())


def test_greedy_rows_gain_the_most_information_step_by_step_and_nearly_the_most_of_all_sets():
    """Information of rows S about x: ½ log det(I + A_S C A_Sᵀ / σ²), by brute force (Krause et al. 2008, sec. 4)."""
    rows = normal(9, 12, seed=2) / 12**0.5
    covariance = rows @ WEIGHT @ WEIGHT.T @ rows.T

    def information(chosen):
        inside = covariance[list(chosen)][:, list(chosen)]
        return float(torch.logdet(torch.eye(len(chosen)) + inside / STD**2)) / 2

    found = sample.greedy(covariance, 4, STD).tolist()
    for number, row in enumerate(found):
        others = set(range(9)) - set(found[:number])
        assert row == max(others, key=lambda other: information([*found[:number], other]))
    best = max(map(information, combinations(range(9), 4)))
    assert (1 - 1 / math.e) * best <= information(found) <= best + 1e-9


@pytest.mark.parametrize("rule", ["conditional", "variance", "epsilon"])
def test_sensing_measures_new_pixels_and_learns(rule):
    found = sample.adaptive_sensing(IMAGES, gaussian(300), rule, rounds=4, pixels=2, std=0.02)
    assert all(len(set(row)) == 8 for row in found.places.tolist())
    errors = (found.estimates - IMAGES).square().mean((2, 3, 4))
    assert (errors[-1] < 0.1 * IMAGES.square().mean((1, 2, 3))).all()


def test_every_rule_reads_the_same_noise():
    """The first pixels of an order are measured alike whoever comes later, and estimates are the exact posterior's."""
    order = torch.tensor([3, 7, 0, 11])
    one = sample.adaptive_sensing(IMAGES, gaussian(), "order", rounds=2, pixels=2, std=STD, order=order)
    other = sample.adaptive_sensing(
        IMAGES, gaussian(), "order", rounds=1, pixels=2, std=STD, order=order.flip(0).roll(2)
    )
    assert one.places.tolist() == [[3, 7, 0, 11]] * 2
    torch.testing.assert_close(one.estimates[0], other.estimates[0])


def test_optimisation_finds_the_brightest_pixel_of_images_it_knows():
    for rule in ("ucb", "thompson", "mean"):
        found = sample.bayesian_optimisation(IMAGES, gaussian(300), rule, rounds=8, std=0.01)
        assert (found.regret.diff(dim=0) <= 0).all() and (found.regret >= 0).all()
        assert found.regret[-1].max() < 0.05
    order = IMAGES.flatten(1).argsort(1)  # darkest first
    worst = sample.bayesian_optimisation(IMAGES, None, "order", rounds=12, order=order)
    torch.testing.assert_close(worst.regret, IMAGES.flatten(1).amax(1) - IMAGES.flatten(1).sort(1).values.T)
    with pytest.raises(ValueError, match="posterior: got None"):
        sample.bayesian_optimisation(IMAGES, None, "ucb", rounds=2)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("order", {}, "order: got NoneType for rule 'order'"),
        ("variance", {"order": torch.arange(12)}, "order: got torch.int64 tensor for rule 'variance'"),
        ("order", {"order": [0, 1, 2, 3]}, "order: got list"),
        ("order", {"order": torch.arange(4.0)}, "order: got torch.float32 tensor"),
        ("order", {"order": torch.arange(3)}, r"order: got \[\[0, 1, 2\], .*; allowed: 4 pixels or more, from 0 to 11"),
        ("order", {"order": torch.tensor([0, 1, 1, 2])}, r"order: got \[\[0, 1, 1, 2\].*, none twice"),
        ("order", {"order": torch.tensor([0, 1, 2, 12])}, "order: got"),
        ("order", {"order": torch.arange(12).view(3, 4)}, r"order: got \(3, 4\); allowed: \[pixels\] or \[2, pixels\]"),
        ("variance", {"rounds": 7}, "rounds: got 7 of 2 pixels; allowed: at most 12 pixels in all"),
        ("epsilon", {"epsilon": math.nan}, "epsilon: got nan"),
        ("epsilon", {"epsilon": 2}, "epsilon: got 2"),
    ],
)
def test_designs_that_cannot_be_measured_are_refused(rule, options, message):
    with pytest.raises(ValueError, match=message):
        sample.adaptive_sensing(IMAGES, gaussian(10), rule, **{"rounds": 2, "pixels": 2, **options})


def test_a_search_or_a_greedy_design_that_cannot_be_made_is_refused():
    for call, message in [
        (lambda: sample.bayesian_optimisation(IMAGES, gaussian(10), "order", rounds=2), "order: got NoneType"),
        (lambda: sample.bayesian_optimisation(IMAGES, gaussian(10), rounds=13), "rounds: got 13"),
        (lambda: sample.bayesian_optimisation(IMAGES, gaussian(10), kappa=math.nan), "kappa: got nan"),
        (lambda: sample.greedy(torch.eye(3), 5, 0.1), "number: got 5; allowed: at most the 3 pixels"),
        (lambda: sample.greedy(torch.eye(3), 2, 0.1, torch.tensor([True, True, False])), "number: got 2"),
        (lambda: sample.greedy(torch.eye(3), 1, -5), "std: got -5"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    again = torch.tensor([3, 3, 3, 5])  # the brightest pixels of other images, say
    assert (
        sample.bayesian_optimisation(IMAGES, None, "order", rounds=4, order=again).places.tolist() == [[3, 3, 3, 5]] * 2
    )


def test_a_rule_of_ones_own_is_the_rule_that_it_writes():
    def variance(drawn, taken):
        assert drawn.shape == (300, 12) and taken.shape == (12,) and taken.dtype == torch.bool
        return drawn.var(0)

    options = {"rounds": 3, "std": 0.02}
    own, named = (
        sample.adaptive_sensing(IMAGES, gaussian(300), r, pixels=2, **options) for r in (variance, "variance")
    )
    assert torch.equal(own.places, named.places)
    mean, by_mean = (
        sample.bayesian_optimisation(IMAGES, gaussian(300), r, **options)
        for r in (lambda drawn, _: drawn.mean(0), "mean")
    )
    assert torch.equal(mean.places, by_mean.places)
    for wrong in (lambda drawn, taken: drawn, lambda drawn, taken: drawn.var(0) / 0):
        with pytest.raises(ValueError, match=r"rule: got .*; allowed: "):
            sample.adaptive_sensing(IMAGES, gaussian(9), wrong, rounds=1)


@pytest.mark.parametrize("search", [sample.adaptive_sensing, sample.bayesian_optimisation])
@pytest.mark.parametrize("wrong", [lambda x: x.transpose(0, 1), lambda x: x[..., :-1], lambda x: x[0], lambda x: x[:0]])
def test_draws_of_another_shape_are_refused(search, wrong):
    """[images, draws, pixels] was read as draws of other images."""
    with pytest.raises(ValueError, match=r"posterior: got values of shape .*; allowed: a tensor of shape \(\d+, 2, 12"):
        search(IMAGES, lambda *given: wrong(gaussian(9)(*given)), rounds=1)
