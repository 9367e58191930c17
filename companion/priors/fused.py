"""Glow's affine coupling as one node of the graph, with its derivative written out.

PyTorch's own graph of a coupling has some forty nodes, and many of them make a new tensor only to hold zeros, a copy or
a mask. On a CPU, written out, a search over latents takes two thirds of the time.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from companion.priors.bijections import Coupling, Mapped, split_channels, tangents_possible
from companion.priors.networks import ConvConditioner


class FusedCoupling(Coupling):
    """The affine :class:`Coupling` with a convolutional conditioner; same values, same derivatives, less time.

    Where the derivative is not written out (``torch.func``, autocast, hooks, other conditioners) it is the ordinary
    coupling.
    """

    def encode(self, x: Tensor) -> Mapped:
        return _Fused.apply("encode", True, x, *self.weights()) if self.fusible(x) else super().encode(x)

    def decode(self, z: Tensor) -> Mapped:
        return _Fused.apply("decode", True, z, *self.weights()) if self.fusible(z) else super().decode(z)

    def decode_only(self, z: Tensor) -> Tensor:
        return _Fused.apply("decode", False, z, *self.weights())[0] if self.fusible(z) else super().decode_only(z)

    def fusible(self, value: Tensor) -> bool:
        """Whether the written-out derivative serves."""
        special = tangents_possible() or torch.is_autocast_enabled(value.device.type) or _has_any_global_hook()
        if special or self.kind != "affine" or type(self.conditioner) is not ConvConditioner:
            return False
        layers = [*self.conditioner.children()]
        as_built = [type(layer) for layer in layers] == ConvConditioner.layers
        return as_built and all(map(_plain, layers[::2])) and not any(map(_altered, [self.conditioner, *layers]))

    def weights(self) -> list[Tensor]:
        """Weight and bias of each convolution of the conditioner, in order."""
        layers: Any = [*self.conditioner.children()]
        return [p for layer in layers[::2] for p in (layer.weight, layer.bias)]


def _plain(layer: nn.Module) -> bool:
    """Whether a convolution is one that :func:`condition` computes."""
    conv: Any = layer
    side = conv.kernel_size[0]
    same = conv.kernel_size == (side, side) and conv.padding == (side // 2, side // 2) and conv.padding_mode == "zeros"
    return same and conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.bias is not None


def _altered(module: nn.Module) -> bool:
    """Whether somebody hooked into the module or replaced its forward pass (as mixed precision does)."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _batched(grad: Tensor | None) -> bool:
    """Whether many gradients lie in one tensor (``is_grads_batched``, ``vectorize=True``)."""
    library = torch._C._functorch
    return grad is not None and (library.is_batchedtensor(grad) or library.is_legacy_batchedtensor(grad))


class Conditioned(NamedTuple):
    """What the conditioner made of the fixed half.

    Attributes
    ----------
    taken : list[Tensor]
        Input of each convolution.
    bounded : Tensor
        The log-scale s and t / 32, the shift's share of its bound, joined.
    scale : Tensor
        exp(s).
    """

    taken: list[Tensor]
    bounded: Tensor
    scale: Tensor


