"""Sets of images from near to far, the area under the ROC curve, and a quick run of the comparison."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from companion import experiments, priors
from companion.experiments.asim import out_of_distribution as ood
from companion.experiments.asim.image_sets import RENDERED, image_set

COLOUR, GREY = (3, 32, 32), (1, 28, 28)


@pytest.fixture(scope="module")
def quick():
    return experiments.load("asim.out-of-distribution", "quick")  # test_verify.py asks whether today\'s code gives it


@pytest.mark.parametrize("shape", [COLOUR, GREY])
@pytest.mark.parametrize("name", ["photos", *RENDERED])
def test_a_set_is_8_bit_images_that_do_not_depend_on_how_many_follow(name, shape):
    x = image_set(name, 13, shape)
    assert x.shape == (13, *shape) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    torch.testing.assert_close(x * 255, (x * 255).round(), atol=1e-4, rtol=0)
    assert torch.equal(image_set(name, 5, shape), x[:5])
    assert all(not torch.equal(x[i], x[j]) for i in range(13) for j in range(i))


def test_constants_checkerboards_and_letters_are_what_they_are_called():
    constant, boards = image_set("constant", 4, COLOUR), image_set("checkerboards", 4, COLOUR)
    assert not constant.flatten(2).std(2).any()
    for board, period in zip(boards, (1, 2, 4, 8), strict=True):
        assert torch.equal(board[:, period:, period:], board[:, :-period, :-period])
        assert (board[:, period:] != board[:, :-period]).all()
    for letter in image_set("letters", 60, GREY)[:, 0]:
        spans = [side.nonzero()[[0, -1], 0] for side in (letter.any(0), letter.any(1))]
        assert max(int(last - first) + 1 for first, last in spans) == 20
        assert all(abs(float(first + last) / 2 - 13.5) <= 0.5 for first, last in spans)


@pytest.mark.parametrize(("name", "number"), [("faces", 3), ("text", 0), ("photos", 10**6)])
def test_wrong_arguments_are_refused(name, number):
    with pytest.raises(ValueError, match="allowed"):
        image_set(name, number, COLOUR)


def test_auroc_is_scikit_learns_with_ties():
    source = np.random.default_rng(0)
    own, other = source.integers(0, 6, 40) / 2, source.integers(2, 9, 25) / 2
    labels = np.r_[np.zeros(40), np.ones(25)]
    assert ood.auroc(own, other) == pytest.approx(roc_auc_score(labels, np.r_[own, other]))
    assert ood.auroc(own, own) == 0.5 and ood.auroc(own, own + 100) == 1


def read(quick, name, **at):
    return quick.take(f"glow-photos32 {name}", **at)


@pytest.mark.parametrize(("name", "m"), [("photos", 307), ("photos", 614), ("textures", 614)])
def test_pictures_and_scores_of_a_run_belong_together(quick, name, m):
    truth = read(quick, "truth", set=name)
    assert np.array_equal(truth, (image_set(name, 2, COLOUR)[1] * 255).round().byte().numpy())
    for method in ("glow", "gan", "vae", "tv", "lasso-dct", "grey"):
        at = {"set": name, "m": m, "method": method}
        error = ((read(quick, "recovered", **at).astype(float) - truth) / 255) ** 2
        assert -10 * np.log10(error.mean()) == pytest.approx(read(quick, "psnr", **at, image=1), abs=0.1)  # 8 bits
        assert np.isfinite(read(quick, "residual", **at)).all()


def test_a_set_that_is_not_measured_everywhere_is_blank_elsewhere(quick):
    assert np.isnan(read(quick, "psnr", m=307, set="textures")).all()


@pytest.mark.parametrize(("name", "m"), [("photos", 307), ("textures", 614)])
@pytest.mark.parametrize("start", ["glow", "grey"])
def test_searches_start_where_they_say_and_approach_the_measurements(quick, name, m, start):
    flow, at = priors.load("glow-photos32"), {"set": name, "m": m, "method": start}
    with torch.no_grad():
        begin = flow.decode(torch.zeros(1, flow.latent_dim)) if start == "glow" else torch.full((1, *COLOUR), 0.5)
    path, residual = read(quick, "psnr path", **at), read(quick, "residual path", **at)
    expected = -10 * ((begin - image_set(name, 2, COLOUR)) ** 2).flatten(1).mean(1).log10()
    assert path[0] == pytest.approx(expected, abs=1e-2)
    assert (np.diff(residual, axis=0) <= 1e-3).all() and (residual[-1] < residual[0]).all()
    assert residual[-1] == pytest.approx(read(quick, "residual", **at), rel=1e-2)


def test_densities_are_those_of_the_flow(quick):
    flow, x = priors.load("glow-photos32"), image_set("textures", 4, COLOUR)
    with torch.no_grad():
        bits, norm = flow.bits_per_dim(x, seed=0), flow.encode(x).norm(dim=1)
    np.testing.assert_allclose(read(quick, "bits", set="textures"), bits, atol=1e-3)
    np.testing.assert_allclose(read(quick, "plain norm", set="textures"), norm, rtol=1e-4)


def test_the_wider_range_fits_no_worse(quick):
    """What a generator can reach with all pixels measured bounds, up to the search, what it recovers from a part."""
    for method in ("gan", "vae"):
        reached = read(quick, "nearest psnr", set="photos", method=method)
        assert (read(quick, "psnr", set="photos", method=method) < reached + 2).all()
