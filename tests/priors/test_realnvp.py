import pytest
import torch

from companion.priors import RealNVP
from companion.priors.bijections import Coupling, Squeeze
from companion.priors.checkerboard import ChannelOrder, CheckerboardCoupling, checkerboard, swapped_halves
from companion.priors.networks import ResidualConditioner, norm_scale
from companion.priors.realnvp import _by_position, _diagonal_first

ARCHITECTURES = {
    "three scales": {"shape": (1, 8, 8), "scales": 3, "blocks": 1},
    "odd last scale": {"shape": (1, 6, 10), "scales": 2, "blocks": 2},
    "one odd scale": {"shape": (2, 3, 5), "scales": 1, "blocks": 1},
    "down to a pixel": {"shape": (3, 4, 4), "scales": 3, "blocks": 1},
    "NICE": {"shape": (1, 4, 8), "scales": 2, "blocks": 1, "coupling": "additive"},
    "uniform 5 bits": {"shape": (2, 4, 4), "scales": 2, "blocks": 1, "pixels": "uniform", "bits": 5},
    "weak contraction": {"shape": (1, 4, 4), "scales": 2, "blocks": 1, "contraction": 0.999},
}


def perturbed(dtype: torch.dtype = torch.float64, size: float = 0.2, **config: object) -> RealNVP:
    flow = RealNVP(**{"width": 6, "seed": 3} | config).to(dtype)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(size * torch.randn(p.shape, generator=draw, dtype=torch.float64).to(dtype))
    return flow


def pictures(flow: RealNVP, number: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.rand(number, *flow.shape, generator=draw, dtype=torch.float64).to(flow.like.dtype)


@pytest.fixture(params=ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def config(request: pytest.FixtureRequest) -> dict:
    return request.param


def test_weights_blown_up_forty_fold_stay_finite(config):
    flow = perturbed(torch.float32, size=1.0, **config)
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(40)
    x = pictures(flow)
    z, log_det = flow.encode_with_log_det(x)
    back, log_prob = flow.decode(1e3 * torch.randn_like(z)), flow.log_prob_latent(z)
    assert all(torch.isfinite(v).all() for v in (z, log_det, back, log_prob))


def test_initialisation_normalises_what_enters_the_first_coupling():
    flow = RealNVP(shape=(1, 8, 8), scales=2, blocks=1, width=4)
    x = pictures(flow, 16)
    flow.initialise(x)
    norm = flow.bijection.levels[0].parts[0]
    h = norm.encode(flow.pixels.encode(x)[0])[0]
    assert h.mean().abs() < 1e-5 and (h.std(correction=0) - 1).abs() < 1e-5


def test_the_published_arrangement():
    flow = RealNVP(shape=(1, 28, 28), scales=3, blocks=6, width=4)
    kinds = [[type(p) for p in level.parts] for level in flow.bijection.levels]
    assert [k.count(CheckerboardCoupling) for k in kinds] == [3, 3, 4]
    assert [k.count(Coupling) for k in kinds] == [3, 3, 0] and [k.count(Squeeze) for k in kinds] == [1, 1, 0]
    networks = [m for m in flow.modules() if isinstance(m, ResidualConditioner)]
    assert all(len(n.blocks) == 6 for n in networks)
    assert sorted({n.first.out_channels for n in networks}) == [4, 8, 16]  # doubled at each squeeze
    masks = [p.mask[0, 0, 0, 0].item() for p in flow.bijection.levels[2].parts if isinstance(p, CheckerboardCoupling)]
    assert masks == [1, 0, 1, 0]


def test_a_new_flow_is_affine_in_the_logits():
    """Couplings start as the identity, so log p is that of independent logistic-normal pixels."""
    flow = RealNVP(shape=(1, 4, 4), scales=2, blocks=1, width=4).double()
    x = pictures(flow)
    h, log_det = flow.pixels.encode(x)
    expected = torch.distributions.Normal(0, 1).log_prob(h).flatten(1).sum(1) + log_det
    torch.testing.assert_close(flow.log_prob(x), expected.double(), rtol=1e-12, atol=1e-10)


def test_nice_preserves_volume_up_to_its_norms():
    flow = perturbed(shape=(1, 4, 4), scales=2, blocks=1, coupling="additive", pixels="uniform")
    log_det = flow.encode_with_log_det(pictures(flow, 5))[1]
    assert (log_det.max() - log_det.min()).item() < 1e-10


def test_contraction_is_undone():
    """White and black come back, which a bare sigmoid would map to 0.95 and 0.05."""
    flow = perturbed(shape=(1, 4, 4), scales=2, blocks=1)
    x = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]).double()
    torch.testing.assert_close(flow.decode(flow.encode(x)), x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (2, 1)])
