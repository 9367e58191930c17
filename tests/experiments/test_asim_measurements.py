"""How many measurements, how much noise: the linear range against scikit-learn, S-REC constants against the SVD."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

from companion import experiments, measure, priors
from companion.experiments import problems, registry
from companion.experiments.asim import measurements, restricted_eigenvalue
from companion.experiments.parts import Part

QUICK = registry.get("asim.measurements").settings["quick"]
PART = Part(torch.device("cpu"), 0)
SHAPE = (1, 4, 5)


def images(number):
    source = torch.Generator().manual_seed(3)
    mix = torch.randn(20, 20, generator=source, dtype=torch.float64) * torch.linspace(1, 0.05, 20)
    return (torch.randn(number, 20, generator=source, dtype=torch.float64) @ mix.mT).view(-1, *SHAPE)


def test_the_linear_range_is_that_of_scikit_learn_and_the_fit_that_of_numpy():
    x, k = images(60), 4
    operator = measure.Gaussian(SHAPE, 9, seed=1)
    y = operator(x[:3])
    pca = PCA(k).fit(x.flatten(1).numpy())
    dense = operator.forward(torch.eye(20, dtype=torch.float64).view(-1, *SHAPE)).mT.numpy()
    inside = dense @ pca.components_.T
    fitted = np.linalg.lstsq(inside, (y.numpy() - pca.mean_ @ dense.T).T, rcond=None)[0].T
    found = measurements.least_squares(operator, y, *priors.gaussian_of(x), k)
    np.testing.assert_allclose(found.flatten(1), pca.mean_ + fitted @ pca.components_, rtol=1e-8)


def test_without_noise_as_many_components_as_the_truth_has_give_it_back():
    x = images(60)
    factor, mean = priors.gaussian_of(x)
    truth = mean + (torch.randn(2, 6, dtype=torch.float64) @ factor[:, :6].mT).view(-1, *SHAPE)
    operator = measure.Gaussian(SHAPE, 8, seed=1)
    found = measurements.least_squares(operator, operator(truth), factor, mean, 6)
    np.testing.assert_allclose(found, truth, atol=1e-10)


@pytest.mark.parametrize("norm", [0.0, 2.0])
def test_measurements_have_the_noise_asked_for_and_methods_never_assume_none(norm):
    truth = torch.rand(50, 3, 8, 8)
    problem, y = measurements._problem(PART, truth, 30, norm)
    length = (y - problem.operator(truth)).square().sum(1).mean().sqrt()
    assert float(length) == pytest.approx(norm, rel=0.1)
    assert problem.noise.std == pytest.approx(max(norm, 0.01) / 30**0.5)


def test_options_are_chosen_on_validation_images_and_other_measurements(monkeypatch):
    seen, drawn = [], []
    load, draw = measurements.shared.images, problems.compressed
    monkeypatch.setattr(measurements.shared, "images", lambda *a, **k: seen.append(a[2]) or load(*a, **k))
    monkeypatch.setattr(problems, "compressed", lambda *a: drawn.append(a[3]) or draw(*a))
    few = replace(QUICK, weights=(0.003, 300.0), tuned_on=1)
    assert measurements._choose(few, PART, (614, 0.1, "tv"))[0] == {"option": 0.003}  # 300 flattens the picture
    assert seen == ["validation"] and drawn == ["validation"]


def test_ratios_of_pairs_are_those_of_scipy():
    x, operator = images(7), measure.Gaussian(SHAPE, 6, seed=2)
    y = operator(x).numpy()
    known = (pdist(y) + 0.5) / pdist(x.flatten(1).numpy())
    np.testing.assert_allclose(restricted_eigenvalue.of_pairs(operator, x, 0.5), known, rtol=1e-10)


def test_in_a_linear_range_descent_ends_at_the_smallest_singular_value_and_pairs_do_not():
    """The ball is so large, or the weights, that the slack does not count."""
    basis = torch.linalg.qr(images(5).flatten(1).mT).Q
    operator = measure.Gaussian(SHAPE, 6, seed=4)
    dense = operator.forward(torch.eye(20, dtype=torch.float64).view(-1, *SHAPE)).mT
    exact = np.linalg.svd((dense @ basis).numpy(), compute_uv=False)[-1]
    assert restricted_eigenvalue.smallest(operator, basis) == pytest.approx(exact)
    assert restricted_eigenvalue.smallest(measure.Gaussian(SHAPE, 4, seed=0), basis) == 0
    prior = priors.Linear(1e6 * basis, shape=SHAPE)
    start = torch.randn(4, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = restricted_eigenvalue.worst_pair(prior, operator, start, 0.1, 200).energy
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    pairs = restricted_eigenvalue.of_pairs(operator, prior.sample(20), 0.1)
    assert exact < pairs.min()


def test_the_stored_constants_never_fall_below_the_singular_value():
    run = experiments.load("asim.restricted-eigenvalue")
    exact = run.take("exact")
    assert (run.take("searched", set="pca") >= exact * (1 - 1e-4)).all()
    assert (run.take("ratio", set="pca", quantile=0.0) >= exact).all()
