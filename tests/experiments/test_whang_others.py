"""One bit, two images in one, non-linear operators, missing sub-pixels and curvatures, each against a closed form."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from flow_cases import tiny

from companion import measure, priors, recover
from companion.experiments import registry
from companion.experiments.parts import Part
from companion.experiments.whang import nonlinear, one_bit, separation, sets, subpixel, theorems
from companion.measure import masks

PART = Part(torch.device("cpu"), 0)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_noise_before_the_sign_flips_as_many_bits_as_the_angle_says():
    """P(sign(u + δ) ≠ sign(u)) = arctan(σ / σ_u) / π, for u and δ normal."""
    settings = replace(registry.get("whang.one-bit").settings["quick"], measurements=(4000,))
    search = one_bit.Search(4000, 0.0, 0.0, "probit")
    truth, problem, linear, bits = one_bit._problem(settings, PART, "test", 2, search)
    flips = ((bits < 0) != (problem.operator(truth) < 0)).double().mean(1)
    size = truth.flatten(1).norm(dim=1) / 4000**0.5
    expected = torch.arctan(problem.noise.std / size.double()) / torch.pi
    assert ((flips - expected).abs() < 5 * (expected / 4000).sqrt()).all()
    # what the linear fit leaves is as large as its noise model says, on average over the images
    left = (bits - linear.operator(truth)).square().mean()
    assert float(left) == pytest.approx(float(linear.noise.std_map((4000,)).square().mean()), rel=0.1)


def test_the_two_wiener_filters_are_one_least_squares_problem():
    factor, centre, root = normal(18, 18), normal(2, 3, 3, seed=1), normal(18, 18, seed=2)
    mean, y = normal(18, seed=3), normal(4, 2, 3, 3, seed=4)
    found = separation.wiener(y, (factor, centre), (mean, root @ root.T))
    # y = centre / 2 + mean + (F z) / 2 + R w + floor e, with the shortest (z, w, e)
    rows = torch.cat([factor / 2, root, sets.FLOOR * torch.eye(18).double()], 1)
    latents = torch.linalg.lstsq(rows, (y.flatten(1) - centre.flatten() / 2 - mean).T, driver="gelsd").solution
    torch.testing.assert_close(found.flatten(1), centre.flatten() + (factor @ latents[:18]).T, rtol=1e-6, atol=1e-6)


def test_filters_by_their_evidence_are_the_conditional_mean():
    """What is left of x is uncorrelated with every function of y, which no linear estimate achieves."""
    source, number = torch.Generator().manual_seed(0), 100_000
    factor = torch.randn(3, 3, generator=source).double() * 0.3
    page = torch.tensor([1.5]).double(), torch.tensor([[0.2]]).double()
    channel = torch.randint(3, (number,), generator=source)
    x = torch.randn(number, 3, generator=source).double() @ factor.T + 0.4
    ink = torch.zeros(number, 3).double()
    ink[torch.arange(number), channel] = page[0] + page[1][0] ** 0.5 * torch.randn(number, generator=source).double()
    floor = sets.FLOOR * torch.randn(number, 3, generator=source).double()
    y, known = separation.HALF * x + ink + floor, (factor, torch.full((3,), 0.4).double())
    noises = [separation.on_one_channel(*page, k) for k in range(3)]
    best = separation.by_evidence(y, known, noises)
    linear = separation.wiener(y, known, separation.writing(*page, "unknown channel"))
    for looked in (y.tanh(), (3 * y).sin(), y.square(), (y > 0.8).double()):
        for part in (looked, looked.roll(1, 1)):
            left = (x - best) * (part - part.mean(0))
            assert (left.mean(0).abs() < 4.5 * left.std(0) / number**0.5).all()
    assert (x - best).square().mean() < 0.5 * (x - linear).square().mean()


@pytest.mark.parametrize("layout", separation.LAYOUTS)
def test_the_moments_of_the_writing_are_those_of_drawn_pages(layout):
    root, mean = normal(4, 4) / 3, normal(4, seed=1)
    source = torch.Generator().manual_seed(2)
    drawn = mean + torch.randn(200_000, 3, 4, generator=source).double() @ root.T
    if layout == "unknown channel":
        drawn *= torch.eye(3)[torch.randint(3, (len(drawn),), generator=source)][..., None]
    found = separation.writing(mean, root @ root.T, layout)
    torch.testing.assert_close(found[0], drawn.flatten(1).mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(found[1], torch.cov(drawn.flatten(1).T), rtol=0, atol=0.02)


def test_the_mixture_knows_the_channel():
    """On an unknown channel the density is that of the right one, less log 3, as the others are far less likely."""
    quick = replace(registry.get("whang.separation").settings["quick"], digit_flows={"map": ("glow-mnist-smooth", 0.1)})
    truth, y = separation._problem(quick, PART, "unknown channel", "test", 3)
    delta = y - separation.HALF * truth
    assert ((delta.abs().flatten(2).sum(2) > 0).sum(1) == 1).all()
    flow = separation._model(quick, PART, "unknown channel", "map").noise.flow
    mixture = separation._model(quick, PART, "unknown channel", "map").noise.log_prob(delta, torch.zeros_like(delta))
    for row, value in zip(delta, mixture, strict=True):
        channel = int(row.abs().flatten(1).sum(1).argmax())
        empty = -0.5 * (row / 0.1).square() - torch.log(torch.tensor(0.1)) - 0.5 * torch.log(torch.tensor(2 * torch.pi))
        window = row[channel : channel + 1, 2:-2, 2:-2]
        rest = empty.sum() - empty[channel, 2:-2, 2:-2].sum()
        expected = float(flow.log_prob(window[None]) + rest) - float(torch.log(torch.tensor(3.0)))
        assert float(value) == pytest.approx(expected, rel=1e-4)


def test_first_guesses_are_near_without_noise():
    x = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    camera = measure.Problem(measure.SaturatingCamera((1, 5, 5), 4.0), measure.GaussianNoise(0.1))
    torch.testing.assert_close(nonlinear.first_guess(camera, camera.operator(x)), x)
    phase = measure.Problem(measure.PhaseRetrieval(measure.Gaussian((1, 5, 5), 4000)), measure.GaussianNoise(0.1))
    guess = nonlinear.first_guess(phase, phase.operator(x))
    assert ((guess - x).flatten(1).norm(dim=1) < 0.2 * x.flatten(1).norm(dim=1)).all()


def test_the_least_curvature_is_that_of_the_hessian():
    flow = tiny().requires_grad_(False).eval()
    x = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda x: -flow.log_prob(x).sum(), x).view(16, 16)
    expected = float(torch.linalg.eigvalsh(hessian)[0])
    assert theorems.least_curvature(flow, x, 16, PART) == pytest.approx(expected, rel=1e-6, abs=1e-8)
    few = theorems.least_curvature(flow, x, 3, PART)
    assert few >= expected - 1e-9  # Ritz values lie inside the spectrum


def test_a_gaussians_modes_move_within_the_bound():
    settings = registry.get("whang.theorems").settings["quick"]
    _, arrays = theorems._test(settings, PART, ("gaussian", 0))
    assert (arrays["error"].values <= arrays["bound"].values * (1 + 1e-9)).all()
    assert (arrays["bound"].values < arrays["noise"].values).all()


def test_biharmonic_filling_keeps_what_is_seen_and_is_exact_for_a_plane():
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    plane = (0.1 + 0.03 * rows + 0.02 * columns).expand(1, 2, 12, 12)
    mask = torch.ones(2, 12, 12, dtype=torch.bool)
    mask[0, 4:6, 5:7], mask[1, 7, 3] = False, False
    operator = measure.Mask(mask)
    np.testing.assert_allclose(subpixel.biharmonic(operator, operator(plane)), plane, atol=1e-6)


def gaussian_case(side):
    """A Gaussian of tiles 2 × 4 × 4 (factor, mean, precision), a mask of so many pixels, and what is seen of images."""
    factor, mean = normal(32, 32) + 2 * torch.eye(32), normal(2, 4, 4, seed=1)
    operator = measure.Mask(masks.random_subpixels((2, side, side), 0.3, 0))
    return factor, mean, torch.linalg.inv(factor @ factor.T), operator, operator(normal(3, 2, side, side, seed=2))


def test_one_tile_is_filled_with_the_closed_form():
    factor, mean, precision, operator, y = gaussian_case(4)
    found = subpixel.conditional_mean(operator, y, mean, precision)
    torch.testing.assert_close(found, recover.gaussian_map(operator, y, factor, mean).x)


@pytest.mark.parametrize(("side", "places"), [(6, (0, 2)), (7, (0, 2, 3))])
def test_tiles_overlap_and_are_averaged(side, places):
    factor, mean, precision, operator, y = gaussian_case(side)
    found = subpixel.conditional_mean(operator, y, mean, precision)
    corners = torch.zeros(len(places) ** 2, 3, 2, side, side, dtype=torch.float64)
    covered = torch.zeros(len(places) ** 2, 1, 1, side, side, dtype=torch.float64)
    for k, (top, left) in enumerate(itertools.product(places, places)):
        place = (..., slice(top, top + 4), slice(left, left + 4))
        tile = measure.Mask(operator.mask[place])
        corners[k][place] = recover.gaussian_map(tile, tile(operator.adjoint(y)[place]), factor, mean).x
        covered[k][place] = 1
    torch.testing.assert_close(found, corners.sum(0) / covered.sum(0))


def test_the_likeliest_filling_of_a_linear_flow_is_the_conditional_mean():
    factor, mean, precision, operator, y = gaussian_case(4)
    linear = priors.Linear(factor, mean, shape=(2, 4, 4))
    found = subpixel.likeliest(linear, operator, y, operator.adjoint(y), 500)
    torch.testing.assert_close(found.x, subpixel.conditional_mean(operator, y, mean, precision), atol=1e-5, rtol=1e-5)


def test_rebuilding_keeps_no_more_for_a_deeper_flow():
    settings = replace(registry.get("whang.subpixel").settings["quick"], size=32)
    kept = [subpixel._memory(settings, PART, depth)[1]["kept"].values for depth in (1, 3)]
    assert kept[1][1] == kept[0][1] and kept[1][0] > 1.5 * kept[0][0]
