"""Every bijection: both directions against each other and against autograd's Jacobian."""

import math

import pytest
import pywt
import torch
from flow_cases import perturb, rand, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion.priors import Glow, bijections, checkerboard
from companion.priors.bijections import (
    ActNorm,
    Bijection,
    Chain,
    ChannelMix,
    Coupling,
    HaarSqueeze,
    MultiScale,
    OpponentColours,
    Squeeze,
    split_channels,
)
from companion.priors.checkerboard import ChannelOrder, CheckerboardCoupling
from companion.priors.matrices import DenseMatrix, LUMatrix, Rotation
from companion.priors.networks import ConvConditioner
from companion.priors.pixels import PixelMap

CONVOLUTIONS = ("rotation", "lu", "dense")


def coupling(channels: int, kind: str) -> Coupling:
    moved = channels - channels // 2
    return Coupling(ConvConditioner(channels // 2, moved * (2 if kind == "affine" else 1), 5, seed=3), kind)


def chain(channels: int) -> Chain:
    return Chain([ChannelMix(channels, "lu", 1), coupling(channels, "affine")])


def multi_scale(channels: int) -> MultiScale:
    first, second = 4 * channels, 4 * (2 * channels)
    return MultiScale((channels, 4, 4), [Chain([Squeeze(), chain(first)]), Chain([Squeeze(), chain(second)])])


BIJECTIONS = {
    "squeeze": lambda c: Squeeze(),
    "haar": lambda c: HaarSqueeze(),
    "opponent": lambda c: OpponentColours(),
    "checkerboard": lambda c: CheckerboardCoupling(ConvConditioner(c, 2 * c, 5, seed=3), (4, 4), 1),
    "order": lambda c: ChannelOrder([*range(1, c), 0]),
    "actnorm": ActNorm,
    **{f"mix, {kind}": lambda c, kind=kind: ChannelMix(c, kind, seed=1) for kind in CONVOLUTIONS},
    "coupling, affine": lambda c: coupling(c, "affine"),
    "coupling, additive": lambda c: coupling(c, "additive"),
    "chain": chain,
    "multi-scale": multi_scale,
    "pixels, uniform": lambda c: PixelMap("uniform", 5),
    "pixels, logit": lambda c: PixelMap("logit", 8),
}


def test_every_bijection_has_an_example():
    def kinds(kind: type) -> set[str]:
        return {kind.__name__}.union(*map(kinds, kind.__subclasses__()))

    package = {name for name in kinds(Bijection) if hasattr(bijections, name) or hasattr(checkerboard, name)}
    shown = {type(make(3)).__name__ for make in BIJECTIONS.values()}
    assert package - {"Bijection"} <= shown | {"ReversibleChain"}  # that one: test_memory.py


def test_the_fixed_transforms_are_orthonormal_and_those_of_their_formulas():
    x = rand(2, 3, 4, 4)
    blocks = pywt.dwt2(x.numpy(), "haar", axes=(-2, -1))
    details = {"horizontal": blocks[1][0], "vertical": blocks[1][1], "diagonal": blocks[1][2]}
    z = HaarSqueeze().encode(x)[0]
    torch.testing.assert_close(z[:, :3], torch.from_numpy(blocks[0]))
    torch.testing.assert_close(z[:, 3:6].abs(), torch.from_numpy(details["vertical"]).abs())
    torch.testing.assert_close(z[:, 6:9].abs(), torch.from_numpy(details["horizontal"]).abs())
    torch.testing.assert_close(z[:, 9:].abs(), torch.from_numpy(details["diagonal"]).abs())
    torch.testing.assert_close(z.square().sum(), x.square().sum())
    red, green, blue = x.unbind(1)
    rotated = [(red + green + blue) / 3**0.5, (red - blue) / 2**0.5, (red - 2 * green + blue) / 6**0.5]
    torch.testing.assert_close(OpponentColours().encode(x)[0], torch.stack(rotated, 1))


def build(name: str, channels: int) -> Bijection:
    bijection = perturb(BIJECTIONS[name](channels).double(), 0.2)
    for part in bijection.modules():
        if isinstance(part, ActNorm):
            part.start.add_(0.3)  # as if initialised from data
    return bijection


def log_det_of_jacobian(function, at: torch.Tensor) -> torch.Tensor:
    """log|det J| of each row, from the dense Jacobian: [batch]."""
    return torch.stack(
        [
            torch.linalg.slogdet(
                torch.autograd.functional.jacobian(lambda v: function(v)[0], row[None]).reshape(row.numel(), -1)
            )[1]
            for row in at
        ]
    )


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("name", BIJECTIONS)
def test_round_trips_and_log_determinants(name, channels):
    if name == "opponent" and channels != 3:
        pytest.skip("for three colours")
    bijection = build(name, channels)
    x = rand(2, channels, 4, 4)
    z, forward = bijection.encode(x)
    back, backward = bijection.decode(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-11)
    torch.testing.assert_close(backward, -forward, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(forward, log_det_of_jacobian(bijection.encode, x), rtol=1e-9, atol=1e-9)

    latent = randn(*z.shape)
    image, log_det = bijection.decode(latent)
    torch.testing.assert_close(log_det, log_det_of_jacobian(bijection.decode, latent), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bijection.encode(image)[0], latent, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in BIJECTIONS if list(BIJECTIONS[name](4).parameters())])
def test_every_parameter_gets_a_gradient_in_both_directions(name):
    for direction in ("encode", "decode"):
        bijection = build(name, 4)
        source = rand(3, 4, 4, 4)
        if direction == "decode":
            source = bijection.encode(source)[0].detach() + 0.1
        mapped, log_det = getattr(bijection, direction)(source)
        (mapped.square().sum() + log_det.sum()).backward()
        for parameter_name, p in bijection.named_parameters():
            assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", BIJECTIONS)
def test_an_image_does_not_see_its_neighbours(name):
    bijection = build(name, 3)
    x = rand(5, 3, 4, 4)
    z, log_det = bijection.encode(x)
    for i in range(5):
        alone, own = bijection.encode(x[i : i + 1])
        torch.testing.assert_close(alone, z[i : i + 1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own, log_det[i : i + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in BIJECTIONS if n != "opponent"])
def test_forward_passes_change_nothing_and_the_mode_does_not_matter(name):
    bijection = build(name, 3)
    before = {k: v.clone() for k, v in bijection.state_dict().items()}
    x = rand(2, 3, 4, 4)
    z, log_det = bijection.train().encode(x)
    bijection.decode(z)
    assert all(torch.equal(before[k], v) for k, v in bijection.state_dict().items())
    again, same = bijection.eval().encode(x)
    assert torch.equal(again, z) and torch.equal(same, log_det)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BIJECTIONS)
def test_dtype_follows_the_input(name, dtype):
    bijection = build(name, 3).to(dtype)
    z, log_det = bijection.encode(rand(2, 3, 4, 4, dtype=dtype))
    x, back = bijection.decode(z)
    assert {z.dtype, log_det.dtype, x.dtype, back.dtype} == {dtype}
    assert log_det.shape == back.shape == (2,)


def test_squeeze_makes_channels_of_2_by_2_blocks():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    z, _ = Squeeze().encode(x)
    assert z.shape == (1, 4, 2, 2)
    assert z[0, :, 0, 0].tolist() == [0, 1, 4, 5]
    assert z[0, :, 1, 1].tolist() == [10, 11, 14, 15]


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 12), seed=st.integers(0, 99), scale=st.floats(0, 100))
def test_a_rotation_is_orthogonal_whatever_its_parameters(size, seed, scale):
    rotation = Rotation(size, seed).double()
    with torch.no_grad():
        rotation.skew.mul_(scale)
    matrix, inverse, log_det = rotation.matrices()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-10)
    assert torch.equal(inverse, matrix.T) and float(log_det) == 0
    assert float(torch.linalg.det(matrix.detach())) == pytest.approx(1)


