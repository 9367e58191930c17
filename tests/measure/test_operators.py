"""Linear operators against dense matrices, autograd and statistics; bad input."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import signal, stats

from companion import energy, measure
from companion.measure import masks


def kernel(seed):
    return torch.rand(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")


def masks_of(shape, seed):
    return torch.stack([masks.random_subpixels(shape, 0.4, seed + k) for k in range(4)])


# What test_contract.py checks: from a class to examples made from a shape, (channels, height, width), and a seed.
OPERATORS = {
    measure.Identity: [lambda shape, seed: measure.Identity(shape)],
    measure.Mask: [
        lambda shape, seed: measure.Mask(masks.random_subpixels(shape, 0.4, seed)),
        lambda shape, seed: measure.Mask(masks.random_pixels(shape, 0.4, seed)[0], channels=shape[0]),
        lambda shape, seed: measure.Mask(masks_of(shape, seed)),
        lambda shape, seed: measure.Mask(torch.ones(shape, dtype=torch.bool, device="cpu")),
    ],
    measure.Gaussian: [lambda shape, seed: measure.Gaussian(shape, 1 + seed, seed)],
    measure.Fourier: [
        lambda shape, seed: measure.Fourier(masks.random_pixels(shape, 0.4, seed)[0], channels=shape[0]),
        lambda shape, seed: measure.Fourier(torch.ones(shape[1:], dtype=torch.bool, device="cpu"), channels=shape[0]),
    ],
    measure.PerImage: [
        lambda shape, seed: measure.PerImage([measure.Gaussian(shape, 5, seed + k) for k in range(3)]),
        lambda shape, seed: measure.PerImage([measure.Mask(mask) for mask in masks_of(shape, seed)]),
    ],
    measure.Blur: [
        lambda shape, seed: measure.Blur(shape, kernel(seed)),
        lambda shape, seed: measure.Blur.gaussian(shape, 0.5, 3),
        lambda shape, seed: measure.Blur(shape, kernel(seed)[:1, :1]),
    ],
    measure.Downsample: [
        lambda shape, seed: measure.Downsample((shape[0], 2 * shape[1], 3 * 2 * shape[2]), 2),
        lambda shape, seed: measure.Downsample((shape[0], 3 * shape[1], 3 * shape[2]), 3),
        lambda shape, seed: measure.Downsample(shape, 1),
    ],
    measure.Scaling: [
        lambda shape, seed: measure.Scaling(shape, 0.5 - seed),
        lambda shape, seed: measure.Scaling(shape, torch.arange(1.0, 1 + shape[2], device="cpu")),
    ],
    measure.Composition: [
        lambda shape, seed: measure.Composition(measure.SaturatingCamera(shape), measure.Scaling(shape, 0.7)),
        lambda shape, seed: measure.Composition(
            measure.SaturatingCamera((5,)), OPERATORS[measure.PerImage][0](shape, seed)
        ),
    ],
    measure.LinearComposition: [
        lambda shape, seed: measure.LinearComposition(measure.Scaling((5,), 2.0), measure.Gaussian(shape, 5, seed)),
        lambda shape, seed: measure.LinearComposition(measure.Mask(masks_of(shape, seed)), measure.Scaling(shape, 0.5)),
    ],
    measure.PhaseRetrieval: [
        lambda shape, seed: measure.PhaseRetrieval(measure.Gaussian(shape, 1 + seed, seed)),
        lambda shape, seed: measure.PhaseRetrieval(OPERATORS[measure.PerImage][0](shape, seed)),
    ],
    measure.SaturatingCamera: [lambda shape, seed: measure.SaturatingCamera(shape, 1.0 + seed)],
    measure.SignOf: [
        lambda shape, seed: measure.SignOf(measure.Gaussian(shape, 1 + seed, seed)),
        lambda shape, seed: measure.SignOf(OPERATORS[measure.PerImage][0](shape, seed)),
    ],
}
SURROGATE_GRADIENT = [measure.SignOf]


def test_fourier_measures_numpys_frequencies_under_a_mask_with_zero_in_the_middle():
    mask, x = torch.zeros(5, 6, dtype=torch.bool), torch.rand(2, 3, 5, 6, dtype=torch.float64)
    mask[2, 3], mask[0, 4], mask[4, 1] = True, True, True
    spectrum = np.fft.fftshift(np.fft.fft2(x.numpy(), norm="ortho"), (2, 3))[:, :, [0, 2, 4], [4, 3, 1]]
    y = measure.Fourier(mask, channels=3)(x)
    np.testing.assert_allclose(torch.view_as_complex(y).numpy(), spectrum, atol=1e-12)
    np.testing.assert_allclose(y[:, :, 1, 0], x.sum((2, 3)) / math.sqrt(30), atol=1e-12)
    whole = measure.Fourier(torch.ones(5, 6, dtype=torch.bool), channels=3)
    torch.testing.assert_close(whole.adjoint(whole(x)), x)
    for wrong in (mask.double(), mask[None], mask[1], torch.zeros(2, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"mask: got .*; allowed: a boolean tensor of shape \[H, W\]"):
            measure.Fourier(wrong)
    with pytest.raises(ValueError, match=r"y: got torch.complex128 tensor; .* \(complex numbers: as real pairs"):
        whole.adjoint(torch.view_as_complex(whole(x))[..., None].expand(-1, -1, -1, 2))


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


def test_the_matrix_handed_out_is_not_the_operators_own():
    operator, x = measure.Gaussian((4,), 3, domain="real"), torch.ones(1, 4)
    before = operator(x)
    operator.matrix(x).mul_(0)
    assert torch.equal(operator(x), before)


def test_mask_measures_the_marked_values_only():
    mask = torch.tensor([[[True, False], [False, True]], [[False, False], [True, True]]])
    operator = measure.Mask(mask)
    x = torch.arange(8.0).view(1, 2, 2, 2)
    assert operator.output_shape == (4,)
    assert operator(x).tolist() == [[0, 3, 6, 7]]
    assert torch.equal(operator.adjoint(operator(x)), x * mask)
    assert measure.Mask(mask[0], channels=3).shape == (3, 2, 2)


def test_masks_of_each_image_are_those_alone():
    several = masks_of((2, 5, 6), 0)
    x = torch.rand(4, 2, 5, 6)
    together = measure.Mask(several)(x)
    for k in range(4):
        assert torch.equal(together[k], x[k][several[k]])
    assert torch.equal(measure.Mask(several).select([2, 0])(x[[2, 0]]), together[[2, 0]])
    assert torch.equal(measure.PerImage([measure.Mask(mask) for mask in several])(x), together)


class Grey(measure.Operator):
    """A user's operator that declares one shape and returns another."""

    def apply(self, x):
        return x.mean(1, keepdim=True)


