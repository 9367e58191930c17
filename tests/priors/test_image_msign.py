"""MsIGN of images: a new one is the Gaussian of the appendix; moments, hidden images, and what is refused."""

import math

import numpy as np
import pytest
import torch
from flow_cases import perturb, rand
from scipy import stats
from torch.nn.functional import avg_pool2d

from companion.priors.image_msign import ImageMsIGN, moments
from companion.priors.pixels import PixelMap


@pytest.mark.parametrize("initialised", [False, True])
def test_bits_per_dim_of_a_new_model_are_those_of_its_gaussian(initialised: bool) -> None:
    mu, mean, std = 0.5, -0.1, 0.4
    model = ImageMsIGN((1, 4, 4), 2, steps=2, width=3, mu=(mu,), mean=mean, std=std).double()
    x = torch.round(rand(5, 1, 4, 4) * 255) / 255
    if initialised:
        model.initialise(x)
    average = np.kron(np.eye(2), np.ones((1, 2)) / 2)
    a = np.kron(average, average)  # A: average pooling of 4 × 4 pixels to 2 × 2
    # white noise on the averages and, by Ãᵀ Ã = λ I − Aᵀ A with λ = 1/4, on what is orthogonal to them
    covariance = 16 * std**2 * a.T @ a + mu**2 * (np.eye(16) / 4 - a.T @ a)
    gaussian = stats.multivariate_normal(np.full(16, mean), covariance)
    dequantised = PixelMap().dequantise(x, 3)
    cells = (255 * dequantised + 0.5) / 256  # in units in which a level of grey is 1/256 wide
    expected = 8 - gaussian.logpdf(cells.flatten(1).numpy() - 0.5) / (16 * math.log(2))
    np.testing.assert_allclose(model.bits_per_dim(x, 3).detach().numpy(), expected, rtol=1e-7)  # weights in float32


def test_moments_of_a_models_own_images_are_its_arguments() -> None:
    given = {"mu": (0.12, 0.07), "mean": -0.05, "std": 0.06}
    model = ImageMsIGN((1, 16, 16), 3, steps=1, width=3, **given)
    x = (model.sample(400, seed=1) * 255).round() / 255
    assert x.min() > 0 and x.max() < 1
    found = moments(x, 3, PixelMap())
    assert found["mu"] == pytest.approx(given["mu"], rel=0.03)
    assert found["mean"] == pytest.approx(given["mean"], abs=4 * 0.06 / math.sqrt(400 * 16))
    assert found["std"] == pytest.approx(given["std"], rel=0.05)


def test_with_an_identity_at_the_finest_scale_images_average_to_those_of_the_coarser_model() -> None:
    model = ImageMsIGN((2, 8, 8), 2, steps=2, width=3, mu=(0.3,)).double()
    coarse, fine = model.bijection.flows
    perturb(coarse, 0.2)
    z = torch.randn(3, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h = model.pixels.encode(model.decode(z))[0]
    hidden = coarse.decode(z[:, :32].view(3, 2, 4, 4))[0]
    torch.testing.assert_close(avg_pool2d(h, 2), hidden, rtol=0, atol=1e-6)  # weights in float32
    perturb(fine, 0.2)
    assert (avg_pool2d(model.pixels.encode(model.decode(z))[0], 2) - hidden).abs().max() > 1e-2


def test_couplings_of_an_initialised_model_get_normalised_values() -> None:
    model, x = ImageMsIGN((1, 8, 8), 2, steps=1, width=3, mu=(0.3,), pixels="logit"), 0.2 + 0.3 * rand(40, 1, 8, 8)
    model.double().initialise(x)
    h = model.pixels.encode(x)[0]
    for block, image in zip(model.bijection.flows[::-1], (h, avg_pool2d(h, 2)), strict=True):
        seen = block.squeeze.encode(image)[0].movedim(1, -1).flatten(0, -2)
        torch.testing.assert_close(seen.mean(0), torch.zeros(4).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(seen.std(0, correction=0), torch.ones(4).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"mu": ()}, {"mu": (1.0, 1.0)}, {"mu": (0.0,)}, {"std": 0.0}, {"shape": (1, 6, 6)}, {"scales": 0}]
)
def test_bad_arguments_say_what_is_allowed(options: dict) -> None:
    with pytest.raises(ValueError, match=r"got .*; allowed: "):
        ImageMsIGN(**{"shape": (1, 8, 8), "steps": 1, "width": 2, **options})
