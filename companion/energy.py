"""Energies: the one place where a method's objective is written down.

An energy is a misfit, how badly an image explains the measurements, plus a penalty, how unlikely the prior finds it:

- Asim et al. 2020, eq. 2: ``Energy(flow, SquaredMisfit(A, y), LatentNorm(gamma))``
- Asim et al. 2020, eq. 1: ``Energy(flow, SquaredMisfit(A, y), FlowLikelihood(gamma), space="x")``
- Bora et al. 2017, eq. 4: ``Energy(gan, SquaredMisfit(A, y), LatentNorm(gamma, squared=True))``
- Whang et al. 2020, eq. 12: ``Energy(flow, NoiseMisfit(problem, y), FlowLikelihood(beta))``

Every misfit, penalty and energy returns one value per image, [batch], and no value depends on the other images of its
batch, up to rounding, which can depend on how many they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from companion import _support
from companion.measure.base import Operator
from companion.measure.problem import Problem
from companion.priors.base import standard_normal_log_density

_BatchNorm = nn.modules.batchnorm._BatchNorm  # what all batch normalisations inherit
Index = Sequence[int] | Tensor


class Generator(Protocol):
    """What an energy needs of a prior; :class:`companion.priors.base.Prior` has it."""

    shape: tuple[int, ...]
    latent_dim: int

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents."""


class Point(ABC):
    """A batch of candidates, as latents z and as images x; what is not given is computed once, when first asked for."""

    z: Tensor
    x: Tensor
    log_prob: Tensor

    def __init__(self, prior: Any) -> None:
        self.prior = prior

    def _flow(self, method: str) -> Any:
        if not hasattr(self.prior, method):
            raise ValueError(f"prior: got {type(self.prior).__name__}, which has no density; allowed: a flow")
        return getattr(self.prior, method)


class LatentPoint(Point):
    """A point given by its latents, [batch, n]."""

    def __init__(self, prior: Any, z: Tensor) -> None:
        super().__init__(prior)
        self.z = z

    @cached_property
    def x(self) -> Tensor:  # type: ignore[override]
        """Images G(z), [batch, *shape]."""
        return self.prior.decode(self.z)

    @cached_property
    def log_prob(self) -> Tensor:  # type: ignore[override]
        """log p(G(z)) in nats, [batch]; leaves the image behind, so that the flow is passed once."""
        size = len(self.z)
        z = self.z if size > 1 else torch.cat([self.z, self.z.detach()])
        x, log_det = self._flow("decode_with_log_det")(z)
        self.x = x[:size]
        return standard_normal_log_density(self.z) - log_det[:size]


class ImagePoint(Point):
    """A point given by its images, [batch, *shape].

    A flow may have a `domain`, the open interval of pixels that it can represent. Images with pixels beyond it, or
    within rounding of its ends, are `outside`: they have no latents (those of the nearest image inside stand in) and
    density 0.
    """

    def __init__(self, prior: Any, x: Tensor) -> None:
        super().__init__(prior)
        self.x = x
        low, high = getattr(prior, "domain", None) or (-torch.inf, torch.inf)
        bounded = high < torch.inf
        edge = 4 * torch.finfo(x.dtype).eps * (high - low) if bounded else 0.0
        self.outside = ((x <= low + edge) | (x >= high - edge)).flatten(1).any(1)
        margin = 1e-4 * (high - low) if bounded else 0.0
        outside = self.outside.view(-1, *[1] * (x.dim() - 1))
        self._inside = torch.where(outside, x.clamp(low + margin, high - margin), x) if self.outside.any() else x

    @cached_property
    def z(self) -> Tensor:  # type: ignore[override]
        """Latents G⁻¹(x), [batch, n]."""
        return self._flow("encode")(self._inside)

    @cached_property
    def log_prob(self) -> Tensor:  # type: ignore[override]
        """log p(x) in nats, [batch]; leaves the latents behind, so that the flow is passed once."""
        size = len(self.x)
        x = self._inside if size > 1 else torch.cat([self._inside, self._inside.detach()])
        z, log_det = self._flow("encode_with_log_det")(x)
        self.z = z[:size]
        return (standard_normal_log_density(self.z) + log_det[:size]).masked_fill(self.outside, -torch.inf)


class Misfit(ABC):
    """How badly images explain measurements y."""

    operator: Operator
    y: Tensor

    def __init__(self, operator: Operator, y: Tensor) -> None:
        self.operator = operator
        self.y = operator.check_measurements(y).detach()

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The misfit of each image, [batch]."""

    @abstractmethod
    def select(self, index: Index) -> "Misfit":
        """The misfit for the measurements of some images only (or of some repeatedly)."""


class SquaredMisfit(Misfit):
    """‖f(x) − y‖², summed over measurements (Asim et al. 2020, eq. 2)."""

    def __call__(self, x: Tensor) -> Tensor:
        """The squared distance of each image's measurements from y, [batch]."""
        return (self.operator.forward(x) - self.y).square().flatten(1).sum(1)

    def select(self, index: Index) -> "SquaredMisfit":
        """The misfit for the images at `index`."""
        return SquaredMisfit(self.operator.select(index), self.y[index])


