import math

import numpy as np
import pytest
import pywt
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data as photographs
from skimage.transform import resize
from sklearn.linear_model import Lasso

from companion import evaluate, measure
from companion.recover.sparse import BASES, DCTBasis, WaveletBasis, lasso, make_basis

SHAPE = (2, 4, 6)


def draws(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def photograph_crops(number=3, side=16):
    whole = resize(photographs.astronaut() / 255, (64, 64), anti_aliasing=True)
    crops = [whole[i * side : (i + 1) * side, i * side : (i + 1) * side] for i in range(number)]
    return torch.tensor(np.stack(crops), dtype=torch.float32).movedim(-1, 1).contiguous()


def matrix_of(basis, shape):
    """Matrix [n, n] whose columns are the images of the basis."""
    n = math.prod(shape)
    return basis.synthesise(torch.eye(n, dtype=torch.float64).view(n, *shape)).flatten(1).T


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(BASES),
    wavelet=st.sampled_from(["db1", "db2", "sym4"]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
)
def test_bases_are_orthonormal_and_synthesis_is_the_adjoint(name, wavelet, height, width):
    shape = (1, height, width)
    basis = make_basis(name, height, width, draws(1), wavelet)
    matrix = matrix_of(basis, shape)
    assert torch.allclose(matrix.T @ matrix, torch.eye(len(matrix)).double(), atol=1e-12)
    x = draws(3, 2, height, width)
    assert torch.allclose(basis.synthesise(basis.analyse(x)), x, atol=1e-12)
    analysed = basis.analyse(x[:, :1]).flatten(1)
    assert torch.allclose(analysed, x[:, :1].flatten(1) @ matrix, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (5, 7), (1, 9)])
