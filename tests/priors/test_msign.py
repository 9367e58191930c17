"""MsIGN: identity start, exact inverse and log-determinant against autograd, its scales, any bijections inside."""

import numpy as np
import pytest
import torch
from flow_cases import perturb, randn
from torch.nn.functional import avg_pool2d

from companion.priors import memory_saving
from companion.priors.bijections import ActNorm, Chain
from companion.priors.conditioning import HaarConditioning
from companion.priors.fields import GaussianField
from companion.priors.msign import DirectedAffine, GlowBlock, Mirrored, MsIGN, Scales, SmallConvolution


def perturbed(side: int = 8, **options) -> MsIGN:
    return perturb(MsIGN(GaussianField(side, 0.5), steps=2, width=4, rank=2, **options), 0.1)


@pytest.mark.parametrize("field", [GaussianField(16), GaussianField(4, 0.5, finest=8), GaussianField(6)])
def test_a_new_model_is_the_prior(field: GaussianField) -> None:
    model = MsIGN(field, steps=3, width=4)
    x = field.sample(4, seed=1)
    torch.testing.assert_close(model.log_prob(x), field.log_prob(x), rtol=1e-9, atol=0)


def test_encode_inverts_decode_and_log_dets_are_those_of_the_jacobian() -> None:
    model = perturbed()
    z = randn(2, 64)
    x = model.decode(z)
    torch.testing.assert_close(model.encode(x), z, rtol=0, atol=1e-9)
    for row in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: model.encode(v)[0], x[row : row + 1]).view(64, 64)
        log_det = model.encode_with_log_det(x[row : row + 1])[1]
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[0], rtol=0, atol=1e-8)
    torch.testing.assert_close(model.log_prob_latent(z), model.log_prob(x), rtol=1e-9, atol=0)


def test_with_an_identity_at_the_finest_scale_the_average_is_the_coarser_model() -> None:
    model = perturbed(scales=3)
    new = GlowBlock(1, 2, 4)
    model = MsIGN(model.field, 3, flows=[*list(model.scheme.flows)[:2], new])
    z = randn(3, 64)
    coarse = model.at(2).decode(z[:, :16])
    torch.testing.assert_close(avg_pool2d(model.decode(z).view(-1, 1, 8, 8), 2).flatten(1), coarse, rtol=0, atol=1e-10)


def test_a_coarser_model_shares_its_flows() -> None:
    model = perturbed()
    coarse = model.at(1)
    assert coarse.field.side == 2
    x = coarse.sample(2)
    coarse.log_prob(x).sum().backward()
    assert all(p.grad is not None for p in model.scheme.flows[0].parameters())
    assert all(p.grad is None for p in model.scheme.flows[1].parameters())


def test_any_bijections_may_stand_inside_and_images_may_have_channels() -> None:
    shape = (2, 8, 4)
    parts = [HaarConditioning((2, 4, 2), 0.6), HaarConditioning(shape, 0.5)]
    flows = [ActNorm(2), Chain([ActNorm(2), ActNorm(2)]), GlowBlock(2, 1, 3)]
    scales = perturb(Scales(shape, None, parts, flows).double(), 0.2)
    x = randn(1, *shape)
    z, log_det = scales.encode(x)
    torch.testing.assert_close(scales.decode(z)[0], x, rtol=0, atol=1e-10)
    jacobian = torch.autograd.functional.jacobian(lambda v: scales.encode(v)[0], x).view(64, 64)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("two", [np.int64(2), torch.tensor(2)])
def test_whole_numbers_may_be_numpys_and_tensors(two) -> None:
    z, plain = randn(3, 16), MsIGN(GaussianField(4), steps=2, width=4)
    for steps in (two, [two, two]):
        assert torch.equal(
            MsIGN(GaussianField(two + 2, finest=2 * two), steps=steps, width=4).decode(z), plain.decode(z)
        )


