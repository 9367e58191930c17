"""Denoising and latent norms with tiny settings: sweeps, choices, noise levels, and moves against the Jacobian."""

import numpy as np
import pytest
import torch
from skimage import restoration

from companion import data, evaluate, measure, priors
from companion.experiments import registry
from companion.experiments.asim import denoising, latent_norms
from companion.experiments.context import Context

WEIGHTS = {"glow": (0.0, 40.0), "tv": (0.1, 1.0, 30.0), "glow likelihood": (2.0,)}
FAMILY = denoising.Family("photos", 32, {"glow": "glow-photos32"}, (0.02, 0.1), WEIGHTS, 6, ("glow",))
TINY = denoising.Settings((FAMILY,), images=2, tuned_on=1, budget=4, restarts=1, shown=1)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    context = Context(torch.device("cpu"), 0, tmp_path_factory.mktemp("parts"), "tiny")
    metrics, arrays = denoising.denoising(TINY, context)
    return metrics["photos"], {name.removeprefix("photos "): values for name, values in arrays.items()}, context


def test_every_method_has_every_weight_and_validation_images_choose(outcome):
    metrics, arrays, _ = outcome
    assert [(run["method"], run["std"]) for run in metrics["runs"]] == [
        (name, std) for std in FAMILY.stds for name, values in WEIGHTS.items() for _ in values
    ]
    assert arrays["psnr"].shape == arrays["norm"].shape == (12, 2) and arrays["path"].shape == (12, 4)
    assert arrays["recovered"].shape == (2, 3, 1, 3, 32, 32) and arrays["sweep"].shape == (2, 2, 1, 3, 32, 32)
    for name, picks in list(metrics["chosen"].items())[:2]:  # the third has one weight
        for std, pick in zip(FAMILY.stds, picks, strict=True):
            rivals = [run for run in metrics["runs"] if (run["method"], run["std"]) == (name, std)]
            assert metrics["runs"][pick] in rivals
            assert metrics["runs"][pick]["validation psnr"] == max(run["validation psnr"] for run in rivals)
            scores = arrays["validation psnr"][[metrics["runs"].index(run) for run in rivals]].mean(1)
            np.testing.assert_allclose(scores, [run["validation psnr"] for run in rivals], atol=1e-3)


def test_held_out_images_meet_the_chosen_weight_or_all_of_a_swept_method(outcome):
    metrics, arrays, _ = outcome
    for k, (run, psnr) in enumerate(zip(metrics["runs"], arrays["psnr"], strict=True)):
        if run["method"] == "glow" or k in metrics["chosen"][run["method"]]:
            assert run["mean psnr"] == pytest.approx(psnr.mean(), abs=1e-3)
        else:
            assert "mean psnr" not in run and np.isnan(psnr).all()


def test_a_search_gets_its_budget_and_every_evaluation_is_counted(outcome):
    metrics, _, context = outcome
    assert all(run["mean evaluations"] <= TINY.budget for run in metrics["runs"] if run["method"] == "glow")
    searches = 2 * (2 * 3 + 2) * TINY.budget  # stds; weights of the norm on all 3 images; the likelihood on 2
    longer = 2 * 2 * FAMILY.long_budget  # stds, held-out images
    assert context.evaluations > searches + longer


def test_a_method_with_one_weight_skips_the_choice(outcome):
    metrics, arrays, _ = outcome
    alone = [run["method"] == "glow likelihood" for run in metrics["runs"]]
    assert np.isnan(arrays["validation psnr"][alone]).all() and np.isfinite(arrays["psnr"][alone]).all()


def test_the_longer_search_begins_like_the_short_one(outcome):
    metrics, arrays, _ = outcome
    assert arrays["long psnr"].shape == (2, 2) and arrays["long path"].shape == (2, 6)
    np.testing.assert_allclose(arrays["long path"][:, :4], arrays["path"][metrics["chosen"]["glow"]], atol=1e-3)