def test_dct_is_scipys(size):
    x = draws(2, 3, *size)
    expected = scipy.fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho")
    assert np.allclose(DCTBasis(*size, x).analyse(x).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Level value")
@pytest.mark.parametrize("wavelet", ["db1", "db4", "sym5"])
@pytest.mark.parametrize(("size", "depth"), [((32, 32), 5), ((28, 28), 2), ((64, 16), 4), ((12, 6), 1), ((7, 8), 0)])
def test_wavelets_are_pywavelets_as_deep_as_both_sides_are_even(wavelet, size, depth):
    x = draws(2, 3, *size)
    basis = WaveletBasis(*size, x, wavelet)
    assert basis.depth == depth
    levels = pywt.wavedec2(x.numpy(), wavelet, mode="periodization", level=depth, axes=(-2, -1))
    expected, _ = pywt.coeffs_to_array(levels, axes=(-2, -1))
    assert np.allclose(basis.analyse(x).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(("m", "weight"), [(20, 0.01), (20, 1.0), (60, 0.1)])
def test_same_minimum_as_scikit_learn(basis, m, weight):
    operator, y = measure.Gaussian(SHAPE, m, 1), draws(3, m)
    design = operator.matrix(y) @ matrix_of(make_basis(basis, *SHAPE[1:], y), SHAPE)
    result = lasso(operator, y, basis, weight, tolerance=1e-11, max_iterations=100_000)
    assert result.converged.all() and result.x.dtype == torch.float64
    # scikit-learn minimises ‖·‖² / (2 m) + α ‖c‖₁
    oracle = Lasso(alpha=weight / (2 * m), fit_intercept=False, tol=1e-13, max_iter=1_000_000)
    for i in range(3):
        expected = torch.from_numpy(oracle.fit(design.numpy(), y[i].numpy()).coef_)
        energy = (design @ expected - y[i]).square().sum() + weight * expected.abs().sum()
        assert float(result.energy[i]) == pytest.approx(float(energy), rel=1e-6)
        assert torch.allclose(result.z[i], expected, rtol=0, atol=1e-4)
        assert torch.equal(result.z[i] == 0, expected.abs() < 1e-9)


@pytest.mark.parametrize("basis", BASES)
def test_result_holds_the_objective_of_what_it_returns(basis):
    operator, y = measure.Gaussian(SHAPE, 30, 0), draws(2, 30)
    result = lasso(operator, y, basis, 0.3)
    coefficients = make_basis(basis, *SHAPE[1:], y).analyse(result.x).flatten(1)
    assert torch.allclose(coefficients, result.z, atol=1e-12)
    energy = (operator(result.x) - y).square().sum(1) + 0.3 * result.z.abs().sum(1)
    assert torch.allclose(result.energy, energy, rtol=1e-12)


@pytest.mark.slow
def test_default_tolerance_bounds_the_excess_of_the_objective():
    operator, y = measure.Gaussian(SHAPE, 20, 0), draws(4, 20)
    best = lasso(operator, y, weight=0.1, tolerance=1e-10, max_iterations=100_000).energy
    excess = lasso(operator, y, weight=0.1).energy / best - 1
    assert (excess >= -1e-9).all() and (excess <= 0.01).all()


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("weight", [0.02, 1.0, 1e3])
def test_denoising_is_soft_thresholding_at_half_the_weight(basis, weight):
    y = draws(3, 1, 8, 8)
    phi = make_basis(basis, 8, 8, y)
    c = phi.analyse(y)
    expected = phi.synthesise(c.sign() * (c.abs() - weight / 2).clamp(min=0))
    result = lasso(measure.Identity((1, 8, 8)), y, basis, weight, tolerance=1e-12)
    assert result.converged.all()
    assert torch.allclose(result.x, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["dct", "wavelet"])
def test_no_image_depends_on_its_neighbours(basis):
    x = photograph_crops() * torch.tensor([1.0, 0.3, 0.0]).view(-1, 1, 1, 1)
    operator = measure.Gaussian(tuple(x.shape[1:]), 200, 0)
    y = operator(x)
    together = lasso(operator, y, basis, 0.1)
    for i in range(3):
        alone = lasso(operator, y[i : i + 1], basis, 0.1)
        assert torch.allclose(alone.x[0], together.x[i], rtol=0, atol=1e-5)
        assert abs(int(alone.evaluations[0]) - int(together.evaluations[i])) <= 1
    assert torch.equal(together.x[2], torch.zeros_like(x[2])) and together.converged[2]


@pytest.mark.slow
def test_a_small_weight_needs_no_large_budget():
    x = photograph_crops()
    away = []
    for seed in range(2):
        operator = measure.Gaussian(tuple(x.shape[1:]), 60, seed)
        y = operator(x) + 0.1 / math.sqrt(60) * draws(3, 60, dtype=torch.float32)
        cut = lasso(operator, y, weight=0.01, max_iterations=250)
        full = lasso(operator, y, weight=0.01)
        assert full.converged.all() and not cut.converged.any()
        away.append((evaluate.psnr(cut.x, x) - evaluate.psnr(full.x, x)).abs())
    # With the small weight from the first step on, images would still be up to 3 dB away after so few iterations.
    assert torch.cat(away).mean() < 0.5


@pytest.mark.slow
def test_result_says_what_happened():
    operator, y = measure.Gaussian(SHAPE, 20, 0), draws(2, 20)
    cut = lasso(operator, y, max_iterations=5, tolerance=1e-9)
    assert not cut.converged.any() and cut.reason == ["stopped after 5 iterations"] * 2
    assert cut.trace["energy"].shape == cut.trace["evaluations"].shape == (6, 2)
    assert torch.allclose(cut.trace["energy"][0], y.square().sum(1))
    assert torch.equal(cut.energy, cut.trace["energy"].amin(0))
    assert torch.equal(cut.trace["evaluations"][-1].long(), cut.evaluations)
    done = lasso(operator, y)
    assert done.converged.all() and done.reason == ["duality gap below tolerance"] * 2
    again = lasso(operator, y)
    assert torch.equal(done.x, again.x)


def test_an_image_that_fails_keeps_its_best_iterate_and_touches_no_other():
    class Unsound(measure.Identity):
        def apply(self, x):
            x_ = x.flatten(1)
            return torch.where((x_[:, 0] > 0.9 * x_.norm(dim=1)).view(-1, 1, 1, 1), torch.nan, x)

    y = draws(3, *SHAPE)
    y[1, 0, 0, 0] = 1000
    result = lasso(Unsound(SHAPE), y)
    assert result.converged.tolist() == [True, False, True]
    assert result.reason[1] == "energy not finite"
    assert torch.isfinite(result.x).all() and torch.isfinite(result.energy).all()
    sound = lasso(measure.Identity(SHAPE), y)
    assert torch.allclose(result.x[[0, 2]], sound.x[[0, 2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operator": measure.SignOf(measure.Gaussian(SHAPE, 10, 0))}, "operator: got SignOf; allowed: a linear"),
        ({"operator": measure.Gaussian((48,), 10, 0)}, r"operator: got one on arrays \(48,\); allowed: on images"),
        ({"y": draws(2, 11)}, r"y: got shape \(2, 11\); allowed: \[batch, 10\]"),
        ({"y": draws(2, 10) * math.nan}, "y: got 20 NaN or infinite values"),
        ({"basis": "fourier"}, "basis: got 'fourier'; allowed: dct, wavelet, pixel"),
        ({"basis": "wavelet", "wavelet": "bior2.2"}, "wavelet: got 'bior2.2'; allowed: an orthogonal one"),
        ({"basis": "wavelet", "wavelet": "haarlet"}, "wavelet: got 'haarlet'"),
        ({"weight": 0.0}, "weight: got 0.0; allowed: a finite number > 0"),
        ({"weight": math.nan}, "weight: got nan"),
        ({"weight": 1e100, "y": draws(2, 10, dtype=torch.float32)}, r"weight: got 1e\+100; allowed: at most 3.4e\+38"),
        ({"basis": "wavelet", "wavelet": "dmey"}, "wavelet: got 'dmey'; allowed: an orthogonal one"),
        ({"tolerance": -1.0}, "tolerance: got -1.0"),
        ({"max_iterations": 1.5}, "max_iterations: got 1.5; allowed: a whole number >= 1"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message) as error:
        lasso(**{"operator": measure.Gaussian(SHAPE, 10, 0), "y": draws(2, 10), **change})
    assert "\n" not in str(error.value)
