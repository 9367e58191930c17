"""Two hundred problems far from all that the flows were made for: no NaN, no exception, never worse than the start.

Twenty kinds of problem, ten images each. Within a kind, images and starts differ; the kinds differ in flow, operator,
weight, dtype and solver, all drawn from a fixed seed so that each failure can be repeated.
"""

import random

import pytest
import torch

from companion import measure, priors, recover
from companion.energy import Energy, FlowLikelihood, LatentNorm, SquaredMisfit

pytestmark = pytest.mark.slow

KINDS = 20
IMAGES = 10
BUDGET = 20
OVERFLOWING = (2, 10)  # float32, once for each solver: from the longer starts not even the energy is finite


class Scaled(measure.base.LinearOperator):
    """c times an operator."""

    def __init__(self, operator, factor):
        super().__init__(operator.shape, operator.output_shape)
        self.operator, self.factor = operator, factor

    def apply(self, x):
        return self.factor * self.operator.apply(x)

    def apply_adjoint(self, y):
        return self.factor * self.operator.apply_adjoint(y)


def blown_up(flow, spread, seed):
    """A flow that was never trained, with normal numbers added to all of its weights."""
    source = torch.Generator().manual_seed(seed)
    for parameter in flow.requires_grad_(False).parameters():
        parameter += spread * torch.randn(parameter.shape, generator=source)
    return flow.eval()


FLOWS = {
    "glow, mild": lambda: blown_up(priors.Glow((3, 8, 8), levels=2, steps=1, width=8), 0.1, 1),
    "glow, wild": lambda: blown_up(priors.Glow((1, 8, 8), levels=1, steps=2, width=8), 0.6, 2),
    "realnvp, wild": lambda: blown_up(priors.RealNVP((1, 8, 8), width=8), 0.4, 3),
    "stored": lambda: priors.load("glow-mnist"),
}


@pytest.fixture(scope="module")
def flows():
    return {(name, dtype): make().to(dtype) for name, make in FLOWS.items() for dtype in (torch.float32, torch.float64)}


def strange_images(shape, source, dtype):
    """Ten images [10, *shape] that no photograph resembles, most of them with pixels outside [0, 1]."""
    height, width = shape[1:]
    board = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    ramp = torch.linspace(-3, 4, height)[:, None].expand(height, width)
    spike = torch.zeros(height, width)
    spike[height // 2, width // 2] = 1e4
    flat = [torch.zeros(height, width), torch.ones(height, width), torch.full((height, width), -20.0)]
    drawn = [*flat, board.float(), 30.0 * board - 15, ramp, spike]
    images = [image.expand(shape) for image in drawn]
    images += [scale * torch.randn(shape, generator=source) for scale in (3.0, 100.0, 1e-6)]
    return torch.stack(images).to(dtype)


def operators(shape, seed):
    n = shape[0] * shape[1] * shape[2]
    return {
        "few": measure.Gaussian(shape, max(1, n // 50), seed),
        "many": measure.Gaussian(shape, 2 * n, seed),
        "tiny": Scaled(measure.Gaussian(shape, n // 4, seed), 1e-7),
        "huge": Scaled(measure.Gaussian(shape, n // 4, seed), 1e6),
        "mask": measure.Mask(measure.masks.random_pixels(shape, 0.7, seed)),
        "identity": measure.Identity(shape),
        "overflowing": Scaled(measure.Gaussian(shape, n // 4, seed), 1e16),
    }


def problem(kind, flows):
    """Flow, energy, start and options of one kind."""
    draw, source = random.Random(kind), torch.Generator().manual_seed(kind)
    dtype = (torch.float32, torch.float64)[kind % 2]
    flow = flows[list(FLOWS)[kind // 2 % 4], dtype]
    names = ("few", "many", "tiny", "huge", "mask", "identity")
    operator = operators(flow.shape, kind)["overflowing" if kind in OVERFLOWING else names[kind % 6]]
    images = strange_images(flow.shape, source, dtype)
    y = operator(images.clamp(-1, 1) if kind in OVERFLOWING else images)
    penalty = draw.choice((None, None, LatentNorm(1e-12), LatentNorm(1e8), LatentNorm(1e6, squared=True)))
    penalty = FlowLikelihood(1.0) if kind % 7 == 5 else penalty
    lengths = torch.logspace(-3, 3, IMAGES - 1, dtype=torch.float64) * flow.latent_dim**0.5
    lengths = torch.cat([torch.zeros(1, dtype=torch.float64), lengths])[torch.randperm(IMAGES, generator=source)]
    z0 = recover.start(flow, y, "sphere", 1.0, source) * lengths.to(dtype)[:, None]
    method = ("lbfgs", "adam")[kind // 8 % 2]
    options = {"method": method, "learning_rate": draw.choice((0.01, 1.0, 100.0)), "max_evaluations": BUDGET}
    return flow, Energy(flow, SquaredMisfit(operator, y), penalty), z0, options


@pytest.mark.parametrize("kind", range(KINDS))
def test_ten_hard_problems_end_with_a_finite_best_iterate_and_a_reason(kind, flows):
    flow, energy, z0, options = problem(kind, flows)
    result = recover.minimise(energy, z0, **options)
    assert result.z.shape == z0.shape and result.z.dtype == z0.dtype
    for value in (result.x, result.z, result.energy):
        assert torch.isfinite(value).all()
    assert all(reason.strip() for reason in result.reason) and len(result.reason) == len(z0)
    assert (result.evaluations <= BUDGET).all()
    unfinished = torch.tensor(["stopped after" in reason for reason in result.reason])
    assert not (unfinished & result.converged).any()
    with torch.no_grad():
        begin, end = energy(z0), energy(result.z)
    torch.testing.assert_close(end, result.energy, rtol=1e-3, atol=0)
    # where the start itself is not finite, the search begins nearer to the origin and says so
    fine = torch.isfinite(begin)
    assert (result.energy[fine] <= begin[fine]).all()
    for row in (~fine).nonzero()[:, 0].tolist():
        assert not result.converged[row] and "not finite at z0" in result.reason[row]
    assert fine.all() == (kind not in OVERFLOWING)
    assert not torch.isnan(result.trace["energy"]).any()
    torch.testing.assert_close(flow.decode(result.z), result.x, rtol=1e-3, atol=1e-3 * float(result.x.abs().max()))


def test_the_kinds_are_as_various_as_they_claim(flows):
    kinds = [problem(kind, flows) for kind in range(KINDS)]
    assert sum(len(z0) for _, _, z0, _ in kinds) == 200
    assert {flow for flow, *_ in kinds} == set(flows.values())
    assert {(options["method"], z0.dtype) for _, _, z0, options in kinds} == {
        (method, dtype) for method in recover.METHODS for dtype in (torch.float32, torch.float64)
    }
    longest = max(float(z0.norm(dim=1).max()) / flow.latent_dim**0.5 for flow, _, z0, _ in kinds)
    assert longest == pytest.approx(1e3, rel=1e-3)
    assert any(len(energy.terms) == 1 for _, energy, *_ in kinds)
