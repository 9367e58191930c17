"""The quick run of the inpainting experiment, and its starts."""

import numpy as np
import pytest
import torch

from companion import data, evaluate, experiments, measure
from companion.experiments.asim import inpainting

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def quick():
    return experiments.load("asim.inpainting", "quick")  # test_verify.py asks whether today\'s code gives it


@pytest.mark.parametrize("how", inpainting.STARTS[2:])
def test_starts_differ_from_the_truth_in_the_hole_only(how):
    truth = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    mask = inpainting.MASKS["centre"](SHAPE)
    x = inpainting.start_image(how, truth, mask, seed=0)
    assert torch.equal(measure.Mask(mask)(x), measure.Mask(mask)(truth))
    assert not torch.equal(x, truth) and x.min() >= 0 and x.max() <= 1
    with pytest.raises(ValueError, match="how"):
        inpainting.start_image("white", truth, mask, seed=0)


def test_the_turned_start_knows_the_hidden_pixels():
    truth = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(2))
    # of an even side: the hole that the published code makes is one pixel off the centre
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[:, 12:20, 12:20] = False
    hole = inpainting.start_image("turned truth", truth, mask, 0)[:, :, 12:20, 12:20]
    assert torch.equal(hole.flatten().sort().values, truth[:, :, 12:20, 12:20].flatten().sort().values)


def test_the_start_that_knows_the_hole_is_better_before_anything_is_searched(quick):
    first = {how: quick.take("sweep hidden psnr path", start=how, gamma=0.0, evaluation=1) for how in inpainting.STARTS}
    assert first["noisy truth"] > first["black"] + 3


def test_stored_pictures_have_the_stored_scores(quick):
    truth = data.load("photos", split="test", size=32)[:1]
    np.testing.assert_allclose(quick.arrays["truth"] / 255, truth, atol=1 / 255)
    for name, of in inpainting.MASKS.items():
        for method in quick.axes("psnr")["method"]:
            x = torch.tensor(quick.take("recovered", mask=name, method=method)) / 255
            stored = quick.take("hidden psnr", mask=name, method=method)
            assert evaluate.psnr(x, truth, ~of(SHAPE)).numpy() == pytest.approx(stored, abs=0.1)


def test_spread_follows_from_its_parts(quick):
    spread, deviation = quick.metrics["spread"]["centre"], quick.arrays["centre deviation"].astype(float)
    assert np.sqrt((deviation**2).mean()) == pytest.approx(spread["spread"], abs=1e-3)
    error = quick.arrays["centre error"].astype(float)
    assert np.sqrt((error**2).mean()) == pytest.approx(spread["error of the mean"], abs=1e-3)
    # the mean is at least as good as the answers are on average, by the spread between them
    errors = 10 ** (-quick.arrays["centre hidden psnr"] / 10)
    mean = 10 ** (-quick.arrays["centre hidden psnr of the mean"] / 10)
    assert (mean <= errors.mean(0) + 1e-6).all()
    # with n - 1 = 1 in the denominator of two answers: (a - b)² / 2
    np.testing.assert_allclose(mean, errors.mean(0) - (deviation**2).mean(1) / 2, atol=1e-4)
