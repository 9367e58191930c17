"""Other operators: what the simple and the untrained answers are, and what chooses weights."""

from dataclasses import replace

import pytest
import torch

from companion import energy, evaluate, experiments, measure, priors, recover
from companion.experiments import registry
from companion.experiments.asim import operators
from companion.experiments.parts import Part

QUICK = registry.get("asim.operators").settings["quick"]
PART = Part(torch.device("cpu"), 0)
SHAPE = (3, 8, 8)


def test_simple_answers_leave_the_middle_of_a_ramp_as_it_is():
    shape = (3, 8, 16)
    x = torch.linspace(0, 1, 16).expand(2, *shape)
    for operator in (measure.Downsample(shape, 2), measure.Blur.gaussian(shape, 0.5, size=3)):
        found = operators.simple(operator, operator(x))
        assert found.shape == x.shape
        torch.testing.assert_close(found[..., 6:10], x[..., 6:10], rtol=0, atol=1e-5)


def test_scores_leave_out_what_a_blur_sees_in_part():
    operator = measure.Blur.gaussian(SHAPE, 1.0, size=5)
    kept = operators.inside(operator, torch.arange(192.0).view(1, *SHAPE))
    weight = operator.adjoint(torch.ones(1, *operator.output_shape))  # of each pixel in all measurements together
    assert kept.shape[2:] == operator.output_shape[1:]
    centres = torch.nn.functional.pad(torch.ones_like(kept), (2, 2, 2, 2)) == 1
    assert weight[centres].min() > weight[~centres].max()


def test_a_fresh_glow_is_an_isometry_around_grey_and_its_search_ends_at_least_squares():
    glow = priors.Glow(SHAPE, levels=2, steps=2, width=8, squeeze="haar", colours="opponent").double()
    fresh = operators.untrained(glow, 0.0, seed=0)
    z = torch.randn(2, fresh.latent_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grey = fresh.decode(torch.zeros_like(z[:1]))
    lengths = (fresh.decode(z) - grey).flatten(1).norm(dim=1) / z.norm(dim=1)
    torch.testing.assert_close(grey, torch.full_like(grey, operators.GREY), rtol=0, atol=1e-12)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 256 / 255), rtol=1e-9, atol=0)
    operator = measure.Downsample(SHAPE, 2)
    y = operator(torch.rand(2, *SHAPE, dtype=torch.float64))
    found = recover.flow_latent(fresh, operator, y)
    least = recover.pseudo_inverse(operator, y - operator(grey).expand_as(y)).x + grey
    torch.testing.assert_close(found.x, least, rtol=0, atol=1e-6)
    other = operators.untrained(glow, 0.1, seed=0)
    bent = (other.decode(z) - other.decode(torch.zeros_like(z[:1]))).flatten(1).norm(dim=1) / z.norm(dim=1)
    assert (bent - 256 / 255).abs().max() > 0.01


@pytest.mark.slow
def test_iterations_and_weights_are_those_best_on_validation_images():
    settings = replace(QUICK, weights=QUICK.weights | {"dip": (3, 30), "tikhonov": (1e-3, 10.0)}, tuned_on=2)
    truth = settings.truth(PART, "validation", 2)
    problem, y = operators.pose(settings, PART, "blur", truth, "validation")
    for method in ("dip", "tikhonov"):
        weights = settings.weights[method]
        scores = [
            evaluate.psnr(
                operators._estimate(settings, PART, problem, y, method, w).x[..., 3:-3, 3:-3], truth[..., 3:-3, 3:-3]
            ).mean()
            for w in weights
        ]
        chosen = operators._choose(settings, PART, ("blur", method))[0]["weight"]
        assert chosen == weights[int(scores[1] > scores[0])]


@pytest.mark.slow
def test_the_likely_image_has_a_lower_energy_than_its_start():
    """From the stored result's own settings, in few evaluations."""
    settings = replace(QUICK, budget=5)
    truth = settings.truth(PART)
    problem, y = operators.pose(settings, PART, "super-resolution", truth)
    flow, (factor, mean) = priors.load(QUICK.flow), _gaussian()
    start = recover.gaussian_map(problem.operator, y, factor, mean, QUICK.std).x
    found = operators._estimate(settings, PART, problem, y, "glow-map", 1.0).x
    objective = energy.Energy(flow, energy.NoiseMisfit(problem, y), energy.FlowLikelihood(1.0), "x")
    assert (objective(found) < objective(start)).all()


def _gaussian():
    exact = priors.load(QUICK.gaussian)
    return exact.weight.double(), exact.mean.view(exact.shape)


@pytest.mark.parametrize("problem", QUICK.problems)
def test_the_stored_result_scores_every_method_on_the_same_crops(problem):
    run = experiments.load("asim.operators", "quick")
    psnr = run.take("psnr", problem=problem)
    assert psnr.shape == (len(QUICK.weights), QUICK.images) and (psnr > 5).all()
    assert len(set(run.take("photograph").tolist())) == QUICK.images
    assert (run.take("evaluations", problem=problem, method="glow") <= QUICK.budget).all()
