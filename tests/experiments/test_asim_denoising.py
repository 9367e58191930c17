"""Denoising and latent norms with tiny settings: sweeps, choices, noise levels, and moves against the Jacobian."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage import restoration

from companion import data, evaluate, priors
from companion.experiments import problems, registry, shared
from companion.experiments.arrays import take
from companion.experiments.asim import denoising, latent_norms
from companion.experiments.context import Context
from companion.experiments.parts import Part

WEIGHTS = {"glow": (0.0, 40.0), "tv": (0.1, 1.0, 30.0), "glow likelihood": (2.0,)}
STDS = (0.02, 0.1)
FAMILY = denoising.Family(
    data="photos", size=32, priors={"glow": "glow-photos32"}, stds=STDS, weights=WEIGHTS, long_budget=6
)
MOVES = registry.get("asim.latent-norms").settings["quick"]
TINY = denoising.Settings(families=(FAMILY,), images=2, tuned_on=1, budget=4, restarts=1, shown=1)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    context = Context(torch.device("cpu"), 0, settings=TINY, parts=tmp_path_factory.mktemp("parts"))
    _, arrays = denoising.denoising(TINY, context)
    return lambda name, **at: take(name, arrays[f"photos {name}"], at), context


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glow", "tv"])
def test_validation_images_choose_the_weight(outcome, name):
    read, _ = outcome
    for std in STDS:
        scores = read(f"{name} validation psnr", std=std).mean(1)
        assert read("weight", std=std, method=name) == WEIGHTS[name][scores.argmax()]
    assert np.isnan(read("glow likelihood validation psnr")).all()  # one weight: nothing to choose from


@pytest.mark.slow
def test_the_sweep_holds_the_chosen_search(outcome):
    read, _ = outcome
    for std in STDS:
        weight = float(read("weight", std=std, method="glow"))
        for key in ("psnr", "norm", "path", "recovered"):
            np.testing.assert_array_equal(
                read(f"sweep {key}", std=std, weight=weight), read(key, std=std, method="glow")
            )


@pytest.mark.slow
def test_a_search_gets_its_budget_and_every_evaluation_is_counted(outcome):
    read, context = outcome
    weights, likelihoods, longer = 2 * (1 + 2), 2, 2  # on one validation image and on two held-out ones
    networks = len(STDS) * (TINY.budget * (weights + likelihoods) + FAMILY.long_budget * longer)
    assert networks < context.evaluations  # and total variation's steps
    # what a search had after its budget, the longer one had on its way
    np.testing.assert_allclose(read("long path")[:, : TINY.budget], read("path", method="glow"), atol=1e-3)


@pytest.mark.slow
def test_the_noise_has_its_level_and_scores_belong_to_held_out_images(outcome):
    read, _ = outcome
    excess = read("noisy psnr") + 20 * np.log10([[0.02] * 2, [0.1] * 2])
    assert (excess > -0.3).all() and (excess < 1.5).all()  # scores clip to [0, 1], which takes some noise away
    truth = data.load("photos", "test", size=32)[:1]
    np.testing.assert_array_equal(read("truth"), (truth * 255).round().byte().numpy())
    shown = torch.tensor(read("recovered", method="tv", picture=0)) / 255
    score = evaluate.psnr(shown, truth.expand(2, -1, -1, -1))
    np.testing.assert_allclose(score, read("psnr", method="tv", image=0), atol=0.15)  # 8 bits


@pytest.mark.slow
def test_the_path_ends_at_the_score(outcome):
    read, _ = outcome
    assert np.isnan(read("path", method="tv")).all()
    np.testing.assert_allclose(read("path", method="glow")[:, -1], read("psnr", method="glow").mean(1), atol=0.05)


def test_weights_are_multiples_of_the_noise_and_total_variation_agrees_with_scikit_image():
    part = Part(torch.device("cpu"), 0)
    truth = shared.images(part, "photos", "test", 2, 32)
    problem, y = problems.denoising(part, truth, 0.1)
    search = denoising.Search("photos", 0.1, "tv", 2.0, 1)
    ours = denoising._estimate(TINY, part, problem.operator, y, search).x  # weight 0.2 beside squared residuals
    for mine, noisy in zip(ours, y, strict=True):
        other = restoration.denoise_tv_chambolle(
            noisy.double().numpy(), 0.1, eps=1e-8, max_num_iter=4000, channel_axis=0
        )
        assert np.sqrt(np.mean((mine.numpy() - other) ** 2)) < 3e-3


@pytest.mark.parametrize("profile", ["quick", "laptop", "paper"])
def test_profiles_name_known_methods_and_no_prior_is_missing(profile):
    for family in registry.get("asim.denoising").settings[profile].families:
        assert set(family.weights) <= set(denoising.METHODS)
        needed = {name.split()[0] for name in family.weights} & {"glow", "gan", "vae"}
        assert needed == set(family.priors)


@pytest.fixture(scope="module")
def flow():
    return priors.load("glow-photos32").double()


def derivative(function, at, way):
    """Length of J · way, as ⟨w, J · way⟩ by the transposed derivative, with w the direction of the difference."""
    at = at.clone().requires_grad_()
    with torch.no_grad():
        w = (function(at + 1e-5 * way) - function(at)).flatten(1)
        w = w / w.norm(dim=1, keepdim=True)
    gradient = torch.autograd.grad((function(at).flatten(1) * w).sum(), at)[0]
    return (gradient * way).flatten(1).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("answer", latent_norms.ANSWERS)
def test_moves_follow_the_derivative_of_the_flow(flow, answer):
    part, few = Part(torch.device("cpu"), 0), replace(MOVES, images=3, distances=(1e-4, 1e-2))
    moved = {way: latent_norms._move(few, part, (answer, way))[1]["move"].values for way in latent_norms.WAYS}
    x = data.load("photos", "test", size=32)[:3].double()
    start, function = (flow.encode(x), flow.decode) if answer == "dx" else (x, flow.encode)
    way = start.roll(-1, 0) - start
    way = way / way.flatten(1).norm(dim=1).view(-1, *[1] * (way.dim() - 1))
    np.testing.assert_allclose(moved["natural"][:, 0] / 1e-4, derivative(function, start, way), rtol=0.02)
    assert (np.diff(moved["random"], axis=1) > 0).all()


def test_noisy_images_are_scored_one_by_one(flow):
    part = Part(torch.device("cpu"), 0)
    x = data.load("photos", "test", size=32)[:2].double()
    _, y = problems.denoising(part, x, 0.1)
    found = latent_norms._score(replace(MOVES, images=2), part, 0.1)[1]
    z, log_det = flow.encode_with_log_det(y)
    np.testing.assert_allclose(found["norm"].values, z.norm(dim=1))
    nats = z.square().sum(1) / 2 - log_det + 3072 / 2 * np.log(2 * np.pi)  # change of variables
    np.testing.assert_allclose(found["nats"].values, nats)
