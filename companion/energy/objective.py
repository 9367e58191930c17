"""What minimisers and samplers work with: functions of a batch, an energy of a prior among them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from companion import _support
from companion.energy.points import Generator, ImagePoint, LatentPoint, Point
from companion.energy.terms import Misfit, Penalty, shaped
from companion.measure.base import Index, replaced
from companion.priors.base import Prior

_BatchNorm = nn.modules.batchnorm._BatchNorm  # what all batch normalisations inherit


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
        Generator G, a :class:`companion.priors.Prior` or what else has `shape`, `latent_dim` and `decode` (ValueError
        otherwise); not changed, and best frozen: gradients are taken with respect to the variable only. One with
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
        if missing := [name for name in ("shape", "latent_dim", "decode") if not hasattr(prior, name)]:
            given = f"prior: got {type(prior).__name__}, which has no {' and no '.join(missing)}"
            raise ValueError(f"{given}; allowed: a priors.Prior, or what has all three")
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
