"""The quick run on loss landscapes: its sections recomputed, and the counts on functions whose shape is known."""

import numpy as np
import pytest
import torch

from companion import data, energy, experiments, measure, priors
from companion.experiments.asim import landscapes

AXIS = np.linspace(-1, 1, 21)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return experiments.run("asim.landscapes", "quick", device="cpu", out=tmp_path_factory.mktemp("landscapes"))


@pytest.mark.parametrize(
    ("section", "monotone", "convex", "minima", "lowest"),
    [
        (AXIS**2, 1, 1, 1, True),
        (-(AXIS**2), 0, 0, 0, False),
        (np.sqrt(abs(AXIS)), 1, 1 / 19, 1, True),
        (np.where(AXIS < 0, AXIS**2, -(AXIS**2)), 0.5, 9 / 19, 0, False),
        (1 - np.cos(2 * np.pi * AXIS), 0, 9 / 19, 1, True),
        ((AXIS**2 - 0.36) ** 2, 0, 12 / 19, 2, False),
    ],
)
def test_shapes_of_known_sections(section, monotone, convex, minima, lowest):
    found = landscapes.shapes(np.stack([section, section])[:, None])
    assert all(value.shape == (2, 1) for value in found.values())
    assert found["monotone"].mean() == monotone and found["minima"].mean() == minima
    assert found["convex"].mean() == pytest.approx(convex, abs=0.06)  # points at which the sign is a matter of rounding
    assert found["lowest in the middle"].all() == lowest


def test_minima_of_known_planes():
    x, y = np.meshgrid(AXIS, AXIS)
    assert landscapes.count_minima(x**2 + y**2) == 1
    assert landscapes.count_minima(x**2 - y**2) == 0
    assert landscapes.count_minima((x**2 - 0.25) ** 2 + (y**2 - 0.25) ** 2) == 4
    assert landscapes.count_minima(np.zeros((5, 5))) == 0


def test_sections_of_the_flow_are_the_energy_of_the_problem(quick):
    flow = priors.load("glow-photos32")
    truth = data.load("photos", split="test", size=32)[:2]
    lines, offsets = quick.arrays["lines"], quick.arrays["offsets"]
    assert lines.shape == (len(quick.metrics["kinds"]), 2, 2, 2, len(offsets))
    z, middle = flow.encode(truth), len(offsets) // 2
    np.testing.assert_allclose(lines[0, :, :, :, middle], 0, atol=1e-4)
    # the natural line from the first image to the other, as long as the latent of the first
    step = (z[1] - z[0]) * z[0].norm() / (z[1] - z[0]).norm()
    points = z[0] + torch.tensor(offsets, dtype=torch.float32)[:, None] * step
    for k, m in enumerate(quick.metrics["measurements"]):
        operator = measure.Gaussian((3, 32, 32), m, 0)
        misfit = energy.SquaredMisfit(operator, operator(truth[:1]).expand(len(points), -1))
        expected = energy.Energy(flow, misfit)(points)
        kind = quick.metrics["kinds"].index("flow, natural")
        np.testing.assert_allclose(lines[kind, k, 0, 0], expected, rtol=1e-3, atol=1e-4)


def test_planes_contain_the_lines(quick):
    planes, lines = quick.arrays["planes"], quick.arrays["lines"]
    middle = len(quick.arrays["offsets"]) // 2
    at_one = planes[:, quick.provenance.settings["scales"].index(1.0), 0]
    for k in range(len(planes)):
        np.testing.assert_allclose(at_one[k, :, middle], lines[k, -1, 0, 0], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(at_one[k, middle], lines[k, -1, 0, 1], rtol=1e-3, atol=1e-3)
    counts = quick.metrics["minima of the planes"]
    assert counts["flow, random"] == [landscapes.count_minima(plane) for plane in planes[0, :, 0]]
    # along a direction as long as the latent and nearly orthogonal to it, ‖z‖ grows to √2 of itself
    lengths = planes[0, -1, 1]
    assert lengths[-1, middle] == pytest.approx(2**0.5 * lengths[middle, middle], rel=0.1)


def test_steps_in_image_space(quick):
    steps = np.array(quick.provenance.settings["pixel_steps"])
    nats, misfit, length = quick.arrays["pixel steps"]
    # the misfit is quadratic in x, and E‖A v‖² = ‖v‖², exact within a few percent for one A and m = 1229
    np.testing.assert_allclose(
        misfit / misfit[..., :1], np.broadcast_to((steps / steps[0]) ** 2, misfit.shape), rtol=1e-3
    )
    np.testing.assert_allclose(misfit[0], np.broadcast_to(3072 * steps**2, misfit[0].shape), rtol=0.25)
    assert quick.metrics["finite"] and (nats[0, ..., -1] > 0).all() and (length[0, ..., -1] > 0).all()
    grid = quick.arrays["pixel plane"]
    middle = grid.shape[-1] // 2
    np.testing.assert_allclose(grid[:, middle, middle], 0, atol=0.1)


def test_searches_go_down(quick):
    ends = quick.arrays["ends"]
    assert ends.shape == (2, 2, 1, 2) and (ends[:, 0] >= 0).all() and (ends[:, 0] < 1).all()
