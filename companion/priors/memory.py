"""Backpropagation whose memory does not grow with depth: activations are rebuilt from outputs (Gomez et al. 2017)."""

import copy
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from companion import _support
from companion.priors.base import transforming
from companion.priors.bijections import Chain, ChannelMix, Coupling, Mapped, split_channels
from companion.priors.flow import Flow

AnyFlow = TypeVar("AnyFlow", bound=Flow)


def memory_saving(flow: AnyFlow) -> AnyFlow:
    """The same flow, with backpropagation that keeps the two ends of each chain of steps and nothing in between.

    The backward pass inverts the steps one by one, from the output, and differentiates each of them alone. So memory
    does not grow with the number of steps; time grows by about a third (one more evaluation of every conditioner).

    The new flow shares all modules, parameters and buffers with `flow`, has the same names in its ``state_dict`` and
    gives the same values. Where a chain cannot be inverted accurately enough (saturated or ill-conditioned), its
    gradient is computed the ordinary way, with a RuntimeWarning; so are second derivatives, without one.

    Raises ValueError if `flow` is no Flow.
    """
    if not isinstance(flow, Flow):
        raise ValueError(f"flow: got {type(flow).__name__}; allowed: a companion.priors.Flow")
    return _with_reversible_chains(flow)


def _with_reversible_chains(module: Any) -> Any:
    if type(module) is Chain:
        return ReversibleChain(module)
    children = {name: child and _with_reversible_chains(child) for name, child in module._modules.items()}
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    twin = copy.copy(module)  # parameters and buffers stay shared: nn.Module keeps them in dictionaries of their own
    twin._modules = children
    return twin


class ReversibleChain(Chain):
    """A chain that rebuilds its activations; it shares the parts of the chain that it is made from."""

    # Largest error of the rebuilt input, relative to its size (see _agree), at which the gradient is trusted.
    tolerance: ClassVar = {torch.float32: 1e-4, torch.float64: 1e-10}

    def __init__(self, chain: Chain) -> None:
        nn.Module.__init__(self)
        self.parts = chain.parts
        self.training = chain.training

    def _through(self, value: Tensor, direction: str) -> Mapped:
        learned = [p for p in self.parameters() if p.requires_grad]
        differentiated = torch.is_grad_enabled() and (value.requires_grad or bool(learned))
        # torch.func asks for derivatives that rebuilding has not;
        # tensors that stand in for the parameters (torch.func.functional_call) are gone by the backward pass
        replaced = not all(isinstance(p, nn.Parameter) for p in learned)
        if not differentiated or replaced or transforming():
            return super()._through(value, direction)
        out, log_det = _Rebuilding.apply(self, direction, value, *learned)
        return out.clamp(-self.limit, self.limit), log_det


class _Rebuilding(torch.autograd.Function):
    """A chain as one node of the graph; it keeps its input only to know whether the rebuilt one is right."""

    @staticmethod
    def forward(ctx: Any, chain: ReversibleChain, direction: str, value: Tensor, *learned: Tensor) -> Mapped:
        out, log_det = chain.run(value, direction)
        ctx.chain, ctx.direction, ctx.learned = chain, direction, learned
        ctx.versions = [p._version for p in learned]
        ctx.save_for_backward(value, out)
        return out, log_det

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        with _support.own_precision(ctx.saved_tensors[0]):
            return _rebuild(ctx, grad_out, grad_log_det)


