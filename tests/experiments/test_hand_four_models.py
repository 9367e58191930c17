import numpy as np
import torch

from companion import data, evaluate, experiments, priors
from companion.experiments.hand.four_models import Settings, project

SETTINGS = Settings(("photos",), ((),), 2, 1, 10, 1, 2)


def test_four_models_quick_profile(tmp_path):
    result = experiments.run("hand.four-models", "quick", device="cpu", out=tmp_path)
    found = result.metrics["photos"]
    # the flow has no representation error: its images differ from the truth by rounding alone
    assert found["mean psnr"]["glow-photos32"] > 60 > 30 > found["mean psnr"]["gan-photos32"]
    assert found["latent_dim"]["glow-photos32"] == 3072 > found["latent_dim"]["vae-photos32"]
    for model in found["models"]:
        assert result.arrays[f"{model} samples"].shape == (4, 3, 32, 32)
        between, nearest = result.arrays[f"{model} between"], result.arrays[f"{model} nearest"]
        assert np.abs(between[[0, -1]].astype(int) - nearest[:2]).max() <= 1


def test_projection_is_no_worse_than_the_encoder():
    vae = priors.load("vae-photos32")
    x = data.load("photos", "test", size=32)[:2]
    z, evaluations = project(vae, x, SETTINGS, seed=0)
    with torch.no_grad():
        direct = evaluate.mse(vae.decode(vae.encode(x)), x)
        assert (evaluate.mse(vae.decode(z), x) <= direct + 1e-7).all()
    assert evaluations > 0


def test_projection_finds_images_of_the_range():
    gan = priors.load("gan-photos32")
    inside = gan.sample(1, seed=0)
    found, _ = project(gan, inside, Settings(("photos",), ((),), 1, 2, 150, 1, 2), seed=5)
    with torch.no_grad():
        assert evaluate.psnr(gan.decode(found), inside) > 20
