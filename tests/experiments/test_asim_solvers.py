"""The quick runs on starts and solvers, and the published scheme beside ours on problems with known answers."""

import math

import numpy as np
import pytest
import torch

from companion import evaluate, experiments, measure, recover
from companion.energy import Energy, SquaredMisfit
from companion.experiments.asim import solvers


class Linear:
    """x = W z, images of 4×5 pixels; the singular values of W run from 1 to 0.05."""

    def __init__(self):
        self.shape, self.latent_dim = (1, 4, 5), 20
        source = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(20, 20, generator=source, dtype=torch.float64))[0]
        self.weight = basis * torch.logspace(0, math.log10(0.05), 20, dtype=torch.float64)

    def decode(self, z):
        return (z @ self.weight.T).unflatten(1, self.shape)


@pytest.fixture(scope="module")
def linear():
    prior, operator = Linear(), measure.Gaussian((1, 4, 5), 8, seed=3)
    truth = torch.rand(4, *prior.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return prior, operator, truth * torch.tensor([1.0, 0.3, 0.1, 0.9], dtype=torch.float64)[:, None, None, None]


@pytest.fixture(scope="module")
def starts():
    return experiments.load("asim.initialisation", "quick")  # test_verify.py asks whether today\'s code gives it


@pytest.fixture(scope="module")
def comparison():
    return experiments.load("asim.solvers", "quick")  # test_verify.py asks whether today\'s code gives it


def test_a_linear_search_leaves_the_part_of_the_start_that_is_not_measured(linear):
    """What the chapter says about γ = 0: the end is the shortest explanation plus the start's null-space part."""
    prior, operator, truth = linear
    matrix = operator.matrix(truth) @ prior.weight
    z0 = torch.randn(4, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = recover.flow_latent(prior, operator, operator(truth), z0=z0, tolerance_gradient=1e-11, tolerance_change=0)
    pinv = torch.linalg.pinv(matrix)
    expected = operator(truth) @ pinv.T + z0 - z0 @ (pinv @ matrix).T
    torch.testing.assert_close(found.z, expected, rtol=1e-5, atol=1e-6)


def test_the_published_scheme_minimises_but_an_image_depends_on_its_batch_mates(linear):
    prior, operator, truth = linear
    energy = Energy(prior, SquaredMisfit(operator, operator(truth)))
    alone = solvers.joint_lbfgs(energy.select([0]), truth[:1], steps=2)
    together = solvers.joint_lbfgs(energy, truth, steps=2, looks=(1, 40))
    assert together["psnr"].shape == together["energy"].shape == (40, 4) and together["x"].shape == (2, 4, 1, 4, 5)
    assert not together["length"][0].any()  # z0 = 0, where every x is 0
    torch.testing.assert_close(together["energy"][0], operator(truth).square().sum(1))
    assert (together["energy"][-1] < 0.3 * together["energy"][0]).all()
    assert (alone["psnr"][:, 0] - together["psnr"][:, 0]).abs().max() > 0.05
    ours = [recover.minimise(e, torch.zeros(len(e), 20, dtype=torch.float64)) for e in (energy.select([0]), energy)]
    torch.testing.assert_close(ours[0].z[0], ours[1].z[0], rtol=0, atol=1e-9)


def test_the_published_scheme_may_stop_early_and_is_looked_at_where_it_stopped(linear):
    prior, operator, truth = linear
    energy = Energy(prior, SquaredMisfit(operator, operator(truth)))
    looks = (1, 5, 10**6)
    run = solvers.joint_lbfgs(energy, truth, steps=200, learning_rate=1.0, looks=looks)
    assert len(run["psnr"]) < 200 * solvers.INNER and len(run["x"]) == len(looks)
    torch.testing.assert_close(evaluate.psnr(run["x"][-1], truth), run["psnr"][-1])


def test_starts_are_what_they_are_called(starts):
    settings, n = starts.provenance.settings, 3072
    length, misfit, psnr = (
        dict(zip(starts.axes(f"start {key}")["start"], starts.take(f"start {key}"), strict=True))
        for key in ("length", "misfit", "psnr")
    )
    assert list(length) == ["zero", "normal 0.7", "lasso-wavelet", "pseudo-inverse", "null space"]
    assert length["zero"] == 0 and length["normal 0.7"] == pytest.approx(0.7 * math.sqrt(n), rel=0.05)
    for name in ("null space", "pseudo-inverse"):  # both explain y: the one up to the noise, the other exactly
        assert misfit[name] < 0.03 < misfit["lasso-wavelet"] + 0.03 < misfit["zero"]
    distance = -10 * math.log10(settings["perturbation"] ** 2 / n)
    assert psnr["null space"] == pytest.approx(distance, abs=1.0)  # clipping to [0, 1] removes some of it
    assert psnr["zero"] < psnr["lasso-wavelet"] > psnr["pseudo-inverse"]


def test_searches_from_the_starts(starts):
    assert np.isfinite(starts.take("psnr")).all()
    from_zero = starts.take("psnr", start="zero", gamma=0.0)
    np.testing.assert_array_equal(starts.take("norms psnr", norm=0.0), from_zero)  # ‖z0‖ = 0 is the zero start
    energy, length = (starts.take(f"norms {key} path") for key in ("energy", "length"))
    assert (energy[:, -1] < energy[:, 0]).all()
    np.testing.assert_allclose(length[:, 0], starts.axes("norms length")["norm"], rtol=1e-5)
    assert (starts.take("misfit", start="zero") < starts.take("start misfit", start="zero")).all()
    gammas = starts.axes("psnr")["gamma"]
    assert all(gamma in gammas for gamma in starts.metrics["gamma chosen on validation"])


def test_paths_of_the_solvers(comparison):
    assert comparison.metrics["change by other mates, image by image"] < 0.01  # decibels: rounding
    energy = comparison.take("energy", m=307, method="lbfgs")
    assert np.isfinite(comparison.take("psnr")).all() and (energy[-1] < energy[0]).all()
    # "first" is met where the path, kept at every tenth evaluation, has passed the joint scheme's end
    joint = comparison.take("psnr", m=307, method="joint")[-1]
    passed = comparison.take("psnr", m=307, method="lbfgs", evaluation=20) >= joint
    np.testing.assert_array_equal(passed, (comparison.take("first", m=307) > 0) & passed)
    assert (comparison.take("spent", m=307) == 20).all() and not comparison.take("converged").any()
    seen, truth = (comparison.take(name) / 255 for name in ("pictures", "truth"))
    scores = -10 * np.log10(((seen - truth) ** 2).mean((-3, -2, -1)))
    np.testing.assert_allclose(scores, comparison.take("pictures psnr"), atol=0.05)
