"""Zhang et al. 2021, sec. 6.1.2: the elliptic problem at every scale, judged by long folded Hamiltonian chains."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from companion import _support, sample
from companion.bayes import Elliptic, barrier, jeffreys, laplace, train_msign
from companion.bayes import Settings as Training
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.priors.msign import Mirrored, MsIGN

METHODS = ("plain", "mirrored", "laplace")
RIVALS = ("mala", "pcn", "svgd", "psvgd")
LEADING = 8  # modes of the prior on which the reference's convergence is judged
SHOWN = range(1, 5)  # those of them whose spread is compared; at the coarsest scale there are four


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    side: int  # of the finest scale, and of the mesh
    samples: int  # for each divergence, and as many of the reference
    draws: int  # repetitions of the models
    chains: int  # of the reference, at each scale
    recorded: int  # draws of each of its chains
    warmup: int
    leapfrogs: int
    thin: int
    iterations: int  # of training at each scale
    steps: int
    width: int
    pool: int
    rank: int = 8
    particles: int = 100  # of the SVGD family, and chains of the others
    rival_steps: int  # of each rival


@dataclass(frozen=True)
class Case:
    """A method, and folded reference samples of every scale, coarsest first."""

    method: str
    draw: int
    references: tuple[np.ndarray, ...]


@experiment(
    "msign.elliptic",
    paper="Zhang et al. 2021",
    shows="Fig. 4, Table 1, with long chains as the judge",
    profiles={
        "quick": Settings(
            side=4,
            samples=500,
            draws=1,
            chains=8,
            recorded=60,
            warmup=40,
            leapfrogs=4,
            thin=1,
            iterations=15,
            steps=2,
            width=8,
            pool=500,
            particles=20,
            rival_steps=40,
        ),
        "laptop": Settings(
            side=16,
            samples=8000,
            draws=3,
            chains=40,
            recorded=400,
            warmup=200,
            leapfrogs=5,
            thin=1,
            iterations=100,
            steps=3,
            width=16,
            pool=6000,
            rival_steps=1000,
        ),
    },
    tolerances={"*": 0.3},
)
def elliptic(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Trains MsIGN on the elliptic problem, beside a Laplace mixture and samplers, and compares with long chains."""
    scales = range(1, len(Elliptic(settings.side).scales()) + 1)
    judged = context.map(_reference, scales, "references")
    references = tuple(outcome.arrays["folded"].values for outcome in judged)
    cases = [Case(method, draw, references) for method in METHODS for draw in range(settings.draws)]
    arrays = gather(context.map(_fit, cases, "models"), method=METHODS, draw=settings.draws)
    rivals = context.map(_rival, [Case(rival, 0, references[-1:]) for rival in RIVALS], "rivals")
    arrays |= {f"rival {name}": one for name, one in gather(rivals, rival=RIVALS).items()}
    found = {f"scale {scale}": outcome.metrics for scale, outcome in zip(scales, judged, strict=True)}
    return {"d": settings.side**2, "reference": found}, arrays


def fold(problem: Elliptic, x: Tensor) -> Tensor:
    """Each field or its mirror image, whichever has the positive coefficient of the truth, [batch, side²]."""
    return x.where(_positive(problem, x)[:, None], problem.field.mirror(x))


