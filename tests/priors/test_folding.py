"""What a frozen flow keeps (folded convolutions and their inverses) never outlives the parameters it was made from."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from companion.priors.bijections import ChannelMix
from companion.priors.matrices import MIXES


def mix(kind: str = "rotation", seed: int = 0) -> ChannelMix:
    part = ChannelMix(6, kind, seed).double()
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in part.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw))
    return part.requires_grad_(False)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def by_hand(part: ChannelMix, x: Tensor) -> Tensor:
    """W (s ⊙ (x + b)), never from what is kept."""
    normed = part.norm.encode(x)[0]
    return torch.einsum("ij,bjhw->bihw", part.mix.matrices()[0], normed)


def assert_fresh(part: ChannelMix, x: Tensor) -> None:
    z, log_det = part.encode(x)
    torch.testing.assert_close(z, by_hand(part, x))
    back, inverse_log_det = part.decode(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_det, -log_det)
    expected = part.norm.encode(x)[1] + part.mix.matrices()[2] * x[0, 0].numel()
    torch.testing.assert_close(log_det, expected)


@pytest.mark.parametrize("kind", MIXES)
def test_kept_while_frozen(kind: str) -> None:
    part = mix(kind)
    assert_fresh(part, images())
    assert part.folded() is part.folded()
    part.requires_grad_(True)
    assert part.folded() is not part.folded()
    with torch.no_grad():
        assert part.folded() is part.folded()


def _data(part: ChannelMix) -> None:
    for p in part.parameters():
        p.data.mul_(1.1)  # leaves the version counter as it was


def _in_place(part: ChannelMix) -> None:
    with torch.no_grad():
        part.norm.log_scale.add_(0.3)


def _load(part: ChannelMix) -> None:
    part.load_state_dict(mix(seed=5).state_dict())


def _step(part: ChannelMix) -> None:
    part.requires_grad_(True)
    optimiser = torch.optim.Adam(part.parameters(), 0.1)
    part.encode(images())[0].square().sum().backward()
    optimiser.step()
    part.requires_grad_(False)


def _initialise(part: ChannelMix) -> None:
    part.initialise(3 * images() + 1)


def _replace(part: ChannelMix) -> None:
    part.norm.bias = torch.nn.Parameter(torch.arange(6.0, dtype=torch.float64), requires_grad=False)


@pytest.mark.parametrize("change", [_data, _in_place, _load, _step, _initialise, _replace])
def test_every_change_is_seen(change: Callable[[ChannelMix], None]) -> None:
    part, x = mix(), images()
    before = part.encode(x)[0]
    change(part)
    assert (part.encode(x)[0] - before).abs().max() > 1e-3
    assert_fresh(part, x)


def test_other_dtype() -> None:
    part = mix()
    part.encode(images())
    part.float()
    assert part.encode(images(torch.float32))[0].dtype == torch.float32
    part.double()
    assert_fresh(part, images())


def test_not_in_state_or_copies() -> None:
    part = mix()
    names = list(part.state_dict())
    part.encode(images())
    assert list(part.state_dict()) == names
    for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert twin._kept._last is None
        assert_fresh(twin, images())
        _in_place(twin)
        assert_fresh(twin, images())
    assert_fresh(part, images())


def test_made_in_inference_mode_serves_training() -> None:
    part = mix()
    with torch.inference_mode():
        part.encode(images())
    x = images().requires_grad_()
    part.encode(x)[0].square().sum().backward()
    assert x.grad is not None


def test_gradients_of_parameters_after_use_frozen() -> None:
    part, x = mix(), images()
    part.encode(x)
    part.requires_grad_(True)
    part.encode(x)[0].sum().backward()
    assert all(p.grad is not None for p in part.parameters())


def test_tangents_of_parameters_pass_the_kept_ones() -> None:
    part, x = mix(), images()
    part.encode(x)
    names = dict(part.named_parameters())
    directions = {name: torch.ones_like(p) for name, p in names.items()}

    def encoded(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(part, parameters, (x,))

    part.forward = lambda x: part.encode(x)[0]  # functional_call calls forward
    _, tangent = torch.func.jvp(encoded, (names,), (directions,))
    h = 1e-6
    plus, minus = (encoded({n: p + sign * h for n, p in names.items()}) for sign in (1, -1))
    torch.testing.assert_close(tangent, (plus - minus) / (2 * h), rtol=1e-6, atol=1e-8)
