"""Inside both models of images: what is handed from scale to scale, and the way from latents to images."""

import pytest
import torch

from companion import _support
from companion.experiments import registry, shared
from companion.experiments.msign import images
from companion.priors.networks import count_parameters

SETTINGS = registry.get("msign.images").settings["quick"]
TRAIN = shared.data_set("digits", "train", 8)[:100]


def shaken(name: str):
    model = images._model(SETTINGS, name, 1, TRAIN).double()
    for index, weights in enumerate(model.parameters()):
        weights.data += 0.05 * _support.normal(weights.shape, 3, weights, "shake", index)
    return model


@pytest.mark.parametrize("name", images.MODELS)
def test_snapshots_end_in_the_image_that_the_model_makes(name: str) -> None:
    model = shaken(name)
    z = _support.normal((2, model.latent_dim), 2, model.like, "latents")
    shown = images._inside(model, z)
    assert len(shown) == images.STOPS * SETTINGS.scales
    torch.testing.assert_close(shown[-1], model.decode(z), rtol=0, atol=1e-10)
    assert not torch.equal(shown[-2], shown[-1])


def test_a_new_msign_hands_on_the_averages_and_a_shaken_one_something_else() -> None:
    x = TRAIN[:20]
    new = images._model(SETTINGS, "MsIGN", 1, TRAIN)
    assert images._explained(new, x) == pytest.approx(1, abs=1e-9)
    assert images._explained(shaken("MsIGN"), x.double()) < 0.999


def test_all_models_have_nearly_the_same_number_of_parameters() -> None:
    numbers = [count_parameters(images._model(SETTINGS, name, 0, TRAIN)) for name in images.MODELS]
    assert max(numbers) < 1.05 * min(numbers)
