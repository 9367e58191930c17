"""Latent against image space in the plane: a flow on two stripes, one linear measurement, good and bad starts."""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import priors, recover, training
from companion._support import generator
from companion.experiments import Context, Part, experiment, gather, named
from companion.experiments.results import Stored
from companion.measure.base import LinearOperator

CENTRE, SPREAD = 0.5, 0.1  # of x₁: half of the points near −0.5, half near 0.5
NLL = math.log(4) + math.log(SPREAD * math.sqrt(2 * math.pi * math.e))  # nats: what a perfect model would score
SPACES = ("latent, no penalty", "latent", "image")
STARTS = ("origin", "normal", "square", "bridge")
KINDS = ("second coordinate", "random direction")  # what is measured
FITS, STRIPE = 0.05, 3 * SPREAD  # how far an estimate may be from y, and from the axis of a stripe


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the study."""

    points: int = 4000  # for the training of the flow
    width: int = 64
    couplings: int = 8
    steps: int = 1500  # of its training
    tuned_on: int = 40  # validation problems on which γ is chosen, for each space and solver
    problems: int = 240  # for the measurement of x₂, and for all random directions together
    directions: int = 6  # random ones
    budget: int = 100  # evaluations for one problem
    solvers: tuple[str, ...] = ("lbfgs", "adam")  # methods of `recover.minimise`
    learning_rate: float = 0.05  # of Adam
    gammas: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)  # to choose from

    def flow(self, weights: np.ndarray) -> priors.PointFlow:
        """The flow with such weights and buffers, all in a row, frozen, in float64."""
        flow = priors.PointFlow(couplings=self.couplings, width=self.width).double().eval().requires_grad_(False)
        state = flow.state_dict()
        pieces = torch.tensor(weights).split([each.numel() for each in state.values()])
        flow.load_state_dict({name: piece.view_as(state[name]) for name, piece in zip(state, pieces, strict=True)})
        return flow

    def options(self, solver: str) -> dict[str, Any]:
        """What `search` hands on to the solver."""
        return {"method": solver, "max_evaluations": self.budget, "learning_rate": self.learning_rate}


class Along(LinearOperator):
    """y = ⟨a, x⟩ for points x, [batch, 2], and a direction a, [2]."""

    def __init__(self, direction: Tensor) -> None:
        super().__init__((2,), (1,), domain="real")
        self.direction = direction

    def apply(self, x: Tensor) -> Tensor:
        return (x * self.direction.to(x)).sum(1, keepdim=True)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return y * self.direction.to(y)


def points(number: int, seed: int, *stream: str | int) -> Tensor:
    """Draws from two stripes, float64 [number, 2]: x₁ ~ ½ N(−0.5, 0.1²) + ½ N(0.5, 0.1²), x₂ ~ U(−1, 1)."""
    source = generator(seed, "points", *stream)
    side = torch.randint(2, (number,), generator=source) * 2 - 1
    x1 = CENTRE * side + SPREAD * torch.randn(number, generator=source, dtype=torch.float64)
    return torch.stack([x1, 2 * torch.rand(number, generator=source, dtype=torch.float64) - 1], 1)


def flow_of(result: Stored) -> priors.PointFlow:
    """The flow that a stored run trained and used, frozen, in float64."""
    return Settings(**result.provenance.settings).flow(result.arrays["flow"])


def start(flow: priors.PointFlow, how: str, number: int, seed: int, *stream: str | int) -> Tensor:
    """Initial latents, [number, 2], by the name in `STARTS`.

    "origin": 0. "normal": N(0, I). "square": those of points uniform in [−1, 1]². "bridge": those of points between the
    stripes, |x₁| <= 0.15, where hardly any data lie.
    """
    source = generator(seed, "start", *stream)
    if how == "origin":
        return torch.zeros(number, 2, dtype=torch.float64)
    if how == "normal":
        return torch.randn(number, 2, generator=source, dtype=torch.float64)
    x = 2 * torch.rand(number, 2, generator=source, dtype=torch.float64) - 1
    return flow.encode(x * torch.tensor([0.15, 1.0], dtype=torch.float64) if how == "bridge" else x)


def search(
    flow: priors.PointFlow, operator: Along, y: Tensor, z0: Tensor, space: str, gamma: float, **options: Any
) -> recover.Result:
    """The estimate in one of `SPACES`, from the latent z0 or from its image."""
    if space == "image":
        return recover.flow_image(flow, operator, y, gamma, x0=flow.decode(z0), **options)
    return recover.flow_latent(flow, operator, y, gamma if space == "latent" else 0.0, z0=z0, **options)


def judge(x: Tensor, truth: Tensor, operator: Along, y: Tensor) -> dict[str, Tensor]:
    """Whether each estimate fits y, whether it also "explains" it from a stripe, and from the "right" one; [batch]."""
    fits = (operator(x) - y).abs()[:, 0] <= FITS
    on_stripe = ((x[:, 0].abs() - CENTRE).abs() <= STRIPE) & (x[:, 1].abs() <= 1 + FITS)
    right = x[:, 0].sign() == truth[:, 0].sign()
    return {"fits": fits, "explains": fits & on_stripe, "right": fits & on_stripe & right}


def ceiling(operator: Along, y: Tensor) -> float:
    """Share of problems for which the more probable stripe, given y and the true density, is the right one.

    Given its stripe, y is the sum of N(±0.5 a₁, (0.1 a₁)²) and U(−|a₂|, |a₂|).
    """
    a = operator.direction
    normal = torch.distributions.Normal(a[0] * CENTRE * torch.tensor([-1.0, 1.0]).to(a), (a[0].abs() * SPREAD) + 1e-9)
    densities = normal.cdf(y + a[1].abs()) - normal.cdf(y - a[1].abs())
    return float((densities.amax(1) / densities.sum(1)).mean())


@experiment(
    "asim.planar",
    paper="Asim et al. 2020",
    shows="Fig. 8, 53-56",
    profiles={
        "quick": Settings(
            points=1000,
            width=32,
            couplings=6,
            steps=120,
            tuned_on=4,
            problems=4,
            directions=2,
            budget=20,
            solvers=("lbfgs",),
            gammas=(1e-3, 1e-2),
        ),
        "laptop": Settings(),
        "paper": Settings(
            steps=6000,
            tuned_on=240,
            problems=1200,
            directions=60,
            budget=600,
            learning_rate=0.02,
            gammas=(1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        ),
    },
)
def planar(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers points of the plane from one number, by search in latent and in image space."""
    (trained,) = context.map(_train, ["flow"], "training")
    weights = trained.arrays["flow"]
    pairs = list(product(settings.solvers, SPACES))
    tuned = context.map(_choose, [(*pair, weights) for pair in pairs], "weights")
    chosen = [outcome.metrics["gamma"] for outcome in tuned]
    searches = [(kind, *pair, gamma, weights) for kind in KINDS for pair, gamma in zip(pairs, chosen, strict=True)]
    found = gather(context.map(_search, searches, "problems"), direction=KINDS, solver=settings.solvers, space=SPACES)
    gammas = named(np.reshape(chosen, (-1, len(SPACES))), solver=settings.solvers, space=SPACES)
    given = {kind: _problems(settings, kind, settings.problems, context.seed, "test") for kind in KINDS}
    ceilings = {kind: float(np.mean([ceiling(a, y) for a, _, y in each])) for kind, each in given.items()}
    truth = np.stack([torch.cat([x for _, x, _ in each]).numpy() for each in given.values()])
    truths = named(truth, direction=KINDS, image=truth.shape[1], coordinate=2)
    arrays: dict[str, Any] = {"gamma": gammas, "truth": truths, "flow": weights}
    return trained.metrics | {"ceiling": ceilings}, found | arrays


