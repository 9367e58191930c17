"""What every flow offers: checked input, initialisation once, sound numbers for unsound weights, a true density."""

import math
import warnings

import numpy as np
import pytest
import torch
from flow_cases import perturb, rand, randn, tiny
from scipy import stats

from companion.priors import Flow, Glow, base
from companion.priors.bijections import ActNorm, Bijection, Chain, ChannelMix, Coupling, split_channels
from companion.priors.networks import ConvConditioner
from companion.priors.pixels import PixelMap


class Flat(Bijection):
    """Images of one pixel as vectors."""

    def encode(self, x):
        return x.flatten(1), x.new_zeros(len(x))

    def decode(self, z):
        return z[:, :, None, None], z.new_zeros(len(z))


def one_pixel(kind: str = "uniform") -> Flow:
    """A flow on one pixel with two channels, so small that its density can be drawn on a grid."""
    parts: list[Bijection] = []
    for step in range(2):
        parts += [ChannelMix(2, "lu", step), Coupling(ConvConditioner(1, 2, 6, step))]
    flow = Flow((2, 1, 1), Chain([*parts, Flat()]), PixelMap(kind)).double()
    return perturb(flow, 0.2, seed=2).requires_grad_(False)


def density_on_grid(flow: Flow) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of an axis, [301], and the density on their square, [301, 301]."""
    h = torch.linspace(-9, 9, 301, dtype=torch.float64)
    axis = flow.pixels.decode(h.view(-1, 1, 1, 1))[0].flatten()  # dense where logit pixels are
    grid = torch.cartesian_prod(axis, axis).view(-1, 2, 1, 1)
    return axis, flow.log_prob(grid).exp().view(301, 301)


@pytest.mark.parametrize("kind", ["uniform", "logit"])
def test_density_integrates_to_one(kind):
    axis, density = density_on_grid(one_pixel(kind))
    assert float(torch.trapezoid(torch.trapezoid(density, axis), axis)) == pytest.approx(1, abs=1e-3)


def test_many_samples_are_decoded_in_parts(monkeypatch):
    flow, sizes = one_pixel(), []
    whole = flow.sample(7, seed=1)
    monkeypatch.setattr(base, "ROWS", 3)
    monkeypatch.setattr(flow, "decode", lambda z: sizes.append(len(z)) or Flow.decode(flow, z))
    torch.testing.assert_close(flow.sample(7, seed=1), whole)
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize("kind", ["uniform", "logit"])
def test_samples_and_density_agree(kind):
    flow = one_pixel(kind)
    x = flow.sample(5000, seed=3)
    axis, density = density_on_grid(flow)
    for channel in range(2):  # each channel's distribution function, by integration, against its samples
        marginal = torch.trapezoid(density, axis, dim=1 - channel)
        cumulative = torch.cumulative_trapezoid(marginal, axis)
        values = x[:, channel, 0, 0].numpy()
        test = stats.kstest(values, lambda v, c=cumulative: np.interp(v, axis[1:].numpy(), c.numpy()))
        assert test.pvalue > 1e-3
    # the mean log-density of samples is minus the entropy
    product = torch.xlogy(density, density)
    minus_entropy = float(torch.trapezoid(torch.trapezoid(product, axis), axis))
    own = flow.log_prob(x)
    assert abs(float(own.mean()) - minus_entropy) < 4 * float(own.std()) / math.sqrt(len(own)) + 1e-3


def test_temperature_scales_the_latents_and_samples_depend_on_the_seed_alone():
    flow = tiny()
    torch.testing.assert_close(flow.encode(flow.sample(4, 0.5, seed=1)), 0.5 * flow.encode(flow.sample(4, seed=1)))
    assert torch.equal(flow.sample(4, seed=1), flow.sample(4, seed=1))
    assert not torch.equal(flow.sample(4, seed=1), flow.sample(4, seed=2))
    mode = flow.decode(torch.zeros(2, 16, dtype=torch.float64))
    torch.testing.assert_close(flow.sample(2, 0.0), mode)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f: f.encode(torch.rand(2, 1, 4, 5)), r"x: got shape \(2, 1, 4, 5\); allowed: \[batch, 1, 4, 4\]"),
        (lambda f: f.encode(torch.rand(1, 4, 4)), r"x: got shape \(1, 4, 4\)"),
        (lambda f: f.encode(torch.rand(0, 1, 4, 4)), "x: got shape"),
        (lambda f: f.log_prob([1.0]), "x: got shape list"),
        (lambda f: f.log_prob(torch.rand(2, 1, 4, 4).double()), "x: got torch.float64 on cpu; allowed: torch.float32"),
        (lambda f: f.log_prob(torch.full((2, 1, 4, 4), math.nan)), "x: got 32 NaN or infinite values"),
        (lambda f: f.log_prob(torch.full((1, 1, 4, 4), math.inf)), "x: got 16 NaN or infinite values"),
        (lambda f: f.decode(torch.randn(2, 15)), r"z: got shape \(2, 15\); allowed: \[batch, 16\]"),
        (lambda f: f.decode(torch.randn(16)), r"z: got shape \(16,\)"),
        (lambda f: f.log_prob_latent(torch.randn(2, 16).double()), "z: got torch.float64"),
        (lambda f: f.sample(0), "n: got 0"),
        (lambda f: f.sample(1, temperature=-1.0), "temperature: got -1.0"),
        (lambda f: f.sample(1, seed=None), "seed: got None"),
        (
            lambda f: f.bits_per_dim(torch.full((1, 1, 4, 4), 1.2)),
            r"x: got pixels from 1\.2\d* to 1\.2\d*; allowed: ",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call(tiny(dtype=torch.float32))
    assert "\n" not in str(refusal.value)


def test_pixels_outside_the_unit_interval_have_a_density():
    assert torch.isfinite(tiny().log_prob(rand(2, 1, 4, 4) * 6 - 3)).all()


# --- initialisation from data: once, by its own call, and never by a forward pass


def fresh(**settings) -> Glow:
    return Glow(**({"shape": (1, 4, 4), "levels": 2, "steps": 2, "width": 4} | settings)).double()


def snapshot(flow: Flow) -> dict:
    return {k: v.clone() for k, v in flow.state_dict().items()}


def unchanged(flow: Flow, before: dict) -> bool:
    return all(torch.equal(before[k], v) for k, v in flow.state_dict().items())


@pytest.mark.parametrize("train", [True, False])
def test_no_forward_pass_ever_initialises(train):
    flow = fresh().train(train)
    before = snapshot(flow)
    for _ in range(2):
        flow.log_prob(5 * rand(8, 1, 4, 4)).sum()
        flow.decode(randn(8, 16))
        flow.bits_per_dim(rand(8, 1, 4, 4))
        flow.sample(3)
    assert unchanged(flow, before) and not bool(flow.initialised)


@pytest.mark.parametrize("pixels", ["uniform", "logit"])
def test_initialisation_normalises_every_actnorm(pixels):
    flow = fresh(pixels=pixels)
    x = rand(64, 1, 4, 4)
    flow.initialise(x)
    seen = []
    h = flow.pixels.encode(x)[0]
    for level in flow.bijection.levels:
        for part in level.parts:
            if isinstance(part, ChannelMix):
                seen.append(part.norm.encode(h)[0])
            h = part.encode(h)[0]
        h = split_channels(h)[0]
    assert len(seen) == 4 and bool(flow.initialised)
    for value in seen:
        assert value.mean((0, 2, 3)).abs().max() < 1e-10
        assert (value.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-10


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x.fill_(math.nan),
        lambda x: x.fill_(0.5),
        lambda x: x[0, 0, 0].fill_(math.inf),
        lambda x: x[:, :, ::2, ::2].fill_(0.25),  # one channel after the squeeze is constant
    ],
    ids=["NaN", "constant", "infinite", "one channel constant"],
)
def test_a_refused_first_batch_leaves_no_trace(spoil):
    flow, bad = fresh(), rand(8, 1, 4, 4)
    spoil(bad)
    before = snapshot(flow)
    with pytest.raises(ValueError, match=r"got .*; allowed: "):
        flow.initialise(bad)
    assert unchanged(flow, before)
    flow.initialise(rand(8, 1, 4, 4))  # still to be had
    assert torch.isfinite(flow.log_prob(rand(8, 1, 4, 4))).all()


def test_a_fault_found_at_a_later_level_leaves_no_trace_either():
    class Constant(Bijection):
        """Passes all through, and makes the next ActNorm's first batch constant."""

        def encode(self, x):
            return 0 * x, x.new_zeros(len(x))

        def decode(self, z):
            return z, z.new_zeros(len(z))

    flow = Flow((2, 1, 1), Chain([ActNorm(2), Constant(), ActNorm(2), Flat()]), PixelMap()).double()
    before = snapshot(flow)
    with pytest.raises(ValueError, match="first batch"):
        flow.initialise(rand(8, 2, 1, 1))
    assert unchanged(flow, before)


