import numpy as np
import pytest
import torch
from scipy import stats
from skimage import metrics

from companion import evaluate

SCORES = [evaluate.mse, evaluate.psnr, evaluate.ssim]


def pictures(batch=3, channels=3, height=12, width=9, seed=0):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def test_known_values():
    reference = torch.full((2, 3, 8, 8), 0.5)
    x = reference.clone()
    x[0] += 0.1
    x[1] -= 0.01
    assert torch.allclose(evaluate.mse(x, reference), torch.tensor([1e-2, 1e-4]).double(), rtol=1e-5)
    assert torch.allclose(evaluate.psnr(x, reference), torch.tensor([20.0, 40.0]).double(), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_scores_are_those_of_scikit_image_on_images_with_channels_last(channels):
    x, reference = pictures(channels=channels), pictures(channels=channels, seed=1)
    for image, truth, psnr, ssim in zip(
        x, reference, evaluate.psnr(x, reference), evaluate.ssim(x, reference), strict=True
    ):
        a, b = (np.moveaxis(t.double().numpy(), 0, -1) for t in (image, truth))
        assert float(psnr) == pytest.approx(metrics.peak_signal_noise_ratio(b, a, data_range=1), rel=1e-12)
        assert float(ssim) == pytest.approx(
            metrics.structural_similarity(b, a, data_range=1, channel_axis=-1), rel=1e-12
        )


def test_psnr_is_the_logarithm_of_the_mean_squared_error():
    x, reference = pictures(), pictures(seed=1)
    assert torch.allclose(
        evaluate.psnr(x, reference), -10 * torch.log10(evaluate.mse(x, reference)), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("score", SCORES)
def test_estimates_are_clipped(score):
    reference = pictures()
    x = reference + torch.randn(reference.shape, generator=torch.Generator().manual_seed(2))
    assert torch.equal(score(x, reference), score(x.clamp(0, 1), reference))


@pytest.mark.filterwarnings("error")
def test_a_perfect_estimate():
    x = pictures()
    assert torch.equal(evaluate.mse(x, x), torch.zeros(3).double())
    assert torch.isposinf(evaluate.psnr(x, x)).all()
    assert torch.allclose(evaluate.ssim(x, x), torch.ones(3).double())


@pytest.mark.parametrize("score", SCORES)
def test_one_float64_value_per_image_that_does_not_depend_on_the_others(score):
    x, reference = pictures().requires_grad_(), pictures(seed=1)
    together = score(x, reference)
    assert together.shape == (3,) and together.dtype == torch.float64 and not together.requires_grad
    alone = torch.cat([score(x[i : i + 1], reference[i : i + 1]) for i in range(3)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("x", "reference", "message"),
    [
        (pictures(height=10), pictures(), r"x: got shape \(3, 3, 10, 9\); allowed: \[batch, 3, 12, 9\]"),
        (pictures(batch=2), pictures(), "x: got 2 images for 3 references"),
        (pictures() * float("nan"), pictures(), "x: got 972 NaN"),
        (pictures(), pictures() * float("nan"), "reference: got 972 NaN"),
        (pictures(), 255 * pictures(), "reference: got pixels from"),
        (pictures(), pictures()[0], "reference: got"),
        (pictures(channels=0), pictures(channels=0), r"reference: got \(3, 0, 12, 9\)"),
        (pictures().numpy(), pictures(), "x: got shape ndarray"),
        ((255 * pictures()).byte(), pictures(), "x: got torch.uint8"),
    ],
)
def test_bad_input(score, x, reference, message):
    with pytest.raises(ValueError, match=message) as error:
        score(x, reference)
    assert "\n" not in str(error.value)


def test_images_too_small_for_the_window_of_ssim():
    with pytest.raises(ValueError, match="reference: got images of 6×9 pixels; allowed: sides >= 7"):
        evaluate.ssim(pictures(height=6), pictures(height=6))


def test_a_reference_just_outside_is_told_apart_from_one():
    one = torch.full((1, 1, 8, 8), 1.0000001)
    with pytest.raises(
        ValueError, match=r"reference: got pixels from 1.0000001\d* to 1.0000001\d*; allowed: pixels in"
    ):
        evaluate.psnr(one, one)


@pytest.mark.parametrize("shape", [(12, 9), (3, 12, 9), (3, 1, 12, 9), (3, 3, 12, 9)])
def test_scores_of_chosen_pixels_are_those_of_the_pixels_alone(shape):
    x, reference = pictures(), pictures(seed=1)
    where = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.3
    for image, score in enumerate(evaluate.psnr(x, reference, where=where)):
        chosen = np.broadcast_to(where.numpy(), (3, 3, 12, 9))[image]
        a, b = (t[image].double().numpy()[chosen] for t in (x, reference))
        assert float(score) == pytest.approx(metrics.peak_signal_noise_ratio(b, a, data_range=1), rel=1e-12)
    assert torch.equal(evaluate.psnr(x, reference), evaluate.psnr(x, reference, where=torch.ones(1).bool()))


@pytest.mark.parametrize(
    ("where", "given"),
    [
        (torch.ones(12, 9), r"torch.float32 \(12, 9\)"),
        (torch.ones(9, 12).bool(), r"torch.bool \(9, 12\)"),
        (torch.eye(3).bool()[:, :1, None, None], r"torch.bool \(3, 1, 1, 1\)"),
    ],
)
def test_pixels_that_cannot_be_chosen(where, given):
    allowed = r"booleans that broadcast to \(3, 3, 12, 9\)"
    with pytest.raises(ValueError, match=f"where: got {given}; allowed: {allowed}"):
        evaluate.mse(pictures(), pictures(), where)


def test_the_psnr_of_the_mean_error():
    x, reference = pictures(), pictures(seed=1)
    whole = metrics.peak_signal_noise_ratio(reference.double().numpy(), x.double().numpy(), data_range=1)
    scores = evaluate.psnr(x, reference)
    assert float(evaluate.psnr_of_mean(scores)) == pytest.approx(whole, rel=1e-12)
    two = evaluate.psnr_of_mean(np.stack([scores.numpy(), [10.0, 20.0, 30.0]], axis=1))
    assert two[1] == pytest.approx(-10 * np.log10((0.1 + 0.01 + 0.001) / 3))


def test_intervals_are_students_over_photographs():
    values = np.random.default_rng(0).normal(25, 3, (72, 2))
    photo = np.tile(np.arange(24), 3)
    means = values.reshape(3, 24, 2).mean(0)
    found = evaluate.interval(values, groups=torch.from_numpy(photo))
    low, high = stats.t.interval(0.95, 23, loc=means.mean(0), scale=stats.sem(means))
    np.testing.assert_allclose(found.mean - found.half, low)
    np.testing.assert_allclose(found.mean + found.half, high)
    assert found.groups == 24 and evaluate.interval(values).groups == 72
    assert (evaluate.interval(values).half < found.half * 2).all()


def test_paired_differences_are_tested_as_scipy_does():
    first, second = np.random.default_rng(1).normal(size=(2, 30))
    found = evaluate.paired(torch.from_numpy(first), second)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert float(found.mean - found.half) == pytest.approx(expected.low)
    assert float(found.mean + found.half) == pytest.approx(expected.high)
    assert f"{evaluate.Interval(torch.tensor(1.44), torch.tensor(0.58), 24):+.1f}" == "+1.4 ± 0.6"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate.interval([1.0]), r"values: got \(1,\); allowed: at least two"),
        (lambda: evaluate.interval([1.0, 2.0], [0, 0]), r"values: got \(1,\)"),
        (lambda: evaluate.interval([1.0, 2.0], [0]), r"groups: got \(1,\) for values \(2,\)"),
        (lambda: evaluate.paired([1.0, 2.0], [1.0]), r"other: got \(1,\); allowed: \(2,\)"),
    ],
)
def test_observations_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