def test_weights_scale_with_the_noise(outcome):
    for run in outcome[0]["runs"]:
        power = 1 if run["method"] == "tv" else 2
        assert run["weight"] == pytest.approx(run["multiple"] * run["std"] ** power)


def test_the_noise_has_its_level_and_scores_belong_to_held_out_images(outcome):
    _, arrays, _ = outcome
    excess = arrays["noisy psnr"] + 20 * np.log10([[0.02] * 2, [0.1] * 2])
    assert (excess > -0.3).all() and (excess < 1.5).all()  # scores clip to [0, 1], which takes some noise away
    truth = data.load("photos", "test", size=32)[:1]
    np.testing.assert_array_equal(arrays["truth"], (truth * 255).round().byte().numpy())
    shown = torch.tensor(arrays["recovered"][:, 1]).flatten(0, 1) / 255
    score = evaluate.psnr(shown, truth.expand(2, -1, -1, -1))
    picks = outcome[0]["chosen"]["tv"]
    np.testing.assert_allclose(score, arrays["psnr"][picks, 0], atol=0.15)  # 8 bits


def test_total_variation_agrees_with_scikit_image():
    truth = data.load("photos", "test", size=32)[:2]
    operator = measure.Identity((3, 32, 32))
    y = measure.Problem(operator, measure.GaussianNoise(0.1)).observe(truth, 3)
    problem = denoising.Problem({}, operator, y, 0.1, 400, 1, 0, {})
    ours = denoising.METHODS["tv"][1](problem, 0.2).x
    for mine, noisy in zip(ours, y, strict=True):
        other = restoration.denoise_tv_chambolle(
            noisy.double().numpy(), 0.1, eps=1e-8, max_num_iter=4000, channel_axis=0
        )
        assert np.sqrt(np.mean((mine.numpy() - other) ** 2)) < 3e-3


def test_the_path_ends_at_the_score_and_has_the_budgets_length(outcome):
    metrics, arrays, _ = outcome
    for run, path, psnr in zip(metrics["runs"], arrays["path"], arrays["psnr"], strict=True):
        if run["method"] == "tv":
            assert np.isnan(path).all()
        elif run["method"] == "glow":
            assert path[-1] == pytest.approx(psnr.mean(), abs=0.05)


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


def test_moves_follow_the_derivative_of_the_flow(flow):
    x = data.load("photos", "test", size=32)[:3].double()
    moved = latent_norms.movements(flow, x, (1e-4, 1e-2), seed=0)
    z = flow.encode(x)
    for answer, start, function in (("dx", z, flow.decode), ("dz", x, flow.encode)):
        way = start.roll(-1, 0) - start
        way = way / way.flatten(1).norm(dim=1).view(-1, *[1] * (way.dim() - 1))
        np.testing.assert_allclose(moved[f"{answer} natural"][:, 0] / 1e-4, derivative(function, start, way), rtol=0.02)
        assert (np.diff(moved[f"{answer} random"], axis=1) > 0).all()


def test_noisy_images_share_their_noise_and_are_scored_one_by_one(flow):
    x = data.load("photos", "test", size=32)[:2].double()
    clean, weak, strong = latent_norms.observed(x, (0.01, 0.1), seed=5)
    assert clean is x
    torch.testing.assert_close(strong - x, 10 * (weak - x))
    assert float((strong - x).std()) == pytest.approx(0.1, rel=0.05)
    found = latent_norms.score(flow, strong)
    z, log_det = flow.encode_with_log_det(strong)
    np.testing.assert_allclose(found["norm"], z.norm(dim=1))
    nats = z.square().sum(1) / 2 - log_det + 3072 / 2 * np.log(2 * np.pi)  # change of variables
    np.testing.assert_allclose(found["nats"], nats)


def test_published_tables_are_complete():
    assert len({len(values) for values in latent_norms.PUBLISHED.values()}) == 1
    assert len({len(values) for values in denoising.PUBLISHED.values()}) == 1
