"""Zhang et al. 2021, sec. 4: what KL(p‖q) does not see and the Jeffreys divergence does, in one and four dimensions."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from companion._support import generator
from companion.bayes import Elliptic, FieldProblem, Training, jeffreys, laplace, train_msign, weighted
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.priors.msign import MsIGN

DIVERGENCES = ("KL(p‖q)", "KL(q‖p)", "Jeffreys")
OBJECTIVES = ("kl", "jeffreys")
MODE, REACH = 3.0, 6.0  # of the target ½N(−3, 1) + ½N(3, 1), and of the landscapes
EDGES = np.linspace(-2, 2, 61)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the landscapes and of the training."""

    points: int  # of the landscapes in each direction
    starts: int  # of gradient descent in each direction
    descent: int  # its steps
    side: int  # mesh of the elliptic problem; the fields are 2 × 2
    draws: int
    iterations: int
    samples: int
    steps: int = 6
    width: int = 16


@experiment(
    "msign.divergences",
    paper="Zhang et al. 2021",
    shows="Fig. 8, and the mode that reverse KL loses",
    profiles={
        "quick": Settings(points=41, starts=10, descent=150, side=8, draws=1, iterations=40, samples=1000, steps=4),
        "laptop": Settings(points=121, starts=24, descent=400, side=16, draws=3, iterations=500, samples=8000),
    },
    tolerances={"divergence": 0.3, "error": 0.3, "histogram": 0.2, "loss": 0.2, "ess": 0.2, "path": 0.05},
)
def divergences(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Landscapes and descents of three divergences for two Gaussians, and a flow trained on a bimodal posterior."""
    metrics, arrays = _landscapes(settings)
    items = [(objective, draw) for objective in OBJECTIVES for draw in range(settings.draws)]
    outcomes = context.map(_train, items, "trainings")
    arrays |= gather(outcomes, objective=OBJECTIVES, draw=settings.draws)
    (reference,) = context.map(_reference_facts, ["reference"], "reference")
    return metrics | {"reference": reference.metrics}, arrays | reference.named


def _landscapes(settings: Settings) -> tuple[dict, dict]:
    """Each divergence of p = ½N(a, 1) + ½N(b, 1) from q by quadrature, and where descent from many (a, b) ends."""
    line = torch.linspace(-REACH, REACH, settings.points, dtype=torch.float64)
    means = torch.cartesian_prod(line, line)
    values = torch.stack([divergence(means, name) for name in DIVERGENCES])
    start = torch.linspace(-REACH, REACH, settings.starts, dtype=torch.float64)
    pairs = torch.cartesian_prod(start, start)
    pairs = pairs[pairs[:, 0] > pairs[:, 1]]  # the rest are these with a and b exchanged
    paths = []
    for name in DIVERGENCES:
        at, steps = pairs.clone().requires_grad_(), []
        optimiser = torch.optim.Adam([at], 0.1)
        for _ in range(settings.descent):
            steps.append(at.detach().clone())
            optimiser.zero_grad()
            divergence(at, name).sum().backward()
            optimiser.step()
        paths.append(torch.stack([*steps[:: max(settings.descent // 40, 1)], at.detach()]))
    path = torch.stack(paths)  # [divergence, time, start, 2]
    ends = path[:, -1]  # one mean at each mode; a step of Adam's may carry a path over the line a = b
    both = ((ends.abs() - MODE).abs() < 0.5).all(2) & (ends.prod(2) < 0)
    path = path[:, :, :: max(len(pairs) // 12, 1)]
    places = line.numpy().round(6)
    return {"both modes": dict(zip(DIVERGENCES, both.double().mean(1).tolist(), strict=True))}, {
        "landscape": named(
            values.view(-1, settings.points, settings.points).float().numpy(),
            divergence=DIVERGENCES,
            a=places,
            b=places,
        ),
        "path": named(
            path.float().numpy(), divergence=DIVERGENCES, time=path.shape[1], start=path.shape[2], mean=("a", "b")
        ),
    }


def divergence(means: Tensor, name: str) -> Tensor:
    """Of p = ½N(a, 1) + ½N(b, 1) from q = ½N(−3, 1) + ½N(3, 1) for pairs (a, b) [n, 2], by quadrature, [n]."""
    x = torch.linspace(-14, 14, 561, dtype=means.dtype)
    log_p, log_q = (_mixture(m, x) for m in (means, means.new_tensor([[-MODE, MODE]])))
    ratio = log_p - log_q
    weight = {"KL(p‖q)": log_p.exp(), "KL(q‖p)": -log_q.exp(), "Jeffreys": log_p.exp() - log_q.exp()}[name]
    return torch.trapezoid(weight * ratio, x)


def _mixture(means: Tensor, x: Tensor) -> Tensor:
    """log density of equal parts N(mean, 1), [n, points]."""
    each = -(x - means[..., None]).square() / 2 - 0.5 * np.log(2 * np.pi)
    return each.logsumexp(-2) - np.log(2)


def _coarsest(settings: Settings) -> Elliptic:
    return Elliptic(settings.side).scales()[0]


def _reference(settings: Settings, part: Part, problem: FieldProblem, *stream: str | int) -> tuple[Tensor, dict]:
    """Draws of the posterior of 2 × 2 fields: samples of the Laplace mixture, weighted. [samples, 4]."""
    mixture = laplace(problem, seed=shared.seed_of(part, "laplace")).mixture()
    x = mixture.sample(8 * settings.samples, seed=shared.seed_of(part, "reference", *stream))
    with torch.no_grad():
        found = weighted(x, problem.log_density(x), mixture.log_prob(x))
        draws = found.draw(settings.samples, generator(part.seed, "pick", *stream))
    return draws, {"log evidence": found.log_evidence, "ess": found.ess / len(x)}


def _critical(problem: Elliptic, x: Tensor) -> Tensor:
    """The coordinate along the pooled truth, in units of the truth: positive in one of the two modes, [n]."""
    side = problem.side
    truth = problem.truth.view(side, problem.field.finest // side, side, -1).mean((1, 3)).flatten()
    return x @ truth / truth.square().sum()


def _histogram(problem: Elliptic, x: Tensor) -> np.ndarray:
    return np.histogram(_critical(problem, x).cpu().numpy(), EDGES)[0] / len(x)


def _reference_facts(settings: Settings, part: Part, item: str) -> tuple[dict, dict]:
    problem = _coarsest(settings)
    draws, facts = _reference(settings, part, problem, item)
    part.count_evaluations(problem.simulations)
    centres = ((EDGES[1:] + EDGES[:-1]) / 2).round(6)
    return facts, {"reference histogram": named(_histogram(problem, draws), position=centres)}


def _train(settings: Settings, part: Part, item: tuple[str, int]) -> tuple[dict, dict]:
    """Train from the prior at 2 × 2 with one objective."""
    objective, draw = item
    problem, seed = _coarsest(settings), shared.seed_of(part, "draw", draw)
    first, _ = _reference(settings, part, problem, "first", draw)
    model = MsIGN(problem.field, 1, settings.steps, settings.width, seed=seed)
    how = Training(iterations=settings.iterations, rate=3e-3, objective=objective)
    (stage,) = train_msign(problem, model, how, first_samples=first, seed=seed)
    own = model.sample(settings.samples, seed=shared.seed_of(part, "own", objective, draw))
    reference, _ = _reference(settings, part, problem, "test", draw)
    with torch.no_grad():
        found = jeffreys(model.log_prob, problem.log_density, own, reference)
        weights = weighted(own, problem.log_density(own), model.log_prob(own))
    part.count_evaluations(problem.simulations)
    centres = ((EDGES[1:] + EDGES[:-1]) / 2).round(6)
    return {}, {
        "divergence": named(found.value),
        "error": named(found.error),
        "share": named(float((_critical(problem, own) > 0).double().mean())),
        "ess": named(weights.ess / len(own)),
        "log evidence": named(weights.log_evidence),
        "loss": named(np.array(stage.loss), iteration=range(1, len(stage.loss) + 1)),
        "histogram": named(_histogram(problem, own), position=centres),
    }
