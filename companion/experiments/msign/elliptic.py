"""Zhang et al. 2021, sec. 6.1.2: the elliptic problem at every scale, judged by long folded Hamiltonian chains."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from companion import _support, sample
from companion.bayes import Elliptic, Training, amortised_svgd, barrier, jeffreys, laplace, train_msign
from companion.experiments import Context, Named, Part, experiment, gather, named, shared
from companion.experiments.arrays import collect
from companion.experiments.msign.rivals import sampled
from companion.priors.msign import Mirrored, MsIGN

METHODS = ("plain", "mirrored", "moved", "laplace")  # "moved" is "mirrored" whose samples for the forward term move
RIVALS = ("mala", "pcn", "svgd", "psvgd", "asvgd")
LEADING = 8  # modes of the prior on which the reference's convergence is judged
EDGES = np.linspace(-2, 2, 61)  # of the histograms along the truth


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    side: int  # of the finest scale, and of the mesh
    samples: int  # for each divergence, and as many of the reference
    draws: int  # repetitions of the models and of the rivals
    chains: int = 16  # of each reference
    recorded: int  # draws of each of its chains
    warmup: int = 60
    leapfrogs: int
    first_iterations: int  # of training at the coarsest scale, where they cost least, with six times the rate
    iterations: int  # at each of the others
    rounds: int = 3  # of these, each with a proposal of its own
    rate: float = 5e-4  # halved from scale to scale: a step moves the more, the more pixels share the weights
    steps: int
    width: int
    pool: int
    moves: int = 6  # of "moved"
    rank: int = 16
    particles: int = 100  # of the SVGD family, and chains of the others
    rival_steps: int  # of each rival
    amplitude: float = 3.2  # of the truth: at 16 × 16 the barrier is just above 5 nats


@dataclass(frozen=True)
class Case:
    """A method, folded samples to train with at the coarsest scale, and those to judge by of every scale."""

    method: str
    draw: int
    first: np.ndarray
    references: tuple[np.ndarray, ...]


_LAPTOP = Settings(
    side=16,
    samples=8000,
    draws=3,
    recorded=1500,
    warmup=200,
    leapfrogs=6,  # a path of about 2 in coordinates of width 1: twice that ends at the mirror image, of the same energy
    first_iterations=250,
    iterations=150,
    steps=4,
    width=16,
    pool=4000,
    rival_steps=400,
)


@experiment(
    "msign.elliptic",
    paper="Zhang et al. 2021",
    shows="Fig. 4, Table 1, with long chains as the judge",
    profiles={
        "quick": Settings(
            side=4,
            samples=240,
            draws=1,
            recorded=15,
            warmup=15,
            leapfrogs=4,
            first_iterations=15,
            iterations=8,
            steps=2,
            width=8,
            pool=500,
            moves=2,
            particles=20,
            rival_steps=20,
        ),
        "laptop": _LAPTOP,
        "paper": replace(_LAPTOP, side=64, steps=32, width=64),
    },
    # an effective size of quick's 15 draws is anything once rounding has led the chains apart
    tolerances={"*.smallest ESS, folded": None, "*": 0.3},
)
def elliptic(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Trains MsIGN on the elliptic problem, beside a Laplace mixture and samplers, and compares with long chains."""
    scales = range(1, len(_problem(settings).scales()) + 1)
    chains = context.map(_reference, [("first", 1), *(("judge", scale) for scale in scales)], "references")
    first, *references = (outcome.arrays["folded"] for outcome in chains)
    cases = [Case(method, draw, first, tuple(references)) for method in METHODS for draw in range(settings.draws)]
    arrays = gather(context.map(_fit, cases, "models"), method=METHODS, draw=settings.draws)
    finest = [Case(rival, draw, first, tuple(references[-1:])) for rival in RIVALS for draw in range(settings.draws)]
    rivals = gather(context.map(_rival, finest, "rivals"), rival=RIVALS, draw=settings.draws)
    judged = gather(chains[1:], scale=scales)
    arrays |= {f"rival {name}": one for name, one in rivals.items()}
    arrays |= {f"reference {name}": one for name, one in judged.items()}
    found = {f"scale {scale}": outcome.metrics for scale, outcome in zip(scales, chains[1:], strict=True)}
    return {"d": settings.side**2, "reference": found, "first": chains[0].metrics}, arrays


