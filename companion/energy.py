"""Energies: the one place where a method's objective is written down.

An energy is a weighted sum of terms: misfits, how badly an image explains the measurements, and penalties, how unlikely
the prior finds it:

- Asim et al. 2020, eq. 2: ``Energy(flow, SquaredMisfit(A, y), LatentNorm(gamma))``
- Asim et al. 2020, eq. 1: ``Energy(flow, SquaredMisfit(A, y), FlowLikelihood(gamma), space="x")``
- Bora et al. 2017, eq. 4: ``Energy(gan, SquaredMisfit(A, y), LatentNorm(gamma, squared=True))``
- Whang et al. 2020, eq. 12: ``Energy(flow, NoiseMisfit(problem, y), FlowLikelihood(beta))``

The protocol, that solvers and samplers work with, is :class:`Objective`: ``value_and_gradient`` of a batch, and
``select(index)``, the same for the images at `index` only. What has data for each image gives ``select``: operators,
noises and problems (:mod:`companion.measure`), misfits, penalties and energies; for what has none it is the object
itself. An index may repeat an image, and is a list or a tensor of whole numbers.

Each returns one value per image, [batch], that depends on no other image, up to rounding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from companion import _support
from companion.measure.base import Index, Operator, replaced
from companion.measure.problem import Problem
from companion.priors.base import Prior, standard_normal_log_density

_BatchNorm = nn.modules.batchnorm._BatchNorm  # what all batch normalisations inherit


class Generator(Protocol):
    """What an energy needs of a prior; :class:`companion.priors.base.Prior` has it."""

    shape: tuple[int, ...]
    latent_dim: int

    def decode(self, z: Tensor) -> Tensor: ...


@runtime_checkable
class Density(Protocol):
    """What densities and image space need of a prior besides; :class:`companion.priors.flow.Flow` has it."""

    domain: tuple[float, float] | None

    def encode(self, x: Tensor) -> Tensor: ...
    def encode_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def decode_with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]: ...


class Point:
    """A batch of candidates, as latents z and as images x; for a function that knows no prior both are its variable."""

    z: Tensor
    x: Tensor
    log_prob: Tensor

    def __init__(self, variable: Tensor) -> None:
        self.z = self.x = variable


class LatentPoint(Point):
    """A point given by its latents, [batch, n]; what is not given is computed once, when first asked for."""

    def __init__(self, prior: Any, z: Tensor) -> None:
        self.prior, self.z = prior, z

    @cached_property
    def x(self) -> Tensor:  # type: ignore[override]
        """Images G(z), [batch, *shape]."""
        return self.prior.decode(self.z)

    @cached_property
    def log_prob(self) -> Tensor:  # type: ignore[override]
        """log p(G(z)) in nats, [batch]; leaves the image behind, so that the flow is passed once."""
        self.x, log_det = _density(self.prior).decode_with_log_det(self.z)
        return standard_normal_log_density(self.z) - log_det


class ImagePoint(Point):
    """A point given by its images, [batch, *shape].

    A flow may have a `domain`, the open interval of pixels that it can represent. Images with pixels beyond it, or
    within rounding of its ends, are `outside`: they have no latents (those of the nearest image inside stand in) and
    density 0.
    """

    def __init__(self, prior: Any, x: Tensor) -> None:
        self.prior, self.x = _density(prior), x
        low, high = self.prior.domain or (-torch.inf, torch.inf)
        width = high - low if high < torch.inf else 0.0
        edge, margin = 4 * torch.finfo(x.dtype).eps * width, 1e-4 * width
        self.outside = ((x <= low + edge) | (x >= high - edge)).flatten(1).any(1)
        outside = self.outside.view(-1, *[1] * (x.dim() - 1))
        self._inside = torch.where(outside, x.clamp(low + margin, high - margin), x) if self.outside.any() else x

    @cached_property
    def z(self) -> Tensor:  # type: ignore[override]
        """Latents G⁻¹(x), [batch, n]."""
        return self.prior.encode(self._inside)

    @cached_property
    def log_prob(self) -> Tensor:  # type: ignore[override]
        """log p(x) in nats, [batch]; leaves the latents behind, so that the flow is passed once."""
        self.z, log_det = self.prior.encode_with_log_det(self._inside)
        return (standard_normal_log_density(self.z) + log_det).masked_fill(self.outside, -torch.inf)


def _density(prior: Any) -> Density:
    if not isinstance(prior, Density):
        raise ValueError(f"prior: got {type(prior).__name__}, which has no density; allowed: a flow")
    return prior


def shaped(name: str, value: Tensor, shape: Sequence[int]) -> Tensor:
    """The value, if it has that shape, else ValueError: broadcasting would mix the images of a batch."""
    if not isinstance(value, Tensor) or tuple(value.shape) != tuple(shape):
        given = f"values of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: got {given}; allowed: a tensor of shape {tuple(shape)}")
    return value


class Misfit(ABC):
    """How badly images explain measurements y, [batch, *operator.output_shape]; a subclass says it in ``__call__``."""

    operator: Operator
    y: Tensor

    def __init__(self, operator: Operator, y: Tensor) -> None:
        self.operator = operator
        self.y = operator.check_measurements(y).detach()

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The misfit of each image, [batch]."""

    def select(self, index: Index) -> Self:
        """The misfit for the images at `index`; to be extended where there are more data for each image."""
        return replaced(self, operator=self.operator.select(index), y=self.y[index])