def _rebuild(ctx: Any, grad_out: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of a chain's input and parameters, by inverting it part by part; see :func:`memory_saving`."""
    value, out = ctx.saved_tensors
    learned = ctx.learned
    present = {id(p) for p in ctx.chain.parameters()}
    if ctx.versions != [p._version for p in learned] or not all(id(p) in present for p in learned):
        raise RuntimeError("memory_saving: parameters were changed between the forward and the backward pass")
    if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
        return (None, None, *_ordinary(ctx, value, grad_out, grad_log_det, create_graph=True))
    grads: dict[Tensor, Tensor | None] = dict.fromkeys(learned)
    rebuilt, grad = out, grad_out
    for part in reversed(ctx.chain.ordered(ctx.direction)):
        step = _back_coupling if type(part) is Coupling else _back_any
        own = [p for p in part.parameters() if p in grads]
        rebuilt, grad, rest = step(part, ctx.direction, rebuilt, grad, grad_log_det, own)
        for parameter, more in zip(own, rest, strict=True):
            before = grads[parameter]
            grads[parameter] = more if before is None or more is None else before + more
    if _agree(rebuilt, value, ctx.chain.tolerance):
        return (None, None, grad, *grads.values())
    warnings.warn(
        "memory_saving: a chain of steps could not be inverted accurately enough here; "
        "its gradient is computed with all activations kept",
        RuntimeWarning,
        stacklevel=2,
    )
    return (None, None, *_ordinary(ctx, value, grad_out, grad_log_det))


def _ordinary(
    ctx: Any, value: Tensor, grad_out: Tensor, grad_log_det: Tensor, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """The gradients from the kept input, by a forward pass that keeps all activations."""
    with torch.enable_grad():
        start = value if value.requires_grad else value.detach().requires_grad_()
        ends = ctx.chain.run(start, ctx.direction)
    return _gradients(ends, (grad_out, grad_log_det), [start, *ctx.learned], create_graph)


def _agree(rebuilt: Tensor, value: Tensor, tolerance: dict[torch.dtype, float]) -> bool:
    """Whether each image was rebuilt: NaN and infinity count as not."""
    error = (rebuilt - value).flatten(1).norm(dim=1)
    # latents and pixels are of order 1: next to that, rounding near zero (where searches start) is no fault
    size = value.flatten(1).norm(dim=1) + 0.1 * value[0].numel() ** 0.5
    return bool((error <= tolerance.get(value.dtype, 1e-2) * size).all())


Back = tuple[Tensor, Tensor, Sequence[Tensor | None]]  # a part's input, and the gradients there and of its parameters


def _back_any(
    part: Any, direction: str, out: Tensor, grad: Tensor, grad_log_det: Tensor, learned: list[Tensor]
) -> Back:
    other = "decode" if direction == "encode" else "encode"
    there, back = getattr(part, direction), getattr(part, other)
    if isinstance(part, ChannelMix):  # what both ways take from the parameters is made once
        with torch.enable_grad():
            folded = part.folded()
        there, back = partial(part.through, direction, folded=folded), partial(part.through, other, folded=folded)
    with torch.no_grad():
        value = back(out)[0]
    with torch.enable_grad():
        leaf = value.detach().requires_grad_()
        ends = there(leaf)
    grad, *rest = _gradients(ends, (grad, grad_log_det), [leaf, *learned])
    return value, grad, rest


def _back_coupling(
    part: Any, direction: str, out: Tensor, grad: Tensor, grad_log_det: Tensor, learned: list[Tensor]
) -> Back:
    """A coupling's conditioner sees the half that does not move: one evaluation serves the inverse and the gradient."""
    there, back = part.forward_moved, part.inverse_moved
    if direction == "decode":
        there, back = back, there
    fixed, moved = split_channels(out)
    grad_fixed, grad_moved = split_channels(grad)
    with torch.enable_grad():
        leaf = fixed.detach().requires_grad_()
        log_scale, shift = part.condition(leaf)
        with torch.no_grad():
            before = back(moved, log_scale, shift)[0]
        before.requires_grad_()
        ends = there(before, log_scale, shift)
    through, grad_before, *rest = _gradients(ends, (grad_moved, grad_log_det), [leaf, before, *learned])
    return torch.cat([fixed, before.detach()], 1), torch.cat([grad_fixed + through, grad_before], 1), rest


def _gradients(
    ends: Sequence[Tensor], grads: Sequence[Tensor], inputs: list[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Vector-Jacobian product; None for inputs that the ends do not depend on. Constant ends are left out."""
    pairs = [(end, grad) for end, grad in zip(ends, grads, strict=True) if end.requires_grad]
    outputs, weights = [end for end, _ in pairs], [grad for _, grad in pairs]
    return torch.autograd.grad(outputs, inputs, weights, create_graph=create_graph, allow_unused=True)