class NoiseMisfit(Misfit):
    """−log p_δ(y − f(x)) in nats, for a problem with any noise model (Whang et al. 2020, eq. 12)."""

    def __init__(self, problem: Problem, y: Tensor) -> None:
        super().__init__(problem.operator, y)
        self.problem = problem

    def __call__(self, x: Tensor) -> Tensor:
        """The negative log-likelihood of each image, [batch]."""
        return -self.problem.log_likelihood(x, self.y)

    def select(self, index: Index) -> "NoiseMisfit":
        """The misfit for the images at `index`."""
        return NoiseMisfit(self.problem.select(index), self.y[index])


class Penalty(Protocol):
    """What an energy adds to its misfit: any function of a :class:`Point` that returns [batch]."""

    def __call__(self, point: Point) -> Tensor:
        """The penalty of each image."""


class LatentNorm:
    """γ‖z‖ (Asim et al. 2020, eq. 2), or γ‖z‖² with `squared` (Bora et al. 2017, eq. 4).

    With `squared` and γ = 1/2 it is −log p(z), up to a constant.

    At z = 0, where ‖z‖ has no gradient, the gradient is taken to be 0.
    """

    def __init__(self, gamma: float, squared: bool = False) -> None:
        self.gamma = _support.positive("gamma", gamma, zero=True)
        self.squared = squared

    def __call__(self, point: Point) -> Tensor:
        """The penalty of each image, [batch]."""
        if self.squared:
            return self.gamma * point.z.square().sum(1)
        return self.gamma * torch.linalg.vector_norm(point.z, dim=1)


class FlowLikelihood:
    """−β log p(x), the flow's density of the image (Asim et al. 2020, eq. 1; Whang et al. 2020, eq. 12)."""

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = _support.positive("beta", beta, zero=True)

    def __call__(self, point: Point) -> Tensor:
        """The penalty of each image, [batch], in nats times β."""
        return -self.beta * point.log_prob


class Energy:
    """misfit(x) + penalty(z), as a function of the latents z (or of the image x = G(z)).

    Parameters
    ----------
    prior
        Generator G; not changed, and best frozen: gradients are taken with respect to the variable only. One with
        batch normalisation must be in evaluation mode (ValueError otherwise).
    misfit
        Of the image; its operator takes images of the prior's shape.
    penalty
        Of a :class:`Point`; none means 0.
    space
        "z": the variable is the latent, [batch, n]. "x": the variable is the image, [batch, *shape]; needs a flow.
    """

    def __init__(self, prior: Generator, misfit: Misfit, penalty: Penalty | None = None, space: str = "z") -> None:
        if tuple(misfit.operator.shape) != tuple(prior.shape):
            raise ValueError(
                f"misfit: got an operator on {tuple(misfit.operator.shape)}; "
                f"allowed: the prior's shape, {tuple(prior.shape)}"
            )
        if isinstance(prior, nn.Module) and any(isinstance(m, _BatchNorm) and m.training for m in prior.modules()):
            raise ValueError(
                f"prior: got {type(prior).__name__} whose batch normalisation is in training mode, where every pass "
                "changes it and mixes the images of a batch; allowed: one in evaluation mode, prior.eval()"
            )
        self.prior, self.misfit, self.penalty = prior, misfit, penalty
        self.space = str(_support.one_of("space", space, ("z", "x")))

    @property
    def variable_shape(self) -> tuple[int, ...]:
        """Shape of one image's variable: (n,) for latents, the image's shape in image space."""
        return (self.prior.latent_dim,) if self.space == "z" else tuple(self.prior.shape)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.misfit.y)

    def __call__(self, variable: Tensor) -> Tensor:
        """The energy of each image, [batch]; ValueError for a wrong shape."""
        return self.of(self.at(variable))

    def at(self, variable: Tensor) -> Point:
        """The variable as a point, with its latents and its image."""
        _support.batch_of(self.space, variable, self.variable_shape)
        return LatentPoint(self.prior, variable) if self.space == "z" else ImagePoint(self.prior, variable)

    def of(self, point: Point) -> Tensor:
        """The energy at a point, [batch]."""
        if len(point.x if self.space == "x" else point.z) != len(self):
            raise ValueError(
                f"{self.space}: got another batch than the {len(self)} images of y; allowed: one row for each"
            )
        penalty = 0 if self.penalty is None else self.penalty(point)
        return penalty + self.misfit(point.x)

    def select(self, index: Index) -> "Energy":
        """The energy of some images only, in the order of `index`; an image may occur more than once."""
        return Energy(self.prior, self.misfit.select(index), self.penalty, self.space)
