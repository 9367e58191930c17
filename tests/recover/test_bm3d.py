import importlib.util
import sys

import numpy as np
import pytest
import torch
from skimage import data as photographs
from skimage.transform import resize

from companion import evaluate
from companion.recover.block_matching import bm3d

installed = importlib.util.find_spec("bm3d") is not None
needs_package = pytest.mark.skipif(not installed, reason="the optional package bm3d is not installed")


def noisy_photographs(channels, std, batch=2, side=16):
    whole = resize(photographs.astronaut() / 255, (96, 96), anti_aliasing=True)
    crops = np.stack([whole[i * side : (i + 1) * side, i * side : (i + 1) * side] for i in range(1, batch + 1)])
    clean = torch.tensor(crops, dtype=torch.float32).movedim(-1, 1)[:, :channels].contiguous()
    return clean, clean + std * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@needs_package
@pytest.mark.parametrize("channels", [1, 3])
def test_is_the_packages_result_and_gains_decibels(channels):
    import bm3d as package

    clean, noisy = noisy_photographs(channels, 0.1, batch=1)
    result = bm3d(noisy, 0.1)
    image = noisy[0].double().movedim(0, -1).numpy()
    expected = package.bm3d(image[..., 0], 0.1)[..., None] if channels == 1 else package.bm3d_rgb(image, 0.1)
    assert np.allclose(result.x[0].movedim(0, -1).numpy(), expected, rtol=0, atol=1e-4)
    assert (evaluate.psnr(result.x, clean) > evaluate.psnr(noisy, clean) + 3).all()
    assert result.x.dtype == noisy.dtype and result.converged.all()
    assert torch.allclose(result.energy, (result.x - noisy).square().flatten(1).sum(1))


@needs_package
def test_without_exact_variances_it_is_the_packages_result_too_and_gains_decibels():
    import bm3d as package

    clean, noisy = noisy_photographs(3, 0.1, batch=2)
    result = bm3d(noisy, 0.1, exact=False)
    profile = package.BM3DProfile()
    profile.nf = 0
    expected = package.bm3d_rgb(noisy[0].double().movedim(0, -1).numpy(), 0.1, profile)
    assert np.allclose(result.x[0].movedim(0, -1).numpy(), expected, rtol=0, atol=1e-4)
    assert (evaluate.psnr(result.x, clean) > evaluate.psnr(noisy, clean) + 3).all()


@pytest.mark.slow
@needs_package
def test_no_image_depends_on_its_neighbours_and_float64_stays():
    _, noisy = noisy_photographs(1, 0.1)
    noisy = noisy.double().requires_grad_()
    together = bm3d(noisy, 0.1).x
    assert together.dtype == torch.float64 and not together.requires_grad
    assert torch.equal(bm3d(noisy[1:], 0.1).x[0], together[1])


@pytest.mark.slow
@needs_package
def test_images_without_noise_in_a_colour_difference_come_back_as_they_are():
    _, noisy = noisy_photographs(1, 0.1, batch=1, side=12)
    result = bm3d(noisy.expand(1, 3, 12, 12), 0.1)
    assert torch.equal(result.x, noisy.expand(1, 3, 12, 12))
    assert not result.converged.any() and result.reason == ["BM3D returned values that are not finite"]


def test_without_the_package_the_module_imports_and_the_call_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    spec = importlib.util.find_spec("companion.recover.block_matching")
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    with pytest.raises(ImportError, match=r"pip install bm3d==[\d.]+ \(its licence is non-commercial\)") as error:
        fresh.bm3d(torch.zeros(1, 1, 16, 16), 0.1)
    assert "\n" not in str(error.value)


def test_the_docstring_states_the_licence():
    assert "NON-COMMERCIAL" in bm3d.__doc__


@pytest.mark.parametrize(
    ("y", "std", "message"),
    [
        (torch.zeros(1, 2, 16, 16), 0.1, r"y: got \(1, 2, 16, 16\); allowed: images of shape \[batch, 1 or 3"),
        (torch.zeros(3, 16, 16), 0.1, r"y: got \(3, 16, 16\)"),
        (torch.zeros(1, 1, 8, 16), 0.1, "y: got images of 8×16 pixels; allowed: sides >= 9"),
        (torch.full((1, 1, 16, 16), torch.nan), 0.1, "y: got 256 NaN or infinite values"),
        (torch.zeros(1, 1, 16, 16, dtype=torch.uint8), 0.1, "y: got torch.uint8 tensor"),
        (np.zeros((1, 1, 16, 16)), 0.1, "y: got ndarray"),
        (torch.zeros(1, 1, 16, 16), 0.0, "std: got 0.0; allowed: a finite number > 0"),
        (torch.zeros(1, 1, 16, 16), float("nan"), "std: got nan"),
    ],
)
def test_bad_input(y, std, message):
    with pytest.raises(ValueError, match=message) as error:
        bm3d(y, std)
    assert "\n" not in str(error.value)
