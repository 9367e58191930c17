"""Glow over random architectures: inverse, density, gradients, independence of the batch, refusals."""

import pytest
import torch
from flow_cases import glow_settings, perturb, rand, randn, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.priors import Glow, memory_saving, resized

RANDOM = settings(max_examples=12, deadline=None)


def glow(config: dict, dtype: torch.dtype = torch.float64) -> Glow:
    return perturb(Glow(**config).to(dtype), 0.03, config["seed"])


@RANDOM
@given(config=glow_settings(), batch=st.integers(1, 3))
@pytest.mark.parametrize("dtype, exact", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_round_trips(dtype, exact, config, batch):
    # pixels in [0, 1], latents of order 1 to 4, parameters 0.03 from their start
    flow = glow(config, dtype).requires_grad_(False)
    x = rand(batch, *flow.shape, dtype=dtype)
    z = flow.encode(x)
    assert z.shape == (batch, flow.latent_dim) and z.dtype == dtype
    torch.testing.assert_close(flow.decode(z), x, rtol=0, atol=exact)
    latent = randn(batch, flow.latent_dim, dtype=dtype)
    image = flow.decode(latent)
    if config["pixels"] == "uniform":  # sigmoid, in logit pixels, is flat where latents are large: float64 tells
        torch.testing.assert_close(flow.encode(image), latent, rtol=0, atol=exact)
    elif dtype == torch.float64:
        torch.testing.assert_close(flow.encode(image), latent, rtol=0, atol=1e-9)


@settings(max_examples=8, deadline=None)
@given(config=glow_settings(largest=48))
def test_log_determinant_is_that_of_the_jacobian(config):
    flow = glow(config)
    x, z = rand(1, *flow.shape), randn(1, flow.latent_dim)
    jacobian = torch.autograd.functional.jacobian(flow.encode, x).reshape(flow.latent_dim, -1)
    _, log_det = flow.encode_with_log_det(x)
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(flow.decode, z).reshape(-1, flow.latent_dim)
    _, log_det = flow.decode_with_log_det(z)
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-9)


