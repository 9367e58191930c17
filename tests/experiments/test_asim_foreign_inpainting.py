"""Inpainting of foreign images in a tiny size: what is scored, what is stored, what is spent."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from companion import evaluate, experiments, measure
from companion.experiments.asim import foreign_inpainting as foreign
from companion.experiments.asim.out_of_distribution import image_set
from companion.experiments.context import Context
from companion.experiments.registry import get

TINY = replace(get("asim.foreign-inpainting").settings["quick"], budget=6, iterations=20)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    context = Context(torch.device("cpu"), 0, tmp_path_factory.mktemp("parts"), "a test")
    return (*foreign.foreign_inpainting(TINY, context), context)


def test_shapes_and_means(found):
    metrics, arrays, _ = found
    assert metrics["methods"] == ["glow", "gan", "vae", "tv"] and metrics["sets"] == ["photos", "text"]
    assert arrays["psnr"].shape == arrays["hidden psnr"].shape == arrays["residual"].shape == (2, 4, 2)
    assert arrays["recovered"].shape == (2, 4, 3, 32, 32) and arrays["truth"].shape == (2, 3, 32, 32)
    for i, name in enumerate(metrics["sets"]):
        for k, method in enumerate(metrics["methods"]):
            expected = arrays["hidden psnr"][i, k].mean()
            assert metrics["mean hidden psnr"][name][method] == pytest.approx(expected, abs=1e-3)


def test_scores_are_those_of_the_stored_pictures(found):
    metrics, arrays, _ = found
    hidden = ~measure.masks.centre((3, 32, 32))
    for i in range(len(metrics["sets"])):
        truth = torch.tensor(arrays["truth"][i])[None] / 255
        for k in range(len(metrics["methods"])):
            x = torch.tensor(arrays["recovered"][i, k])[None] / 255
            assert evaluate.psnr(x, truth).item() == pytest.approx(arrays["psnr"][i, k, 1], abs=0.1)
            error = (x - truth)[:, hidden].square().mean()
            assert -10 * torch.log10(error).item() == pytest.approx(arrays["hidden psnr"][i, k, 1], abs=0.1)


def test_the_hole_is_grey_and_the_rest_is_the_truth(found):
    _, arrays, _ = found
    mask = measure.masks.centre((3, 32, 32)).numpy()
    assert (arrays["masked"][:, mask] == arrays["truth"][:, mask]).all()
    assert (arrays["masked"][:, ~mask] == 128).all()
    np.testing.assert_array_equal(arrays["truth"][1], (image_set("text", 2, (3, 32, 32))[1] * 255).round().numpy())


def test_every_prior_stays_in_the_budget(found):
    # sets × images × methods that search × budget
    assert 0 < found[2].evaluations <= 2 * 2 * 3 * TINY.budget


def test_stored_results_are_there():
    stored = experiments.load("asim.foreign-inpainting", "laptop")
    assert stored.metrics["sets"] == ["photos", "satellite", "textures", "text"]
