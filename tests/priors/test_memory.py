"""Constant-memory backpropagation: the ordinary gradients, from memory that does not grow with depth."""

import copy

import pytest
import torch
from torch import Tensor

from companion import priors, training
from companion.priors.bijections import Chain
from companion.priors.memory import memory_saving
from companion.priors.points import PointFlow
from companion.priors.realnvp import RealNVP

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}

FLOWS = {
    "glow": lambda: priors.Glow((3, 8, 8), levels=2, steps=4, width=8),
    "glow-lu-additive": lambda: priors.Glow((2, 8, 4), levels=2, steps=3, width=8, conv1x1="lu", coupling="additive"),
    "realnvp": lambda: RealNVP((1, 6, 10), scales=2, blocks=1, width=4),
    "points": lambda: PointFlow(couplings=4, width=8),
}


def perturbed(flow: priors.Flow, dtype: torch.dtype = torch.float64, scale: float = 0.05) -> priors.Flow:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(scale * torch.randn(p.shape, generator=draw))
    return flow.to(dtype)


def small_glow(dtype: torch.dtype = torch.float64, steps: int = 4, scale: float = 0.05) -> priors.Flow:
    return perturbed(priors.Glow((3, 8, 8), levels=2, steps=steps, width=8), dtype, scale)


def batch(flow: priors.Flow, seed: int = 1, size: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 0.05 + 0.9 * torch.rand(size, *flow.shape, generator=draw, dtype=torch.float64).to(flow.like.dtype)


def latents(flow: priors.Flow, size: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(size, flow.latent_dim, generator=draw, dtype=torch.float64).to(flow.like.dtype)


LOSSES = {
    "log_prob": (lambda flow, x: flow.log_prob(x).sum(), batch),
    "encode": (lambda flow, x: flow.encode(x).sin().sum(), batch),
    "decode": (lambda flow, z: flow.decode(z).sin().sum(), latents),
    "log_prob_latent": (lambda flow, z: flow.log_prob_latent(z).sum(), latents),
    "both parts": (lambda flow, z: (flow.decode(z).flatten(1).sum(1) * flow.log_prob_latent(z)).sum(), latents),
}


def gradients(flow: priors.Flow, loss: str) -> tuple[Tensor, list[Tensor]]:
    """Value of the loss; gradients of a leaf input and of every parameter."""
    function, draw = LOSSES[loss]
    leaf = draw(flow).requires_grad_()
    flow.zero_grad()
    value = function(flow, leaf)
    value.backward()
    return value.detach(), [leaf.grad, *(torch.zeros_like(p) if p.grad is None else p.grad for p in flow.parameters())]


def assert_same(mine: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    whole = torch.cat([g.flatten() for g in theirs]).norm()
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).norm() <= tolerance * max(b.norm(), 1e-3 * whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", FLOWS)
def test_gradients_are_the_ordinary_ones(name: str, loss: str, dtype: torch.dtype) -> None:
    flow = perturbed(FLOWS[name](), dtype)
    value, theirs = gradients(flow, loss)
    saving_value, mine = gradients(memory_saving(flow), loss)
    torch.testing.assert_close(saving_value, value, rtol=TOLERANCE[dtype], atol=0)
    assert_same(mine, theirs, TOLERANCE[dtype])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_of_a_deep_flow(dtype: torch.dtype) -> None:
    flow = small_glow(dtype, steps=32, scale=0.01)
    _, theirs = gradients(flow, "log_prob")
    _, mine = gradients(memory_saving(flow), "log_prob")
    assert_same(mine, theirs, TOLERANCE[dtype])


def test_leaf_gradient_by_finite_differences() -> None:
    flow = memory_saving(small_glow())
    z = latents(flow).requires_grad_()
    (gradient,) = torch.autograd.grad(flow.log_prob_latent(z).sum(), z)
    direction, h = latents(flow).roll(1), 1e-5
    with torch.no_grad():
        slope = (flow.log_prob_latent(z + h * direction) - flow.log_prob_latent(z - h * direction)).sum() / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-7, atol=0)


def test_input_that_another_function_made() -> None:
    flow = small_glow()
    base = latents(flow)
    grads = []
    for which in (flow, memory_saving(flow)):
        a = base.clone().requires_grad_()
        which.decode(2 * a.tanh()).square().sum().backward()
        grads.append(a.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-12)


def kept_bytes(flow: priors.Flow, loss: str) -> int:
    """Bytes of the distinct storages that the graph of one forward pass keeps, parameters left out."""
    function, draw = LOSSES[loss]
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        value = function(flow, draw(flow).requires_grad_())
    own = {p.untyped_storage().data_ptr() for p in flow.parameters()}
    assert value.requires_grad
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)


@pytest.mark.parametrize("loss", ["log_prob", "decode"])
def test_memory_does_not_grow_with_depth(loss: str) -> None:
    shallow, deep = (small_glow(torch.float32, steps) for steps in (2, 16))
    assert kept_bytes(deep, loss) > 5 * kept_bytes(shallow, loss)
    assert kept_bytes(memory_saving(deep), loss) <= 1.05 * kept_bytes(memory_saving(shallow), loss)


def test_frozen_and_partly_frozen_weights() -> None:
    flow = small_glow()
    saving = memory_saving(flow)
    flow.requires_grad_(False)
    z = latents(flow)
    grads = []
    for which in (flow, saving):
        leaf = z.clone().requires_grad_()
        which.decode(leaf).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-12)

    chosen = [p for i, p in enumerate(flow.parameters()) if i % 5 == 2]
    for p in chosen:
        p.requires_grad_(True)
    x = batch(flow)
    theirs = torch.autograd.grad(flow.log_prob(x).sum(), chosen)
    mine = torch.autograd.grad(saving.log_prob(x).sum(), chosen)
    assert_same(list(mine), list(theirs), 1e-10)
    assert all(p.grad is None for p in flow.parameters())


