"""The quick run of the inpainting experiment, its score over hidden pixels, and its starts."""

import numpy as np
import pytest
import torch

from companion import data, evaluate, experiments, measure
from companion.experiments.asim import inpainting

pytestmark = pytest.mark.slow

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return experiments.run("asim.inpainting", "quick", device="cpu", out=tmp_path_factory.mktemp("inpainting"))


@pytest.mark.parametrize("name", inpainting.MASKS)
def test_hidden_psnr_is_that_of_the_image_with_the_known_pixels_pasted_in_but_for_the_hidden_share(name):
    source = torch.Generator().manual_seed(0)
    truth, x = (torch.rand(3, *SHAPE, dtype=torch.float64, generator=source) for _ in range(2))
    mask = inpainting.MASKS[name](SHAPE)
    pasted = torch.where(mask, truth, x)
    share = (~mask).double().mean()
    torch.testing.assert_close(
        inpainting.hidden_psnr(x, truth, mask), evaluate.psnr(pasted, truth) + 10 * torch.log10(share)
    )


def test_hidden_psnr_clips_and_refuses_what_hides_nothing():
    truth = torch.full((2, *SHAPE), 0.9, dtype=torch.float64)
    mask = inpainting.MASKS["left"](SHAPE)
    torch.testing.assert_close(inpainting.hidden_psnr(truth + 5, truth, mask), torch.full((2,), 20.0).double())
    with pytest.raises(ValueError, match=r"mask: .* some False"):
        inpainting.hidden_psnr(truth, truth, torch.ones(SHAPE, dtype=torch.bool))


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


def test_quick_run(quick):
    metrics, arrays = quick.metrics, quick.arrays
    starts, gammas, masks, methods = (len(metrics[key]) for key in ("starts", "gammas", "masks", "methods"))
    assert arrays["sweep/psnr"].shape == (starts, gammas, 2) and arrays["sweep/path"].shape == (starts, gammas, 3, 3)
    assert arrays["masks/psnr"].shape == arrays["masks/hidden psnr"].shape == (masks, methods, 2)
    assert all(np.isfinite(value).all() for key, value in arrays.items() if "psnr" in key)
    assert set(metrics["chosen"]["text"]) == {"glow", "gan", "vae", "tv"}
    assert set(metrics["hidden share"]) == set(inpainting.MASKS)
    # the start from the true hole plus noise is better than that from a black one, before anything is searched
    first = arrays["sweep/path"][:, 0, 1, 0]
    assert first[metrics["starts"].index("noisy truth")] > first[metrics["starts"].index("black")] + 3


def test_stored_pictures_have_the_stored_scores(quick):
    truth = data.load("photos", split="test", size=32)[:2]
    np.testing.assert_allclose(quick.arrays["truth"] / 255, truth, atol=1 / 255)
    for i, of in enumerate(inpainting.MASKS.values()):
        for j in range(len(quick.metrics["methods"])):
            x = torch.tensor(quick.arrays["masks/x"][i, j]) / 255
            assert inpainting.hidden_psnr(x, truth, of(SHAPE)).numpy() == pytest.approx(
                quick.arrays["masks/hidden psnr"][i, j], abs=0.1
            )


def test_spread_follows_from_its_parts(quick):
    spread, stored = quick.metrics["spread"]["centre"], quick.arrays
    deviation, error = stored["spread/centre/deviation"], stored["spread/centre/error"]
    assert np.sqrt((deviation.astype(float) ** 2).mean()) == pytest.approx(spread["spread"], abs=1e-3)
    assert np.sqrt((error.astype(float) ** 2).mean()) == pytest.approx(spread["error of the mean"], abs=1e-3)
    # the mean is at least as good as the answers are on average, by the spread between them
    errors = 10 ** (-stored["spread/centre/hidden psnr"] / 10)
    mean = 10 ** (-stored["spread/centre/hidden psnr of the mean"] / 10)
    assert (mean <= errors.mean(0) + 1e-6).all()
    two = deviation.astype(float) ** 2  # with n - 1 = 1 in the denominator: (a - b)² / 2
    np.testing.assert_allclose(mean, errors.mean(0) - two.mean(1) / 2, atol=1e-4)
