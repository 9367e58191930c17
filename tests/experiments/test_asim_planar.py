"""The quick runs on latent against image space, in the plane and on photographs, and the plane's exact facts."""

import math

import numpy as np
import pytest
import torch

from companion import experiments, measure
from companion.experiments.asim import planar


@pytest.fixture(scope="module")
def plane():
    return experiments.load("asim.planar", "quick")  # test_verify.py asks whether today\'s code gives it


@pytest.fixture(scope="module")
def photographs():
    return experiments.load("asim.image-space", "quick")  # test_verify.py asks whether today\'s code gives it


def direction(*a):
    vector = torch.tensor(a, dtype=torch.float64)
    return planar.Along(vector / vector.norm())


def test_points_lie_on_two_stripes_and_have_the_stated_entropy():
    x = planar.points(20_000, 1)
    assert x.dtype == torch.float64 and x[:, 1].abs().max() <= 1
    assert abs(float((x[:, 0] > 0).double().mean()) - 0.5) < 0.02
    assert abs(float(x[:, 0].abs().mean()) - planar.CENTRE) < 0.01
    normal = torch.distributions.Normal(torch.tensor([-0.5, 0.5], dtype=torch.float64), planar.SPREAD)
    density = normal.log_prob(x[:, :1]).exp().mean(1) / 2  # the uniform's density is 1/2
    assert -float(density.log().mean()) == pytest.approx(planar.NLL, abs=0.01)


@pytest.mark.parametrize("a", [(0, 1), (0.8, 0.6), (0.99, 0.141), (0.3, -0.954)])
def test_the_ceiling_is_that_of_the_more_frequent_stripe_among_similar_measurements(a):
    operator, x = direction(*a), planar.points(100_000, 3)
    y = operator(x)
    cell = (y[:, 0] * 50).round().long()
    cell -= cell.min()
    right = torch.bincount(cell, (x[:, 0] > 0).double())
    share = float(torch.maximum(right, torch.bincount(cell) - right).sum() / len(x))
    assert planar.ceiling(operator, y) == pytest.approx(share, abs=0.015)


def test_the_operator_and_its_adjoint_belong_together():
    operator, x = direction(2, -1), planar.points(5, 0)
    torch.testing.assert_close(operator(x)[:, 0], (2 * x[:, 0] - x[:, 1]) / math.sqrt(5))
    y = torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close((operator(x) * y).sum(1), (x * operator.adjoint(y)).sum(1))


def test_verdicts():
    operator, truth = direction(0, 1), torch.tensor([[0.5, 0.2]], dtype=torch.float64).expand(5, 2)
    x = torch.tensor([[0.52, 0.2], [-0.5, 0.2], [0.0, 0.2], [0.5, 0.3], [0.7, 0.2]], dtype=torch.float64)
    verdict = planar.judge(x, truth, operator, operator(truth))
    assert verdict["fits"].tolist() == [True, True, True, False, True]
    assert verdict["explains"].tolist() == [True, True, False, False, True]
    assert verdict["right"].tolist() == [True, False, False, False, True]


def test_the_flow_is_trained_stored_and_found_again(plane):
    assert planar.NLL < plane.metrics["nll"] < 1.5  # one Gaussian with the data's moments scores 1.6
    held_out = planar.points(4000, 0, "held out")
    nll = -float(planar.flow_of(plane).log_prob(held_out).mean())
    assert nll == pytest.approx(plane.metrics["nll"], abs=1e-4)


def test_the_stored_flow_has_all_that_training_gave_it():
    stored = experiments.load("asim.planar", "laptop")  # long trained: what its ActNorms took from the data counts
    nll = -float(planar.flow_of(stored).log_prob(planar.points(4000, 0, "held out")).mean())
    assert nll == pytest.approx(stored.metrics["nll"], abs=0.03)


def test_the_starts(plane):
    flow = planar.flow_of(plane)
    bridge = flow.decode(planar.start(flow, "bridge", 50, 1))
    assert bridge[:, 0].abs().max() <= 0.15 + 1e-6 and 0.5 < bridge[:, 1].abs().max() <= 1 + 1e-6
    assert not planar.start(flow, "origin", 3, 1).any()
    assert 0.5 < flow.decode(planar.start(flow, "square", 50, 1))[:, 0].abs().max() <= 1 + 1e-6


def test_verdicts_follow_from_the_stored_estimates(plane):
    x, truth = (torch.tensor(plane.take(name, direction="second coordinate")).double() for name in ("x", "truth"))
    for axis, labels in (("space", planar.SPACES), ("start", planar.STARTS), ("direction", planar.KINDS)):
        assert plane.axes("x")[axis] == list(labels)
    fits = (x[..., 1] - truth[:, 1]).abs() <= planar.FITS
    assert np.array_equal(plane.take("fits", direction="second coordinate"), fits)
    fits, explains, right = (plane.take(name) for name in ("fits", "explains", "right"))
    assert (right <= explains).all() and (explains <= fits).all() and plane.take("evaluations").max() <= 60
    assert all(0.5 <= value <= 1 for value in plane.metrics["ceiling"].values())


def test_a_search_without_penalty_explains_the_measurement_and_stays_finite(plane):
    flow, operator = planar.flow_of(plane), direction(0, 1)
    y = operator(planar.points(6, 4))
    found = planar.search(flow, operator, y, planar.start(flow, "bridge", 6, 2), "latent, no penalty", 5.0)
    assert (operator(found.x) - y).abs().max() < 1e-3 and torch.isfinite(found.z).all()


def test_photographs_in_both_spaces(photographs):
    runs, arrays = photographs.metrics["runs"], photographs.arrays
    assert {run["space"] for run in runs} == {"latent", "image", "both"}
    assert {run["start"] for run in runs} == {"zero", "noisy image"}
    assert arrays["psnr"].shape == (len(runs), 1) and np.isfinite(arrays["psnr"]).all()
    for run, path, psnr in zip(runs, arrays["path"], arrays["psnr"], strict=True):
        assert path.shape == (8, 1)
        np.testing.assert_allclose(path[-1], psnr, atol=0.05)  # the last iterate of L-BFGS is the best
        assert run["mean evaluations"] == 8 and math.isfinite(run["mean negative log-likelihood"])
        assert run["mean psnr"] == pytest.approx(psnr.mean(), abs=1e-3)
    by_start = {
        run["start"]: path[0] for run, path in zip(runs, arrays["path"], strict=True) if run["space"] == "image"
    }
    np.testing.assert_allclose(by_start["noisy image"], photographs.take("observed psnr", std=0.1), atol=0.01)
    assert (by_start["zero"] < by_start["noisy image"]).all()


def test_noise_of_the_denoising_problems_has_its_level(photographs):
    # clipping to [0, 1], which scores do, removes some of it
    level = 10 ** (-photographs.take("observed psnr", std=0.1) / 20)
    assert (level > 0.07).all() and (level < 0.105).all()
    assert measure.GaussianNoise(0.1).std == 0.1