def _problem(settings: Settings) -> Elliptic:
    """At the finest scale."""
    return Elliptic(settings.side, settings.amplitude)


def fold(problem: Elliptic, x: Tensor) -> Tensor:
    """Each field or its mirror image, whichever has the positive coefficient of the truth, [batch, side²]."""
    return x.where(critical(problem, x)[:, None] > 0, problem.field.mirror(x))


def critical(problem: Elliptic, x: Tensor) -> Tensor:
    """The coordinate along the pooled truth, in units of the truth: positive in one of the two modes, [batch]."""
    side = problem.side
    pooled = problem.truth.view(side, problem.field.finest // side, side, -1).mean((1, 3)).flatten()
    return x @ pooled / pooled.square().sum()


def _leading(problem: Elliptic, x: Tensor) -> Tensor:
    """Coordinates along the prior's leading modes, in its standard deviations, [batch, modes]; four at 2 × 2."""
    order = problem.field.std.argsort(descending=True, stable=True)[:LEADING]
    return problem.field.encode(x)[:, order]


def _reference(settings: Settings, part: Part, item: tuple[str, int]) -> tuple[dict, dict]:
    """Hamiltonian chains at a scale, for one purpose; their draws are folded before anything is said of them.

    They move in the coordinates that make the Laplace approximation at one mode N(0, I), and start wider than that. A
    chain hardly ever crosses to the mirror image of its mode; folded, that does not matter.
    """
    purpose, scale = item
    problem = _problem(settings).scales()[scale - 1]
    seed = shared.seed_of(part, purpose, scale)
    white = laplace(problem, seed=seed).model().requires_grad_(False)
    start = 1.5 * _support.normal((1, settings.chains, problem.side**2), seed, problem.field.like, "start")
    found = sample.hmc(
        lambda u: -problem.log_density(white.decode(u)),
        start,
        step=0.3,
        leapfrogs=settings.leapfrogs,
        warmup=settings.warmup,
        draws=settings.recorded,
        seed=seed,
    )
    facts = found.diagnostics(lambda u: _leading(problem, fold(problem, white.decode(u))))
    folded = fold(problem, white.decode(found.samples.flatten(0, 2)))
    keep = torch.linspace(0, len(folded) - 1, min(settings.samples, len(folded))).long()
    height = barrier(problem, starts=2, seed=seed).height
    part.count_evaluations(problem.simulations)
    return {
        "barrier": round(height, 2),
        "largest R-hat, folded": round(float(facts.rhat.max()), 4),
        "smallest ESS, folded": round(float(min(facts.ess_bulk.min(), facts.ess_tail.min()))),
        "acceptance": round(float(found.accept_rate.mean()), 3),
        "simulations": problem.simulations,
    }, {"folded": folded[keep].numpy(), "histogram": _histogram(problem, _unfolded(problem, folded[keep]))}


def _unfolded(problem: Elliptic, folded: Tensor) -> Tensor:
    """Folded samples, every second one its mirror image: samples of the posterior, which is its own mirror image."""
    x = folded.clone()
    x[::2] = problem.field.mirror(x[::2])
    return x


def _histogram(problem: Elliptic, x: Tensor) -> Named:
    counts = np.histogram(critical(problem, x).numpy(), EDGES)[0] / len(x)
    return named(counts, position=((EDGES[1:] + EDGES[:-1]) / 2).round(6))


def _fit(settings: Settings, part: Part, case: Case) -> tuple[dict, dict]:
    """Train one model through all scales, and compare it with the reference at each."""
    problems, seed = _problem(settings).scales(), shared.seed_of(part, "draw", case.draw)
    finest, plain, scales = problems[-1], case.method == "plain", range(1, len(problems) + 1)
    half = MsIGN(finest.field, None, settings.steps, settings.width, 0 if plain else settings.rank, seed=seed)
    model = half if plain else Mirrored(half)
    first = _unfolded(problems[0], torch.from_numpy(case.first).to(finest.field.like))
    found = []
    for scale, problem, reference in zip(scales, problems, case.references, strict=True):
        before, ess = finest.simulations, np.nan
        if case.method == "laplace":
            current: MsIGN | Mirrored = laplace(problem, seed=seed).mixture()
        else:
            how = Training(
                settings.iterations,
                settings.rounds,
                pool=settings.pool,
                moves=settings.moves if case.method == "moved" else 0,
                rate=settings.rate / 2 ** (scale - 1),
            )
            if scale == 1:
                how = replace(how, iterations=settings.first_iterations, rounds=1, rate=6 * settings.rate)
            (stage,) = train_msign(finest, model, how, [scale], first, seed=seed)
            current, ess = model.at(scale), stage.raw_ess
        simulations = float(finest.simulations - before)
        judge = _unfolded(problem, torch.from_numpy(reference).to(finest.field.like))
        own_seed = shared.seed_of(part, "own", case.method, scale, case.draw)
        own, value, error = _drawn(settings, problem, current, judge, own_seed)
        one = {"divergence": value, "error": error, "ess": ess, "simulations": simulations}
        found.append({name: named(value) for name, value in one.items()} | _compared(problem, own, judge))
    part.count_evaluations(finest.simulations)
    return {}, collect(found, scale=scales)


@torch.no_grad()
def _drawn(
    settings: Settings, problem: Elliptic, model: MsIGN | Mirrored, judge: Tensor, seed: int
) -> tuple[Tensor, float, float]:
    """Samples of a model, its Jeffreys divergence from the posterior, and the standard error of that."""
    own = model.sample(settings.samples, seed=seed)
    own = own[torch.isfinite(problem.log_density(own))]  # where the simulation fails there is no posterior
    found = jeffreys(model.log_prob, problem.log_density, own, judge)
    return own, found.value, found.error


def _compared(problem: Elliptic, x: Tensor, judge: Tensor) -> dict[str, Named]:
    """Samples beside the reference's: how the modes share them, and mean, spread and correlation of those folded.

    The spread is a ratio of standard deviations along the leading modes; the others are distances, in standard
    deviations of the prior. At 2 × 2, of four modes, the rest is NaN.
    """
    own, true = (_leading(problem, fold(problem, one)) for one in (x, judge))
    spread = np.full(LEADING, np.nan)
    spread[: own.shape[1]] = own.std(0) / true.std(0)
    return {
        "share": named(float((critical(problem, x) > 0).double().mean())),
        "spread": named(spread, mode=range(1, LEADING + 1)),
        "mean": named(float((own.mean(0) - true.mean(0)).norm())),
        "correlation": named(float((own.T.corrcoef() - true.T.corrcoef()).abs().max())),
        "histogram": _histogram(problem, x),
    }


def _rival(settings: Settings, part: Part, case: Case) -> tuple[dict, dict]:
    """A rival at the finest scale, from draws of the prior; amortised SVGD alone has a density, and so a divergence."""
    problem = _problem(settings)
    field, value, error = problem.field, np.nan, np.nan
    seed = shared.seed_of(part, "rival", case.method, case.draw)
    judge = _unfolded(problem, torch.from_numpy(case.references[0]).to(field.like))
    if case.method == "asvgd":
        model = MsIGN(field, None, settings.steps, settings.width, seed=seed)
        amortised_svgd(problem, model, Training(settings.rival_steps, batch=settings.particles), seed=seed)
        simulations = problem.simulations
        x, value, error = _drawn(settings, problem, model, judge, shared.seed_of(part, "own", "asvgd", case.draw))
    else:
        start = field.encode(field.sample(settings.particles, seed=seed))[None]
        x = sampled(problem, case.method, start, settings.rival_steps, seed)
        simulations = problem.simulations
    part.count_evaluations(problem.simulations)
    values = {"divergence": value, "error": error, "simulations": float(simulations)}
    return {}, _compared(problem, x, judge) | {name: named(one) for name, one in values.items()}
