"""Multi-stage training of MsIGN, from the coarsest scale to the finest (Zhang et al. 2021, Algorithm 1)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from companion import _support
from companion.bayes.divergence import Weighted, reverse_term, stein_term, weighted
from companion.bayes.modes import aim
from companion.bayes.moved import moved
from companion.bayes.problems import FieldProblem
from companion.priors.msign import Mirrored, MsIGN


@dataclass(frozen=True)
class Training:
    """How each stage is trained; the paper gives the batch alone.

    Attributes
    ----------
    iterations, batch
        Adam steps, and samples in each of the two terms of the objective. With 0 steps an affine layer is aimed only,
        and there is no pool, so no `ess`, to judge it by.
    rounds
        Into how many parts a stage's steps are divided, each with a proposal of its own and the learning rate from
        start to end: the model as it has become proposes more of what counts. The paper has one.
    pool, least_ess
        Samples of the proposal, drawn once a round (and for :func:`companion.bayes.modes.aim`), and how many
        effective ones they must be worth.
    moves
        With more than 0, a quarter as many are drawn from each pool with their weights, and moved so many times
        (:func:`companion.bayes.moved.moved`) before they stand for the posterior, in the forward term and where an
        affine layer is aimed; samples that are given, too, unless they are fewer than `pool`. The paper has none.
    rate, last_rate
        Learning rate at the start; the cosine's end as a part of it.
    clip
        Bound on the gradient's norm.
    objective, gradient
        "jeffreys", "kl" (its first half alone, KL(p‖q)) or "stein" (:func:`companion.bayes.divergence.stein_term`);
        "path" or "score" for the first two (see :func:`companion.bayes.divergence.reverse_term`).
    """

    iterations: int = 300
    rounds: int = 1
    batch: int = 100
    pool: int = 4000
    least_ess: float = 300.0
    moves: int = 0
    rate: float = 1e-3
    last_rate: float = 0.002
    clip: float = 20.0
    objective: str = "jeffreys"
    gradient: str = "path"

    def __post_init__(self) -> None:
        checks: dict[str, Callable[..., Any]] = dict.fromkeys(("rounds", "batch", "pool"), _support.count)
        checks |= dict.fromkeys(("iterations", "moves"), partial(_support.count, least=0))
        checks |= dict.fromkeys(("least_ess", "rate", "clip"), _support.positive)
        checks["last_rate"] = partial(_support.positive, zero=True)
        checks["objective"] = partial(_support.one_of, allowed=("jeffreys", "kl", "stein"))
        checks["gradient"] = partial(_support.one_of, allowed=("path", "score"))
        for name, check in checks.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))


@dataclass
class Stage:
    """What happened at one scale.

    Attributes
    ----------
    scale : int
        l.
    loss : list
        The objective at each iteration: the sum of the two halves, without log Z; for "stein" the length of the
        particles' moves; NaN where no sample was sound.
    ess, raw_ess, power : float
        Of the last pool (see :class:`companion.bayes.divergence.Weighted`); NaN for the other objectives.
    simulations : int
        Forward simulations that the stage took.
    """

    scale: int
    loss: list[float] = field(default_factory=list)
    ess: float = math.nan
    raw_ess: float = math.nan
    power: float = math.nan
    simulations: int = 0


@torch.inference_mode(False)  # gradients are needed, whatever mode the caller is in
def train_msign(
    problem: FieldProblem,
    model: MsIGN | Mirrored,
    settings: Training | None = None,
    scales: Iterable[int] | None = None,
    first_samples: Tensor | None = None,
    seed: int = 0,
) -> list[Stage]:
    """Train a model, in place, to the posterior at each scale in turn.

    At scale l all F_1, …, F_l are trained; the proposal of the forward term is the model as the stage finds it, which
    is that of the last stage with its prior conditioning, q̃_l, weighted by q_l over its realised density. Where F_l has
    an affine layer, that is aimed first (:func:`companion.bayes.modes.aim`), and the proposal has it too.

    An affine layer is for a posterior of one mode, or of a mode and its mirror image. Of more modes the highest may
    be all that is learned, and neither the loss nor the effective samples tell: these are weighted samples of the
    model, which never saw the rest. Compare with chains or particles from many starts (:mod:`companion.sample`).

    Parameters
    ----------
    problem, model
        At the finest scale; the model on the problem's field.
    settings
        None for :class:`Training` as they are.
    scales
        Which stages, in order; None for 1, …, L. A run that stopped goes on with the rest: stages share nothing but the
        weights.
    first_samples
        Samples of q_1, [n, d_1], for stage 1, of an exact sampler or a long chain; None for the prior's, weighted:
        where the data are strong too few of them count, and the guard makes them stand for a wider density.
    seed
        Of all draws; each stage and purpose has its own stream.
    """
    settings = settings or Training()
    if settings.objective == "stein" and not isinstance(model, MsIGN):
        raise ValueError(f"model: got {type(model).__name__} for 'stein'; allowed: MsIGN, whose samples are particles")
    if model.field.side != problem.side:
        raise ValueError(f"model: got one of fields of side {model.field.side}; allowed: {problem.side}, the problem's")
    problems = problem.scales(model.scales)
    parts = [(scale, model.at(scale)) for scale in (range(1, model.scales + 1) if scales is None else scales)]
    return [_train_stage(problems[scale - 1], part, settings, first_samples, seed) for scale, part in parts]


def amortised_svgd(problem: FieldProblem, model: MsIGN, settings: Training | None = None, seed: int = 0) -> Stage:
    """Train all of a model, in place, at the finest scale alone, by Stein's moves: the rival of Zhang et al. 2021."""
    how = replace(settings or Training(), objective="stein")
    return train_msign(problem, model, how, [model.scales], seed=seed)[0]