def test_checkerboard_couplings_move_one_colour_alone(size):
    coupling = CheckerboardCoupling(ResidualConditioner(2, 4, 5, 1, 0), size, 1).double()
    with torch.no_grad():
        norm_scale(coupling.conditioner.last).fill_(1)
        coupling.conditioner.last.bias.fill_(0.3)
    x = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fixed = checkerboard(*size, 1).bool().expand_as(x)
    z = coupling.encode(x)[0]
    assert torch.equal(z[fixed], x[fixed]) and (z != x)[~fixed].all()
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    assert torch.equal(fixed[0, 0], (rows + columns) % 2 == 1)


def test_orders_of_channels_are_squeezes():
    x = torch.randn(2, 3, 4, 6)
    corners = [x[:, :, i::2, j::2] for i, j in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    by_position = _by_position(3).encode(Squeeze().encode(x)[0])[0]
    assert torch.equal(by_position, torch.cat(corners, 1))
    diagonal = _diagonal_first(3).encode(by_position)[0]
    assert torch.equal(diagonal, torch.cat([corners[i] for i in (0, 3, 1, 2)], 1))
    swap = swapped_halves(5)
    assert torch.equal(swap.encode(x.reshape(2, 72)[:, :5])[0], x.reshape(2, 72)[:, [2, 3, 4, 0, 1]])
    assert torch.equal(swap.decode(swap.encode(diagonal[:, :5])[0])[0], diagonal[:, :5])


def test_weight_normalisation_sets_the_norm_of_each_filter():
    network = ResidualConditioner(1, 2, 5, 2, 0).double()
    with torch.no_grad():
        norm_scale(network.first).copy_(torch.arange(1.0, 6).view(5, 1, 1, 1))
    norms = network.first.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.arange(1.0, 6, dtype=torch.float64))
    assert not network(torch.randn(2, 1, 4, 4, dtype=torch.float64)).any()  # zero at first


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"shape": (1, 30, 30), "scales": 3}, "30×30 pixels"),
        ({"shape": (1, 7, 7), "scales": 2}, "divisible by 2"),
        ({"shape": (28, 28)}, "channels, height, width"),
        ({"scales": 0}, "scales"),
        ({"blocks": 0}, "blocks"),
        ({"width": 0}, "width"),
        ({"coupling": "spline"}, "coupling"),
        ({"pixels": "none"}, "pixels|none"),
        ({"contraction": 1.0}, "contraction"),
    ],
)
def test_bad_arguments_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        RealNVP(**{"width": 2, "blocks": 1} | config)


def test_bad_orders_and_pixels_are_refused():
    with pytest.raises(ValueError, match="order"):
        ChannelOrder([0, 0, 1])
    flow = RealNVP(shape=(1, 4, 4), scales=2, blocks=1, width=2)
    with pytest.raises(ValueError, match="can represent"):
        flow.encode(torch.full((1, 1, 4, 4), 1.2))
    with pytest.raises(ValueError, match="shape"):
        flow.encode(torch.rand(2, 1, 5, 5))