def _train(settings: Settings, part: Part, _: str) -> tuple[dict, dict]:
    """A flow trained by maximum likelihood: −log p of other points, and the weights."""
    flow = priors.PointFlow(couplings=settings.couplings, width=settings.width, seed=part.seed)
    steps = settings.steps
    schedule = training.Schedule(
        steps=steps, batch_size=256, learning_rate=5e-3, checkpoint_every=steps, validate_every=steps, seed=part.seed
    )
    data = points(settings.points, part.seed, "training").float()
    training.fit(flow, data, training.PointLikelihood(), schedule, progress=False)
    weights = torch.cat([each.flatten().double() for each in flow.state_dict().values()]).numpy()
    nll = -float(settings.flow(weights).log_prob(points(4000, part.seed, "held out")).mean())
    return {"nll": nll}, {"flow": weights}


def _problems(settings: Settings, kind: str, number: int, seed: int, stream: str) -> list[tuple[Along, Tensor, Tensor]]:
    """Operator, points and measurements for the paper's direction, (0, 1), or for each random one."""
    count = settings.directions if stream == "test" else 1
    draws = torch.randn(count, 2, generator=generator(seed, "directions", stream), dtype=torch.float64)
    if kind == KINDS[0]:
        draws = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    operators = [Along(draw / draw.norm()) for draw in draws]
    truths = [points(number // len(draws), seed, stream, kind, k) for k in range(len(draws))]
    return [(operator, truth, operator(truth)) for operator, truth in zip(operators, truths, strict=True)]


def _choose(settings: Settings, part: Part, item: tuple[str, str, np.ndarray]) -> tuple[dict, dict]:
    """The γ with which most validation problems are explained from a stripe, over all starts and both directions."""
    solver, space, weights = item
    flow, scores = settings.flow(weights), dict.fromkeys(settings.gammas, 0.0)
    if space == SPACES[0]:
        return {"gamma": 0.0}, {}
    for kind, how, gamma in product(KINDS, STARTS, settings.gammas):
        ((operator, truth, y),) = _problems(settings, kind, settings.tuned_on, part.seed, "validation")
        z0 = start(flow, how, len(truth), part.seed, "validation")
        found = part.count(search(flow, operator, y, z0, space, gamma, **settings.options(solver)))
        scores[gamma] += float(judge(found.x, truth, operator, y)["explains"].double().mean())
    return {"gamma": max(scores, key=lambda gamma: scores[gamma])}, {}


def _search(settings: Settings, part: Part, item: tuple[str, str, str, float, np.ndarray]) -> tuple[dict, dict]:
    """Estimates from every start, what they cost, and the verdicts on them."""
    kind, solver, space, gamma, weights = item
    flow, rows = settings.flow(weights), []
    for how in STARTS:
        for k, (operator, truth, y) in enumerate(_problems(settings, kind, settings.problems, part.seed, "test")):
            z0 = start(flow, how, len(truth), part.seed, "test", kind, k)
            found = part.count(search(flow, operator, y, z0, space, gamma, **settings.options(solver)))
            rows.append({"x": found.x.float(), "evaluations": found.evaluations, **judge(found.x, truth, operator, y)})
    arrays = {name: torch.cat([row[name] for row in rows]).unflatten(0, (len(STARTS), -1)).numpy() for name in rows[0]}
    images = arrays["fits"].shape[1]
    return {}, {
        name: named(value, start=STARTS, image=images, **({"coordinate": 2} if name == "x" else {}))
        for name, value in arrays.items()
    }
