"""The Jeffreys divergence of a model from a posterior, estimated and as an objective (Zhang et al. 2021, sec. 4)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from companion import _support
from companion.energy.terms import shaped
from companion.priors.linear import wide
from companion.priors.msign import MsIGN
from companion.sample.stein import direction

LogDensity = Callable[[Tensor], Tensor]


class Model(Protocol):
    """What a model must offer; ``MsIGN`` and ``Mirrored`` of :mod:`companion.priors.msign` do."""

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [batch]."""

    def decode_with_log_prob(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Samples x of p from latents z ~ N(0, I), or of a half of p that stands for the whole, and log p(x)."""


@dataclass(frozen=True)
class Weighted:
    """Samples of a proposal, weighted to stand for a target.

    Attributes
    ----------
    x : Tensor
        The samples, [n, d].
    weights : Tensor
        Self-normalised importance weights, [n], sum 1.
    power : float
        The weights are those of the target to this power: 1 unless that would leave too few effective samples.
    raw_ess, ess : float
        Effective samples 1/Σw² of the untempered weights, and of these.
    log_evidence : float
        log of the mean of target/proposal, an estimate of log Z.
    """

    x: Tensor
    weights: Tensor
    power: float
    raw_ess: float
    ess: float
    log_evidence: float

    def draw(self, n: int, source: torch.Generator) -> Tensor:
        """n samples, drawn with their weights, [n, d]."""
        weights = self.weights.detach().cpu().double()
        index = torch.multinomial(weights, n, replacement=True, generator=source)
        return self.x[index.to(self.x.device)]


def _each(name: str, value: Tensor, x: Tensor) -> Tensor:
    """One value for each of the samples x, or ValueError: broadcasting would mix them."""
    return shaped(name, value, (len(x),))


@torch.no_grad()
def weighted(x: Tensor, log_target: Tensor, log_proposal: Tensor, least_ess: float = 1.0) -> Weighted:
    """Importance weights w ∝ target/proposal of samples x of a proposal (Zhang et al. 2021, eq. 10 and App. C).

    Parameters
    ----------
    x
        Samples, [n, d].
    log_target, log_proposal
        Log-densities at x, [n], the proposal's as realised by the network that drew x; neither needs normalising, but
        for `log_evidence`. Where the target is NaN the weight is 0.
    least_ess
        Below this many effective samples the weights are raised to the largest power <= 1 that leaves as many: a
        network that is fed the same few samples learns them by heart.

    ValueError for log-densities of another shape, and where no sample's is finite.
    """
    log_target, log_proposal = _each("log_target", log_target, x), _each("log_proposal", log_proposal, x)
    ratio = wide(log_target - log_proposal)
    ratio = ratio.where(torch.isfinite(ratio), -torch.inf)
    if not torch.isfinite(ratio).any():
        raise ValueError("log_target: got no finite value; allowed: at least one sample that the target allows")
    # 0.99: power 0 would make NaN of weights that are 0
    least_ess = min(_support.positive("least_ess", least_ess), 0.99 * float(torch.isfinite(ratio).sum()))

    def ess(power: float) -> float:
        return 1 / float(torch.softmax(power * ratio, 0).square().sum())

    raw, power = ess(1.0), 1.0
    if raw < least_ess:
        low, high, halvings = 0.0, 1.0, 0
        while halvings < 50 or high - low > 1e-3 * high:  # ratios may be so large that a power of 1e-20 is wanted
            power, halvings = (low + high) / 2, halvings + 1
            low, high = (power, high) if ess(power) >= least_ess else (low, power)
        power = low
    weights = torch.softmax(power * ratio, 0).to(x)
    log_evidence = float(torch.logsumexp(ratio, 0)) - math.log(len(ratio))
    return Weighted(x, weights, power, raw, ess(power), log_evidence)


def reverse_term(model: Model, log_density: LogDensity, z: Tensor, gradient: str = "path") -> tuple[Tensor, Tensor]:
    """E_p[log p/q] over latents z: its estimate (up to log Z) [], and a loss with its gradient for the parameters.

    Parameters
    ----------
    model, log_density
        p, and q without its normalising constant.
    z
        Draws from N(0, I), [batch, d].
    gradient
        "path": through the samples, at the price of log_density's gradient. "score": E_p[(log p/q − b) ∂ log p], eq. 11
        with the batch's mean for b, which takes out most of its variance and none of its truth.

    Samples where log_density or its gradient is NaN are left out.
    """
    _support.one_of("gradient", gradient, ("path", "score"))
    if gradient == "path":
        x, log_prob = model.decode_with_log_prob(z)
        at = x.detach().requires_grad_()
        target = log_density(at)
        (slope,) = torch.autograd.grad(target.sum(), at)
        sound = torch.isfinite(target) & torch.isfinite(slope).all(1)
        # the slope enters by hand: through the graph one NaN among the samples would spoil every parameter
        target = target.detach() + (slope.where(sound[:, None], 0.0) * (x - at.detach())).sum(1)
        gap = (log_prob - target)[sound]
        return gap.mean().detach(), gap.mean()
    with torch.no_grad():
        x = model.decode_with_log_prob(z)[0]
        target = log_density(x)
    sound = torch.isfinite(target)
    log_prob = model.log_prob(x[sound])
    gap = (log_prob - target[sound]).detach()
    # the baseline of each sample is the mean of the others, so that the estimate stays unbiased
    centred = (gap - gap.mean()) * len(gap) / max(len(gap) - 1, 1)
    return gap.mean(), (centred * log_prob).mean()


def stein_term(model: MsIGN, log_density: LogDensity, z: Tensor) -> tuple[Tensor, Tensor]:
    """The length of SVGD's moves of the fields of latents z [batch, d], and a loss whose gradient makes them.

    Amortised SVGD (Feng et al. 2017) moves the model's parameters so that its samples move as particles would: the
    loss is −mean of φ(x)ᵀx with φ held fixed. Particles live in the prior's coordinates, where the field is white.
    Samples where log_density or its gradient is NaN are left out.
    """
    latents = model.field.encode(model.decode(z))
    at = latents.detach().requires_grad_()
    target = log_density(model.field.decode(at))
    (slope,) = torch.autograd.grad(target.sum(), at)
    sound = torch.isfinite(target) & torch.isfinite(slope).all(1)
    move = direction(at.detach()[None], slope[None], sound[None])[0][sound]
    return move.norm(dim=1).mean(), -(move * latents[sound]).sum(1).mean()


@dataclass(frozen=True)
class Divergence:
    """An estimate of D_J = E_p[log p/q] + E_q[log q/p], in nats; the constants of p and q cancel.

    Attributes
    ----------
    value, error : float
        The estimate and its standard error.
    reverse, forward : float
        Its two halves, each short of the unknown log Z: KL(p‖q) − log Z and KL(q‖p) + log Z.
    """

    value: float
    error: float
    reverse: float
    forward: float


@torch.no_grad()
def jeffreys(log_prob: LogDensity, log_density: LogDensity, own: Tensor, reference: Tensor) -> Divergence:
    """D_J of densities p and q, up to constants, from samples of either: `own` of p, `reference` of q, [n, d].

    ValueError unless each density returns one value for each sample.
    """
    (p_own, q_own), (p_reference, q_reference) = (
        (_each("log_prob", log_prob(x), x), _each("log_density", log_density(x), x)) for x in (own, reference)
    )
    reverse, forward = p_own - q_own, q_reference - p_reference
    variance = reverse.var() / len(reverse) + forward.var() / len(forward)
    value = reverse.mean() + forward.mean()
    return Divergence(float(value), float(variance.sqrt()), float(reverse.mean()), float(forward.mean()))
