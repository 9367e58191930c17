import pytest
import torch

from companion import measure, recover
from companion._support import normal

DOUBLE = torch.zeros((), dtype=torch.float64)
SHAPE, STD = (1, 6, 8), 0.1
OPERATORS = {
    "blur": measure.Blur.gaussian(SHAPE, 0.7, size=3),
    "downsample": measure.Downsample(SHAPE, 2),
    "gaussian": measure.Gaussian(SHAPE, 20, seed=1),
}


PIXELS = SHAPE[1] * SHAPE[2]
ROTATION = torch.linalg.qr(normal((PIXELS, PIXELS), 0, DOUBLE, "rotation"))[0]
DEVIATIONS, MEAN = torch.linspace(0.5, 0.15, PIXELS, dtype=torch.float64), normal(SHAPE, 0, DOUBLE, "mean")


def posterior_mean(x, std):
    """The denoiser of N(MEAN, R diag(DEVIATIONS²) Rᵀ): each principal component shrunk by its own factor."""
    shrink = DEVIATIONS**2 / (DEVIATIONS**2 + std**2)
    return MEAN + (((x - MEAN).flatten(1) @ ROTATION) * shrink @ ROTATION.mT).view_as(x)


def measured(operator, batch=3):
    return operator(normal((batch, *SHAPE), 0, DOUBLE, "x")) + STD * normal(
        (batch, *operator.output_shape), 0, DOUBLE, "noise"
    )


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.15, 0.4])
@pytest.mark.parametrize("name", OPERATORS)
def test_with_a_gaussians_denoiser_it_ends_at_the_exact_estimate_whatever_the_strength(name, strength):
    operator = OPERATORS[name]
    y = measured(operator)
    found = recover.plug_and_play(operator, y, posterior_mean, STD, strength, max_iterations=2000, tolerance=1e-9)
    exact = recover.gaussian_map(operator, y, ROTATION * DEVIATIONS, MEAN, STD).x
    assert found.converged.all()
    assert torch.allclose(found.x, exact, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_with_soft_thresholding_it_ends_where_the_lasso_does():
    operator, weight = OPERATORS["gaussian"], 20.0  # of ‖x‖₁ beside ‖A x − y‖² / 2σ²

    def soft(x, std):
        return x.sign() * (x.abs() - std**2 * weight).clamp(min=0)

    found = recover.plug_and_play(operator, measured(operator), soft, STD, 0.2, max_iterations=2000, tolerance=1e-8)
    options = {"max_iterations": 20000, "tolerance": 1e-9}
    exact = recover.lasso(operator, measured(operator), "pixel", 2 * STD**2 * weight, **options)
    assert exact.converged.all() and (exact.x == 0).any()
    assert torch.allclose(found.x, exact.x, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_each_image_ends_as_it_would_alone():
    operator = OPERATORS["blur"]
    y = measured(operator) * torch.tensor([1.0, 0.01, 100.0], dtype=torch.float64).view(3, 1, 1, 1)
    options = {"max_iterations": 100, "tolerance": 1e-3}
    together = recover.plug_and_play(operator, y, posterior_mean, STD, 0.1, **options)
    assert len(set(together.evaluations.tolist())) > 1
    for k in range(3):
        alone = recover.plug_and_play(operator, y[k : k + 1], posterior_mean, STD, 0.1, **options)
        assert torch.allclose(alone.x[0], together.x[k], rtol=1e-9, atol=1e-9)
        assert alone.evaluations[0] == together.evaluations[k]


def test_shrinking_strengths_are_what_the_denoiser_is_given_and_force_an_end():
    seen = []

    def rotate(x, std):
        """No proximal map of anything: turned by 90 degrees, in part."""
        seen.append(std)
        return x + std * (x.flip(2) - x)

    operator = OPERATORS["downsample"]
    found = recover.plug_and_play(
        operator, measured(operator), rotate, STD, 0.5, shrink=0.5, max_iterations=60, tolerance=1e-6
    )
    assert found.converged.all()
    assert seen[:3] == [0.5, 0.25, 0.125]


def test_a_denoiser_that_fails_for_one_image_stops_that_one_at_what_it_had():
    operator = OPERATORS["downsample"]
    y = measured(operator)

    def fails(x, std):
        x = posterior_mean(x, std)
        return torch.where(x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) > limit, torch.inf, x)

    sound = recover.plug_and_play(operator, y, posterior_mean, STD, 0.2, max_iterations=20)
    lengths = sound.x.flatten(1).norm(dim=1)
    limit = float(lengths.sort().values[1:].mean())
    found = recover.plug_and_play(operator, y, fails, STD, 0.2, max_iterations=20)
    longest = int(lengths.argmax())
    assert found.reason[longest] == "energy not finite" and not found.converged[longest]
    assert torch.isfinite(found.x).all()
    others = [k for k in range(3) if k != longest]
    assert torch.allclose(found.x[others], sound.x[others], rtol=1e-9, atol=1e-9)


def test_a_denoiser_may_answer_in_another_precision():
    operator, y = OPERATORS["downsample"], measured(OPERATORS["downsample"]).float()
    options = {"noise_std": STD, "strength": 0.2, "max_iterations": 3}
    found = recover.plug_and_play(operator, y, lambda x, std: posterior_mean(x.double(), std), **options)
    expected = recover.plug_and_play(operator, y.double(), posterior_mean, **options)
    torch.testing.assert_close(found.x, expected.x.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_std": 0.0}, "noise_std: got 0.0; allowed: a finite number > 0"),
        ({"strength": -1}, "strength: got -1"),
        ({"shrink": 1.5}, r"shrink: got 1.5; allowed: a number in \(0, 1\]"),
        ({"x0": torch.zeros(2, *SHAPE, dtype=torch.float64)}, "x0: got 2 images for 3 measurements"),
        ({"denoise": lambda x, std: x[:, :, 1:]}, r"denoise: got values of shape \(3, 1, 5, 8\); .* \(3, 1, 6, 8\)"),
        ({"denoise": lambda x, std: x[:1]}, r"denoise: got values of shape \(1, 1, 6, 8\); .* \(3, 1, 6, 8\)"),
        ({"denoise": lambda x, std: (255 * x).to(torch.uint8)}, "denoise: got torch.uint8 images"),
        ({"tolerance": 0}, "tolerance: got 0"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    operator = OPERATORS["downsample"]
    options = {"denoise": posterior_mean, "noise_std": STD, "strength": 0.1} | changes
    with pytest.raises(ValueError, match=message):
        recover.plug_and_play(operator, measured(operator), **options)
