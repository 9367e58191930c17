"""Sets of images from near to far, the area under the ROC curve, and a quick run of the comparison."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from companion import experiments, priors
from companion.experiments.asim import out_of_distribution as ood

pytestmark = pytest.mark.slow

COLOUR, GREY = (3, 32, 32), (1, 28, 28)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return experiments.run("asim.out-of-distribution", "quick", device="cpu", out=tmp_path_factory.mktemp("quick"))


@pytest.mark.parametrize("shape", [COLOUR, GREY])
@pytest.mark.parametrize("name", ["photos", *ood.RENDERED])
def test_a_set_is_8_bit_images_that_do_not_depend_on_how_many_follow(name, shape):
    x = ood.image_set(name, 13, shape)
    assert x.shape == (13, *shape) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    torch.testing.assert_close(x * 255, (x * 255).round(), atol=1e-4, rtol=0)
    assert torch.equal(ood.image_set(name, 5, shape), x[:5])
    assert all(not torch.equal(x[i], x[j]) for i in range(13) for j in range(i))


def test_constants_checkerboards_and_letters_are_what_they_are_called():
    constant, boards = ood.image_set("constant", 4, COLOUR), ood.image_set("checkerboards", 4, COLOUR)
    assert not constant.flatten(2).std(2).any()
    for board, period in zip(boards, (1, 2, 4, 8), strict=True):
        assert torch.equal(board[:, period:, period:], board[:, :-period, :-period])
        assert (board[:, period:] != board[:, :-period]).all()
    for letter in ood.image_set("letters", 60, GREY)[:, 0]:
        spans = [side.nonzero()[[0, -1], 0] for side in (letter.any(0), letter.any(1))]
        assert max(int(last - first) + 1 for first, last in spans) == 20
        assert all(abs(float(first + last) / 2 - 13.5) <= 0.5 for first, last in spans)


@pytest.mark.parametrize(("name", "number"), [("faces", 3), ("text", 0), ("photos", 10**6)])
def test_wrong_arguments_are_refused(name, number):
    with pytest.raises(ValueError, match="allowed"):
        ood.image_set(name, number, COLOUR)


def test_auroc_is_scikit_learns_with_ties():
    source = np.random.default_rng(0)
    own, other = source.integers(0, 6, 40) / 2, source.integers(2, 9, 25) / 2
    labels = np.r_[np.zeros(40), np.ones(25)]
    assert ood.auroc(own, other) == pytest.approx(roc_auc_score(labels, np.r_[own, other]))
    assert ood.auroc(own, own) == 0.5 and ood.auroc(own, own + 100) == 1


def test_pictures_and_scores_of_a_run_belong_together(quick):
    found = quick.metrics["families"]["glow-photos32"]
    assert found["methods"] == ["glow", "gan", "vae", "tv", "lasso-dct"] and found["m"] == [307, 614]
    for name, counts in (("photos", [307, 614]), ("textures", [614])):
        stem = f"glow-photos32/{name}"
        psnr, pictures = quick.arrays[f"{stem}/psnr"], quick.arrays[f"{stem}/x"]
        assert found[name]["m"] == counts
        assert psnr.shape == (len(counts), 5, 2) and pictures.shape == (len(counts), 5, *COLOUR)
        truth = quick.arrays[f"{stem}/truth"]
        assert np.array_equal(truth, (ood.image_set(name, 2, COLOUR)[1] * 255).round().byte().numpy())
        for at, m in enumerate(counts):
            for picture, value in zip(pictures[at], psnr[at, :, 1], strict=True):
                error = ((picture.astype(float) - truth) / 255) ** 2
                assert -10 * np.log10(error.mean()) == pytest.approx(value, abs=0.1)  # 8 bits
            means = list(found[name][f"m={m}"]["mean psnr"].values())
            assert means[:5] == pytest.approx(psnr[at].mean(1), abs=1e-3)
            assert means[5] == pytest.approx(quick.arrays[f"{stem}/grey/psnr"][at].mean(), abs=1e-3)
            reasons = found[name][f"m={m}"]["reasons"]
            assert all(sum(counts.values()) == 2 for counts in reasons.values())
        assert np.isfinite(quick.arrays[f"{stem}/residual"]).all()
    assert set(found["weight"]) == {"m=307", "m=614"}
    assert set(found["auroc"]) == {"textures"} and all(0 <= v <= 1 for v in found["auroc"]["textures"].values())


def test_searches_start_where_they_say_and_approach_the_measurements(quick):
    flow = priors.load("glow-photos32")
    with torch.no_grad():
        starts = {"": flow.decode(torch.zeros(1, flow.latent_dim)), "grey/": torch.full((1, *COLOUR), 0.5)}
    for name in ("photos", "textures"):
        x = ood.image_set(name, 2, COLOUR)
        for prefix, begin in starts.items():
            stem = f"glow-photos32/{name}/{prefix}"
            path, residual = quick.arrays[f"{stem}psnr path"], quick.arrays[f"{stem}residual path"]
            assert path.shape == residual.shape == (len(path), 2, len(ood.checkpoints(12)))
            expected = -10 * ((begin - x) ** 2).flatten(1).mean(1).log10()
            assert path[:, :, 0] == pytest.approx(np.tile(expected, (len(path), 1)), abs=1e-2)
            assert (np.diff(residual, axis=2) <= 1e-3).all() and (residual[:, :, -1] < residual[:, :, 0]).all()
        last, final = quick.arrays[f"{stem}residual path"][:, :, -1], quick.arrays[f"{stem}residual"]
        assert last == pytest.approx(final, rel=1e-2)


def test_densities_are_those_of_the_flow(quick):
    flow = priors.load("glow-photos32")
    x = ood.image_set("textures", 6, COLOUR)
    with torch.no_grad():
        bits, norm = flow.bits_per_dim(x, seed=0), flow.encode(x).norm(dim=1)
    np.testing.assert_allclose(quick.arrays["glow-photos32/textures/bits"], bits, atol=1e-3)
    np.testing.assert_allclose(quick.arrays["glow-photos32/textures/plain norm"], norm, rtol=1e-4)


def test_the_wider_range_fits_no_worse(quick):
    """What a generator can reach with all pixels measured bounds, up to the search, what it recovers from a part."""
    for method, row in (("gan", 1), ("vae", 2)):
        reached = quick.arrays[f"glow-photos32/photos/nearest/{method}"]
        assert (quick.arrays["glow-photos32/photos/psnr"][:, row] < reached + 2).all()
