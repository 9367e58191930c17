import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion import measure
from companion.recover.linear import operator_norm, pseudo_inverse
from companion.recover.sparse import lasso
from companion.recover.total_variation import tv

SHAPE = (2, 4, 5)


def draws(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Unsound(measure.Identity):
    """Identity whose adjoint fails for images whose first value outweighs all others."""

    def apply_adjoint(self, y):
        alone = y.flatten(1)[:, 0] > 0.9 * y.flatten(1).norm(dim=1)
        return torch.where(alone.view(-1, 1, 1, 1), torch.nan, y)


@settings(max_examples=15, deadline=None)
@given(m=st.integers(1, 70), seed=st.integers(0, 100))
def test_pseudo_inverse_is_the_matrix_of_moore_and_penrose(m, seed):
    operator = measure.Gaussian(SHAPE, m, seed)
    y = draws(3, m, seed=seed)  # for m > 40 not in the range of A: least squares
    matrix = operator.matrix(y)
    result = pseudo_inverse(operator, y, tolerance=1e-12)
    expected = y @ torch.linalg.pinv(matrix).T
    condition = float(torch.linalg.cond(matrix))
    error = (result.x.flatten(1) - expected).norm() / expected.norm()
    assert result.converged.all()
    assert error < 1e-11 * condition**2
    assert torch.allclose(result.energy, (expected @ matrix.T - y).square().sum(1), atol=1e-9)


@pytest.mark.parametrize("weight", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("m", [10, 60])
def test_tikhonov_solves_the_normal_equations(weight, m):
    operator, y = measure.Gaussian(SHAPE, m, 0), draws(3, m)
    matrix = operator.matrix(y)
    expected = torch.linalg.solve(matrix.T @ matrix + weight * torch.eye(40).double(), matrix.T @ y.T).T
    result = pseudo_inverse(operator, y, weight, tolerance=1e-12)
    assert torch.allclose(result.x.flatten(1), expected, rtol=0, atol=1e-10)
    energy = (expected @ matrix.T - y).square().sum(1) + weight * expected.square().sum(1)
    assert torch.allclose(result.energy, energy, rtol=1e-10)


def test_measurements_orthogonal_to_the_range_give_zero():
    class Repeated(measure.Gaussian):
        def _matrix(self, like):
            return torch.tensor([[1.0, 0.0], [1.0, 0.0]]).to(like)

    operator = Repeated((1, 1, 2), 2)
    y = torch.tensor([[1.0, -1.0], [2.0, 0.0], [0.0, 0.0]]).double()
    result = pseudo_inverse(operator, y)
    assert torch.allclose(result.x.flatten(1), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).double())
    assert result.converged.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_tolerance_is_reached_in_either_precision(dtype):
    result = pseudo_inverse(measure.Gaussian((3, 8, 8), 300, 0), draws(2, 300, dtype=dtype))
    assert result.converged.all() and result.x.dtype == dtype and result.energy.dtype == dtype


def test_no_image_depends_on_its_neighbours():
    operator = measure.Gaussian((3, 8, 8), 150, 0)
    y = draws(5, 150, dtype=torch.float32) * torch.tensor([1.0, 0.0, 1e-6, 1e6, 3.0]).view(-1, 1)
    together = pseudo_inverse(operator, y, 0.1)
    for i in range(5):
        alone = pseudo_inverse(operator, y[i : i + 1], 0.1)
        assert torch.allclose(alone.x[0], together.x[i], rtol=1e-5, atol=1e-5 * float(y[i].abs().max()))
        assert abs(int(alone.evaluations[0] - together.evaluations[i])) <= 1  # rounding may cost or save a step


def test_result_says_what_happened():
    operator, y = measure.Gaussian(SHAPE, 35, 0), draws(2, 35)
    cut = pseudo_inverse(operator, y, max_iterations=4)
    assert not cut.converged.any() and cut.reason == ["stopped after 4 iterations"] * 2
    assert torch.equal(cut.evaluations, torch.tensor([5, 5]))
    assert cut.trace["energy"].shape == cut.trace["evaluations"].shape == (5, 2)
    assert torch.allclose(cut.trace["energy"][0], y.square().sum(1))
    assert (cut.trace["energy"].diff(dim=0) < 0).all()
    assert torch.equal(cut.trace["energy"][-1], cut.energy)
    done = pseudo_inverse(operator, y)
    assert done.converged.all() and done.reason == ["gradient below tolerance"] * 2


def test_an_image_that_fails_keeps_its_best_iterate_and_touches_no_other():
    y = draws(3, *SHAPE)
    y[1, 0, 0, 0] = 1000
    result = pseudo_inverse(Unsound(SHAPE), y)
    assert result.converged.tolist() == [True, False, True]
    assert result.reason[1] == "energy not finite"
    assert torch.isfinite(result.x).all() and torch.isfinite(result.energy).all()
    assert torch.allclose(result.x[[0, 2]], y[[0, 2]])


@pytest.mark.parametrize("m", [5, 40, 200])
def test_operator_norm_is_the_largest_singular_value_from_below(m):
    like = draws(1)
    operator = measure.Gaussian(SHAPE, m, 3)
    exact = float(torch.linalg.matrix_norm(operator.matrix(like), 2))
    value, spent = operator_norm(operator, like)
    assert 0.97 * exact < value <= exact * (1 + 1e-12)
    assert value == operator_norm(operator, like)[0] and 1 <= spent <= 100


def test_operator_norm_of_operators_known_in_closed_form():
    like = draws(1)
    for operator, norm in (
        (measure.Identity(SHAPE), 1),
        (measure.Mask(draws(*SHAPE) > 0), 1),
        (measure.Downsample((1, 8, 8), 2), 0.5),
    ):
        assert operator_norm(operator, like)[0].item() == pytest.approx(norm)


class Weights(measure.base.LinearOperator):
    """Every pixel times a number: its singular values are those numbers."""

    def __init__(self, weights):
        super().__init__(weights.shape, weights.shape)
        self.weights = weights

    def apply(self, x):
        return self.weights.to(x) * x

    def apply_adjoint(self, y):
        return self.weights.to(y) * y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_single_large_singular_value_is_found_among_thousands_of_smaller_ones(dtype):
    weights = torch.ones(3, 64, 64)
    weights[0, 3, 3] = 1.6
    operator, like = Weights(weights), draws(1, dtype=dtype)
    assert operator_norm(operator, like)[0].item() == pytest.approx(1.6, rel=1e-3)
    y = operator(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype))
    for method in (lasso, tv):
        result = method(operator, y)
        assert result.converged.all() and (result.x - y / weights).abs().mean() < 0.05


