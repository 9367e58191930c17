"""The quick runs of part 4 against what is known exactly: quadrature, closed forms, the theorem of a lost mode."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from companion import experiments
from companion.bayes import Elliptic, laplace, weighted
from companion.experiments.msign import divergences, elliptic, readings, synthetic
from companion.experiments.parts import Part
from companion.measure.elliptic import paper_measurements


@pytest.mark.parametrize("name", divergences.DIVERGENCES)
def test_divergences_are_the_integrals(name: str) -> None:
    def density(x: float, means: tuple[float, float]) -> float:
        return sum(stats.norm.pdf(x, loc=mean) for mean in means) / 2

    def integrand(x: float) -> float:
        p, q = density(x, (1.0, 4.0)), density(x, (-3.0, 3.0))
        return {"KL(p‖q)": p, "KL(q‖p)": -q, "Jeffreys": p - q}[name] * math.log(p / q)

    expected = integrate.quad(integrand, -12, 12, limit=200)[0]
    found = divergences.divergence(torch.tensor([[1.0, 4.0], [4.0, 1.0]]).double(), name)
    np.testing.assert_allclose(found.numpy(), [expected, expected], rtol=1e-5)


def test_a_lost_mode_costs_log_2() -> None:
    found = divergences.divergence(torch.tensor([[3.0, 3.0]]).double(), "KL(p‖q)")
    assert float(found) == pytest.approx(math.log(2), abs=5e-3)  # the modes are six standard deviations apart


def test_descent_on_the_landscapes_ends_in_the_stated_basins() -> None:
    stored = experiments.load("msign.divergences", "quick")
    share = stored.metrics["both modes"]
    assert share["KL(q‖p)"] == share["Jeffreys"] == 1 and 0.3 < share["KL(p‖q)"] < 0.8
    values, at = stored.take("landscape", divergence="Jeffreys"), np.array(stored.axes("landscape")["a"])
    lowest = np.unravel_index(values.argmin(), values.shape)
    assert sorted(at[list(lowest)]) == pytest.approx([-3, 3], abs=0.2)


def test_exact_histograms_are_those_of_exact_samples() -> None:
    settings = experiments.registry.get("msign.synthetic").settings["quick"]
    stored = experiments.load("msign.synthetic", "quick")
    for scale, problem in enumerate(synthetic._problems(settings, "integral"), 1):
        exact = stored.take("exact histogram", convention="integral", scale=scale)
        c = problem.sample(40_000, seed=3) @ problem.direction / stored.metrics["c"]["integral"]["modes"][scale - 1]
        counts = np.histogram(c.numpy(), synthetic.EDGES)[0]
        assert np.abs(counts / len(c) - exact).max() < 5 * math.sqrt(exact.max() / len(c))


def test_the_mirrored_model_beats_the_plain_one_and_keeps_both_modes() -> None:
    stored = experiments.load("msign.synthetic", "quick")
    for convention in synthetic.CONVENTIONS:
        mirrored = stored.take("divergence", convention=convention, method="mirrored", draw=0)
        assert (mirrored < 0.1).all()
        assert mirrored[0] < stored.take("divergence", convention=convention, method="plain", draw=0, scale=1)
        share = stored.take("share", convention=convention, method="mirrored", draw=0)
        assert (np.abs(share - 0.5) < 4.5 / math.sqrt(4 * 2000)).all()


def test_folding_chooses_one_of_two_mirror_images() -> None:
    problem = Elliptic(4)
    x = problem.field.sample(6, seed=1)
    folded = elliptic.fold(problem, x)
    torch.testing.assert_close(elliptic.fold(problem, problem.field.mirror(x)), folded)
    assert bool(((folded == x) | (folded == problem.field.mirror(x))).all())
    assert bool((folded @ problem.truth > 0).all())


def test_comparisons_do_not_see_the_mirror_but_in_the_share() -> None:
    problem = Elliptic(4)
    x, other = problem.field.sample(300, seed=1), problem.field.sample(400, seed=2)
    here, there = (elliptic._compared(problem, one, other) for one in (x, problem.field.mirror(x)))
    for name in ("spread", "mean", "correlation"):
        np.testing.assert_allclose(here[name].values, there[name].values, rtol=1e-9)
    assert here["share"].values + there["share"].values == pytest.approx(1)
    np.testing.assert_allclose(here["histogram"].values, there["histogram"].values[::-1], atol=1e-12)
    same = elliptic._compared(problem, problem.field.mirror(other), other)
    np.testing.assert_allclose(same["spread"].values, 1, rtol=1e-9)
    assert same["mean"].values == pytest.approx(0, abs=1e-9)
    assert same["correlation"].values == pytest.approx(0, abs=1e-9)


def test_folded_chains_have_the_marginal_of_weighted_samples() -> None:
    """At 2 × 2, by importance sampling from the Laplace mixture, which shares nothing with the chains but log q."""
    stored = experiments.load("msign.elliptic", "quick")
    settings = experiments.registry.get("msign.elliptic").settings["quick"]
    problem = Elliptic(settings.side, settings.amplitude).scales()[0]
    mixture = laplace(problem).mixture()
    x = mixture.sample(20_000, seed=1)
    with torch.no_grad():
        weights = weighted(x, problem.log_density(x), mixture.log_prob(x)).weights
    expected = np.histogram(elliptic.critical(problem, x).numpy(), elliptic.EDGES, weights=weights.numpy())[0]
    effective = stored.metrics["reference"]["scale 1"]["smallest ESS, folded"]
    found = stored.take("reference histogram", scale=1)
    assert np.abs(found - expected).max() < 5 * math.sqrt(expected.max() / effective)


def test_a_scale_is_judged_by_the_model_as_its_stage_left_it() -> None:
    settings = experiments.registry.get("msign.synthetic").settings["quick"]
    small = replace(settings, side=4, samples=200, plain_iterations=5, plain_pool=200, plain_scales=1)
    case, part = synthetic.Case("integral", "plain", 0), Part(torch.device("cpu"), 0)
    _, one = synthetic._fit(small, part, case)
    _, two = synthetic._fit(replace(small, plain_scales=2), part, case)
    assert np.isnan(one["divergence"].values[1]) and np.isfinite(two["divergence"].values[1])
    np.testing.assert_allclose(two["divergence"].values[0], one["divergence"].values[0])


def test_another_reading_of_the_elliptic_problem_is_the_problem_that_it_says() -> None:
    for mesh in (8, 16):
        torch.testing.assert_close(readings.squares(mesh, 1 / 8, 1 / 8), paper_measurements(mesh))
    plain, same = Elliptic(8, 1.0), readings.problem(readings.Reading(), 8)
    torch.testing.assert_close(same.y, plain.y)
    one = readings.problem(readings.Reading(source=2.0, side=1 / 5, gap=1 / 5, noise=False), 8)
    torch.testing.assert_close(one.y, one.operator(one.truth[None])[0])
    # u is linear in f, and squares side by side measure all of ∫u: the middle ones have norm 1, pairs √2
    u = 2 * plain.operator.solve(one.truth[None])[0]
    total = one.y.view(5, 3) @ torch.tensor([2**0.5, 2**0.5, 1.0], dtype=torch.float64) / 5
    assert float(total.sum()) == pytest.approx(float(u.sum()) / 64, rel=1e-6)


def test_a_coarser_elliptic_problem_keeps_source_and_measurements() -> None:
    one = readings.problem(readings.Reading(source=3.0, side=1 / 16), 8)
    coarse = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).double()
    fine = coarse.view(2, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    torch.testing.assert_close(one.operator.coarsen()(coarse), one.operator(fine))
