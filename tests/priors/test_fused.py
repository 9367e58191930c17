"""The coupling whose derivative is written out: values and derivatives are those of the ordinary coupling."""

import copy
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from companion import priors
from companion.priors.bijections import Coupling
from companion.priors.fused import FusedCoupling
from companion.priors.networks import ConvConditioner


def coupling(channels: int = 5) -> FusedCoupling:
    moved = channels - channels // 2
    made = FusedCoupling(ConvConditioner(channels // 2, 2 * moved, 7, seed=1)).double()
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=draw))
    return made


def ordinary(made: FusedCoupling) -> Coupling:
    twin = copy.deepcopy(made)
    twin.__class__ = Coupling
    return twin


def images(channels: int = 5, seed: int = 3) -> Tensor:
    return torch.randn(3, channels, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def derivatives(part: Coupling, direction: str, loss: str, frozen: bool) -> list[Tensor]:
    part.requires_grad_(not frozen)
    x = images().requires_grad_()
    out, log_det = getattr(part, direction)(x)
    value = {"image": out.sin().sum(), "log_det": log_det.square().sum(), "both": (out.sum((1, 2, 3)) * log_det).sum()}
    wanted = [x, *(p for p in part.parameters() if p.requires_grad)]
    found = torch.autograd.grad(value[loss], wanted, allow_unused=True)
    return [out, log_det, *(torch.zeros_like(w) if f is None else f for w, f in zip(wanted, found, strict=True))]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("loss", ["image", "log_det", "both"])
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_values_and_gradients_are_those_of_the_ordinary_coupling(direction, loss, frozen):
    fused = coupling()
    for ours, theirs in zip(
        derivatives(fused, direction, loss, frozen), derivatives(ordinary(fused), direction, loss, frozen), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_finite_differences_agree_with_first_and_second_derivatives(direction):
    part = coupling(4)
    x = images(4)[:1, :, :2, :2].requires_grad_()
    weights = [p.detach().requires_grad_() for p in part.weights()]

    def function(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip((n for n, _ in part.named_parameters()), weights, strict=True))
        return torch.func.functional_call(_Direction(part, direction), {f"part.{n}": w for n, w in named.items()}, (x,))

    assert torch.autograd.gradcheck(function, (x, *weights))
    assert torch.autograd.gradgradcheck(function, (x, *weights))


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_second_derivatives_of_a_chain_are_those_of_the_ordinary_couplings(direction):
    """The gradient that a coupling is given depends on its own input here, and the weights are used twice."""
    fused = coupling(4)

    def curvature(part: Coupling) -> list[Tensor]:
        x = images(4).requires_grad_()
        value, total = x, 0
        for _ in range(3):
            value, log_det = getattr(part, direction)(value)
            value, total = value.flip(1), total + log_det
        loss = value.sin().sum() + total.square().sum()
        wanted = [x, *part.parameters()]
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))

    for ours, theirs in zip(curvature(fused), curvature(ordinary(fused)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


class _Direction(torch.nn.Module):
    def __init__(self, part: FusedCoupling, direction: str) -> None:
        super().__init__()
        self.part, self.direction = part, direction

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return getattr(self.part, self.direction)(x)


def test_a_graph_kept_for_a_second_pass_is_not_overwritten_by_later_evaluations():
    part = coupling().requires_grad_(False)
    x = images().requires_grad_()
    value = part.decode(x)[0].sin().sum()
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    for seed in range(5):
        later = images(seed=10 + seed).requires_grad_()
        part.decode(later)[0].sum().backward()
    (again,) = torch.autograd.grad(value, x)
    assert torch.equal(first, again)


def test_torch_func_and_other_conditioners_take_the_ordinary_way():
    part, x = coupling(), images()
    pushed = torch.func.jvp(lambda x: part.encode(x)[0], (x,), (torch.ones_like(x),))[1]
    step = 1e-6
    difference = (part.encode(x + step)[0] - part.encode(x - step)[0]) / (2 * step)
    torch.testing.assert_close(pushed, difference, rtol=1e-5, atol=1e-5)
    assert not FusedCoupling(torch.nn.Identity()).fusible(x)
    assert not FusedCoupling(ConvConditioner(2, 3, 4, seed=0), "additive").fusible(x)


def test_hooks_of_the_conditioner_are_called():
    part, x, seen = coupling(), images(), []
    plain = part.encode(x)[0]
    handle = part.conditioner[2].register_forward_hook(lambda module, given, answer: seen.append(answer.shape))
    torch.testing.assert_close(part.encode(x)[0], plain, rtol=1e-12, atol=1e-12)
    assert len(seen) == 1 and not part.fusible(x)
    handle.remove()
    assert part.fusible(x)


def test_global_hooks_are_called():
    part, x, seen = coupling(), images(), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, given, answer: seen.append(module))
    part.encode(x)
    handle.remove()
    assert part.conditioner[2] in seen and part.fusible(x)


CHANGES = {
    "another activation": lambda conditioner: conditioner.__setitem__(1, nn.SiLU()),
    "one layer more": lambda conditioner: conditioner.append(nn.Tanh()),
    "another padding": lambda conditioner: conditioner.__setitem__(
        0, nn.Conv2d(2, 7, 3, padding=1, padding_mode="reflect")
    ),
    "no bias": lambda conditioner: conditioner.__setitem__(2, nn.Conv2d(7, 7, 1, bias=False)),
    "groups": lambda conditioner: conditioner.__setitem__(2, nn.Conv2d(7, 7, 1, groups=7)),
    "dilation": lambda conditioner: conditioner.__setitem__(0, nn.Conv2d(2, 7, 3, padding=2, dilation=2)),
    "weight norm": lambda conditioner: nn.utils.parametrizations.weight_norm(conditioner[2]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_conditioner_is_the_one_that_counts(change):
    part, x = coupling(), images().requires_grad_()
    CHANGES[change](part.conditioner)
    part.double()
    assert not part.fusible(x)
    assert torch.equal(part.encode(x)[0], ordinary(part).encode(x)[0])


def test_many_gradients_at_once():
    part, x = coupling(), images().requires_grad_()
    out, log_det = part.encode(x)
    many = torch.randn(4, *out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (together,) = torch.autograd.grad((out, log_det), x, (many, many.sum((2, 3, 4))), is_grads_batched=True)
    theirs, their_log_det = ordinary(part).encode(x)
    for one, found in zip(many, together, strict=True):
        (alone,) = torch.autograd.grad((theirs, their_log_det), x, (one, one.sum((1, 2, 3))), retain_graph=True)
        torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-12)


def test_torch_func_maps_and_differentiates_a_whole_flow():
    flow = priors.Glow((1, 8, 8), levels=2, steps=1, width=4).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1)
    flow.requires_grad_(False)
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    alone = torch.func.vmap(lambda v: flow.decode(v[None])[0])(z)
    torch.testing.assert_close(alone, flow.decode(z), rtol=1e-12, atol=1e-12)
    dense = torch.autograd.functional.jacobian(lambda v: flow.decode(v).sum(0).flatten(), z)
    torch.testing.assert_close(torch.func.jacfwd(lambda v: flow.decode(v).sum(0).flatten())(z), dense)
    together = torch.autograd.functional.jacobian(lambda v: flow.decode(v).sum(0).flatten(), z, vectorize=True)
    torch.testing.assert_close(together, dense)


FREE_AND_TAKE = """
import resource, torch
{before}
for turn in range(40):
    if turn == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**19)  # 2 MiB
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 200)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps freed memory in its own way")
def test_freed_memory_is_used_again_without_page_faults():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def faults(before: str, **more: str) -> float:
        command = [sys.executable, "-c", FREE_AND_TAKE.format(before=before)]
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert faults("import companion.priors") < 5
    # 2 MiB are 512 pages of 4 KiB; whoever chose glibc's settings keeps them
    assert faults("import companion.priors", MALLOC_MMAP_THRESHOLD_="65536") > 20
