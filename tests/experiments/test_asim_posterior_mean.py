"""Denoising by the posterior's mean: Tweedie's formula against a closed form, and where weights are chosen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from companion import evaluate, experiments, priors, recover
from companion.experiments import problems, registry, shared
from companion.experiments.asim import posterior_mean
from companion.experiments.parts import Part

QUICK = registry.get("asim.posterior-mean").settings["quick"]
PART = Part(torch.device("cpu"), 0)


def test_tweedie_of_a_gaussian_is_its_posterior_mean(monkeypatch):
    """With p = N(μ, C), the density of noisy images is N(μ, C + σ² I), and E[x | y] = μ + C (C + σ² I)⁻¹ (y − μ)."""
    source = torch.Generator().manual_seed(0)
    root, mean = torch.randn(48, 48, generator=source).double() / 20, torch.rand(48, generator=source).double()
    cov = root @ root.mT
    blurred = cov + QUICK.std**2 * torch.eye(48, dtype=torch.float64)
    flow = priors.Linear(torch.linalg.cholesky(blurred), mean, (3, 4, 4))
    monkeypatch.setattr(shared, "prior", lambda part, name: {QUICK.noisy_flow: flow}[name])
    truth = torch.rand(30, 3, 4, 4, generator=source).double()  # more than one slice of 24
    problem, y = problems.denoising(PART, truth, QUICK.std)
    found = posterior_mean._estimate(QUICK, PART, problem, y, "tweedie", 1)
    known = recover.gaussian_map(problem.operator, y, root, mean.view(3, 4, 4), QUICK.std).x
    by_hand = mean.numpy() + (y.flatten(1) - mean).numpy() @ np.linalg.solve(blurred.numpy(), cov.numpy())
    np.testing.assert_allclose(found.x.flatten(1), by_hand, rtol=1e-6)
    np.testing.assert_allclose(found.x, known, rtol=1e-6)
    assert found.evaluations.tolist() == [1] * 30
    # the method "gaussian", from the checkpoint's factor and mean alone
    monkeypatch.setattr(shared, "stored_gaussian", lambda part, name: (root, mean.view(3, 4, 4)))
    np.testing.assert_allclose(posterior_mean._estimate(QUICK, PART, problem, y, "gaussian", 1).x, known, rtol=1e-6)
    # averaged: the gradient of the mean log-density of all changed images
    averaged = posterior_mean._estimate(QUICK, PART, problem, y, "gaussian averaged", 8).x
    by_score = posterior_mean._estimate(QUICK, PART, problem, y, "tweedie averaged", 8)
    np.testing.assert_allclose(averaged, by_score.x, rtol=1e-6)
    assert by_score.evaluations.tolist() == [8] * 30
    assert (averaged - known).abs().max() > 0.01


def test_changed_images_are_changed_back():
    y = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for symmetries in posterior_mean.CHANGES.values():
        assert torch.allclose(posterior_mean._averaged(lambda some: 2 * some, y, symmetries), 2 * y)
    corner = torch.zeros(3, 5, 5)
    corner[0, 0, 0] = 1.0
    marked = posterior_mean._averaged(lambda some: some + corner, y, ("flip", "turn")) - y
    corners = marked[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, torch.full((2, 4), 0.25))  # each corner is first in two of eight


@pytest.mark.slow
def test_weights_are_chosen_on_validation_images_and_their_own_noise(monkeypatch):
    seen, drawn = [], []
    load, noise = shared.images, problems.denoising
    monkeypatch.setattr(shared, "images", lambda *a, **k: seen.append(a[2]) or load(*a, **k))
    monkeypatch.setattr(problems, "denoising", lambda *a: drawn.append(a[3:]) or noise(*a))
    weights = (0.05, 1.0, 20.0)
    few = replace(QUICK, weights={"tv": weights}, tuned_on=2)
    chosen = posterior_mean._choose(few, PART, "tv")[0]["weight"]
    assert seen == ["validation"] and drawn == [("validation",)]
    truth = load(PART, few.data, "validation", 2, few.size, spread=True)
    problem, y = noise(PART, truth, few.std, "validation")
    scores = [evaluate.psnr(recover.tv(problem.operator, y, w * few.std).x, truth).mean() for w in weights]
    assert chosen == weights[int(np.argmax(scores))] == 1.0


@pytest.mark.parametrize("name", ["psnr", "ssim", "evaluations", "recovered"])
def test_the_stored_result_has_a_row_for_each_method_and_each_photograph_once(name):
    run = experiments.load("asim.posterior-mean", "quick")
    assert (
        {"tweedie", "score averaged", "map", "gaussian", "tv"}
        <= set(run.axes(name)["method"])
        <= set(posterior_mean.WEIGHTS)
    )
    assert len(set(run.take("photograph").tolist())) == QUICK.images  # the first crops are one of each photograph
    assert (run.take("evaluations", method="tweedie") == 1).all()
    assert (run.take("evaluations", method="score averaged") == 8).all()
    for method in ("tweedie", "score", "gaussian"):
        assert np.array_equal(run.take("orbit psnr", method=method, changes=1), run.take("psnr", method=method))
