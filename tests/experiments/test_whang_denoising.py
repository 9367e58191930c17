"""Noise with structure: baselines that know the noise, ratios of noise rates, and energies of modes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from companion import measure, recover
from companion.experiments import registry
from companion.experiments.arrays import take
from companion.experiments.context import Context
from companion.experiments.parts import Part
from companion.experiments.whang import denoising, modes, sets
from companion.recover.total_variation import total_variation

PART = Part(torch.device("cpu"), 0)
QUICK = registry.get("whang.denoising-digits").settings["quick"]


def test_the_ratio_of_noise_rates_is_that_of_shifted_curves():
    levels = (0.3, 1.0, 2.0)
    spread = np.random.default_rng(0).normal(size=40)

    def psnr(factor):
        return 20 - 9 * np.log(np.array(levels) / factor)[:, None] + spread

    ratio, low, high = denoising.rate_ratio(levels, psnr(1.8), psnr(1.0))
    assert ratio == pytest.approx(1.8) and low == pytest.approx(1.8) and high == pytest.approx(1.8)
    noisy = psnr(1.8) + np.random.default_rng(1).normal(size=(3, 40))
    ratio, low, high = denoising.rate_ratio(levels, noisy, psnr(1.0))
    assert low < 1.8 < high and low < ratio < high


def test_weighted_total_variation_minimises_its_own_objective():
    """No small change of the estimate lowers Σ ((x − y) / σ)² + w TV(x), with w in units of the noise."""
    truth, problem, y = denoising._problem(QUICK, PART, "test", 1, "sinusoidal", 0.3)
    std = sets.std_map(problem.noise, y)
    rms = std.square().mean().sqrt()
    x = denoising._solver(QUICK, PART, problem, y, "tv")(0.7).x.double()

    def objective(x):
        return ((x - y) * rms / std).square().flatten(1).sum(1) + 0.7 * rms * total_variation(x)

    source = torch.Generator().manual_seed(0)
    for size in (1e-2, 1e-1):
        for _ in range(10):
            change = size * torch.randn(x.shape, generator=source, dtype=torch.float64)
            assert objective(x + change) > objective(x) and objective(x + change.cumsum(3)) > objective(x)
    assert objective(x) < min(objective(truth), objective(y))


def test_stabilised_noise_has_one_level_and_means_come_back(monkeypatch):
    """What BM3D is given: Anscombe's square root of the photons; the root's mean goes back to the mean, not below."""
    level = torch.linspace(0.02, 1, 8, dtype=torch.float64).view(1, 1, 1, 8)
    noise = measure.PoissonGaussianNoise(0.02, 0.01)
    y = noise.sample(level.expand(1, 1, 200_000, 8), 0)
    seen = {}

    def spy(images, std):
        seen["std"] = (images.std(2) / std).flatten()[2:]
        average = images.mean(2, keepdim=True).expand_as(images)
        return recover.Result.of_one_step(average, None, torch.zeros(1), 1, torch.ones(1, dtype=torch.bool), [""])

    monkeypatch.setattr(recover, "bm3d", spy)
    found = denoising._stabilised(noise, y, sets.std_map(noise, y), 1.0)
    torch.testing.assert_close(seen["std"], torch.ones(6).double(), atol=0.03, rtol=0)
    error = (found.x[:, :, :1] - level).abs() * 200_000**0.5 / sets.pixel_std(noise, level)
    assert error.max() < 5  # standard errors; a quarter of a photon would be 16 of them or more


def test_by_pixel_is_the_plain_method_where_all_pixels_are_alike():
    """A camera without shot noise: the most likely image under its density is the Gaussian's closed form."""
    truth, problem, y = denoising._problem(QUICK, PART, "test", 2, "radial", 0.1)
    problem = measure.Problem(problem.operator, measure.PoissonGaussianNoise(1e-9, 0.2))
    y = problem.observe(truth, 0)
    for method in ("gaussian", "tv"):
        plain, pixel = (denoising._solver(QUICK, PART, problem, y, method + kind)(0.7) for kind in ("", " by pixel"))
        torch.testing.assert_close(pixel.x, plain.x, atol=2e-3, rtol=0)


def test_by_pixel_minimises_the_cameras_own_density():
    truth, problem, y = denoising._problem(QUICK, PART, "test", 1, "camera", 0.05)
    factor, mean = (part.double() for part in sets.gaussian("digits", 28, PART.device))

    def objective(z):
        x = (mean.flatten() + z @ factor.mT).view(y.shape)
        return (
            -torch.distributions.Normal(x, (0.05 * x.clamp(min=0) + 4e-4).sqrt()).log_prob(y).sum()
            + z.square().sum() / 2
        )

    found = denoising._solver(replace(QUICK, budget=300), PART, problem, y, "gaussian by pixel")(1.0)
    z, source = found.z.double(), torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2, 1e-1):  # where a pixel is black the density has a kink, and no gradient would vanish
        for _ in range(10):
            assert objective(z + size * torch.randn(z.shape, generator=source, dtype=torch.float64)) > objective(z)
    assert objective(z) < objective(recover.gaussian_map(problem.operator, y, factor, mean, 0.1).z.double()) - 1
    assert (found.x - truth).square().mean() < (y - truth).square().mean()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    few = {"data": "digits", "noises": {"radial": (0.5, 1.0)}, "weights": {"map": (0.2, 1.0), "gaussian": (1.0,)}}
    settings = replace(QUICK, budget=6, **few)
    context = Context(torch.device("cpu"), 0, settings=settings, parts=tmp_path_factory.mktemp("parts"))
    metrics, arrays = denoising._compare(settings, context)
    return metrics, lambda name, **at: take(name, arrays[name], at)


@pytest.mark.slow
def test_validation_images_choose_and_the_budget_holds(outcome):
    metrics, read = outcome
    for level, chosen in zip((0.5, 1.0), metrics["chosen"]["radial"]["map"], strict=True):
        assert chosen == (0.2, 1.0)[read("radial validation map psnr", level=level).mean(1).argmax()]
    assert (read("radial evaluations", method="map") <= 6).all()
    assert not read("radial evaluations", method="gaussian").any()
    assert (read("radial psnr", method="gaussian") > read("radial noisy psnr")).all()


@pytest.mark.slow
def test_the_blank_page_is_more_likely_than_a_digit_unless_the_flow_is_smooth(tmp_path):
    settings = replace(registry.get("whang.modes").settings["quick"], betas=(1.0,), budget=4, marks=(1, 4))
    context = Context(torch.device("cpu"), 0, settings=settings, parts=tmp_path)
    _, arrays = modes.modes(settings, context)
    gap = {}
    for name in ("glow-mnist", "glow-mnist-smooth"):
        nats = arrays[f"{name} candidate nats"]
        truth, blank = (take("", nats, {"scale": 0.3, "candidate": of}) for of in modes.CANDIDATES)
        gap[name] = float((truth - blank).mean())
        start, end = (
            take("", arrays[f"{name} {kind}"], at).mean()
            for kind, at in (("candidate misfit", {"candidate": "truth"}), ("from truth misfit", {}))
        )
        nats_end = arrays[f"{name} from truth nats"].values.mean()
        assert end + nats_end < start + truth.mean()  # a search that begins at the truth leaves it
    assert gap["glow-mnist"] > 5 * gap["glow-mnist-smooth"]
