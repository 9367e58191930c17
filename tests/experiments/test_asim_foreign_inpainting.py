"""Inpainting of foreign images in a tiny size: what is scored, what is stored, what is spent."""

from dataclasses import replace

import pytest
import torch

from companion import evaluate, measure
from companion.experiments.arrays import take
from companion.experiments.asim import foreign_inpainting as foreign
from companion.experiments.asim.image_sets import image_set
from companion.experiments.context import Context
from companion.experiments.registry import get

SHAPE = (3, 32, 32)
TINY = replace(get("asim.foreign-inpainting").settings["quick"], budget=6, iterations=20)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    context = Context(torch.device("cpu"), 0, settings=TINY, parts=tmp_path_factory.mktemp("parts"))
    return foreign.foreign_inpainting(TINY, context)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY.sets)
@pytest.mark.parametrize("method", ["glow", "gan", "vae", "tv"])
def test_scores_are_those_of_the_stored_pictures(found, name, method):
    def read(key, **at):
        return take(key, found[1][key], {"set": name, **at})

    truth = torch.tensor(read("truth"))[None] / 255
    torch.testing.assert_close(truth[0], image_set(name, 2, SHAPE)[1])
    x, hidden = torch.tensor(read("recovered", method=method))[None] / 255, ~measure.masks.centre(SHAPE)
    assert evaluate.psnr(x, truth).item() == pytest.approx(read("psnr", method=method, image=1), abs=0.1)
    error = (x - truth)[:, hidden].square().mean()
    assert -10 * torch.log10(error).item() == pytest.approx(read("hidden psnr", method=method, image=1), abs=0.1)
    mean = found[0]["mean hidden psnr"][name][method]
    assert mean == pytest.approx(read("hidden psnr", method=method).mean(), abs=1e-3)