class Wrong(measure.LinearOperator):
    """A user's operator whose adjoint is `factor` times what it should be."""

    def __init__(self, factor):
        super().__init__((1, 4, 4), (3, 3))
        self.factor, self.a = factor, normal(9, 16)

    def apply(self, x):
        return (x.flatten(1).to(self.a.dtype) @ self.a.T).unflatten(1, (3, 3))

    def apply_adjoint(self, y):
        return self.factor * (y.flatten(1) @ self.a.conj()).unflatten(1, self.shape)


def normal(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_a_wrong_shape_from_apply_is_refused_wherever_it_is_called():
    operator, x = Grey((3, 8, 8), (8, 8)), torch.rand(4, 3, 8, 8)
    y, problem = x.mean(1), measure.Problem(operator, measure.GaussianNoise(0.1))
    for call in (
        lambda: operator(x),
        lambda: operator.forward(x),
        lambda: problem.observe(x),
        lambda: problem.log_likelihood(x, y),
        lambda: energy.SquaredMisfit(operator, y)(x),
        lambda: energy.NoiseMisfit(problem, y)(x),
    ):
        with pytest.raises(ValueError, match=r"Grey.apply: got shape \(4, 1, 8, 8\); allowed: \(4, 8, 8\)"):
            call()


def test_wrong_adjoints_are_reported():
    assert measure.check_adjoint(Wrong(1)) < 1e-14
    with pytest.raises(ValueError, match=r"operator: got Wrong with <A x, y> = .* but .* error of"):
        measure.check_adjoint(Wrong(-1))
    short = Wrong(1)
    short.a = short.a[:8]
    with pytest.raises(RuntimeError):
        short(torch.rand(1, 1, 4, 4))
    short = Wrong(1)
    short.apply_adjoint = lambda y: y
    with pytest.raises(ValueError, match=r"Wrong.apply_adjoint: got shape \(3, 3, 3\); allowed: \(3, 1, 4, 4\)"):
        measure.check_adjoint(short)


def test_adjoints_of_complex_operators_are_checked_too():
    operator = Wrong(1)
    operator.a = normal(9, 16, dtype=torch.complex128)
    assert measure.check_adjoint(operator) < 1e-14
    operator.factor = 1j
    with pytest.raises(ValueError, match="operator: got Wrong"):
        measure.check_adjoint(operator)
    fourier = Wrong(1)  # of real images: the adjoint is the real part
    fourier.a = operator.a
    fourier.apply_adjoint = lambda y: (y.flatten(1) @ operator.a.conj()).real.unflatten(1, (1, 4, 4))
    assert measure.check_adjoint(fourier) < 1e-14


def test_measurements_of_pixels_up_to_255_are_warned_of(recwarn):
    shape = (3, 8, 8)
    mask = measure.Mask(masks.random_subpixels(shape, 0.4, 0))
    operators = [measure.Identity(shape), mask, measure.Gaussian(shape, 20), measure.Downsample(shape, 2)]
    x = torch.rand(2, *shape)
    for operator in operators:
        measure.Problem(operator, measure.GaussianNoise(2.0)).observe(x)
        energy.SquaredMisfit(operator, operator(x) + 2 * torch.randn(2, *operator.output_shape))
        assert not recwarn.list
        with pytest.warns(UserWarning, match="y: got .* pixels are in .0, 1.: of 0 to 255, measure x / 255"):
            energy.SquaredMisfit(operator, operator(255 * x))
    energy.SquaredMisfit(measure.Identity(shape, domain="real"), 255 * x)
    with pytest.raises(ValueError, match=r"y: got torch.uint8 tensor; .* 0 to 255: divide by 255"):
        energy.SquaredMisfit(operators[0], (255 * x).byte())


def test_the_domain_says_what_is_observed_not_the_number_of_axes():
    noise = measure.GaussianNoise(0.1)
    for shape in ((1, 4, 4), (16,)):
        x = -torch.ones(2, *shape)
        measure.Problem(measure.Identity(shape, domain="real"), noise).observe(x)
        measure.Problem(measure.SignOf(measure.Gaussian(shape, 3, domain="real")), noise).observe(x)
        with pytest.raises(ValueError, match=r"x: got pixels from -1 to -1; allowed: pixels in \[0, 1\]"):
            measure.Problem(measure.Gaussian(shape, 3), noise).observe(x)


def test_sizes_and_seeds_are_numbers_of_numpy_and_torch_too():
    x = torch.rand(2, 1, 4, 4)
    expected = measure.Gaussian((1, 4, 4), 5, 3)(x)
    for kind in (np.int64, np.uint8, torch.tensor):
        operator = measure.Gaussian((kind(1), kind(4), kind(4)), kind(5), kind(3))
        assert torch.equal(operator(x), expected) and operator.output_shape == (5,)
        assert measure.Downsample(np.array([1, 4, 4]), kind(2)).output_shape == (1, 2, 2)
    for kind in (np.float32, torch.tensor):
        assert measure.GaussianNoise(kind(0.5)).std == 0.5
        assert torch.equal(masks.centre((1, 8, 8), kind(0.5)), masks.centre((1, 8, 8), 0.5))


def test_a_pickled_matrix_is_its_seed():
    operator = measure.Gaussian((1, 64, 64), 500)
    operator(torch.rand(1, 1, 64, 64))
    assert len(pickle.dumps(operator)) < 2000


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


class Fourier(measure.LinearOperator):
    """The discrete Fourier transform, whose values are complex."""

    def __init__(self, shape):
        super().__init__(shape, shape)

    def apply(self, x):
        return torch.fft.fft2(x)

    def apply_adjoint(self, y):
        return torch.fft.ifft2(y) * math.prod(self.shape[1:])


def test_magnitudes_lose_the_phase_of_real_and_of_complex_measurements():
    x = normal_images(1, 5, 6)
    real = measure.PhaseRetrieval(measure.Gaussian((1, 5, 6), 8))
    torch.testing.assert_close(real(x), real.linear(x) ** 2)
    torch.testing.assert_close(real(-x), real(x))
    fourier = measure.PhaseRetrieval(Fourier((1, 5, 6)))
    np.testing.assert_allclose(fourier(x), np.abs(np.fft.fft2(x.numpy())) ** 2, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fourier(x.roll((2, 1), (2, 3))), fourier(x))  # a shift is a phase
    zero = torch.zeros(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(fourier(zero).sum(), zero)
    assert not gradient.any()  # not NaN


@pytest.mark.parametrize("kind", ["alone", "composed", "per image"])
def test_magnitudes_of_real_pairs_are_those_of_complex_numbers(kind):
    x, mask = normal_images(2, 5, 6), torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    linear = measure.Fourier(mask, channels=2, domain="real")
    if kind == "composed":
        linear = measure.LinearComposition(linear, measure.Identity((2, 5, 6), "real"))
    if kind == "per image":
        linear = measure.PerImage([linear] * 3)
    operator = measure.PhaseRetrieval(linear)
    spectrum = np.fft.fftshift(np.fft.fft2(x.numpy(), norm="ortho"), (-2, -1))[..., mask.numpy()]
    np.testing.assert_allclose(operator(x), np.abs(spectrum) ** 2, rtol=1e-10, atol=1e-12)
    assert operator.output_shape == (2, int(mask.sum()))
    assert measure.Problem(operator, measure.GaussianNoise(0.1)).observe(x).shape == operator(x).shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frequencies_of_sixteen_bits(dtype):
    x, operator = normal_images(1, 5, 6), measure.Fourier(torch.ones(5, 6, dtype=torch.bool), domain="real")
    y = operator(x.to(dtype))
    assert y.dtype == operator.adjoint(y).dtype == dtype
    torch.testing.assert_close(y.double(), operator(x), atol=0.05, rtol=0.05)


def normal_images(*shape):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_one_operator_after_another_is_their_product():
    blur, less = measure.Blur((2, 6, 7), kernel(1)), measure.Downsample((2, 4, 4), 2)
    both, x = measure.LinearComposition(less, blur), normal_images(2, 6, 7)
    torch.testing.assert_close(both(x), less(blur(x)))
    dense = [
        torch.stack([op(e.view(1, *op.shape)).flatten() for e in torch.eye(math.prod(op.shape))], 1)
        for op in (less, blur)
    ]
    torch.testing.assert_close(
        both(x).flatten(1), x.flatten(1) @ (dense[0] @ dense[1]).double().T, rtol=1e-5, atol=1e-6
    )


def test_a_camera_saturates_as_its_well_fills():
    """The charge c of a well of size 1 obeys dc/dx = exposure · (1 − c), c(0) = 0."""
    camera, x = measure.SaturatingCamera((1, 2, 2), 2.5), torch.linspace(0, 1, 4, dtype=torch.float64).view(1, 1, 2, 2)
    x.requires_grad_()
    charge = camera(x)
    (slope,) = torch.autograd.grad(charge.sum(), x)
    torch.testing.assert_close(slope, 2.5 * (1 - charge))
    assert charge.flatten()[0] == 0 and (charge < 1).all()


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
        (lambda: measure.Gaussian((3, 4, 4), 5, domain="reals"), "domain: got 'reals'; allowed: image, real"),
        (lambda: measure.Gaussian((3, 4, 0), 5), r"shape: got \(3, 4, 0\)"),
        (lambda: measure.Identity("3x4"), "shape: got '3x4'"),
        (lambda: measure.Mask(torch.ones(3, 4)), "mask: got torch.float32 .*mask > 0.5"),
        (lambda: measure.Mask(torch.zeros(3, 4, dtype=torch.bool)), r"mask: got \[0\] measured values"),
        (lambda: measure.Mask(torch.ones(1, 0, 4, dtype=torch.bool)), r"mask: got torch.bool \(1, 0, 4\)"),
        (
            lambda: measure.Mask(torch.eye(4).view(2, 1, 2, 4) > torch.eye(2)[:, :1, None, None] - 1e-9),
            "measured values",
        ),
        (lambda: measure.PerImage([measure.Gaussian((4,), 2), measure.Gaussian((4,), 3)]), r"operators: got .*\(3,\)"),
        (lambda: measure.PerImage([measure.SignOf(measure.Gaussian((4,), 2))]), "operators: got SignOf"),
        (lambda: measure.PerImage([]), "operators: got none"),
        (lambda: measure.Mask(torch.ones(3, 4, 4, dtype=torch.bool), channels=1), "channels: got 1"),
        (lambda: measure.Downsample((3, 6, 6), 4), "factor 4"),
        (lambda: measure.Blur((3, 6, 6), torch.ones(7, 3)), "kernel: got shape"),
        (lambda: measure.Blur((3, 6, 6), torch.full((3, 3), torch.nan)), "kernel: got 9 NaN"),
        (lambda: measure.Blur((1, 8, 8), torch.empty(0, 0)), r"kernel: got shape \(0, 0\); allowed: .* from 1 × 1"),
        (lambda: measure.Blur.gaussian((1, 8, 8), 1e300), r"std: got 1e\+300; allowed: a kernel no larger than"),
        (lambda: measure.Blur.gaussian((1, 8, 8), 1.0, 10**12), "size: got 1000000000000; allowed: a kernel no"),
        (lambda: measure.SignOf(measure.SignOf(measure.Identity((1, 2, 2)))), "linear: got SignOf"),
        (lambda: measure.Composition(measure.Identity((4,)), measure.Gaussian((4,), 3)), r"outer: got one on \(4,\)"),
        (lambda: measure.Composition(torch.abs, measure.Gaussian((4,), 3)), "outer: got builtin"),
        (
            lambda: measure.LinearComposition(measure.SaturatingCamera((3,)), measure.Gaussian((4,), 3)),
            "outer: got SaturatingCamera; allowed: a LinearOperator",
        ),
        (
            lambda: measure.Composition(
                measure.PerImage([measure.Identity((3,))] * 2), measure.PerImage([measure.Gaussian((4,), 3)] * 3)
            ),
            "outer: got data for 2 images; allowed: for 3",
        ),
        (lambda: measure.SaturatingCamera((1, 2, 2), -1), "exposure: got -1"),
        (lambda: measure.Scaling((1, 2, 2), torch.inf), "factor: got inf"),
        (lambda: measure.Scaling((2,), torch.tensor([1j, 2 + 1j])), "factor: got torch.complex64 tensor"),
        (lambda: measure.Scaling((1, 2, 2), torch.ones(3)), r"factor: got shape \(3,\); allowed: broadcasts to"),
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


def test_an_operator_takes_tensors_of_a_device_without_autocast():
    assert measure.Identity((1, 4, 4)).forward(torch.zeros(2, 1, 4, 4, device="meta")).device.type == "meta"