def condition(fixed: Tensor, weights: Sequence[Tensor]) -> Conditioned:
    """Convolutions with ReLU in between, then the bounds of :class:`Coupling`; nothing is recorded."""
    h = fixed.contiguous(memory_format=torch.channels_last)
    taken: list[Tensor] = []
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        if taken:
            h.relu_()
        taken.append(h)
        h = F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2)
    h[:, h.shape[1] // 2 :].div_(Coupling.shift_bound)
    h.tanh_()
    scale = split_channels(h)[0].clone(memory_format=torch.channels_last).exp_()  # faster on memory without gaps
    return Conditioned(taken, h, scale)


def move(direction: str, moved: Tensor, conditioned: Conditioned, out: Tensor) -> None:
    """Write the moved half of the other side into `out`."""
    _, shift = split_channels(conditioned.bounded)
    if direction == "encode":
        torch.mul(conditioned.scale, moved, out=out).add_(shift, alpha=Coupling.shift_bound)
    else:
        torch.sub(moved, shift, alpha=Coupling.shift_bound, out=out).div_(conditioned.scale)


def backward(
    direction: str,
    image_side: Tensor,
    conditioned: Conditioned,
    grad: Tensor,
    grad_log_det: Tensor | None,
    weights: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradient at the input of a coupling, and those of the weights that are `needed` (None for the others).

    `image_side` is the moved half on the side of the image, x_b; `grad` and `grad_log_det` are the gradients at the
    coupling's two results.
    """
    taken, bounded, scale = conditioned
    grad_in, at = torch.empty_like(grad), torch.empty_like(bounded)
    grad_in_fixed, grad_in_moved = split_channels(grad_in)
    grad_fixed, grad_moved = split_channels(grad)
    at_scale, at_shift = split_channels(at)
    # `at` is the gradient at (s, t), for the inverse with the sign turned: one pass over the image less
    if direction == "encode":  # z_b = exp(s) x_b + t
        sign = 1
        torch.mul(grad_moved, scale, out=grad_in_moved)
        torch.mul(grad_in_moved, image_side, out=at_scale)
        at_shift.copy_(grad_moved)
    else:  # x_b = (z_b − t) exp(−s)
        sign = -1
        torch.div(grad_moved, scale, out=grad_in_moved)
        torch.mul(grad_moved, image_side, out=at_scale)
        at_shift.copy_(grad_in_moved)
    if grad_log_det is not None:
        at_scale.add_(grad_log_det.view(-1, 1, 1, 1))
    # both bounds, s = tanh(h_s) and t = 32 tanh(h_t / 32), have the slope 1 − tanh²
    at = torch.ops.aten.tanh_backward.default(at, bounded)
    grads: list[Tensor | None] = [None] * len(weights)
    for k in reversed(range(len(taken))):
        weight = weights[2 * k]
        at, grads[2 * k], grads[2 * k + 1] = torch.ops.aten.convolution_backward.default(
            at,
            taken[k],
            weight,
            [len(weight)],
            [1, 1],
            [weight.shape[-1] // 2] * 2,
            [1, 1],
            False,
            [0, 0],
            1,
            [True, needed[2 * k], needed[2 * k + 1]],
        )
        if k:  # the gradient is ours alone: overwriting it saves a tensor of the size of the hidden layer
            torch.ops.aten.threshold_backward.grad_input(at, taken[k], 0, grad_input=at)
    torch.add(grad_fixed, at, alpha=sign, out=grad_in_fixed)
    return grad_in, grads if sign == 1 else [g if g is None else g.neg_() for g in grads]


def by_graph(direction: str, value: Tensor, weights: Sequence[Tensor]) -> Mapped:
    """The same coupling by PyTorch's own graph, for derivatives of the derivative."""
    fixed, moved = split_channels(value)
    h = fixed
    for k in range(0, len(weights), 2):
        h = F.conv2d(F.relu(h) if k else h, weights[k], weights[k + 1], padding=weights[k].shape[-1] // 2)
    log_scale, shift = Coupling.bound(h)
    there = Coupling.forward_moved if direction == "encode" else Coupling.inverse_moved
    moved, log_det = there(moved, log_scale, shift)
    return torch.cat([fixed, moved], 1), log_det


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, direction: str, log_det_wanted: bool, value: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        fixed, moved = split_channels(value)
        conditioned = condition(fixed, weights)
        out = torch.empty_like(value)
        out_fixed, out_moved = split_channels(out)
        out_fixed.copy_(fixed)
        move(direction, moved, conditioned, out_moved)
        ctx.direction = direction
        ctx.set_materialize_grads(False)
        image = value if direction == "encode" else out
        ctx.save_for_backward(value, image, *conditioned.taken, *conditioned[1:], *weights)
        if not log_det_wanted:
            return out, None
        log_det = split_channels(conditioned.bounded)[0].sum((1, 2, 3))
        return out, log_det if direction == "encode" else -log_det

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_log_det: Tensor | None) -> tuple[Tensor | None, ...]:
        value, image, *rest = ctx.saved_tensors
        layers = (len(rest) - 2) // 3
        conditioned, weights = Conditioned(rest[:layers], *rest[layers : layers + 2]), rest[layers + 2 :]
        needed = ctx.needs_input_grad[2:]
        if grad is None:
            grad = torch.zeros_like(value)
        # create_graph: the gradient itself is to be differentiated; or many gradients at once, which writing into
        # tensors made for one does not allow
        if torch.is_grad_enabled() or _batched(grad) or _batched(grad_log_det):
            # Partial derivatives: aliases keep out what the input and the weights depend on themselves.
            create_graph = torch.is_grad_enabled()
            with torch.enable_grad():
                inputs = [t.view_as(t) for t in (value, *weights)]
                ends = by_graph(ctx.direction, inputs[0], inputs[1:])
            pairs = [(end, g) for end, g in zip(ends, (grad, grad_log_det), strict=True) if g is not None]
            wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
            outputs, above = [end for end, _ in pairs], [g for _, g in pairs]
            found = iter(torch.autograd.grad(outputs, wanted, above, create_graph=create_graph))
            return (None, None, *(next(found) if need else None for need in needed))
        grad_in, grads = backward(
            ctx.direction,
            split_channels(image)[1],
            conditioned,
            grad,
            grad_log_det,
            weights,
            needed[1:],
        )
        return (None, None, grad_in, *grads)