def _train_stage(
    problem: FieldProblem, model: MsIGN | Mirrored, how: Training, given: Tensor | None, seed: int
) -> Stage:
    stage, before = Stage(model.scales), problem.simulations
    if model.directed:
        aim(problem, model, how.pool, moves=how.moves, seed=seed)
    parameters = list(model.parameters())
    proposals = _support.generator(seed, "train", "proposal", model.scales)
    latents = _support.generator(seed, "train", "latents", model.scales)
    picks = _support.generator(seed, "train", "pool", model.scales)
    length = -(-how.iterations // how.rounds)
    pool: Weighted | None = None
    for iteration in range(how.iterations):
        if iteration % length == 0:
            optimiser = torch.optim.Adam(parameters, how.rate, betas=(0.9, 0.99), fused=True)
            if how.objective == "jeffreys":
                pool = _pool(problem, model, how, given, proposals)
                if how.moves and len(pool.x) >= how.pool:
                    x = pool.draw(-(-how.pool // 4), picks)
                    x = moved(problem, model, x, how.moves, seed, ("pool", model.scales, iteration))
                    pool = replace(pool, x=x, weights=x.new_full((len(x),), 1 / len(x)))
                stage.ess, stage.raw_ess, stage.power = pool.ess, pool.raw_ess, pool.power
        cosine = (1 + math.cos(math.pi * (iteration % length) / length)) / 2
        for group in optimiser.param_groups:
            group["lr"] = how.rate * (how.last_rate + (1 - how.last_rate) * cosine)
        z = _support.normal((how.batch, model.field.latent_dim), latents, model.field.like)
        if how.objective == "stein":
            value, loss = stein_term(cast(MsIGN, model), problem.log_density, z)
        else:
            value, loss = reverse_term(model, problem.log_density, z, how.gradient)
        if pool:
            x = pool.draw(how.batch, picks)
            forward = -model.log_prob(x).mean()
            loss = loss + forward
            value = value + forward.detach()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, how.clip)
        if torch.isfinite(norm):  # else a sample was too wild to learn from
            optimiser.step()
        stage.loss.append(float(value))
    stage.simulations = problem.simulations - before
    return stage


@torch.no_grad()
def _pool(
    problem: FieldProblem, model: MsIGN | Mirrored, how: Training, given: Tensor | None, draws: torch.Generator
) -> Weighted:
    """What stands for the posterior in the forward term."""
    if model.scales == 1 and given is not None:
        even = given.new_zeros(len(given))
        return weighted(given, even, even, how.least_ess)
    x = model.sample(how.pool, seed=draws)
    batches = x.split(how.batch)
    target = torch.cat([problem.log_density(part) for part in batches])
    own = torch.cat([model.log_prob(part) for part in batches])
    return weighted(x, target, own, how.least_ess)