def test_no_grad_keeps_no_graph() -> None:
    saving = memory_saving(small_glow())
    with torch.no_grad():
        assert not saving.log_prob(batch(saving)).requires_grad
    saving.requires_grad_(False)
    assert not saving.decode(latents(saving)).requires_grad


def test_shares_everything_and_leaves_the_flow_alone() -> None:
    flow = small_glow()
    saving = memory_saving(flow)
    assert type(saving) is type(flow)
    assert list(saving.state_dict()) == list(flow.state_dict())
    assert all(a is b for a, b in zip(saving.parameters(), flow.parameters(), strict=True))
    assert any(type(m) is Chain for m in flow.modules())
    with torch.no_grad():
        next(flow.parameters()).mul_(2)
    x = batch(flow)
    torch.testing.assert_close(saving.log_prob(x), flow.log_prob(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(copy.deepcopy(saving).log_prob(x), flow.log_prob(x), rtol=1e-12, atol=0)
    assert memory_saving(saving).bijection is saving.bijection


def test_training_is_the_ordinary_training() -> None:
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = training.Schedule(steps=6, batch_size=8, warm_up=2)
    flows = []
    for wrap in (lambda flow: flow, memory_saving):
        flow = priors.Glow((3, 8, 8), levels=2, steps=2, width=8).double()
        training.fit(wrap(flow), images, training.Likelihood(), settings, progress=False)
        assert bool(flow.initialised)
        flows.append(flow)
    for a, b in zip(flows[0].parameters(), flows[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_check_works() -> None:
    flow = small_glow()
    x = batch(flow)
    ours, plain = memory_saving(flow).check(x), flow.check(x)
    torch.testing.assert_close(ours.stretch, plain.stretch)
    torch.testing.assert_close(ours.shrink, plain.shrink)


def test_saturated_flow_falls_back_with_a_warning() -> None:
    """Weights blown up 400-fold: the inverse is useless, and the gradient must not be."""
    flow = small_glow(torch.float32, steps=16)
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(400)
    _, theirs = gradients(flow, "decode")
    with pytest.warns(RuntimeWarning, match="could not be inverted"):
        _, mine = gradients(memory_saving(flow), "decode")
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_changed_parameters_are_noticed() -> None:
    saving = memory_saving(small_glow())
    loss = saving.log_prob(batch(saving)).sum()
    with torch.no_grad():
        next(saving.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="changed"):
        loss.backward()


def test_parameters_that_others_stand_in_for() -> None:
    flow = small_glow()
    found = []
    for which in (flow, memory_saving(flow)):
        others = {name: (p.detach() + 0.01).requires_grad_() for name, p in which.named_parameters()}
        run = torch.func.functional_call(_LogProb(which), {f"flow.{k}": v for k, v in others.items()}, batch(flow))
        found.append(torch.autograd.grad(run.sum(), list(others.values())))
    for mine, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


class _LogProb(torch.nn.Module):
    def __init__(self, flow: priors.Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["glow-photos32", "glow-mnist"])
def test_latent_zero_where_searches_start_is_rebuilt(name: str) -> None:
    flow = memory_saving(priors.load(name))
    z = torch.zeros(2, flow.latent_dim, requires_grad=True)
    flow.decode(z).square().sum().backward()
    assert torch.isfinite(z.grad).all()


def test_second_derivatives() -> None:
    flow = small_glow(steps=2)
    found = []
    for which in (flow, memory_saving(flow)):
        z = latents(flow).requires_grad_()
        (gradient,) = torch.autograd.grad(which.log_prob_latent(z).sum(), z, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), z)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_refuses_what_is_no_flow() -> None:
    with pytest.raises(ValueError, match="flow: got Linear"):
        memory_saving(torch.nn.Linear(2, 2))