def _positive(problem: Elliptic, x: Tensor) -> Tensor:
    side = problem.side
    pooled = problem.truth.view(side, problem.field.finest // side, side, -1).mean((1, 3)).flatten()
    return x @ pooled > 0


def _leading(problem: Elliptic, x: Tensor) -> Tensor:
    """Coordinates along the prior's leading modes, in its standard deviations, of folded fields, [batch, modes]."""
    order = problem.field.std.argsort(descending=True, stable=True)[:LEADING]
    return problem.field.encode(fold(problem, x))[:, order]


def _reference(settings: Settings, part: Part, scale: int) -> tuple[dict, dict]:
    """Hamiltonian chains, whose draws are folded before anything is said of them.

    They move in the coordinates that make the Laplace approximation at one mode N(0, I), and start wider than that. A
    chain hardly ever crosses to the mirror image of its mode; folded, that does not matter.
    """
    problem = Elliptic(settings.side).scales()[scale - 1]
    field = problem.field
    seed = shared.seed_of(part, "reference", scale)
    white = laplace(problem, seed=seed).model().requires_grad_(False)
    start = 1.5 * _support.normal((1, settings.chains, problem.side**2), seed, field.like, "start")
    found = sample.hmc(
        lambda u: -problem.log_density(white.decode(u)),
        start,
        step=0.3,
        leapfrogs=settings.leapfrogs,
        warmup=settings.warmup,
        draws=settings.recorded,
        thin=settings.thin,
        seed=seed,
    )
    facts = found.diagnostics(lambda u: _leading(problem, white.decode(u)))
    folded = fold(problem, white.decode(found.samples.flatten(0, 2)))
    keep = torch.linspace(0, len(folded) - 1, min(2 * settings.samples, len(folded))).long()
    height = barrier(problem, seed=seed).height
    part.count_evaluations(problem.simulations)
    return {
        "barrier": round(height, 2),
        "largest R-hat, folded": round(float(facts.rhat.max()), 4),
        "smallest ESS, folded": round(float(min(facts.ess_bulk.min(), facts.ess_tail.min()))),
        "acceptance": round(float(found.accept_rate.mean()), 3),
        "simulations": problem.simulations,
    }, {"folded": named(folded[keep].numpy(), draw=len(keep), point=folded.shape[1])}


def _halves(problem: Elliptic, reference: np.ndarray) -> tuple[Tensor, Tensor]:
    """Reference samples to train with and to judge by, every second one its mirror image."""
    x = torch.from_numpy(reference).to(problem.field.like)
    both = [x[: len(x) // 2], x[len(x) // 2 :]]
    for each in both:
        each[::2] = problem.field.mirror(each[::2])
    return both[0], both[1]


def _fit(settings: Settings, part: Part, case: Case) -> tuple[dict, dict]:
    """Train one model through all scales, and compare it with the reference at each."""
    problems, seed = Elliptic(settings.side).scales(), shared.seed_of(part, "draw", case.draw)
    finest, plain, scales = problems[-1], case.method == "plain", range(1, len(problems) + 1)
    found: list[dict[str, float]] = []
    spreads = []
    rank = 0 if plain else settings.rank
    half = MsIGN(finest.field, None, settings.steps, settings.width, rank, seed=seed)
    model = half if plain else Mirrored(half)
    how = Training(iterations=settings.iterations, pool=settings.pool)
    for scale, problem, reference in zip(scales, problems, case.references, strict=True):
        train, judge = _halves(problem, reference)
        before = finest.simulations
        if case.method == "laplace":
            current: MsIGN | Mirrored = laplace(problem, seed=seed).mixture()
            ess = np.nan
        else:
            (stage,) = train_msign(finest, model, how, [scale], train, seed=seed)
            current, ess = model.at(scale), stage.raw_ess
        simulations = finest.simulations - before
        part.count_evaluations(simulations)
        with torch.no_grad():
            own = current.sample(settings.samples, seed=shared.seed_of(part, "own", case.method, scale, case.draw))
            own = own[torch.isfinite(problem.log_density(own))]  # where the simulation fails there is no posterior
            divergence = jeffreys(current.log_prob, problem.log_density, own, judge)
        found.append(
            {
                "divergence": divergence.value,
                "error": divergence.error,
                "share": float(_positive(problem, own).double().mean()),
                "ess": ess,
                "simulations": float(simulations),
            }
        )
        spreads.append(_spread(problem, own, judge))
    arrays = {name: named([one[name] for one in found], scale=scales) for name in found[0]}
    return {}, arrays | {"spread": named(np.stack(spreads), scale=scales, mode=SHOWN)}


def _spread(problem: Elliptic, x: Tensor, reference: Tensor) -> np.ndarray:
    """Standard deviations along the leading modes over those of the reference, both folded."""
    ratio = _leading(problem, x).std(0) / _leading(problem, reference).std(0)
    return ratio[: len(SHOWN)].numpy()


def _rival(settings: Settings, part: Part, case: Case) -> tuple[dict, dict]:
    """A sampler at the finest scale, from draws of the prior."""
    problem = Elliptic(settings.side)
    field = problem.field
    seed = shared.seed_of(part, "rival", case.method)
    start = field.encode(field.sample(settings.particles, seed=seed))[None]

    def energy(z: Tensor) -> Tensor:
        return -problem.log_density(field.decode(z))

    if case.method in ("svgd", "psvgd"):
        descend: Callable[..., Tensor] = sample.svgd if case.method == "svgd" else sample.projected_svgd
        z = descend(energy, start, iterations=settings.rival_steps)[0]
    else:
        walk: Callable[..., sample.Chains] = sample.mala if case.method == "mala" else sample.pcn
        steps = settings.rival_steps // 2
        z = walk(energy, start, warmup=steps, draws=steps, seed=seed).samples.flatten(0, 2)
    x = field.decode(z)
    part.count_evaluations(problem.simulations)
    judge = _halves(problem, case.references[0])[1]
    return {}, {
        "share": named(float(_positive(problem, x).double().mean())),
        "spread": named(_spread(problem, x, judge), mode=SHOWN),
        "mean": named(float((_leading(problem, x).mean(0) - _leading(problem, judge).mean(0)).norm())),
        "simulations": named(float(problem.simulations)),
    }
