import numpy as np
import pytest
import torch

from companion import data, evaluate, experiments, priors
from companion.experiments.hand.four_models import Settings, project
from companion.experiments.parts import Part

SETTINGS = Settings(data=("photos",), priors=((),), restarts=1, budget=10)


def part() -> Part:
    return Part(torch.device("cpu"), 0)


def test_four_models_quick_profile():
    result = experiments.load("hand.four-models", "quick")  # test_verify.py asks whether today\'s code gives it
    psnr = {model: result.take("photos psnr", model=model).min() for model in result.axes("photos psnr")["model"]}
    # the flow has no representation error: its images differ from the truth by rounding alone
    assert psnr["glow-photos32"] > 60 > 30 > psnr["gan-photos32"]
    for model in psnr:
        between, nearest = (result.take(f"photos {name}", model=model) for name in ("between", "nearest"))
        assert np.abs(between[[0, -1]].astype(int) - nearest[:2]).max() <= 1


def test_projection_is_no_worse_than_the_encoder():
    vae, spent = priors.load("vae-photos32"), part()
    x = data.load("photos", "test", size=32)[:2]
    z = project(SETTINGS, spent, vae, x)
    with torch.no_grad():
        direct = evaluate.mse(vae.decode(vae.encode(x)), x)
        assert (evaluate.mse(vae.decode(z), x) <= direct + 1e-7).all()
    assert spent.evaluations > 0


@pytest.mark.slow
def test_projection_finds_images_of_the_range():
    gan = priors.load("gan-photos32")
    inside = gan.sample(1, seed=0)
    found = project(Settings(data=("photos",), priors=((),)), part(), gan, inside)
    with torch.no_grad():
        assert evaluate.psnr(gan.decode(found), inside) > 20