@RANDOM
@given(config=glow_settings())
def test_both_densities_agree_and_an_image_does_not_see_its_neighbours(config):
    flow = glow(config).requires_grad_(False)
    z = 0.7 * randn(3, flow.latent_dim)
    x = flow.decode(z)
    density = flow.log_prob(x)
    torch.testing.assert_close(flow.log_prob_latent(z), density, rtol=1e-9, atol=1e-7)
    for i in range(3):
        torch.testing.assert_close(flow.log_prob(x[i : i + 1]), density[i : i + 1], rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(flow.decode(z[i : i + 1]), x[i : i + 1], rtol=1e-10, atol=1e-10)


@RANDOM
@given(config=glow_settings())
def test_every_gradient_is_finite_and_modes_agree(config):  # narrow networks may be dead; that none is: contract test
    flow = glow(config)
    x = rand(2, *flow.shape)
    flow.train().log_prob(x).sum().backward()
    for name, p in flow.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(flow.train().log_prob(x), flow.eval().log_prob(x))
        assert torch.equal(flow.train().decode(x.flatten(1)), flow.eval().decode(x.flatten(1)))
    assert all(torch.equal(before[k], v) for k, v in flow.state_dict().items())


@pytest.mark.parametrize("coupling", ["affine", "additive"])
def test_gradients_match_finite_differences(coupling):
    flow = tiny(coupling=coupling)
    assert torch.autograd.gradcheck(flow.log_prob, rand(1, 1, 4, 4).requires_grad_())
    assert torch.autograd.gradcheck(flow.log_prob_latent, randn(1, 16).requires_grad_())
    assert torch.autograd.gradcheck(flow.decode, randn(1, 16).requires_grad_())


def test_the_seed_alone_decides_the_first_weights():
    torch.manual_seed(1)
    first = Glow(shape=(1, 4, 4), levels=1, steps=2, width=4, seed=3).state_dict()
    torch.manual_seed(2)
    second = Glow(shape=(1, 4, 4), levels=1, steps=2, width=4, seed=3).state_dict()
    other = Glow(shape=(1, 4, 4), levels=1, steps=2, width=4, seed=4).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_steps_of_one_flow_start_with_different_weights():
    flow = Glow(shape=(1, 4, 4), levels=2, steps=3, width=4)
    weights = [p for name, p in flow.named_parameters() if name.endswith("conditioner.0.weight")]
    assert len(weights) == 6 and not torch.equal(weights[0], weights[1])


def test_additive_couplings_preserve_volume():
    flow = tiny(coupling="additive")
    _, log_det = flow.encode_with_log_det(rand(3, 1, 4, 4))
    torch.testing.assert_close(log_det, log_det[:1].expand(3), rtol=0, atol=1e-12)


def test_pixels_of_5_and_of_8_bits_differ_by_their_constant_alone():
    eight, five = tiny(bits=8), tiny(bits=5)
    five.load_state_dict(eight.state_dict())
    h = randn(2, 1, 4, 4)
    x8, x5 = eight.pixels.decode(h)[0], five.pixels.decode(h)[0]
    bits8 = eight.pixels.bits_per_dim(eight.log_prob(x8), 16)
    bits5 = five.pixels.bits_per_dim(five.log_prob(x5), 16)
    torch.testing.assert_close(bits8 - bits5, torch.full_like(bits8, 3), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"shape": (1, 5, 4)}, "shape: got 5×4 pixels with 1 levels; allowed: height and width divisible by 2"),
        ({"shape": (3, 12, 12), "levels": 3}, "shape: got 12×12 pixels with 3 levels; allowed: .* divisible by 8"),
        ({"shape": (4, 4)}, "shape: got"),
        ({"shape": (0, 4, 4)}, "shape: got"),
        ({"shape": (1.0, 4, 4)}, "shape: got"),
        ({"levels": 0}, "levels: got 0"),
        ({"steps": -1}, "steps: got -1"),
        ({"steps": 2.0}, "steps: got 2.0"),
        ({"width": 0}, "width: got 0"),
        ({"coupling": "spline"}, "coupling: got 'spline'; allowed: affine, additive"),
        ({"conv1x1": "qr"}, "conv1x1: got 'qr'; allowed: rotation, lu, dense"),
        ({"pixels": "linear"}, "pixels: got 'linear'; allowed: uniform, logit"),
        ({"bits": 9}, "bits: got 9"),
        ({"contraction": 1.0}, "contraction: got 1.0"),
        ({"seed": -1}, "seed: got -"),
    ],
)
def test_bad_settings_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message) as refusal:
        Glow(**({"shape": (1, 4, 4), "levels": 1, "steps": 1, "width": 2} | wrong))
    assert "\n" not in str(refusal.value)


def test_a_resized_flow_is_the_same_everywhere_in_a_larger_image():
    """Moved by 2^levels pixels far from the edges, a patch has the density that it had."""
    flow = tiny(shape=(2, 8, 8), levels=1).requires_grad_(False).eval()
    large = resized(flow, (2, 48, 48))
    x = torch.full((3, *large.shape), 0.4, dtype=torch.float64)
    patch = rand(2, 6, 6)
    for image, top, left in zip(x, (20, 22, 20), (20, 20, 24), strict=True):
        image[:, top : top + 6, left : left + 6] = patch
    value = large.log_prob(x)
    torch.testing.assert_close(value, value[:1].expand(3), rtol=1e-10, atol=1e-8)
    assert (x[0] != x[1]).any() and not any(p.requires_grad for p in large.parameters())
    torch.testing.assert_close(large.decode(large.encode(x)), x)
    back, small = resized(large, flow.shape), rand(3, 2, 8, 8)
    assert torch.equal(back.log_prob(small), flow.log_prob(small))
    torch.testing.assert_close(memory_saving(large).log_prob(x), value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 8, 8), r"shape: got \(3, 8, 8\); allowed: 1 channels"),
        ((1, 6, 8), "divisible by 4"),
        ((8, 8), "shape: got"),
    ],
)
def test_a_size_that_a_flow_cannot_take_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        resized(tiny(), shape)