class SquaredMisfit(Misfit):
    """‖f(x) − y‖², summed over measurements (Asim et al. 2020, eq. 2)."""

    def __call__(self, x: Tensor) -> Tensor:
        return (self.operator.forward(x) - self.y).square().flatten(1).sum(1)


class NoiseMisfit(Misfit):
    """−log p(y | f(x)) in nats, for a problem with any noise model (Whang et al. 2020, eq. 12)."""

    def __init__(self, problem: Problem, y: Tensor) -> None:
        super().__init__(problem.operator, y)
        self.problem = problem

    def __call__(self, x: Tensor) -> Tensor:
        return -self.problem.log_likelihood(x, self.y)

    def select(self, index: Index) -> Self:
        return replaced(super().select(index), problem=self.problem.select(index))


class Penalty(ABC):
    """What an energy adds to its misfits: [batch] values of a :class:`Point`, said by a subclass in ``__call__``.

    A plain function is refused: where it holds data of its own, it could not say which belong to which image.
    """

    @abstractmethod
    def __call__(self, point: Point) -> Tensor:
        """The penalty of each image, [batch]."""

    def select(self, index: Index) -> Self:
        """The penalty for the images at `index`: the same one, unless it has data for each image."""
        return self


class _Weighted(Penalty):
    """A penalty times a weight >= 0: a number, or a tensor [batch] with one for each image."""

    def __init__(self, name: str, weight: float | Tensor) -> None:
        if isinstance(weight, Tensor) and weight.dim() == 1:
            _support.positive(name, float(_support.finite(name, weight).min()), zero=True)
            self.weight: float | Tensor = weight
        else:
            self.weight = _support.positive(name, weight, zero=True)  # type: ignore[arg-type]

    @abstractmethod
    def one(self, point: Point) -> Tensor:
        """The penalty for weight 1, [batch]."""

    def __call__(self, point: Point) -> Tensor:
        value = self.one(point)
        if not isinstance(self.weight, Tensor):
            return self.weight * value
        return shaped(f"weights of {type(self).__name__}", self.weight.to(value), value.shape) * value

    def select(self, index: Index) -> Self:
        return replaced(self, weight=self.weight[index]) if isinstance(self.weight, Tensor) else self


