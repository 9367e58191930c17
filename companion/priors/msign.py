"""MsIGN: a flow that makes fields and images from coarse to fine (Zhang et al. 2021, sec. 3)."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from companion import _support
from companion.priors.base import standard_normal_log_density
from companion.priors.bijections import Bijection, Chain, ChannelMix, Coupling, Mapped, Squeeze
from companion.priors.conditioning import GaussianConditioning
from companion.priors.fields import GaussianField
from companion.priors.flow import Flow
from companion.priors.networks import PixelLayer, he_initialise, zero_last

Shape = tuple[int, ...]


class Scales(Bijection):
    """x₁ = F₁(R z₁), x_l = F_l(PC_l(x_{l−1}, z_l)), between z = (z₁, …, z_L), flat, and x = x_L (eq. 3).

    Parameters
    ----------
    shape
        (channels, height, width) of x; each scale below has half the height and width.
    root
        R, a map of flat batches for the coarsest scale; None for the identity, as in the paper.
    conditionings
        PC_2, …, PC_L.
    flows
        F_1, …, F_L, maps of images of each scale to images of the same shape; ``decode`` is towards x.
    """

    def __init__(
        self, shape: Shape, root: Bijection | None, conditionings: Sequence[Bijection], flows: Sequence[Bijection]
    ) -> None:
        super().__init__()
        if len(flows) != len(conditionings) + 1:
            raise ValueError(f"flows: got {len(flows)}; allowed: {len(conditionings) + 1}, one for each scale")
        self.root = root
        self.conditionings: Sequence[Bijection] = nn.ModuleList(conditionings)  # type: ignore[assignment]
        self.flows: Sequence[Bijection] = nn.ModuleList(flows)  # type: ignore[assignment]
        levels = range(len(flows) - 1, -1, -1)
        self.shapes: list[Shape] = [(shape[0], shape[1] >> level, shape[2] >> level) for level in levels]

    def encode(self, x: Tensor) -> Mapped:
        total, parts = x.new_zeros(len(x)), []
        for shape, coarse_shape, conditioning, flow in self._steps():
            h, flow_log_det = flow.encode(x.reshape(-1, *shape))
            joined, log_det = conditioning.encode(h)
            x, z = joined.tensor_split([math.prod(coarse_shape)], 1)
            parts.append(z)
            total = total + flow_log_det + log_det
        h, log_det = self.flows[0].encode(x.reshape(-1, *self.shapes[0]))
        z, root_log_det = self.root.encode(h.flatten(1)) if self.root else (h.flatten(1), 0.0)
        return torch.cat([z, *reversed(parts)], 1), total + log_det + root_log_det

    def decode(self, z: Tensor) -> Mapped:
        sizes = [math.prod(shape) for shape in self.shapes]
        first, *parts = z.tensor_split(sizes[:-1], 1)
        x, total = self.root.decode(first) if self.root else (first, z.new_zeros(len(z)))
        x, log_det = self.flows[0].decode(x.view(-1, *self.shapes[0]))
        total = total + log_det
        for part, (_, _, conditioning, flow) in zip(parts, reversed(self._steps()), strict=True):
            h, log_det = conditioning.decode(torch.cat([x.flatten(1), part], 1))
            x, flow_log_det = flow.decode(h)
            total = total + log_det + flow_log_det
        return x, total

    def _steps(self) -> list[tuple[Shape, Shape, Bijection, Bijection]]:
        """(shape, coarser shape, PC_l, F_l) of the scales L, …, 2."""
        steps = zip(self.shapes[1:], self.shapes[:-1], self.conditionings, self.flows[1:], strict=True)
        return list(steps)[::-1]


class _Fields(Bijection):
    """A map of images of one channel as a map of fields, [batch, side²]."""

    def __init__(self, scales: Scales) -> None:
        super().__init__()
        self.scales = scales

    def encode(self, x: Tensor) -> Mapped:
        return self.scales.encode(x)

    def decode(self, z: Tensor) -> Mapped:
        x, log_det = self.scales.decode(z)
        return x.flatten(1), log_det


class MsIGN(Flow, stored=False):
    """A density of fields, [batch, side²], built on a Gaussian field's own scales (Zhang et al. 2021, eq. 3).

    A new one is the Gaussian field itself: all F_l start as the identity, and x₁ starts as its prior rather than as
    white noise (R, which the paper doesn't have, scales z₁ to it). The latent's parts stand from coarse to fine.

    Parameters
    ----------
    field
        The prior at the finest scale.
    scales
        L, number of scales; None for all, down to the coarsest even side (2 × 2 for powers of two).
    steps, width
        K, number of Glow steps in each F_l or one number for every scale, and hidden channels of their couplings
        (Table 4).
    rank
        Of the :class:`DirectedAffine` after the Glow steps of every scale; 0 for none, as in the paper. It is for
        posteriors of one mode, or of a mode and its mirror image (:func:`companion.bayes.train_msign`).
    flows
        F_1, …, F_L in place of all that: maps of [batch, 1, side_l, side_l].
    conditionings
        PC_2, …, PC_L in place of the field's own.
    seed
        Seed of the initial weights.
    """

    def __init__(
        self,
        field: GaussianField,
        scales: int | None = None,
        steps: int | Sequence[int] = 16,
        width: int = 32,
        rank: int = 0,
        flows: Sequence[Bijection] | None = None,
        conditionings: Sequence[Bijection] | None = None,
        seed: int = 0,
    ) -> None:
        fields = [field]
        while fields[-1].side % 4 == 0 and (scales is None or len(fields) < _support.count("scales", scales)):
            fields.append(fields[-1].coarsen())
        if scales is not None and len(fields) < scales:
            raise ValueError(f"scales: got {scales}; allowed: 1 to {len(fields)} for side {field.side}")
        with torch.device("cpu"):  # where the random numbers are drawn, whatever the default device is
            if flows is None:
                each: list[Any] = [steps] * len(fields) if np.ndim(steps) == 0 else list(cast(Any, steps))
                if len(each) != len(fields):
                    raise ValueError(f"steps: got {len(each)} numbers; allowed: one, or {len(fields)}, one a scale")
                flows = [
                    _stage(f, k, width, rank, seed, scale)
                    for scale, (f, k) in enumerate(zip(fields[::-1], each, strict=True), 1)
                ]
            if conditionings is None:
                conditionings = [GaussianConditioning(f) for f in fields[-2::-1]]
            scheme = Scales((1, field.side, field.side), fields[-1].modes, conditionings, flows)
            super().__init__((field.side**2,), _Fields(scheme), pixels=None)
        self.field = field

    @property
    def scheme(self) -> Scales:
        """The flow's map: its parts at every scale."""
        return cast(_Fields, self.bijection).scales

    @property
    def like(self) -> Tensor:
        return self.field.like

    @property
    def scales(self) -> int:
        """L, number of scales."""
        return len(self.scheme.flows)

    @property
    def directed(self) -> "DirectedAffine | None":
        """The affine layer of the finest scale, if it has one."""
        last = self.scheme.flows[-1]
        return last if isinstance(last, DirectedAffine) else None

    def at(self, scale: int) -> "MsIGN":
        """The model of the fields of one scale, 1 … L; it shares F_1, …, F_scale with this one, so trains them."""
        if not 1 <= _support.count("scale", scale) <= self.scales:
            raise ValueError(f"scale: got {scale}; allowed: 1 to {self.scales}")
        field = self.field
        for _ in range(self.scales - scale):
            field = field.coarsen()
        return self._with(field, list(self.scheme.flows)[:scale])

    def conditioned(self) -> "MsIGN":
        """q̃_L: a copy of the model one scale coarser, with the prior conditioning and F_L the identity."""
        return self._with(self.field, [*copy.deepcopy(list(self.scheme.flows)[:-1]), Chain([])])

    def _with(self, field: GaussianField, flows: Sequence[Bijection]) -> "MsIGN":
        """A model of as many scales as there are flows, with the same conditioning."""
        return MsIGN(field, len(flows), flows=flows, conditionings=list(self.scheme.conditionings)[: len(flows) - 1])

    def decode_with_log_prob(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Fields x = T(z), [batch, side²], and log p(x) in nats, [batch]."""
        x, log_det = self.decode_with_log_det(z)
        return x, standard_normal_log_density(z) - log_det


class Mirrored(nn.Module):
    """p(x) = (f(x) + f(M x))/2 for the density f of an MsIGN; M exchanges s₂ and 1 − s₂.

    An invertible map of one Gaussian joins two modes by a bridge of mass. Where the target is its own mirror image, f
    need learn one of the modes alone. One more inverse is the price.
    """

    def __init__(self, half: MsIGN) -> None:
        super().__init__()
        self.half_model = half

    @property
    def field(self) -> GaussianField:
        """The prior."""
        return self.half_model.field

    @property
    def scales(self) -> int:
        """L, number of scales."""
        return self.half_model.scales

    @property
    def directed(self) -> "DirectedAffine | None":
        """The affine layer of the finest scale, if it has one."""
        return self.half_model.directed

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [batch]."""
        here, there = self.half_model.log_prob(torch.cat([x, self.field.mirror(x)])).chunk(2)
        return torch.logaddexp(here, there) - math.log(2)

    def decode_with_log_prob(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Fields of f at latents z, [batch, side²], and log p of them in nats, [batch]."""
        x, log_half = self.half_model.decode_with_log_prob(z)
        return x, torch.logaddexp(log_half, self.half_model.log_prob(self.field.mirror(x))) - math.log(2)

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """Draw n fields, [n, side²]: of f, each mirrored with probability 1/2."""
        x = self.half_model.sample(n, seed=seed)
        flip = torch.rand(n, generator=_support.generator(seed, "mirror"), device="cpu") < 0.5
        return self.field.mirror(x).where(flip.to(x.device)[:, None], x)

    def at(self, scale: int) -> "Mirrored":
        """The model of the fields of one scale, sharing its flows with this one."""
        return Mirrored(self.half_model.at(scale))

    def conditioned(self) -> "Mirrored":
        """q̃_L: see :meth:`MsIGN.conditioned`."""
        return Mirrored(self.half_model.conditioned())


class GlowBlock(Bijection):
    """F_l: squeeze, `steps` times (ActNorm, rotation of the channels, affine coupling), unsqueeze; first the identity.

    A field has one channel, which no coupling can split; the squeeze makes four. The rotations start at random, so that
    the couplings move different channels, and a last one takes their product back: the couplings start at zero, so
    that all of it starts as the identity, which data-dependent initialisation would undo.

    Parameters
    ----------
    channels
        Of the images, [batch, channels, h, w], with even h and w.
    steps, width
        Number of steps, and hidden channels of the couplings' networks.
    seed, scale
        Seed of the initial weights, and the name of their stream.
    """

    def __init__(self, channels: int, steps: int, width: int, seed: int = 0, scale: int = 1) -> None:
        super().__init__()
        wide, parts, product = 4 * channels, [], torch.eye(4 * channels, dtype=torch.float64)
        for step in range(_support.count("steps", steps)):
            draw = _support.generator(seed, "weights", scale, step)
            network = SmallConditioner(wide // 2, 2 * (wide - wide // 2), width, draw)
            mix = ChannelMix(wide, "rotation", draw).double()
            product = mix.mix.matrices()[0].detach() @ product
            parts += [mix, Coupling(network, "affine")]
        last = ChannelMix(wide, "rotation").double()
        back = product.T
        # the Cayley transform undone: Q = (I + S)(I − S)⁻¹ with S = (Q + I)⁻¹ (Q − I), and S = a − aᵀ for a = S/2
        eye = torch.eye(wide, dtype=torch.float64)
        last.mix.skew.data = torch.linalg.solve(back + eye, back - eye) / 2  # type: ignore[union-attr]
        self.chain = Chain([*parts, last]).double()
        self.squeeze = Squeeze()

    def encode(self, x: Tensor) -> Mapped:
        h, log_det = self.chain.encode(self.squeeze.encode(x)[0])
        return self.squeeze.decode(h)[0], log_det

    def decode(self, z: Tensor) -> Mapped:
        h, log_det = self.chain.decode(self.squeeze.encode(z)[0])
        return self.squeeze.decode(h)[0], log_det


class DirectedAffine(Bijection):
    """An affine map of a field's coordinates along a few directions, which leaves all else as it is.

    c = V z of the prior's latents z along orthonormal V [rank, d] becomes M ((I + T) c + t) + b. V, M and b are
    given once, from data (:meth:`aim`); T and t are learned, in units of what M and b made, as sharp directions need.
    What turns MsIGN's conditioned proposal into the finer posterior is such a shear, which couplings learn slowly.

    Parameters
    ----------
    field
        The prior of the images [batch, 1, side, side].
    rank
        Number of directions, at most side². The layer starts as the identity.
    inner
        A map of the same images that comes before it towards x: its Glow steps.
    """

    analysis: Tensor
    synthesis: Tensor
    matrix: Tensor
    shift: Tensor

    def __init__(self, field: GaussianField, rank: int, inner: Bijection | None = None) -> None:
        super().__init__()
        self.inner = inner
        if not 1 <= _support.count("rank", rank) <= field.latent_dim:
            raise ValueError(f"rank: got {rank}; allowed: 1 to {field.latent_dim}")
        like = field.like
        self.register_buffer("analysis", like.new_zeros(rank, field.latent_dim))
        self.register_buffer("synthesis", like.new_zeros(rank, field.latent_dim))
        self.register_buffer("matrix", like.new_zeros(rank, rank))
        self.register_buffer("shift", like.new_zeros(rank))
        self.tilt = nn.Parameter(like.new_zeros(rank, rank))
        self.offset = nn.Parameter(like.new_zeros(rank))
        self.aim(field, torch.eye(rank, field.latent_dim).to(like), torch.eye(rank).to(like), self.shift)

    @torch.no_grad()
    def aim(self, field: GaussianField, directions: Tensor, matrix: Tensor, shift: Tensor) -> None:
        """Set V [rank, d], M [rank, rank] and b [rank], and T and t back to 0."""
        self.synthesis.copy_(field.decode(directions))
        self.analysis.copy_(field.precision(self.synthesis))
        self.matrix.copy_(matrix)
        self.shift.copy_(shift)
        self.tilt.zero_()
        self.offset.zero_()

    def coordinates(self, x: Tensor) -> Tensor:
        """c of fields x [batch, side²], [batch, rank]."""
        return x @ self.analysis.T

    def encode(self, x: Tensor) -> Mapped:
        y, log_det = self._moved(x, lambda c: torch.linalg.solve(self._slope(), (c - self._constant()).T).T)
        z, inner = self.inner.encode(y) if self.inner else (y, 0.0)
        return z, inner - log_det

    def decode(self, z: Tensor) -> Mapped:
        y, inner = self.inner.decode(z) if self.inner else (z, 0.0)
        x, log_det = self._moved(y, lambda c: c @ self._slope().T + self._constant())
        return x, inner + log_det

    def _moved(self, x: Tensor, move: Callable[[Tensor], Tensor]) -> Mapped:
        """Images with other coordinates, and the log-determinant of the map towards x."""
        flat = x.flatten(1)
        c = self.coordinates(flat)
        log_det = torch.linalg.slogdet(self._slope())[1]
        return (flat + (move(c) - c) @ self.synthesis).view_as(x), log_det.expand(len(x))

    def _slope(self) -> Tensor:
        return self.matrix + self.matrix @ self.tilt

    def _constant(self) -> Tensor:
        return self.matrix @ self.offset + self.shift


class SmallConditioner(nn.Sequential):
    """Glow's three convolutions, 3×3 → 1×1 → 3×3 with ReLU, for images down to one pixel; the last starts at zero."""

    def __init__(self, inputs: int, outputs: int, width: int, seed: int | torch.Generator) -> None:
        first, last = SmallConvolution(inputs, width), SmallConvolution(width, outputs)
        super().__init__(first, nn.ReLU(), PixelLayer(width, width), last)
        he_initialise(self, seed)
        zero_last(last)


class SmallConvolution(nn.Conv2d):
    """A 3×3 convolution that takes images of one pixel, of which its centre alone sees anything, as vectors."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] == (1, 1):
            return F.linear(x[:, :, 0, 0], self.weight[:, :, 1, 1], self.bias)[:, :, None, None]
        return super().forward(x)


def _stage(field: GaussianField, steps: int, width: int, rank: int, seed: int, scale: int) -> Bijection:
    """F_l: Glow steps, then the affine layer; decoding is towards x."""
    some = _support.count("steps", steps, least=0) > 0
    glow = GlowBlock(1, steps, width, seed, scale).to(field.like) if some else Chain([])
    return DirectedAffine(field, min(rank, field.latent_dim), glow) if rank else glow