def test_a_second_initialisation_is_refused_also_after_loading():
    flow = fresh()
    flow.initialise(rand(8, 1, 4, 4))
    before = snapshot(flow)
    for again in (flow, fresh()):
        again.load_state_dict(before)
        with pytest.raises(ValueError, match="initialise: got a flow that is initialised already; allowed: a new flow"):
            again.initialise(3 * rand(8, 1, 4, 4))
        assert unchanged(again, before)


# --- unsound weights: large finite numbers and a warning, never NaN


def blown_up(factor: float = 40.0, **settings) -> Glow:
    """32 steps with random weights, `factor` times as large as fresh ones."""
    flow = Glow(**({"shape": (1, 4, 4), "levels": 1, "steps": 32, "width": 4} | settings))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=draw)).mul_(factor)
    return flow.requires_grad_(False)


FAR = {"ordinary": 1.0, "far": 1e3, "very far": 1e20, "black": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("scale", FAR.values(), ids=FAR.keys())
def test_weights_blown_up_40_fold_give_finite_numbers_and_a_warning(coupling, scale):
    flow = blown_up(coupling=coupling)
    x = scale * rand(2, 1, 4, 4, dtype=torch.float32)
    z = flow.encode(x)
    for value in (z, flow.decode(z), flow.log_prob(x), flow.log_prob_latent(z), flow.decode(1e20 * torch.ones(1, 16))):
        assert torch.isfinite(value).all()
    with pytest.warns(RuntimeWarning, match="round trip off by up to .*ill-conditioned"):
        report = flow.check(x, iterations=1)
    for value in (report.round_trip, report.log_det, report.stretch, report.shrink):
        assert value.shape == (2,) and torch.isfinite(value).all()
    assert (report.shrink <= report.stretch).all() and (report.condition >= 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_a_blown_up_flow_are_finite(dtype):
    flow = blown_up().to(dtype).requires_grad_(True)
    x = rand(2, 1, 4, 4, dtype=dtype).requires_grad_()
    flow.log_prob(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("conv1x1", ["lu", "dense"])
def test_a_blown_up_unbounded_convolution_is_never_passed_over_in_silence(conv1x1):
    with pytest.warns(RuntimeWarning, match="round trip off"):
        blown_up(conv1x1=conv1x1).check(rand(2, 1, 4, 4, dtype=torch.float32), iterations=1)


# --- the report on numerical health


@pytest.mark.slow
def test_check_of_a_sound_flow_is_silent_and_right():
    flow = tiny().requires_grad_(False)
    x = rand(2, 1, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = flow.check(x, iterations=25)
    assert report.round_trip.max() < 1e-11
    torch.testing.assert_close(report.log_det, flow.encode_with_log_det(x)[1])
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(flow.encode, x[i : i + 1]).reshape(16, 16)
        values = torch.linalg.svdvals(jacobian)
        assert float(report.stretch[i]) == pytest.approx(float(values[0]), rel=0.03)
        assert float(report.shrink[i]) == pytest.approx(float(values[-1]), rel=0.03)
        assert float(report.condition[i]) == pytest.approx(float(values[0] / values[-1]), rel=0.06)


def test_check_warns_at_the_tolerance_given():
    flow, x = tiny(), rand(1, 1, 4, 4)
    with pytest.warns(RuntimeWarning, match="tolerance 1e-30"):
        flow.check(x, iterations=1, tolerance=1e-30)


def test_bits_per_dim_of_a_flow_is_that_of_its_dequantised_density():
    flow, x = tiny(), torch.round(rand(3, 1, 4, 4) * 255) / 255
    bits = flow.bits_per_dim(x, seed=4)
    dequantised = flow.pixels.dequantise(x, 4)
    expected = (-flow.log_prob(dequantised) / 16 + math.log(255)) / math.log(2)
    torch.testing.assert_close(bits, expected)
    assert torch.equal(bits, flow.bits_per_dim(x, seed=4))
    assert not torch.equal(bits, flow.bits_per_dim(x, seed=5))