class LatentNorm(_Weighted):
    """γ‖z‖ (Asim et al. 2020, eq. 2), or γ‖z‖² with `squared` (Bora et al. 2017, eq. 4); γ a number or [batch].

    With `squared` and γ = 1/2 it is −log p(z), up to a constant. At z = 0 the gradient of ‖z‖ is taken to be 0.
    """

    def __init__(self, gamma: float | Tensor, squared: bool = False) -> None:
        super().__init__("gamma", gamma)
        self.squared = squared

    def one(self, point: Point) -> Tensor:
        return point.z.square().sum(1) if self.squared else torch.linalg.vector_norm(point.z, dim=1)


class FlowLikelihood(_Weighted):
    """−β log p(x) in nats (Asim et al. 2020, eq. 1; Whang et al. 2020, eq. 12); β a number or [batch]."""

    def __init__(self, beta: float | Tensor = 1.0) -> None:
        super().__init__("beta", beta)

    def one(self, point: Point) -> Tensor:
        return -point.log_prob


class Objective(ABC):
    """What minimisers and samplers work with: a function of a batch, [batch, ...] → [batch], row by row."""

    @abstractmethod
    def at(self, variable: Tensor) -> Point:
        """The variable as a point, with its latents and its image."""

    @abstractmethod
    def of(self, point: Point) -> Tensor:
        """The values at a point, [batch]."""

    @abstractmethod
    def select(self, index: Index) -> "Objective":
        """The objective of some images only, in the order of `index`; an image may occur more than once."""

    def __call__(self, variable: Tensor) -> Tensor:
        """The value of each image, [batch]; ValueError for a wrong shape."""
        return self.of(self.at(variable))

    def value_and_gradient(self, variable: Tensor) -> tuple[Tensor, Tensor]:
        """Values, [batch], and gradients in the variable, [batch, ...], by one pass forward and one back."""
        return self.evaluate(variable)[:2]

    def evaluate(self, variable: Tensor) -> tuple[Tensor, Tensor, Point]:
        """Values, gradients, and the point that they belong to."""
        variable = variable.detach().requires_grad_()
        with torch.enable_grad():
            point = self.at(variable)
            value = self.of(point)
            found = torch.autograd.grad(value.sum(), variable, allow_unused=True) if value.requires_grad else (None,)
        if (gradient := found[0]) is None:
            raise ValueError("energy: got values without a gradient in z; allowed: a differentiable function of z")
        return value.detach(), gradient, point


