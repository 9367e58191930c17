"""Noise learned by a flow: its density against mixtures of normals, which a linear flow makes of it."""

import numpy as np
import pytest
import torch
from flow_cases import tiny
from scipy import stats

from companion import measure, priors

NOISES = {
    measure.FlowNoise: [
        (
            measure.FlowNoise(tiny(), (2, 5, 6), [[(0, 1, 1), (1, 0, 2)], [(1, 1, 0)]], tau=0.2, scale=0.8),
            torch.rand(3, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        ),
        (measure.FlowNoise(tiny(), (1, 4, 4), [[]], tau=0.3), torch.zeros(3, 1, 4, 4, dtype=torch.float64)),
    ]
}
WEIGHT = torch.tensor([[0.5, 0.1], [0.0, 0.3]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
NORMAL = priors.Linear(WEIGHT, MEAN, (1, 1, 2))
TAU, SCALE = 0.2, 1.5


def mixture(placements, values):
    """log p of [batch, 1, 1, 4] as a mixture of normals over the four pixels, by SciPy."""
    density = 0.0
    for columns in placements:
        mean, covariance = np.zeros(4), TAU**2 * np.eye(4)
        for left in columns:
            mean[left : left + 2] = SCALE * MEAN
            covariance[left : left + 2, left : left + 2] = SCALE**2 * (WEIGHT @ WEIGHT.T)
        density = density + stats.multivariate_normal(mean, covariance).pdf(values.flatten(1)) / len(placements)
    return np.log(density)


@pytest.mark.slow
@pytest.mark.parametrize("placements", [[()], [(1,)], [(0, 2)], [(0,), (1,), (2,), (0, 2)]])
def test_the_density_is_that_of_drawings_in_one_of_the_placements(placements):
    noise = measure.FlowNoise(
        NORMAL, (1, 1, 4), [[(0, 0, left) for left in columns] for columns in placements], TAU, SCALE
    )
    exact = torch.zeros(2000, 1, 1, 4, dtype=torch.float64)
    draws = noise.sample(exact, 0)
    expected = mixture(placements, draws)
    np.testing.assert_allclose(noise.log_prob(draws, exact), expected, rtol=1e-9, atol=1e-9)
    # E log p under the density itself is what the draws' mean estimates; under another density it is less
    elsewhere = mixture(placements, torch.from_numpy(np.random.default_rng(0).permuted(draws.numpy(), axis=3)))
    assert (len(placements) == 1 and not placements[0]) or expected.mean() > elsewhere.mean() + 0.5


def test_draws_have_the_first_two_moments_of_the_mixture():
    noise = measure.FlowNoise(NORMAL, (1, 1, 4), [[(0, 0, 0)], [(0, 0, 2)]], TAU, SCALE)
    draws = noise.sample(torch.zeros(4000, 1, 1, 4, dtype=torch.float64), 1).flatten(1).numpy()
    drawn = SCALE * np.concatenate([MEAN, MEAN]) / 2
    own = SCALE**2 * (WEIGHT @ WEIGHT.T + torch.outer(MEAN, MEAN)).numpy() + TAU**2 * np.eye(2)
    np.testing.assert_allclose(draws.mean(0), drawn, atol=5 * 0.9 / 4000**0.5)
    np.testing.assert_allclose(draws[:, :2].T @ draws[:, :2] / 4000, own / 2, atol=0.12)


def test_an_overflowing_image_is_no_error_of_its_neighbours():
    noise, exact = NOISES[measure.FlowNoise][0]
    y = noise.sample(exact, 0)
    expected = noise.log_prob(y, exact)
    y[1, 0, 2, 2] = torch.inf
    value = noise.log_prob(y, exact)
    torch.testing.assert_close(value[[0, 2]], expected[[0, 2]])
    assert value[1] == -torch.inf


def test_a_window_beyond_the_flows_pixels_is_no_drawing_and_no_error():
    flow = tiny(pixels="logit")
    noise = measure.FlowNoise(flow, (1, 4, 8), [[(0, 0, 0)], [(0, 0, 4)]], tau=0.3)
    alone = measure.FlowNoise(flow, (1, 4, 8), [[(0, 0, 4)]], tau=0.3)
    residual = torch.full((3, 1, 4, 8), 0.5, dtype=torch.float64)
    sound = noise.residual_log_prob(residual[:1])
    residual[1, 0, 0, 0], residual[2] = -0.4, -0.4  # in the first placement's window; in both
    value = noise.residual_log_prob(residual.requires_grad_())
    torch.testing.assert_close(value[0], sound[0])
    torch.testing.assert_close(value[1], alone.residual_log_prob(residual[1:2])[0] - np.log(2))
    assert value[2] == -torch.inf
    assert torch.autograd.grad(value[:2].sum(), residual)[0][:2].isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure.FlowNoise(tiny(shape=(2, 4, 4)), (2, 4, 4), [[]]), r"flow: got one on \(2, 4, 4\)"),
        (lambda: measure.FlowNoise(tiny(), (1, 8, 8), []), "placements: got none"),
        (lambda: measure.FlowNoise(tiny(), (1, 8, 8), [[(0, 5, 0)]]), r"placements: got \(0, 5, 0\)"),
        (lambda: measure.FlowNoise(tiny(), (1, 8, 8), [[(1, 0, 0)]]), r"placements: got \(1, 0, 0\)"),
        (lambda: measure.FlowNoise(tiny(), (1, 8, 8), [[(0, 0, 0), (0, 3, 3)]]), "placements: got overlapping"),
        (lambda: measure.FlowNoise(tiny(), (1, 8, 8), [(0, 0, 0)]), r"placements: got \[\(0, 0, 0\)\]; allowed"),
        (lambda: measure.FlowNoise(tiny(), (1, 8, 8), [[(0, 0)]]), "placements: got"),
        (lambda: measure.FlowNoise(tiny(), (1, 8, 8), [[(0, 0.5, 0)]]), "placements: got"),
        (lambda: measure.FlowNoise(tiny(), (1, 8, 8), [[]], tau=0), "tau: got 0"),
        (lambda: measure.FlowNoise(tiny(), (1, 8, 8), [[]]).residual_log_prob(torch.ones(1, 2, 8, 8)), "residual: got"),
        (
            lambda: measure.FlowNoise(tiny(), (1, 8, 8), [[]]).log_prob(*torch.ones(2, 1, 1, 8, 8).long()),
            "y: got residuals of torch.int64",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
