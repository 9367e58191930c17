"""Dequantisation, the constants of bits per dimension, and the density of the logit map."""

import math

import pytest
import torch
from flow_cases import perturb, rand, randn
from torch.distributions import AffineTransform, Normal, SigmoidTransform, TransformedDistribution

from companion.priors import Glow
from companion.priors.base import standard_normal_log_density
from companion.priors.pixels import PixelMap


def all_values() -> torch.Tensor:
    """The 256 values of an 8-bit pixel."""
    return (torch.arange(256, dtype=torch.float64) / 255).view(256, 1, 1, 1)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dequantised_pixels_fill_their_own_cell(bits, dtype):
    levels = 2**bits
    x = all_values().to(dtype).expand(256, 1, 4, 4)
    y = PixelMap("uniform", bits).dequantise(x, seed=0)
    cell = torch.arange(256).view(256, 1, 1, 1) // 2 ** (8 - bits)
    inside = y * (levels - 1) - cell  # in [-1/2, 1/2), up to rounding
    assert inside.min() >= -0.5 - 1e-4 and inside.max() <= 0.5 + 1e-4
    assert inside.min() < -0.49 and inside.max() > 0.49 and abs(inside.double().mean()) < 0.02
    assert y.dtype == dtype


def test_dequantisation_depends_on_its_seed_alone():
    pixels, x = PixelMap(), rand(2, 3, 4, 4)
    assert torch.equal(pixels.dequantise(x, 5), pixels.dequantise(x, 5))
    assert not torch.equal(pixels.dequantise(x, 5), pixels.dequantise(x, 6))
    with pytest.raises(ValueError, match="seed: got None"):
        pixels.dequantise(x, None)


