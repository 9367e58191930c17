"""The comparison behind the compressed sensing experiments in a tiny size: its problems, choices, budgets, scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from companion import data, evaluate, experiments, measure, priors, recover
from companion.experiments import problems, shared
from companion.experiments.arrays import take
from companion.experiments.asim import compressed_sensing as cs
from companion.experiments.context import Context
from companion.experiments.parts import Part

pytestmark = pytest.mark.slow

SHAPE = (3, 32, 32)
PART = Part(torch.device("cpu"), 0)
SMALL = cs._tiny(cs.Settings(data="photos"), 80, 160)
TINY = replace(
    SMALL,
    images=2,
    pictures=2,
    tuned_on=2,
    budget=12,
    seeds=2,
    restarts=(1, 3),
    weights=(0.003, 3.0),
    classical=("tv",),
)


def compare(settings, folder):
    return cs.compare(settings, Context(torch.device("cpu"), 0, settings=settings, parts=folder, fingerprint="a test"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return compare(TINY, tmp_path_factory.mktemp("parts"))


def test_scores_are_those_of_the_stored_pictures(photos):
    arrays = photos[1]
    assert arrays["psnr"].axes["method"] == ["glow", "tv", "gan", "vae"]
    seen, truth = (torch.tensor(arrays[name].values) / 255 for name in ("recovered", "truth"))  # [m, methods, pictures]
    scores = evaluate.psnr(seen.flatten(0, 2), truth.repeat(8, 1, 1, 1)).view(2, 4, 2)
    np.testing.assert_allclose(scores, take("psnr", arrays["psnr"], {"draw": 0}), atol=0.1)


def test_every_method_meets_the_problem_of_its_draw(photos):
    metrics, arrays = photos
    truth = data.load("photos", split="test", size=32)[:2]
    for draw in range(2):
        seed = shared.seed_of(PART, "draw", draw)
        operator = measure.Gaussian(SHAPE, 80, seed)
        y = measure.Problem(operator, measure.GaussianNoise.of_norm(0.1, 80)).observe(truth, seed)
        by_hand = {
            "glow": recover.flow_latent(priors.load("glow-photos32"), operator, y, max_evaluations=12),
            "tv": recover.tv(operator, y, **metrics["chosen"]["tv"][0], max_iterations=12),
        }
        for name, result in by_hand.items():
            stored = take("psnr", arrays["psnr"], {"method": name, "m": 80, "draw": draw})
            np.testing.assert_allclose(evaluate.psnr(result.x, truth), stored, atol=1e-3)


def test_options_are_the_best_on_validation_images(photos):
    metrics, arrays = photos
    for name in ("tv", "gan", "vae"):
        scores = arrays[f"validation {name}"]
        for m, chosen in zip(TINY.measurements, metrics["chosen"][name], strict=True):
            means = take(name, scores, {"m": m}).mean(-1)
            assert means.max() == pytest.approx(take(name, scores, {"m": m, **chosen}).mean())
    assert metrics["chosen"]["glow"] == [{"gamma": 0.0}] * 2 and "validation glow" not in arrays
    # a weight that leaves nothing of the image loses on any image
    assert [each["weight"] for each in metrics["chosen"]["tv"]] == [0.003, 0.003]


def test_no_method_spends_more_than_the_budget(photos):
    learned = take("evaluations", photos[1]["evaluations"], {"method": ["glow", "gan", "vae"]})
    assert learned.max() <= TINY.budget
    problem, y = problems.compressed(PART, data.load("photos", split="test", size=32)[:1], 40)
    for restarts in TINY.restarts:
        found = cs._solve(TINY, PART, "vae", problem, y, 0, gamma=0.01, restarts=restarts)
        assert TINY.budget // 2 < int(found.evaluations) <= TINY.budget


def test_estimates_of_a_generator_do_not_leave_its_range(photos):
    arrays = photos[1]
    best = take("psnr", arrays["psnr"], {"method": ["gan", "vae"]}).max((0, 1))
    # 12 evaluations from 2 starts find the nearest image only roughly
    assert (best < arrays["range"].values + 3).all()


def test_single_searches_are_restarts_one_by_one(photos):
    energies = take("energy", photos[1]["starts energy"], {"method": "vae"})
    problem, y = problems.compressed(PART, data.load("photos", split="test", size=32)[:2], 160)
    seed, vae = shared.seed_of(PART, "start", 1), priors.load("vae-photos32")
    end = recover.gan_latent(vae, problem.operator, y, TINY.gammas[0], restarts=1, seed=seed, max_evaluations=3)
    np.testing.assert_allclose(end.energy, energies[1], rtol=1e-4)
    assert energies[0] != pytest.approx(energies[1])


def test_digits_and_a_killed_run(tmp_path):
    digits = replace(cs._MNIST, data="digits")
    few = {"budget": 12, "vae_first": 8, "weights": (0.03,), "classical": ("lasso-pixel",), "pictures": 0}
    settings = replace(cs._tiny(digits, 100), **few)
    metrics, arrays = compare(settings, tmp_path)
    methods = ["glow", "gaussian", "lasso-pixel", "gan", "vae", "vae-glow"]
    assert arrays["psnr"].axes["method"] == methods and metrics["n"] == 784
    assert take("evaluations", arrays["evaluations"], {"method": "vae-glow"}).max() <= 12
    assert metrics["chosen"]["glow"][0] in ({"gamma": 0.0}, {"gamma": 0.1})
    assert "recovered" not in arrays and "truth" not in arrays  # for images that may not be shown
    again = compare(settings, tmp_path)
    np.testing.assert_array_equal(again[1]["psnr"].values, arrays["psnr"].values)


def test_the_flow_that_starts_at_the_estimate_of_the_vae_does_no_worse_than_it():
    settings = replace(cs._MNIST, budget=40, vae_first=30, restarts=(1, 2))
    assert settings.options("vae-glow") == {"restarts": (2,), "gamma": settings.gammas}
    vae = priors.load("vae-mnist")
    x = vae.sample(2, seed=1).clamp(0, 1)
    problem, y = problems.compressed(PART, x, 60)
    operator = problem.operator
    first = recover.gan_latent(vae, operator, y, 0.01, restarts=2, seed=7, max_evaluations=15)
    both = cs._solve(settings, PART, "vae-glow", problem, y, 7, gamma=0.01, restarts=2)
    misfits = [(operator(result.x) - y).square().sum(1) for result in (first, both)]
    assert (misfits[1] < misfits[0]).all()
    assert (both.evaluations <= 40).all() and (both.evaluations > first.evaluations).all()


def test_what_was_published_can_be_laid_over_our_flowers():
    stored = experiments.load("asim.compressed-sensing-flowers")
    published, ours = stored.axes("published psnr"), stored.axes("psnr")
    assert set(published["method"]) < set(ours["method"]) and set(ours["m"]) <= set(published["m"])


def test_digits_fill_the_frame_of_mnists():
    small = data.load("digits", split="test")[:3, 0].numpy()
    grown = ndimage.zoom(small, (1, 2.5, 2.5), order=1, mode="nearest", grid_mode=True)
    large = shared.data_set("digits", "test", 28)[:3, 0]
    np.testing.assert_allclose(large.numpy(), np.pad(grown, ((0, 0), (4, 4), (4, 4))), atol=1e-6)
