"""The comparison behind the compressed sensing experiments in a tiny size: its problems, choices, budgets, scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from companion import data, evaluate, experiments, measure, priors, recover
from companion.experiments.asim import compressed_sensing as cs
from companion.experiments.context import Context

pytestmark = pytest.mark.slow

TINY = replace(
    cs._tiny(cs._PHOTOS, (80, 160)), budget=12, seeds=2, restarts=(1, 3), weights=(0.003, 3.0), classical=("tv",)
)


def compare(settings, folder):
    return cs.compare(settings, Context(torch.device("cpu"), 0, folder, "a test"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return compare(TINY, tmp_path_factory.mktemp("parts"))


def test_shapes_and_order(photos):
    metrics, arrays = photos
    assert metrics["methods"] == ["glow", "tv", "gan", "vae"] and metrics["n"] == 3072
    for score in ("psnr", "ssim", "evaluations"):
        assert arrays[score].shape == (4, 2, 2, 2)  # methods, m, draws, images
    assert arrays["recovered"].shape == (2, 4, 2, 3, 32, 32) and arrays["truth"].shape == (2, 3, 32, 32)
    for i, name in enumerate(metrics["methods"]):
        np.testing.assert_allclose(metrics["mean psnr"][name], arrays["psnr"][i].mean((1, 2)), atol=1e-4)


def test_scores_are_those_of_the_stored_pictures(photos):
    metrics, arrays = photos
    truth = torch.tensor(arrays["truth"]) / 255
    for i in range(len(metrics["m"])):
        for k in range(len(metrics["methods"])):
            x = torch.tensor(arrays["recovered"][i, k]) / 255
            np.testing.assert_allclose(evaluate.psnr(x, truth), arrays["psnr"][k, i, 0], atol=0.1)


def test_every_method_meets_the_problem_of_its_draw(photos):
    metrics, arrays = photos
    truth = data.load("photos", split="test", size=32)[:2]
    for draw in range(2):
        operator = measure.Gaussian((3, 32, 32), 80, draw)
        y = measure.Problem(operator, measure.GaussianNoise.of_norm(0.1, 80)).observe(truth, draw + 1)
        by_hand = {
            "glow": recover.flow_latent(priors.load("glow-photos32"), operator, y, max_evaluations=12),
            "tv": recover.tv(operator, y, **metrics["chosen"]["tv"][0], max_iterations=12),
        }
        for name, result in by_hand.items():
            stored = arrays["psnr"][metrics["methods"].index(name), 0, draw]
            np.testing.assert_allclose(evaluate.psnr(result.x, truth), stored, atol=1e-3)


def test_options_are_the_best_on_validation_images(photos):
    metrics, arrays = photos
    for name in ("tv", "gan", "vae"):
        means = arrays[f"validation {name}"].mean(2)  # [m, options]
        for i, chosen in enumerate(metrics["chosen"][name]):
            assert means[i].max() == pytest.approx(means[i][metrics["options"][name].index(chosen)])
    assert metrics["chosen"]["glow"] == [{"gamma": 0.0}] * 2 and "validation glow" not in arrays
    # a weight that leaves nothing of the image loses on any image
    assert [each["weight"] for each in metrics["chosen"]["tv"]] == [0.003, 0.003]


def test_no_method_spends_more_than_the_budget(photos):
    metrics, arrays = photos
    learned = [metrics["methods"].index(name) for name in ("glow", "gan", "vae")]
    assert arrays["evaluations"][learned].max() <= TINY.budget
    operator, y = cs._observe((3, 32, 32), 40, data.load("photos", split="test", size=32)[:1], 0)
    methods = cs._methods(TINY, {"vae": priors.load("vae-photos32")})
    for restarts in TINY.restarts:
        spent = methods["vae"].solve(operator, y, 0, gamma=0.01, restarts=restarts).evaluations
        assert TINY.budget // 2 < int(spent) <= TINY.budget


def test_estimates_of_a_generator_do_not_leave_its_range(photos):
    metrics, arrays = photos
    for name in ("gan", "vae"):
        best = arrays["psnr"][metrics["methods"].index(name)].max((0, 1))
        # 12 evaluations from 2 starts find the nearest image only roughly
        assert arrays[f"range {name}"].shape == (2,) and (best < arrays[f"range {name}"] + 3).all()


def test_single_searches_are_restarts_one_by_one(photos):
    energy, psnr = photos[1]["starts vae energy"], photos[1]["starts vae psnr"]
    assert energy.shape == psnr.shape == (2, 2)
    truth = data.load("photos", split="test", size=32)[:2]
    operator, y = cs._observe((3, 32, 32), 160, truth, 0)
    vae = priors.load("vae-photos32")
    end = recover.gan_latent(vae, operator, y, TINY.gammas[0], restarts=1, seed=1, max_evaluations=3)
    np.testing.assert_allclose(end.energy, energy[1], rtol=1e-4)
    assert energy[0] != pytest.approx(energy[1])


def test_digits_and_a_killed_run(tmp_path, monkeypatch):
    def digits(settings, split, number):
        images = data.load("digits", split=split)[:number]
        return F.interpolate(F.pad(images, (3, 3, 3, 3)), size=28, mode="bilinear").clamp(0, 1)

    monkeypatch.setattr(cs, "_images", digits)
    settings = replace(cs._tiny(cs._MNIST, (100,)), budget=30, weights=(0.03,), classical=("lasso-pixel",), pictures=0)
    metrics, arrays = compare(settings, tmp_path)
    assert metrics["methods"] == ["glow", "lasso-pixel", "gan", "vae", "vae-glow"] and metrics["n"] == 784
    assert arrays["evaluations"][4].max() <= 30
    assert metrics["chosen"]["glow"][0] in metrics["options"]["glow"] == [{"gamma": 0.0}, {"gamma": 0.1}]
    assert "recovered" not in arrays and "truth" not in arrays  # for images that may not be shown
    again = compare(settings, tmp_path)
    np.testing.assert_array_equal(again[1]["psnr"], arrays["psnr"])


def test_the_flow_that_starts_at_the_estimate_of_the_vae_does_no_worse_than_it():
    loaded = {"glow": priors.load("glow-mnist"), "vae": priors.load("vae-mnist")}
    settings = replace(cs._MNIST, budget=40, vae_first=30, restarts=(1, 2))
    methods = cs._methods(settings, loaded)
    assert [option["restarts"] for option in methods["vae-glow"].options] == [2] * len(settings.gammas)
    x = loaded["vae"].sample(2, seed=1).clamp(0, 1)
    operator, y = cs._observe(x.shape[1:], 60, x, 0)
    first = recover.gan_latent(loaded["vae"], operator, y, 0.01, restarts=2, seed=7, max_evaluations=15)
    both = methods["vae-glow"].solve(operator, y, 7, gamma=0.01, restarts=2)
    misfits = [(operator(result.x) - y).square().sum(1) for result in (first, both)]
    assert (misfits[1] < misfits[0]).all()
    assert (both.evaluations <= 40).all() and (both.evaluations > first.evaluations).all()


def test_images_of_sets_that_are_ordered_by_class_come_from_the_whole_split():
    whole = data.load("photos", split="test", size=32)
    first, spread = (cs._images(replace(TINY, spread=each), "test", 4) for each in (False, True))
    assert torch.equal(first, whole[:4])
    quarter = len(whole) / 4
    assert torch.equal(spread, whole[[0, int(quarter), int(2 * quarter), int(3 * quarter)]])
    assert cs._EUROSAT.spread and cs._FLOWERS.spread and not cs._PHOTOS.spread


def test_the_four_experiments_are_known():
    names = {f"asim.compressed-sensing{end}" for end in ("", "-mnist", "-eurosat", "-flowers")}
    assert names <= set(experiments.names())
    lengths = {len(values) for values in cs.PUBLISHED_FLOWERS.values()}
    assert lengths == {7} and cs._FLOWERS.pictures == 0
    assert set(cs._FLOWERS.measurements) <= set(cs.PUBLISHED_FLOWERS["m"])