MEASURED = [10, 20, 30, 40, 60, 80]


def test_errors_that_fall_like_one_over_pixels_save_the_ratio_of_their_constants():
    constants = np.random.default_rng(0).random(30)
    one = constants / np.array(MEASURED)[:, None]
    found = evaluate.saving(one, 2 * one, MEASURED, 60)
    np.testing.assert_allclose(found, 2)  # 60 pixels against 30, in every resample
    assert evaluate.saving(3 * one, one, MEASURED, 40).ratio == 0.5  # 80 are not enough
    for after, other in ((50, one), (60, one[:, :9])):
        with pytest.raises(ValueError, match="allowed"):
            evaluate.saving(one, other, MEASURED, after)
    for errors, measured in ((one * np.nan, MEASURED), (one, [60, *MEASURED[1:]])):
        with pytest.raises(ValueError, match="allowed"):
            evaluate.saving(errors, one, measured, 60)


def test_a_saving_counts_the_fewest_measurements_of_several_with_the_same_error():
    errors = np.array([[0.3, 0.3], [0.1, 0.1], [0.2, 0.2]])  # its mean does not fall with the most
    assert evaluate.saving(errors, errors, [154, 307, 614], 307) == (1, 1, 1)
    with pytest.raises(ValueError, match="resamples: got 0; allowed: a whole number >= 1"):
        evaluate.saving(errors, errors, [154, 307, 614], 307, resamples=0)


def test_a_saving_does_not_depend_on_the_order_of_the_numbers():
    measured = np.array([307, 154, 614])
    one, other = (np.array([[a, 2 * a], [0.5, 0.7], [0.1, 0.2]]) for a in (0.2, 0.3))
    rising = np.argsort(measured)
    expected = evaluate.saving(one[rising], other[rising], measured[rising], 307)
    assert evaluate.saving(one, other, measured, 307) == expected


def test_the_savings_interval_is_scipys():
    difficulty = np.random.default_rng(1).gamma(2, size=(2, 40))
    one, other = (scale * each / np.array(MEASURED)[:, None] for scale, each in zip((1, 1.5), difficulty, strict=True))

    def ratio(*images):
        chosen = np.array(images[0], dtype=int)
        error, curve = other[4, chosen].mean(), np.minimum.accumulate(one[:, chosen].mean(1))
        k = int(np.argmax(curve <= error))
        return 60 / (MEASURED[k - 1] + (curve[k - 1] - error) / (curve[k - 1] - curve[k]) * np.diff(MEASURED)[k - 1])

    options = {"n_resamples": 2000, "vectorized": False, "method": "percentile", "rng": 0}
    expected = stats.bootstrap((np.arange(40),), ratio, **options).confidence_interval
    found = evaluate.saving(one, other, MEASURED, 60)
    assert found.ratio == pytest.approx(ratio(np.arange(40)))
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=0.05)