class Function(Objective):
    """A plain function of a whole batch, [batch, ...] → [batch], as an objective.

    It may hold data that nobody else can select: it is evaluated for the whole batch, images left out at their `start`.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], start: Tensor) -> None:
        self.function, self.start = function, start.detach().clone()
        self.rows = torch.arange(len(start), device=start.device)

    def at(self, variable: Tensor) -> Point:
        return Point(variable)

    def of(self, point: Point) -> Tensor:
        whole = len(self.rows) == len(self.start)
        value = self.function(point.x if whole else self.start.index_copy(0, self.rows, point.x))
        shaped("energy", value, (len(self.start),))
        return value if whole else value[self.rows]

    def select(self, index: Index) -> "Function":
        return replaced(self, rows=self.rows[index])


class Energy(Objective):
    """Σ weight · term, misfits of the image and penalties of the point, as a function of z (or of the image x = G(z)).

    Parameters
    ----------
    prior
        Generator G; not changed, and best frozen: gradients are taken with respect to the variable only. One with
        batch normalisation must be in evaluation mode (ValueError otherwise).
    misfit
        Of the image; its operator takes images of the prior's shape, and its y has the prior's dtype and device.
    penalty
        A :class:`Penalty`; none means 0.
    space
        "z": the variable is the latent, [batch, n]. "x": the variable is the image, [batch, *shape]; needs a flow.
    terms
        Pairs (weight >= 0, misfit or penalty), at least one of them a misfit; in place of `misfit` and `penalty`, whose
        weights are 1.
    """

    def __init__(
        self,
        prior: Generator,
        misfit: Misfit | None = None,
        penalty: Penalty | None = None,
        space: str = "z",
        *,
        terms: Sequence[tuple[float, Misfit | Penalty]] | None = None,
    ) -> None:
        if terms is None:
            terms = [(1.0, misfit)] if penalty is None else [(1.0, misfit), (1.0, penalty)]  # type: ignore[list-item]
        elif misfit is not None or penalty is not None:
            raise ValueError("terms: got some, and a misfit or penalty besides; allowed: either")
        if isinstance(prior, nn.Module) and any(isinstance(m, _BatchNorm) and m.training for m in prior.modules()):
            raise ValueError(
                f"prior: got {type(prior).__name__} whose batch normalisation is in training mode, where every pass "
                "changes it and mixes the images of a batch; allowed: one in evaluation mode, prior.eval()"
            )
        self.prior, self.terms = prior, [(_support.positive("weight", w, zero=True), term) for w, term in terms]
        self.space = str(_support.one_of("space", space, ("z", "x")))
        for _, term in self.terms:
            self._check(term)
        self._sizes = [len(term.y) for _, term in self.terms if isinstance(term, Misfit)]
        if len(set(self._sizes)) != 1:
            raise ValueError(f"terms: got misfits of {self._sizes} images; allowed: one misfit or more of one batch")

    def _check(self, term: Misfit | Penalty) -> None:
        if not isinstance(term, Misfit | Penalty):
            name = "misfit" if term is self.terms[0][1] else "penalty"
            raise ValueError(f"{name}: got {type(term).__name__}; allowed: an energy.Misfit or energy.Penalty")
        if isinstance(term, Penalty):
            return
        if (given := tuple(term.operator.shape)) != (shape := tuple(self.prior.shape)):
            raise ValueError(f"misfit: got an operator on {given}; allowed: the prior's shape, {shape}")
        like = self.prior.like if isinstance(self.prior, Prior) else term.y
        if (term.y.dtype, term.y.device) != (like.dtype, like.device):
            raise ValueError(
                f"y: got {term.y.dtype} on {term.y.device}; allowed: {like.dtype} on {like.device}, as the prior "
                "(move either with .to(...))"
            )

    @property
    def variable_shape(self) -> tuple[int, ...]:
        """Shape of one image's variable: (n,) for latents, the image's shape in image space."""
        return (self.prior.latent_dim,) if self.space == "z" else tuple(self.prior.shape)

    def __len__(self) -> int:
        """Number of images."""
        return self._sizes[0]

    def at(self, variable: Tensor) -> Point:
        """The variable as a point, with its latents and its image; ValueError for a wrong shape."""
        _support.batch_of(self.space, variable, self.variable_shape)
        if len(variable) != len(self):
            raise ValueError(
                f"{self.space}: got another batch than the {len(self)} images of y; allowed: one row for each"
            )
        return LatentPoint(self.prior, variable) if self.space == "z" else ImagePoint(self.prior, variable)

    def of(self, point: Point) -> Tensor:
        """The energy at a point, [batch]; ValueError for a term that returns anything else than one value per image."""
        total: Tensor | float = 0.0
        # penalties first: a density leaves the image behind, so that the flow is passed once
        for weight, term in sorted(self.terms, key=lambda pair: isinstance(pair[1], Misfit)):
            value = term(point.x) if isinstance(term, Misfit) else term(point)
            value = shaped(type(term).__name__, value, (len(self),))
            total = total + (value if weight == 1 else weight * value)
        return total  # type: ignore[return-value]

    def select(self, index: Index) -> "Energy":
        terms = [(weight, term.select(index)) for weight, term in self.terms]
        return Energy(self.prior, space=self.space, terms=terms)

    def tempered(self, beta: float) -> "Energy":
        """The energy with the misfits' weights times beta >= 0, for annealing and multi-stage schemes."""
        beta = _support.positive("beta", beta, zero=True)
        terms = [(weight * (beta if isinstance(term, Misfit) else 1), term) for weight, term in self.terms]
        return Energy(self.prior, space=self.space, terms=terms)
