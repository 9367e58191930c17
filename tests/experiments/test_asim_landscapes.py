"""The quick run on loss landscapes: its sections recomputed, and the counts on functions whose shape is known."""

import numpy as np
import pytest
import torch

from companion import data, energy, experiments, measure, priors
from companion.experiments.asim import landscapes

AXIS = np.linspace(-1, 1, 21)


@pytest.fixture(scope="module")
def quick():
    return experiments.load("asim.landscapes", "quick")  # test_verify.py asks whether today\'s code gives it


@pytest.mark.parametrize(
    ("section", "monotone", "convex", "minima"),
    [
        (AXIS**2, 1, 1, 1),
        (-(AXIS**2), 0, 0, 0),
        (np.sqrt(abs(AXIS)), 1, 1 / 19, 1),
        (np.where(AXIS < 0, AXIS**2, -(AXIS**2)), 0.5, 9 / 19, 0),
        (1 - np.cos(2 * np.pi * AXIS), 0, 9 / 19, 1),
        ((AXIS**2 - 0.36) ** 2, 0, 12 / 19, 2),
    ],
)
def test_shapes_of_known_sections(section, monotone, convex, minima):
    found = landscapes.shapes(np.stack([section, section])[:, None])
    assert all(value.shape == (2, 1) for value in found.values())
    assert found["monotone"].mean() == monotone and found["minima"].mean() == minima
    assert found["convex"].mean() == pytest.approx(convex, abs=0.06)  # points at which the sign is a matter of rounding


def test_minima_of_known_planes():
    x, y = np.meshgrid(AXIS, AXIS)
    assert landscapes.count_minima(x**2 + y**2) == 1
    assert landscapes.count_minima(x**2 - y**2) == 0
    assert landscapes.count_minima((x**2 - 0.25) ** 2 + (y**2 - 0.25) ** 2) == 4
    assert landscapes.count_minima(np.zeros((5, 5))) == 0


def test_sections_of_the_flow_are_the_energy_of_the_problem(quick):
    flow = priors.load("glow-photos32")
    truth = data.load("photos", split="test", size=32)[:2]
    axes = quick.axes("lines")
    z, middle = flow.encode(truth), len(axes["offset"]) // 2
    np.testing.assert_allclose(quick.take("lines", kind="flow, random")[..., middle], 0, atol=1e-4)
    # the natural line from the first image to the other, as long as the latent of the first
    step = (z[1] - z[0]) * z[0].norm() / (z[1] - z[0]).norm()
    points = z[0] + torch.tensor(axes["offset"])[:, None] * step
    for m in axes["m"]:
        operator = measure.Gaussian((3, 32, 32), m, 0)
        misfit = energy.SquaredMisfit(operator, operator(truth[:1]).expand(len(points), -1))
        expected = energy.Energy(flow, misfit)(points)
        line = quick.take("lines", kind="flow, natural", m=m, image=0, direction=0)
        np.testing.assert_allclose(line, expected, rtol=1e-3, atol=1e-4)


def test_planes_contain_the_lines(quick):
    planes, lines = quick.take("planes", scale=1.0), quick.take("lines", m=1229, image=0)
    middle = lines.shape[-1] // 2
    for (energies, _), (first, second) in zip(planes, lines, strict=True):
        np.testing.assert_allclose(energies[:, middle], first, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(energies[middle], second, rtol=1e-3, atol=1e-3)
    # along a direction as long as the latent and nearly orthogonal to it, ‖z‖ grows to √2 of itself
    lengths = quick.take("planes", kind="flow, random", scale=1.0, quantity="length")
    assert lengths[-1, middle] == pytest.approx(2**0.5 * lengths[middle, middle], rel=0.1)


def test_steps_in_image_space(quick):
    steps = np.array(quick.axes("pixel steps")["step"])
    misfit = quick.take("pixel steps", quantity="misfit")
    # the misfit is quadratic in x, and E‖A v‖² = ‖v‖², exact within a few percent for one A and m = 1229
    np.testing.assert_allclose(
        misfit / misfit[..., :1], np.broadcast_to((steps / steps[0]) ** 2, misfit.shape), rtol=1e-3
    )
    np.testing.assert_allclose(misfit[0], np.broadcast_to(3072 * steps**2, misfit[0].shape), rtol=0.25)
    far = {name: quick.take("pixel steps", way="random", quantity=name, step=0.1) for name in ("nats", "length")}
    assert (far["nats"] > 0).all() and (far["length"] > 0).all()


def test_searches_go_down(quick):
    ends = quick.take("relative misfit")
    assert list(quick.axes("relative misfit")) == ["model", "image", "start"] and (ends >= 0).all() and (ends < 1).all()
