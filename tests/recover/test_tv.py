import math

import numpy as np
import pytest
import torch
from operator_cases import Masks
from scipy.optimize import minimize
from skimage.restoration import denoise_tv_chambolle

from companion import measure
from companion.recover.linear import pseudo_inverse
from companion.recover.sparse import lasso
from companion.recover.total_variation import total_variation, tv

SHAPE = (2, 4, 5)


def draws(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smoothed(operator, x, y, weight, epsilon):
    """The objective with √(d² + ε²) for the length of each difference, written out anew."""
    down = torch.nn.functional.pad(x.diff(dim=-2), (0, 0, 0, 1))
    right = torch.nn.functional.pad(x.diff(dim=-1), (0, 1))
    return (operator(x) - y).square().sum() + weight * (down**2 + right**2 + epsilon**2).sqrt().sum()


def smoothed_minimum(operator, y, weight, epsilon):
    """Minimum of the smoothed objective for one image, by SciPy from coarse to fine smoothing."""

    def value_and_gradient(flat, level):
        x = torch.tensor(flat).view(1, *operator.shape).requires_grad_()
        value = smoothed(operator, x, y, weight, level)
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient.numpy().ravel()

    x = np.zeros(math.prod(operator.shape))
    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 40}
    for level in (1e-1, 1e-2, 1e-3, epsilon):
        solution = minimize(value_and_gradient, x, (level,), "L-BFGS-B", jac=True, options=options)
        x = solution.x
    return solution.fun


OPERATORS = [
    measure.Gaussian(SHAPE, 15, 0),
    measure.Gaussian(SHAPE, 60, 0),
    measure.Mask(draws(*SHAPE, seed=5) > 0),
    measure.Identity(SHAPE),
]


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.2, 1.0])
@pytest.mark.parametrize("operator", OPERATORS, ids=["m=15", "m=60", "mask", "identity"])
def test_minimum_lies_in_the_bracket_of_a_smoothed_objective(operator, weight):
    y, epsilon = draws(1, *operator.output_shape), 1e-5
    result = tv(operator, y, weight, tolerance=1e-4, max_iterations=100_000)
    assert result.converged.all()
    upper = smoothed_minimum(operator, y, weight, epsilon)
    lower = upper - weight * epsilon * math.prod(SHAPE)
    assert lower <= float(result.energy[0]) <= upper * (1 + 1e-4)


@pytest.mark.parametrize("weight", [0.05, pytest.param(0.5, marks=pytest.mark.slow)])
def test_denoising_is_scikit_images_at_half_the_weight(weight):
    y = (torch.arange(12.0).view(1, 1, 1, 12) / 12 > 0.4).double() + 0.2 * draws(2, 2, 8, 12)
    result = tv(measure.Identity((2, 8, 12)), y, weight, tolerance=1e-5, max_iterations=50_000)
    assert result.converged.all()
    for image, noisy in zip(result.x, y, strict=True):
        expected = denoise_tv_chambolle(noisy.numpy(), weight / 2, eps=1e-13, max_num_iter=5_000, channel_axis=0)
        assert np.allclose(image.numpy(), expected, rtol=0, atol=1e-3)


def test_a_large_weight_leaves_the_mean_of_every_channel():
    y = draws(2, *SHAPE)
    result = tv(measure.Identity(SHAPE), y, 1e3, tolerance=1e-6)
    assert result.converged.all()
    assert torch.allclose(result.x, y.mean((2, 3), keepdim=True).expand_as(y), atol=1e-5)


def test_total_variation_of_shapes_known_in_closed_form():
    x = torch.zeros(3, 2, 6, 6).double()
    x[1, 0, :, 3:] = 0.5  # one edge of length 6 and height 1/2
    x[2, :, 2:4, 2:4] = 1.0  # a 2×2 square in both channels: 8 sides, of which two meet in one pixel's length √2
    assert torch.allclose(total_variation(x), torch.tensor([0.0, 3.0, 2 * (6 + math.sqrt(2))]).double())


def test_piecewise_constant_image_from_half_of_its_measurements():
    x = torch.zeros(1, 1, 12, 12).double()
    x[0, 0, 3:9, 2:7] = 1.0
    operator = measure.Gaussian((1, 12, 12), 72, 0)
    result = tv(operator, operator(x), 1e-4, tolerance=1e-3, max_iterations=20_000)
    assert (result.x - x).abs().max() < 1e-3


