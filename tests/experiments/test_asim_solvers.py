"""The quick runs on starts and solvers, and the published scheme beside ours on problems with known answers."""

import math

import numpy as np
import pytest
import torch

from companion import experiments, measure, recover
from companion.energy import Energy, SquaredMisfit
from companion.experiments.asim import initialisation, solvers

pytestmark = pytest.mark.slow


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
    prior, operator = Linear(), measure.Gaussian((1, 4, 5), 8, seed=1)
    truth = torch.rand(4, *prior.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return prior, operator, truth * torch.tensor([1.0, 0.3, 0.1, 0.9], dtype=torch.float64)[:, None, None, None]


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    return experiments.run("asim.initialisation", "quick", device="cpu", out=tmp_path_factory.mktemp("starts"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return experiments.run("asim.solvers", "quick", device="cpu", out=tmp_path_factory.mktemp("comparison"))


def test_a_path_is_the_last_iterate_that_the_evaluations_had_led_to():
    trace = {
        "evaluations": torch.tensor([[1.0, 1.0], [2.0, 4.0], [5.0, 4.0]]),
        "psnr": torch.tensor([[10.0, 20.0], [11.0, 21.0], [12.0, 21.0]]),
    }
    nothing = torch.zeros(2)
    found = recover.Result(nothing, nothing, nothing, trace, nothing, nothing, ["", ""])
    path = initialisation.along(found, "psnr", np.array([1, 2, 3, 4, 5, 9]))
    np.testing.assert_array_equal(path, [[10, 20], [11, 20], [11, 20], [11, 21], [12, 21], [12, 21]])


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


def test_starts_are_what_they_are_called(starts):
    metrics, settings = starts.metrics, starts.provenance.settings
    names = metrics["starts"]
    assert names == ["zero", "normal 0.7", "lasso-wavelet", "pseudo-inverse", "null space"]
    length = dict(zip(names, metrics["mean length of the start"], strict=True))
    assert length["zero"] == 0 and length["normal 0.7"] == pytest.approx(0.7 * math.sqrt(metrics["n"]), rel=0.05)
    misfit = dict(zip(names, metrics["mean misfit of the start"], strict=True))
    for name in ("null space", "pseudo-inverse"):  # both explain y: the one up to the noise, the other exactly
        assert misfit[name] < 0.03 < misfit["lasso-wavelet"] + 0.03 < misfit["zero"]
    psnr = dict(zip(names, metrics["mean psnr of the start"], strict=True))
    distance = -10 * math.log10(settings["perturbation"] ** 2 / metrics["n"])
    assert psnr["null space"] == pytest.approx(distance, abs=1.0)  # clipping to [0, 1] removes some of it
    assert psnr["zero"] < psnr["lasso-wavelet"] > psnr["pseudo-inverse"]


def test_searches_from_the_starts(starts):
    metrics, arrays = starts.metrics, starts.arrays
    assert arrays["psnr"].shape == (5, 2, 2) and np.isfinite(arrays["psnr"]).all()
    np.testing.assert_allclose(arrays["psnr"].mean(-1), metrics["mean psnr"], atol=1e-3)
    np.testing.assert_array_equal(arrays["norms/psnr"][0], arrays["psnr"][0, 0])  # ‖z0‖ = 0 is the zero start
    assert (arrays["norms/energy path"][:, -1] < arrays["norms/energy path"][:, 0]).all()
    np.testing.assert_allclose(arrays["norms/length path"][:, 0], metrics["norms"], rtol=1e-5)
    misfit = arrays["misfit"]
    assert (misfit[0] < metrics["mean misfit of the start"][0]).all()
    assert all(gamma in metrics["gammas"] for gamma in metrics["gamma chosen on validation"])


def test_paths_of_the_solvers(comparison):
    metrics, arrays = comparison.metrics, comparison.arrays
    assert metrics["per image, other mates change nothing"] is True
    psnr, energy = arrays["m=307/psnr"], arrays["m=307/energy"]
    assert psnr.shape == (3, 2, 2) and np.isfinite(psnr).all() and np.isfinite(energy).all()
    assert (energy[0, -1] < energy[0, 0]).all()
    ends = [metrics["psnr at the end"][method][0] for method in solvers.METHODS]
    np.testing.assert_allclose(psnr[:, -1].mean(-1), ends, atol=2e-3)
    needed = metrics["evaluations to the joint scheme's psnr"]
    assert needed["joint"][0] <= 20 and needed["lbfgs"][0] <= 20
    assert (arrays["m=307/spent"] == 20).all() and not arrays["m=307/converged"].any()
    assert arrays["pictures"].shape == (3, 1, 1, 3, 32, 32)
    seen = arrays["pictures"] / 255 - arrays["truth"] / 255
    scores = -10 * np.log10((seen**2).mean((-3, -2, -1)))
    np.testing.assert_allclose(scores, arrays["pictures psnr"], atol=0.05)
