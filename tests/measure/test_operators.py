"""Linear operators against dense matrices, autograd and statistics; bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal, stats

from companion import measure
from companion.measure import masks

SHAPES = st.tuples(st.integers(1, 4), st.integers(4, 9), st.integers(4, 9))


def operators(shape, seed):
    channels, height, width = shape
    kernel = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [
        measure.Identity(shape),
        measure.Mask(masks.random_subpixels(shape, 0.4, seed)),
        measure.Mask(masks.random_pixels(shape, 0.4, seed)[0], channels=channels),
        measure.Gaussian(shape, 1 + seed, seed),
        measure.Blur(shape, kernel),
        measure.Blur.gaussian(shape, 0.5, 3),
        measure.Downsample((channels, 2 * height, 3 * 2 * width), 2),
        measure.Downsample((channels, 3 * height, 3 * width), 3),
    ]


@settings(max_examples=12, deadline=None)
@given(SHAPES, st.integers(1, 9), st.integers(0, 20), st.sampled_from([torch.float32, torch.float64]))
def test_adjoint_identity(shape, batch, seed, dtype):
    source = torch.Generator().manual_seed(seed)
    for operator in operators(shape, seed):
        x = torch.randn(batch, *operator.shape, generator=source, dtype=dtype)
        y = torch.randn(batch, *operator.output_shape, generator=source, dtype=dtype)
        measured, back = operator(x), operator.adjoint(y)
        assert measured.shape == y.shape and back.shape == x.shape
        assert measured.dtype == back.dtype == dtype
        left, right = (measured * y).flatten(1).sum(1), (x * back).flatten(1).sum(1)
        scale = measured.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
        assert ((left - right).abs() <= (1e-5 if dtype == torch.float32 else 1e-13) * scale).all()


@pytest.mark.parametrize("which", range(8))
def test_adjoint_is_the_gradient_that_autograd_finds(which):
    operator = operators((3, 5, 7), 4)[which]
    x = torch.randn(3, *operator.shape, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, *operator.output_shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((operator(x) * y).sum(), x)
    torch.testing.assert_close(operator.adjoint(y), gradient, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("which", range(8))
@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_has_the_same_measurements_in_every_batch(which, threads):
    operator = operators((3, 16, 16), 50)[which]
    x = torch.randn(11, *operator.shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = operator(x)
        back = operator.adjoint(together)
        for batch in (1, 2, 5, 8):
            assert torch.equal(operator(x[:batch]), together[:batch])
            assert torch.equal(operator(x[-batch:].clone()), together[-batch:])
            assert torch.equal(operator.adjoint(together[:batch]), back[:batch])
    finally:
        torch.set_num_threads(before)


def test_gaussian_entries_have_variance_one_over_m():
    operator = measure.Gaussian((3, 8, 8), 200, seed=3)
    matrix = operator.matrix(torch.zeros(1, dtype=torch.float64))
    assert matrix.shape == (200, 192)
    assert stats.kstest(matrix.flatten().numpy() * math.sqrt(200), "norm").pvalue > 1e-3
    assert abs(float(matrix.var()) * 200 - 1) < 5 * math.sqrt(2 / matrix.numel())
    assert torch.equal(measure.Gaussian((3, 8, 8), 200, seed=3).matrix(matrix), matrix)
    assert not torch.equal(measure.Gaussian((3, 8, 8), 200, seed=4).matrix(matrix), matrix)


def test_gaussian_is_the_same_matrix_in_both_dtypes_and_rows_are_shared():
    operator, x = measure.Gaussian((1, 5, 5), 11, seed=0), torch.rand(3, 1, 5, 5, dtype=torch.float64)
    dense = x.flatten(1) @ operator.matrix(x).T
    torch.testing.assert_close(operator(x), dense, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(operator(x.float()), dense.float(), rtol=1e-5, atol=1e-6)
    fewer = measure.Gaussian((1, 5, 5), 4, seed=0).matrix(x)
    torch.testing.assert_close(fewer * math.sqrt(4), operator.matrix(x)[:4] * math.sqrt(11), rtol=1e-14, atol=0)


def test_operators_first_used_in_inference_mode_serve_gradients_later():
    with torch.inference_mode():
        used = [
            measure.Gaussian((1, 4, 4), 7),
            measure.Mask(torch.rand(4, 4) > 0.5),
            measure.Blur.gaussian((1, 4, 4), 0.5, 3),
        ]
        for operator in used:
            operator(torch.rand(1, 1, 4, 4))
    for operator in used:
        x = torch.rand(2, 1, 4, 4, requires_grad=True)
        operator(x).sum().backward()
        torch.testing.assert_close(x.grad, operator.adjoint(torch.ones(2, *operator.output_shape)))


def test_mask_measures_the_marked_values_only():
    mask = torch.tensor([[[True, False], [False, True]], [[False, False], [True, True]]])
    operator = measure.Mask(mask)
    x = torch.arange(8.0).view(1, 2, 2, 2)
    assert operator.output_shape == (4,)
    assert operator(x).tolist() == [[0, 3, 6, 7]]
    assert torch.equal(operator.adjoint(operator(x)), x * mask)
    assert measure.Mask(mask[0], channels=3).shape == (3, 2, 2)


def test_blur_is_scipys_valid_convolution():
    kernel, x = torch.rand(3, 5, dtype=torch.float64), torch.rand(2, 3, 8, 9, dtype=torch.float64)
    blurred = measure.Blur((3, 8, 9), kernel)(x)
    for image, result in zip(x.flatten(0, 1), blurred.flatten(0, 1), strict=True):
        expected = signal.convolve2d(image.numpy(), kernel.numpy(), mode="valid")
        torch.testing.assert_close(result, torch.from_numpy(expected))
    assert measure.Blur.gaussian((1, 32, 32), 1.5)(torch.ones(1, 1, 32, 32)).allclose(torch.ones(1, 1, 22, 22))


def test_downsample_takes_block_means():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert measure.Downsample((1, 4, 4), 2)(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_sign_with_straight_through_gradient():
    linear = measure.Gaussian((1, 4, 4), 7, seed=1)
    operator = measure.SignOf(linear)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    y = operator(x)
    assert torch.equal(y, linear(x).sign()) and y.dtype == torch.float64
    assert operator(torch.zeros(1, 1, 4, 4)).tolist() == [[1.0] * 7]
    weight = torch.randn(3, 7, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    torch.testing.assert_close(gradient, linear.adjoint(weight))


def test_apply_lets_nan_through_where_a_call_refuses_it():
    operator, x = measure.Gaussian((1, 4, 4), 5), torch.rand(3, 1, 4, 4)
    x[1, 0, 2, 2] = torch.nan
    with pytest.raises(ValueError, match="x: got 1 NaN"):
        operator(x)
    measured = operator.apply(x)
    assert measured[1].isnan().all()
    assert torch.equal(measured[[0, 2]], operator(x[[0, 2]]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: measure.Gaussian((3, 4, 4), 0), "m: got 0"),
        (lambda: measure.Gaussian((3, 4, 4), -5), "m: got -5"),
        (lambda: measure.Gaussian((3, 4, 4), 5, seed=-1), "seed: got -1"),
        (lambda: measure.Gaussian((3, 4, 4), 5, seed=2**64), "seed: got 18446744073709551616"),
        (lambda: measure.Gaussian((3, 4, 0), 5), r"shape: got \(3, 4, 0\)"),
        (lambda: measure.Identity("3x4"), "shape: got '3x4'"),
        (lambda: measure.Mask(torch.ones(3, 4)), "mask: got torch.float32"),
        (lambda: measure.Mask(torch.zeros(3, 4, dtype=torch.bool)), "mask: got False everywhere"),
        (lambda: measure.Mask(torch.ones(3, 4, 4, dtype=torch.bool), channels=1), "channels: got 1"),
        (lambda: measure.Downsample((3, 6, 6), 4), "factor 4"),
        (lambda: measure.Blur((3, 6, 6), torch.ones(7, 3)), "kernel: got shape"),
        (lambda: measure.Blur((3, 6, 6), torch.full((3, 3), torch.nan)), "kernel: got 9 NaN"),
        (lambda: measure.Blur((1, 8, 8), torch.empty(0, 0)), r"kernel: got shape \(0, 0\); allowed: .* from 1 × 1"),
        (lambda: measure.Blur.gaussian((1, 8, 8), 1e300), r"std: got 1e\+300; allowed: a kernel no larger than"),
        (lambda: measure.Blur.gaussian((1, 8, 8), 1.0, 10**12), "size: got 1000000000000; allowed: a kernel no"),
        (lambda: measure.SignOf(measure.SignOf(measure.Identity((1, 2, 2)))), "linear: got SignOf"),
        (lambda: measure.Identity((1, 2, 2))(torch.rand(1, 2, 2)), "x: got shape"),
        (lambda: measure.Identity((1, 2, 2))(torch.rand(0, 1, 2, 2)), "x: got shape"),
        (lambda: measure.Identity((1, 2, 2))(torch.ones(1, 1, 2, 2, dtype=torch.int64)), "x: got torch.int64"),
        (lambda: measure.Gaussian((1, 2, 2), 3).adjoint(torch.rand(1, 4)), "y: got shape"),
    ],
)
def test_bad_input_is_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value) and "allowed:" in str(error.value)