def test_no_image_depends_on_its_neighbours_nor_on_an_earlier_call():
    operator = measure.Gaussian((3, 8, 8), 60, 0)
    y = draws(3, 60, dtype=torch.float32) * torch.tensor([1.0, 0.1, 0.0]).view(-1, 1)
    together = tv(operator, y, 0.1)
    for i in range(3):
        alone = tv(operator, y[i : i + 1], 0.1)
        assert torch.allclose(alone.x[0], together.x[i], rtol=0, atol=1e-5)
        assert abs(int(alone.evaluations[0]) - int(together.evaluations[i])) <= 1
    assert together.converged.all() and torch.equal(together.x[2], torch.zeros(3, 8, 8))
    assert torch.equal(tv(operator, y, 0.1).x, together.x)


def test_result_says_what_happened():
    operator, y = measure.Gaussian(SHAPE, 20, 0), draws(2, 20)
    cut = tv(operator, y, max_iterations=5, tolerance=1e-9)
    assert not cut.converged.any() and cut.reason == ["stopped after 5 iterations"] * 2
    assert cut.trace["energy"].shape == cut.trace["evaluations"].shape == (6, 2)
    assert torch.equal(cut.energy, cut.trace["energy"].amin(0))
    assert torch.equal(cut.trace["evaluations"][-1].long(), cut.evaluations)
    done = tv(operator, y, 0.5)
    assert done.converged.all() and done.reason == ["duality gap below tolerance"] * 2
    energy = (operator(done.x) - y).square().sum(1) + 0.5 * total_variation(done.x)
    assert torch.allclose(done.energy, energy, rtol=1e-12) and done.z is None


@pytest.mark.parametrize("scale", [1e-20, 1e15])
@pytest.mark.parametrize("method", [tv, lasso])
def test_the_estimate_scales_with_its_measurements_and_weight(method, scale):
    operator, y = measure.Gaussian(SHAPE, 20, 0), draws(2, 20, dtype=torch.float32)
    scale = 2.0 ** round(math.log2(scale))
    plain, scaled = method(operator, y, weight=0.1), method(operator, scale * y, weight=scale * 0.1)
    assert scaled.converged.all() and torch.equal(scaled.evaluations, plain.evaluations)
    torch.testing.assert_close(scaled.x / scale, plain.x)
    torch.testing.assert_close(scaled.trace["energy"] / scale**2, plain.trace["energy"])


class WrongAdjoint(measure.Gaussian):
    """An adjoint with the wrong sign, or of another operator."""

    def __init__(self, seed):
        super().__init__(SHAPE, 10, 0)
        self.other = measure.Gaussian(SHAPE, 10, seed)

    def apply_adjoint(self, y):
        return -super().apply_adjoint(y) if self.other.seed == 0 else self.other.apply_adjoint(y)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", [tv, lasso, pseudo_inverse])
def test_a_wrong_adjoint_is_named(method, seed):
    with pytest.raises(ValueError, match=r"operator: got an adjoint that does not belong.*measure\.check_adjoint"):
        method(WrongAdjoint(seed), draws(2, 10))


@pytest.mark.parametrize("method", [tv, lasso, pseudo_inverse])
def test_every_image_may_have_an_operator_of_its_own(method):
    weights = torch.stack([draws(*SHAPE, seed=1) > 0, torch.ones(SHAPE), 1 + draws(*SHAPE, seed=2).abs()])
    y = weights * draws(3, *SHAPE)
    together = method(Masks(weights), y, weight=0.1)
    assert len(set(together.evaluations.tolist())) > 1  # images drop out
    for i in range(3):
        alone = method(Masks(weights[i : i + 1]), y[i : i + 1], weight=0.1)
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operator": measure.SignOf(measure.Gaussian(SHAPE, 10, 0))}, "operator: got SignOf; allowed: a linear"),
        ({"operator": measure.Gaussian((40,), 10, 0)}, r"operator: got one on arrays \(40,\); allowed: on images"),
        ({"y": draws(2, 11)}, r"y: got shape \(2, 11\); allowed: \[batch, 10\]"),
        ({"y": draws(2, 10) * math.inf}, "y: got 20 NaN or infinite values"),
        ({"weight": 0.0}, "weight: got 0.0; allowed: a finite number > 0"),
        ({"weight": 1e100, "y": draws(2, 10).float()}, r"weight: got 1e\+100; allowed: at most 3.4e\+38"),
        ({"tolerance": 0.0}, "tolerance: got 0.0"),
        ({"max_iterations": -3}, "max_iterations: got -3; allowed: a whole number >= 1"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message) as error:
        tv(**{"operator": measure.Gaussian(SHAPE, 10, 0), "y": draws(2, 10), **change})
    assert "\n" not in str(error.value)