def test_operator_norm_of_an_operator_that_overflows_is_no_error():
    assert not math.isfinite(operator_norm(Weights(torch.full((1, 2, 2), 1e30)), draws(1, dtype=torch.float32))[0])


@pytest.mark.parametrize("scale", [2.0**-126, 2.0**-80, 2.0**60, 2.0**110])
def test_the_estimate_scales_with_its_measurements(scale):
    operator, y = measure.Gaussian(SHAPE, 20, 0), draws(2, 20, dtype=torch.float32)
    small, result = pseudo_inverse(operator, y), pseudo_inverse(operator, scale * y)
    assert result.converged.all() and torch.equal(result.evaluations, small.evaluations)
    torch.testing.assert_close(result.x / scale, small.x)
    mixed = pseudo_inverse(operator, torch.stack([scale * y[0], y[1]]))
    assert torch.equal(mixed.x[1], small.x[1])


def test_operator_that_measures_nothing():
    nothing = measure.Blur((1, 5, 5), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="operator: got one that maps everything to zero"):
        operator_norm(nothing, draws(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operator": measure.SignOf(measure.Gaussian(SHAPE, 10, 0))}, "operator: got SignOf; allowed: a linear"),
        ({"operator": torch.eye(10)}, "operator: got Tensor; allowed: a linear operator"),
        ({"y": draws(10)}, r"y: got shape \(10,\); allowed: \[batch, 10\]"),
        ({"y": draws(2, 11)}, r"y: got shape \(2, 11\); allowed: \[batch, 10\]"),
        ({"y": draws(2, 10) * math.nan}, "y: got 20 NaN or infinite values"),
        ({"y": np.zeros((2, 10))}, "y: got shape ndarray"),
        ({"y": torch.zeros(2, 10, dtype=torch.long)}, "y: got torch.int64 tensor"),
        ({"y": draws(2, 10).half()}, "y: got torch.float16; allowed: torch.float32 or torch.float64"),
        ({"y": draws(2, 10).bfloat16()}, "y: got torch.bfloat16"),
        ({"weight": -1.0}, "weight: got -1.0; allowed: a finite number >= 0"),
        ({"weight": math.inf}, "weight: got inf"),
        ({"tolerance": 0.0}, "tolerance: got 0.0; allowed: a finite number > 0"),
        ({"max_iterations": 0}, "max_iterations: got 0; allowed: a whole number >= 1"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message) as error:
        pseudo_inverse(**{"operator": measure.Gaussian(SHAPE, 10, 0), "y": draws(2, 10), **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [lasso, partial(tv, weight=0.01)])
def test_an_image_with_an_operator_of_its_own_is_recovered_as_alone(method):
    """Its step comes from the norm of its own operator, found without a look at its neighbours."""
    operators = [measure.Gaussian((1, 6, 5), 20, seed=k) for k in range(3)]
    truth = torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = measure.PerImage(operators)
    y = together(truth)
    found = method(together, y)
    for k in range(3):
        alone = method(measure.PerImage(operators[k : k + 1]), y[k : k + 1])
        torch.testing.assert_close(found.x[k : k + 1], alone.x, atol=1e-10, rtol=1e-10)
        assert found.evaluations[k] == alone.evaluations[0]
