"""Latent against image space in the plane: a flow on two stripes, one linear measurement, good and bad starts."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import priors, recover, training
from companion.experiments.context import Context
from companion.experiments.registry import experiment
from companion.experiments.results import Result
from companion.measure.base import LinearOperator

CENTRE, SPREAD = 0.5, 0.1  # of x₁: half of the points near −0.5, half near 0.5
NLL = math.log(4) + math.log(SPREAD * math.sqrt(2 * math.pi * math.e))  # nats: what a perfect model would score
SPACES = ("latent, no penalty", "latent", "image")
STARTS = ("origin", "normal", "square", "bridge")
FITS, STRIPE = 0.05, 3 * SPREAD  # how far an estimate may be from y, and from the axis of a stripe


@dataclass(frozen=True)
class Settings:
    """Sizes of the study.

    Attributes:
        points, width, couplings, steps: of the flow and its training.
        tuned_on: validation problems on which γ is chosen, for each space and solver.
        problems: for the measurement of x₂, and for all random directions together.
        directions: random directions.
        budget: evaluations for one problem.
        solvers: methods of `recover.minimise`.
        gammas: to choose from.
        learning_rate: of Adam.
    """

    points: int
    width: int
    couplings: int
    steps: int
    tuned_on: int
    problems: int
    directions: int
    budget: int
    solvers: tuple[str, ...]
    gammas: tuple[float, ...]
    learning_rate: float


class Along(LinearOperator):
    """y = ⟨a, x⟩ for points x, [batch, 2], and a direction a, [2]."""

    def __init__(self, direction: Tensor) -> None:
        super().__init__((2,), (1,))
        self.direction = direction

    def apply(self, x: Tensor) -> Tensor:
        """⟨a, x⟩, [batch, 1]."""
        return (x * self.direction.to(x)).sum(1, keepdim=True)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """Y a, [batch, 2]."""
        return y * self.direction.to(y)


def points(number: int, seed: int) -> Tensor:
    """Draws from two stripes, float64 [number, 2]: x₁ ~ ½ N(−0.5, 0.1²) + ½ N(0.5, 0.1²), x₂ ~ U(−1, 1)."""
    source = torch.Generator().manual_seed(seed)
    side = torch.randint(2, (number,), generator=source) * 2 - 1
    x1 = CENTRE * side + SPREAD * torch.randn(number, generator=source, dtype=torch.float64)
    return torch.stack([x1, 2 * torch.rand(number, generator=source, dtype=torch.float64) - 1], 1)


def train(number: int, width: int, couplings: int, steps: int, seed: int = 0) -> priors.PointFlow:
    """A flow trained on `number` points by maximum likelihood, frozen, in float64."""
    flow = priors.PointFlow(couplings=couplings, width=width, seed=seed)
    options = training.Schedule(
        steps=steps, batch_size=256, learning_rate=5e-3, checkpoint_every=steps, validate_every=steps, seed=seed
    )
    training.fit(flow, points(number, seed).float(), training.PointLikelihood(), options, progress=False)
    return flow.double().eval().requires_grad_(False)


def flow_of(result: Result) -> priors.PointFlow:
    """The flow that a stored run trained and used, frozen, in float64."""
    settings = result.provenance.settings
    flow = priors.PointFlow(couplings=settings["couplings"], width=settings["width"])
    flow.load_state_dict({name: torch.tensor(result.arrays[f"flow/{name}"]) for name in flow.state_dict()})
    return flow.double().eval().requires_grad_(False)


def start(flow: priors.PointFlow, how: str, number: int, seed: int) -> Tensor:
    """Initial latents, [number, 2], by the name in `STARTS`.

    "origin": 0. "normal": N(0, I). "square": those of points uniform in [−1, 1]². "bridge": those of points between the
    stripes, |x₁| <= 0.15, where hardly any data lie.
    """
    source = torch.Generator().manual_seed(seed)
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
        "quick": Settings(1000, 32, 6, 120, 8, 8, 2, 60, ("lbfgs",), (1e-3, 1e-2), 0.05),
        "laptop": Settings(4000, 64, 8, 1500, 40, 240, 6, 100, ("lbfgs", "adam"), (1e-3, 3e-3, 1e-2, 3e-2), 0.05),
        "paper": Settings(
            4000, 64, 8, 6000, 240, 1200, 60, 600, ("lbfgs", "adam"), (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), 0.02
        ),
    },
)
def planar(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Recovers points of the plane from one number, by search in latent and in image space."""

    def trained() -> tuple[dict, dict]:
        flow = train(settings.points, settings.width, settings.couplings, settings.steps, context.seed)
        nll = -float(flow.log_prob(points(4000, 900_000 + context.seed)).mean())
        return {"nll": nll}, {f"flow/{name}": value.numpy() for name, value in flow.state_dict().items()}

    outcome = context.part("flow", trained)
    flow = priors.PointFlow(couplings=settings.couplings, width=settings.width)
    flow.double().load_state_dict({name[5:]: torch.tensor(value) for name, value in outcome.arrays.items()})
    flow.eval().requires_grad_(False)
    origin = flow.decode(torch.zeros(1, 2, dtype=torch.float64))
    metrics: dict[str, Any] = {
        "nll": outcome.metrics["nll"],
        "nll of a perfect model": NLL,
        "image of the origin": origin[0].tolist(),
        "solvers": list(settings.solvers),
        "spaces": list(SPACES),
        "starts": list(STARTS),
        "gamma": {},
        "rates": {},
        "ceiling": {},
    }
    arrays: dict[str, np.ndarray] = dict(outcome.arrays)
    for solver in settings.solvers:
        for space in ("latent", "image"):
            choose = partial(_choose_gamma, settings, context, flow, solver, space)
            chosen = context.part(f"gamma {solver} {space}", choose)
            metrics["gamma"][f"{solver}, {space}"] = chosen.metrics["gamma"]
    for name, directions in _directions(settings.directions, context.seed).items():
        solve = partial(_rates, settings, context, flow, directions, metrics["gamma"])
        found = context.part(f"problems {name}", solve)
        metrics["rates"][name], metrics["ceiling"][name] = found.metrics["rates"], found.metrics["ceiling"]
        arrays |= {f"{name}/{key}": value for key, value in found.arrays.items()}
    return metrics, arrays