@pytest.mark.parametrize("kind", ["uniform", "logit"])
@pytest.mark.parametrize("bits", [8, 5, 1])
def test_a_uniform_density_costs_exactly_the_bits_of_a_pixel(kind, bits):
    # t = ((L − 1) x + ½) / L is uniform on [0, 1), so each of the L values has probability 1 / L
    pixels = PixelMap(kind, bits)
    x = pixels.dequantise(all_values()[::5].expand(-1, 3, 2, 2), seed=1)
    h, log_det = pixels.encode(x)
    if kind == "uniform":
        log_density_of_h = torch.zeros(len(x), dtype=torch.float64)  # U(−½, ½)
    else:
        p = torch.sigmoid(h)
        log_density_of_h = (torch.log(p) + torch.log1p(-p) - math.log(0.9)).flatten(1).sum(1)  # U(0.05, 0.95) by logit
    bits_per_dim = pixels.bits_per_dim(log_density_of_h + log_det, 12)
    torch.testing.assert_close(bits_per_dim, torch.full_like(bits_per_dim, bits), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bits", [8, 5])
def test_bits_per_dim_is_the_expected_code_length(bits):
    # a narrow normal density on one pixel: the discrete probability is the integral over a cell (Theis et al. 2016)
    pixels, levels = PixelMap("uniform", bits), 2**bits
    density = Normal(torch.tensor(0.5, dtype=torch.float64), 20.0)  # so wide that it is flat over a cell
    value = torch.full((1, 1, 1, 1), round(0.4 * 255) / 255, dtype=torch.float64)
    x = pixels.dequantise(value, seed=0)
    k = math.floor(round(0.4 * 255) / 2 ** (8 - bits))
    edges = (torch.tensor([k, k + 1], dtype=torch.float64) - 0.5) / (levels - 1)
    probability = float(density.cdf(edges).diff())
    code = pixels.bits_per_dim(density.log_prob(x).flatten(), 1)
    assert float(code) == pytest.approx(-math.log2(probability), abs=1e-5)


@pytest.mark.parametrize("bits", [8, 5])
def test_logit_density_equals_that_of_torch_distributions(bits):
    # x = ((sigmoid(h) − 0.05) / 0.9 · L − ½) / (L − 1) with h ~ N(0, 1)
    levels = 2**bits
    chain = [
        SigmoidTransform(),
        AffineTransform(-0.05 / 0.9, 1 / 0.9),
        AffineTransform(-0.5 / (levels - 1), levels / (levels - 1)),
    ]
    base = Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    reference = TransformedDistribution(base, chain)
    x = rand(7, 2, 3, 3)
    h, log_det = PixelMap("logit", bits).encode(x)
    ours = standard_normal_log_density(h.flatten(1)) + log_det
    torch.testing.assert_close(ours, reference.log_prob(x).flatten(1).sum(1), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind, bits", [("uniform", 8), ("uniform", 5), ("logit", 8), ("logit", 5)])
def test_pixel_density_integrates_to_one(kind, bits):
    pixels = PixelMap(kind, bits)
    reach = 0.5 / 0.9 * 2**bits / (2**bits - 1) if kind == "logit" else 8.0
    x = torch.linspace(0.5 - reach, 0.5 + reach, 20_002, dtype=torch.float64)[1:-1].view(-1, 1, 1, 1)
    h, log_det = pixels.encode(x)
    density = (standard_normal_log_density(h.flatten(1)) + log_det).exp()
    assert float(torch.trapezoid(density, x.flatten())) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [8, 5, 1])
def test_logit_refuses_what_it_cannot_represent_and_only_that(bits, dtype):
    pixels = PixelMap("logit", bits)
    levels = 2**bits
    # t = 0.5 ± 0.5 / 0.9 are the ends of what sigmoid reaches
    low, high = ((levels * (0.5 + s * 0.5 / 0.9) - 0.5) / (levels - 1) for s in (-1, 1))
    step = 1e-5
    for value in (0.0, 1.0, low + step, high - step, -0.5 / (levels - 1), (levels - 0.5) / (levels - 1)):
        x = torch.full((1, 1, 2, 2), value, dtype=dtype)
        h, log_det = pixels.encode(x)
        assert torch.isfinite(h).all() and torch.isfinite(log_det).all()
        torch.testing.assert_close(pixels.decode(h)[0], x, rtol=0, atol=1e-6)
    for value in (low - step, high + step, -3.0, 7.0):
        x = torch.full((2, 1, 2, 2), 0.5, dtype=dtype)
        x[1, 0, 0, 1] = value
        with pytest.raises(ValueError, match=r"x: got pixels from .* to .*; allowed: pixels between") as refusal:
            pixels.encode(x)
        assert "\n" not in str(refusal.value)


def test_uniform_pixels_have_a_density_everywhere_and_a_flow_passes_the_refusal_on():
    shape = {"shape": (1, 2, 2), "levels": 1, "steps": 1, "width": 2}
    far = torch.full((1, 1, 2, 2), -4.0, dtype=torch.float64)
    assert torch.isfinite(perturb(Glow(**shape).double()).log_prob(far)).all()
    with pytest.raises(ValueError, match="x: got pixels from -4"):
        Glow(**shape, pixels="logit").double().log_prob(far)


def test_logit_log_determinant_stays_exact_near_the_ends():
    pixels = PixelMap("logit", 8)
    h = torch.tensor([-30.0, -15.0, 15.0, 30.0], dtype=torch.float64).view(4, 1, 1, 1)
    _, log_det = pixels.decode(h)
    expected = -h.abs().flatten() - 2 * torch.log1p(torch.exp(-h.abs().flatten())) - math.log(0.9) + math.log(256 / 255)
    torch.testing.assert_close(log_det, expected, rtol=1e-13, atol=0)


def test_decoded_noise_stays_in_the_domain_of_the_logit_map():
    x, _ = PixelMap("logit", 8).decode(100 * randn(3, 1, 4, 4))
    assert torch.isfinite(x).all() and x.min() > -0.06 and x.max() < 1.06
