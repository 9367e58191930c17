import math

import numpy as np
import pytest
import torch
from scipy import stats

from companion.priors import PointFlow, load, save
from companion.training import PointLikelihood, Schedule, fit


def perturbed(seed: int = 1, size: float = 0.15, **config: object) -> PointFlow:
    flow = PointFlow(**{"couplings": 4, "width": 8} | config).double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(size * torch.randn(p.shape, generator=draw, dtype=torch.float64))
    return flow


def points(number: int, dimension: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cells(flow: PointFlow, reach: float, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Midpoints of a grid on [-reach, reach]², and the probability in each cell."""
    side = 2 * reach / number
    middle = torch.linspace(-reach + side / 2, reach - side / 2, number, dtype=torch.float64)
    grid = torch.cartesian_prod(middle, middle)
    with torch.no_grad():
        return grid, flow.log_prob(grid).exp() * side**2


@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_density_integrates_to_one(coupling, seed):
    probability = cells(perturbed(seed, coupling=coupling), 15, 300)[1]
    assert abs(float(probability.sum()) - 1) < 1e-3
    assert float(probability.max()) / float(probability.sum()) < 0.01  # the grid resolves it


def chi_square(flow: PointFlow, samples: torch.Tensor) -> float:
    """p-value of samples against the flow's density integrated over 8×8 blocks of a grid."""
    grid, probability = cells(flow, 8, 320)
    block = ((grid + 8) / 2).long()
    expected = torch.zeros(64, dtype=torch.float64).index_add_(0, block[:, 0] * 8 + block[:, 1], probability)
    inside = (samples.abs() < 8).all(1)
    own = ((samples[inside] + 8) / 2).long()
    seen = torch.bincount(own[:, 0] * 8 + own[:, 1], minlength=64).double()
    outside = len(samples) - float(seen.sum())
    big = expected * len(samples) >= 5
    observed = np.append(seen[big].numpy(), float(seen[~big].sum()) + outside)
    wanted = np.append(expected[big].numpy(), 1 - float(expected[big].sum())) * len(samples)
    return float(stats.chisquare(observed, wanted, sum_check=False).pvalue)


def test_samples_follow_the_density():
    flow, other = perturbed(1), perturbed(3)
    assert chi_square(flow, flow.sample(20_000, seed=5)) > 1e-3
    assert chi_square(flow, other.sample(20_000, seed=5)) < 1e-6  # the test has power


def test_every_coordinate_is_moved_and_every_parameter_learns():
    flow = perturbed(dimension=3, couplings=2)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.encode(v)[0], points(1, 3)).view(3, 3)
    assert (jacobian != 0).sum(1).ge(2).sum() >= 2
    flow.log_prob(points(4, 3)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in flow.parameters())


@pytest.mark.slow
def test_training_reaches_the_entropy_of_a_known_density():
    """Bimodal × uniform (as Asim et al. 2020, App. G): the entropy of the mixture, by quadrature, plus log 2."""
    draw = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, (4000,), generator=draw) * 2 - 1
    first = sign + 0.3 * torch.randn(4000, generator=draw)
    x = torch.stack([first, 2 * torch.rand(4000, generator=draw) - 1], 1)
    t = np.linspace(-4, 4, 4001)
    mixture = 0.5 * (stats.norm(1, 0.3).pdf(t) + stats.norm(-1, 0.3).pdf(t))
    entropy = float(np.trapezoid(-mixture * np.log(mixture), t)) + math.log(2)
    flow = PointFlow(couplings=6, width=32)
    settings = Schedule(steps=250, batch_size=128, learning_rate=1e-2, warm_up=10, average=0.9, validate_every=250)
    history = fit(flow, x[:3500], PointLikelihood(), settings, validation=x[3500:], progress=False)
    assert history.score[-1] < entropy + 0.15
    assert history.score[-1] > entropy - 0.15  # no density does better
    assert bool(flow.initialised) and not any(p.requires_grad for p in flow.parameters())


def test_weights_blown_up_forty_fold_stay_finite(tmp_path):
    flow = perturbed(size=1.0, couplings=8).float()
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(40)
    x = 1e3 * points(5).float()
    z, log_det = flow.encode_with_log_det(x)
    assert all(torch.isfinite(v).all() for v in (z, log_det, flow.decode(x), flow.log_prob_latent(x)))
    loaded = load(save(flow, tmp_path / "points.safetensors"))
    assert torch.equal(loaded.encode(x), z) and loaded.shape == (2,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dimension": 1}, "dimension"),
        ({"couplings": 0}, "couplings"),
        ({"width": 0}, "width"),
        ({"coupling": "spline"}, "coupling"),
    ],
)
def test_bad_arguments_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        PointFlow(**config)


def test_bad_points_are_refused():
    flow = PointFlow(couplings=2, width=4)
    with pytest.raises(ValueError, match="shape"):
        flow.encode(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="float32"):
        flow.encode(torch.zeros(3, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="flow on points"):
        flow.bits_per_dim(torch.zeros(3, 2))