@pytest.mark.parametrize("kind", [LUMatrix, DenseMatrix])
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_matrices_start_as_rotations_and_know_inverse_and_determinant(kind, size):
    learned = kind(size, seed=4).double()
    matrix, _, log_det = learned.matrices()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-5)
    assert abs(float(log_det.detach())) < 1e-5
    matrix, inverse, log_det = perturb(learned, 0.1).matrices()
    torch.testing.assert_close(matrix @ inverse, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(matrix)[1], rtol=1e-9, atol=1e-10)


def test_a_mix_is_actnorm_then_convolution():
    mix = build("mix, dense", 3)
    x = rand(2, 3, 4, 4)
    expected, norm_log_det = mix.norm.encode(x)
    expected = torch.einsum("ij,bjhw->bihw", mix.mix.weight, expected)
    z, log_det = mix.encode(x)
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_det, norm_log_det + 16 * torch.linalg.slogdet(mix.mix.weight)[1])


@pytest.mark.parametrize("kind", ["affine", "additive"])
@pytest.mark.parametrize("answer", [-1e30, 1e30])
def test_couplings_are_bounded_whatever_the_network_answers(kind, answer):
    class Stubborn(nn.Module):
        def forward(self, x):
            return torch.full_like(x.repeat(1, 2 if kind == "affine" else 1, 1, 1), answer)

    layer = Coupling(Stubborn(), kind)
    x = randn(2, 4, 2, 2)
    z, log_det = layer.encode(x)
    assert torch.isfinite(z).all() and log_det.abs().max() <= 8
    assert z.abs().max() <= math.e * x.abs().max() + 32
    torch.testing.assert_close(layer.decode(z)[0], x, rtol=0, atol=1e-12)