def _directions(number: int, seed: int) -> dict[str, Tensor]:
    """The paper's direction, (0, 1), and random ones; [directions, 2] each."""
    draws = torch.randn(number, 2, generator=torch.Generator().manual_seed(40_000 + seed), dtype=torch.float64)
    return {
        "second coordinate": torch.tensor([[0.0, 1.0]], dtype=torch.float64),
        "random direction": draws / draws.norm(dim=1, keepdim=True),
    }


def _options(settings: Settings, solver: str) -> dict[str, Any]:
    return {"method": solver, "max_evaluations": settings.budget, "learning_rate": settings.learning_rate}


def _choose_gamma(
    settings: Settings, context: Context, flow: priors.PointFlow, solver: str, space: str
) -> tuple[dict, dict]:
    """The γ with which most validation problems are explained from a stripe, over all starts and both directions."""
    directions = torch.cat([part[:1] for part in _directions(1, 77 + context.seed).values()])
    scores = dict.fromkeys(settings.gammas, 0.0)
    for k, direction in enumerate(directions):
        operator = Along(direction)
        truth = points(settings.tuned_on, 50_000 + 100 * context.seed + k)
        for how in STARTS:
            z0 = start(flow, how, len(truth), 60_000 + context.seed)
            for gamma in settings.gammas:
                found = search(flow, operator, operator(truth), z0, space, gamma, **_options(settings, solver))
                context.count_evaluations(int(found.evaluations.sum()))
                scores[gamma] += float(judge(found.x, truth, operator, operator(truth))["explains"].double().mean())
    return {"gamma": max(scores, key=lambda gamma: scores[gamma])}, {}


def _rates(
    settings: Settings, context: Context, flow: priors.PointFlow, directions: Tensor, gammas: dict[str, float]
) -> tuple[dict, dict]:
    """Rates by solver, space and start, and the estimates, [solvers, spaces, starts, problems, 2]."""
    each = settings.problems // len(directions)
    shape = (len(settings.solvers), len(SPACES), len(STARTS))
    verdicts: dict[str, np.ndarray] = {
        key: np.zeros((*shape, len(directions), each), bool) for key in ("fits", "explains", "right")
    }
    estimates = np.zeros((*shape, len(directions), each, 2), np.float32)
    spent = np.zeros((*shape, len(directions), each), np.int64)
    truths, ceilings = [], []
    for d, direction in enumerate(directions):
        operator = Along(direction)
        truth = points(each, 70_000 + 100 * context.seed + d)
        y = operator(truth)
        truths.append(truth)
        ceilings.append(ceiling(operator, y))
        for k, how in enumerate(STARTS):
            z0 = start(flow, how, each, 80_000 + 100 * context.seed + d)
            for i, solver in enumerate(settings.solvers):
                for j, space in enumerate(SPACES):
                    gamma = gammas.get(f"{solver}, {space}", 0.0)
                    found = search(flow, operator, y, z0, space, gamma, **_options(settings, solver))
                    context.count_evaluations(int(found.evaluations.sum()))
                    estimates[i, j, k, d], spent[i, j, k, d] = found.x.numpy(), found.evaluations.numpy()
                    for key, value in judge(found.x, truth, operator, y).items():
                        verdicts[key][i, j, k, d] = value.numpy()
    rates = {
        solver: {
            space: {
                how: {key: float(value[i, j, k].mean()) for key, value in verdicts.items()}
                for k, how in enumerate(STARTS)
            }
            for j, space in enumerate(SPACES)
        }
        for i, solver in enumerate(settings.solvers)
    }
    return {"rates": rates, "ceiling": float(np.mean(ceilings))}, {
        "x": estimates.reshape(*shape, -1, 2),
        "evaluations": spent.reshape(*shape, -1),
        "truth": torch.cat(truths).numpy(),
        "direction": directions.numpy(),
    } | {key: value.reshape(*shape, -1) for key, value in verdicts.items()}