def test_float32_round_trips() -> None:
    model = perturbed().float()
    z = randn(3, 64).float()
    torch.testing.assert_close(model.encode(model.decode(z)), z, rtol=0, atol=2e-4)


def test_a_mirrored_model_is_the_mean_of_two_densities_and_samples_it() -> None:
    half = perturbed(4)
    model, x = Mirrored(half), randn(5, 16)
    mirrored = x.view(-1, 4, 4).flip(2).flatten(1)
    expected = ((half.log_prob(x).exp() + half.log_prob(mirrored).exp()) / 2).log()
    torch.testing.assert_close(model.log_prob(x), expected)
    torch.testing.assert_close(model.log_prob(mirrored), model.log_prob(x))
    z = randn(4, 16)
    drawn, log_prob = model.decode_with_log_prob(z)
    torch.testing.assert_close(log_prob, model.log_prob(drawn), rtol=1e-9, atol=1e-9)
    own, samples = half.sample(4000, seed=2), model.sample(4000, seed=2)
    flipped = (samples != own).any(1)
    assert 0.45 < float(flipped.double().mean()) < 0.55
    assert torch.equal(model.field.mirror(samples)[flipped], own[flipped])


def test_the_affine_layer_moves_its_directions_and_nothing_else() -> None:
    field = GaussianField(4, 0.5, finest=8)
    layer = DirectedAffine(field, 3)
    directions = torch.linalg.qr(randn(16, 3))[0].T
    matrix, shift, z = randn(3, 3), randn(3), randn(5, 16)
    layer.aim(field, directions, matrix, shift)
    moved, log_det = layer.decode(field.decode(z).view(-1, 1, 4, 4))
    expected = z + (z @ directions.T @ matrix.T + shift - z @ directions.T) @ directions
    torch.testing.assert_close(field.encode(moved.flatten(1)), expected, rtol=0, atol=1e-9)
    perturb(layer, 0.3)
    x = randn(1, 1, 4, 4)
    y, log_det = layer.encode(x)
    torch.testing.assert_close(layer.decode(y)[0], x, rtol=0, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer.encode(v)[0], x).view(16, 16)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", [1, 4])
def test_a_convolution_of_one_pixel_is_a_convolution(side: int) -> None:
    layer, x = SmallConvolution(3, 5).double(), randn(2, 3, side, side)
    expected = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_memory_saving_gives_the_same_gradients() -> None:
    model = perturbed(4)
    saving, x = memory_saving(model), randn(3, 16)
    assert type(saving.scheme.flows[0].inner.chain) is not Chain
    ordinary = torch.autograd.grad(model.log_prob(x).sum(), list(model.parameters()))
    for mine, theirs in zip(
        torch.autograd.grad(saving.log_prob(x).sum(), list(model.parameters())), ordinary, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-8)


def test_the_default_device_does_not_matter() -> None:
    expected = MsIGN(GaussianField(4), steps=2, width=4, seed=3)
    torch.set_default_device("meta")
    try:
        model = MsIGN(GaussianField(4), steps=2, width=4, seed=3)
        sample = Mirrored(model).sample(2, seed=1)
    finally:
        torch.set_default_device(None)
    assert torch.equal(sample, Mirrored(expected).sample(2, seed=1))
    for mine, theirs in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MsIGN(GaussianField(8), scales=4),
        lambda: MsIGN(GaussianField(8), scales=0),
        lambda: MsIGN(GaussianField(8), steps=-1),
        lambda: MsIGN(GaussianField(8), steps=(2, 2)),
        lambda: DirectedAffine(GaussianField(2), 5),
        lambda: MsIGN(GaussianField(8), flows=[GlowBlock(1, 1, 2)]),
        lambda: MsIGN(GaussianField(4), steps=1).at(3),
    ],
)
def test_bad_arguments_say_what_is_allowed(make) -> None:
    with pytest.raises(ValueError, match=r"got .*; allowed: "):
        make()