def test_a_coupling_leaves_its_first_half_alone_and_reads_nothing_else():
    layer = build("coupling, affine", 5)
    x = rand(1, 5, 4, 4)
    fixed, moved = split_channels(x)
    assert fixed.shape[1] == 2 and moved.shape[1] == 3
    assert torch.equal(layer.encode(x)[0][:, :2], fixed)
    other = torch.cat([fixed, moved + 1], 1)
    assert torch.equal(layer.encode(x)[1], layer.encode(other)[1])  # the scale depends on the first half alone


def test_multi_scale_hands_over_the_finest_part_first():
    network = MultiScale((1, 4, 4), [Squeeze(), Squeeze()])
    x = torch.arange(16.0).view(1, 1, 4, 4)
    z, _ = network.encode(x)
    fine, coarse = z[0, :8], z[0, 8:]
    assert fine.tolist() == [4, 6, 12, 14, 5, 7, 13, 15]  # lower pixels of the 2×2 blocks
    assert sorted(coarse.tolist()) == [0, 1, 2, 3, 8, 9, 10, 11]  # upper ones


@pytest.mark.parametrize("channels, wide", [(1, 1), (3, 4)])
def test_actnorm_whitens_each_channel_of_its_first_batch(channels, wide):
    norm = ActNorm(channels).double()
    x = 7 * randn(50, channels, wide, wide) + 3
    z = norm.initialise(x)
    assert torch.equal(z, norm.encode(x)[0])
    axes = (0, 2, 3)
    torch.testing.assert_close(z.mean(axes), torch.zeros(channels, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.std(axes, correction=0), torch.ones(channels, dtype=torch.float64))


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5])
def test_actnorm_refuses_a_first_batch_that_is_nan_or_constant(value):
    norm = ActNorm(2)
    x = torch.rand(4, 2, 3, 3)
    x[:, 1] = value
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    with pytest.raises(ValueError, match="first batch"):
        norm.initialise(x)
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())


def test_learning_moves_the_scale_of_an_actnorm_by_a_bounded_factor():
    norm = ActNorm(2)
    with torch.no_grad():
        norm.log_scale.copy_(torch.tensor([1e6, -1e6]))
    scale, _ = norm.scale()
    torch.testing.assert_close(scale, torch.tensor([math.exp(0.5), math.exp(-0.5)]))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: ChannelMix(3, "qr"), "conv1x1"),
        (lambda: Coupling(nn.Identity(), "spline"), "coupling"),
        (lambda: PixelMap("linear"), "pixels"),
        (lambda: PixelMap(bits=9), "bits"),
        (lambda: PixelMap(bits=True), "bits"),
        (lambda: PixelMap(bits="x"), "bits"),
    ],
)
def test_unknown_kinds_are_named(make, name):
    with pytest.raises(ValueError, match=f"{name}: got .*; allowed: "):
        make()


@pytest.mark.parametrize("sign", [-1, 1])
def test_broken_flows_of_rotations_stay_finite_in_both_directions_up_to_where_chains_saturate(sign):
    flow = Glow((2, 8, 8), levels=3, steps=32, width=4)
    for name, parameter in flow.named_parameters():
        if name.endswith(("log_scale", "conditioner.4.bias")):  # every step grows, or shrinks, by nearly all it may
            nn.init.constant_(parameter, 9.0 * sign)
    for x in (torch.full((1, 2, 8, 8), Chain.limit), Chain.limit * (2 * rand(4, 2, 8, 8, dtype=torch.float32) - 1)):
        for result in (*flow.encode_with_log_det(x), *flow.decode_with_log_det(x.flatten(1))):
            assert result.isfinite().all()
