"""Zhang et al. 2021, sec. 6.1.1: the synthetic problem at every scale, whose posterior is known exactly."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.bayes import Stage, Synthetic, Training, jeffreys, laplace, train_msign
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.priors.msign import Mirrored, MsIGN

CONVENTIONS = ("integral", "isometric")
METHODS = ("plain", "mirrored", "laplace")
SYMMETRIC = "plain, mirrored"  # the plain model as one half of a mixture: the symmetry without the affine layers
EDGES = np.linspace(-2, 2, 81)  # of the histograms of c, in units of |c| at the modes
CURVE = 20  # points of a learning curve, each the mean over as many iterations


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    side: int  # of the finest scale
    samples: int  # of the model, and as many exact ones, for each divergence
    draws: int  # repetitions with their own first weights and samples
    steps: int  # Glow steps of the plain model at every scale, and of the mirrored one at the coarsest
    width: int
    plain_scales: int  # where the plain model stops
    plain_iterations: int  # at each of its scales
    mirrored_iterations: int  # at the coarsest scale; at the others its affine layer is aimed, and nothing trained
    rank: int = 2  # of the affine layers
    batch: int = 100
    pool: int = 4000  # for the moments of affine layers
    plain_pool: int = 4000  # for the forward half of the plain model's objective
    rate: float = 3e-3

    def rate_at(self, scale: int) -> float:
        """Of Adam at a scale, 1 the coarsest."""
        return self.rate


@dataclass(frozen=True, kw_only=True)
class Climb(Settings):
    """With a rate of the plain model that falls from scale to scale: the more pixels, the more a step moves."""

    plain_decay: float

    def rate_at(self, scale: int) -> float:
        return self.rate * self.plain_decay ** (scale - 1)


@dataclass(frozen=True)
class Case:
    """One model of one problem."""

    convention: str
    method: str
    draw: int


LAPTOP = Settings(
    side=64,
    samples=8000,
    draws=3,
    steps=6,
    width=16,
    plain_scales=2,
    plain_iterations=250,
    mirrored_iterations=150,
    batch=400,
    pool=6000,
    plain_pool=20_000,
    rate=1e-2,
)
QUICK = Settings(
    side=8,
    samples=1000,
    draws=1,
    steps=3,
    width=8,
    plain_scales=1,
    plain_iterations=20,
    mirrored_iterations=20,
    pool=2000,
)
TOLERANCES = {
    "divergence": 0.2,
    "error": 0.3,
    "histogram": 0.1,
    "bridge": 0.3,
    "share": 0.1,
    "ess": 0.2,
    "curve": 0.3,
    "simulations": 0.1,  # a search for a mode ends a few steps sooner or later on another processor
}


@experiment(
    "msign.synthetic",
    paper="Zhang et al. 2021",
    shows="Fig. 3, 11, 12; Table 1, with exact samples as the judge",
    profiles={
        "quick": QUICK,
        "laptop": LAPTOP,
        "paper": Settings(
            side=64,
            samples=8000,
            draws=3,
            steps=16,
            width=32,
            plain_scales=6,
            plain_iterations=670,  # 8·10⁵ forward simulations in all
            mirrored_iterations=800,
        ),
    },
    tolerances=TOLERANCES,
)
def synthetic(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Trains MsIGN from scale to scale on F(x) = ⟨φ, x⟩², plain and with a known mirror, beside a Laplace mixture."""
    return _methods(settings, context, METHODS)


@experiment(
    "msign.synthetic-plain",
    paper="Zhang et al. 2021",
    shows="Fig. 3, 11, 12; Table 1, the plain model up to the finest scale",
    profiles={
        "quick": Climb(**vars(QUICK) | {"plain_scales": 2, "plain_decay": 1.0}),
        # 8·10⁵ forward simulations in all, the paper's budget
        "laptop": Climb(**vars(LAPTOP) | {"draws": 3, "plain_scales": 6, "plain_iterations": 145, "plain_decay": 0.5}),
    },
    tolerances=TOLERANCES,
)
def plain(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Trains the plain MsIGN on F(x) = ⟨φ, x⟩² at every scale, with as many simulations as the paper has."""
    return _methods(settings, context, ("plain",))


@experiment(
    "msign.synthetic-symmetry",
    paper="Zhang et al. 2021",
    shows="what the symmetry alone does for the plain model, without affine layers",
    profiles={"quick": QUICK, "laptop": LAPTOP},
    tolerances=TOLERANCES,
)
def symmetry(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Trains the plain MsIGN as one half of a mixture with the problem's symmetry."""
    return _methods(settings, context, (SYMMETRIC,))


def _methods(settings: Settings, context: Context, methods: tuple[str, ...]) -> tuple[dict, dict]:
    cases = [
        Case(convention, method, draw)
        for convention in CONVENTIONS
        for method in methods
        for draw in range(settings.draws)
    ]
    outcomes = context.map(_fit, cases, "models")
    arrays = gather(outcomes, convention=CONVENTIONS, method=methods, draw=settings.draws)
    bins, exact, critical = _centres(), [], {}
    for convention in CONVENTIONS:
        problems = _problems(settings, convention)
        exact.append([_exact_histogram(problem) for problem in problems])
        critical[convention] = {
            "modes": [round(_top(problem), 5) for problem in problems],
            "spread": [round(problem.tau, 5) for problem in problems],
        }
    arrays["exact histogram"] = named(
        np.array(exact), convention=CONVENTIONS, scale=range(1, 1 + len(exact[0])), c=bins
    )
    return {"d": settings.side**2, "c": critical}, arrays


def _problems(settings: Settings, convention: str) -> list[Synthetic]:
    """From the coarsest scale, 2 × 2, to the finest; in float64 where the data are sharp."""
    dtype = torch.float32 if convention == "integral" else torch.float64
    return Synthetic(settings.side, convention, dtype=dtype).scales()


def _fit(settings: Settings, part: Part, case: Case) -> tuple[dict, dict]:
    """Train one model and compare it with exact samples at every scale."""
    problems = _problems(settings, case.convention)
    finest, seed = problems[-1], shared.seed_of(part, "draw", case.draw)
    scales, found = range(1, len(problems) + 1), list[dict[str, np.ndarray]]()
    if case.method == "laplace":
        for scale, problem in zip(scales, problems, strict=True):
            before = finest.simulations
            mixture = laplace(problem, seed=seed).mixture()
            stage = Stage(scale, simulations=finest.simulations - before)
            found.append(_compared(settings, part, case, problem, mixture, stage))
    else:
        plain = case.method != "mirrored"
        last = min(settings.plain_scales, len(problems)) if plain else len(problems)
        steps = settings.steps if plain else [settings.steps] + [0] * (last - 1)
        half = MsIGN(problems[last - 1].field, last, steps, settings.width, 0 if plain else settings.rank, seed=seed)
        model = half if case.method == "plain" else Mirrored(half)
        for scale in range(1, last + 1):
            # in "isometric" each half is Gaussian to 1e-6 nats: aiming leaves nothing to learn
            trained = plain or (scale == 1 and case.convention == "integral")
            iterations = (settings.plain_iterations if plain else settings.mirrored_iterations) * trained
            pool = settings.plain_pool if plain else settings.pool
            rate = settings.rate_at(scale)
            how = Training(iterations=iterations, batch=settings.batch, pool=pool, rate=rate)
            first = problems[0].sample(pool, seed=shared.seed_of(part, "first", case.draw))
            (stage,) = train_msign(problems[last - 1], model, how, [scale], first, seed=seed)
            # at once: the next stage goes on to train the flows of this one
            found.append(_compared(settings, part, case, problems[scale - 1], model.at(scale), stage))
    part.count_evaluations(int(sum(one["simulations"] for one in found)))
    found += [{name: np.full_like(value, np.nan) for name, value in found[0].items()}] * (len(problems) - len(found))
    inner: dict[str, dict[str, Any]] = {"histogram": {"c": _centres()}, "curve": {"point": CURVE}}
    return {}, {
        name: named(np.stack([one[name] for one in found]), scale=scales, **inner.get(name, {})) for name in found[0]
    }


@torch.no_grad()
def _compared(
    settings: Settings, part: Part, case: Case, problem: Synthetic, model: MsIGN | Mirrored, stage: Stage
) -> dict[str, np.ndarray]:
    """D_J and its standard error, the share of the mode c > 0, and the mass of the bridge, |c| < 0.8 |c| at the modes.

    The learning curve is D_J, too, of each iteration's batches: the objective lacks E_q[log q], which is known here.

    Samples in which the model's map saturates count as they are: the divergence is then huge, not NaN.
    """
    name = (case.convention, case.method, problem.side, case.draw)
    own = model.sample(settings.samples, seed=shared.seed_of(part, "own", *name))
    reference = problem.sample(settings.samples, seed=shared.seed_of(part, "reference", *name))

    def log_prob(x: Tensor) -> Tensor:
        return torch.cat([model.log_prob(batch) for batch in x.split(1000)])

    found = jeffreys(log_prob, problem.log_density, own, reference)
    c = own @ problem.direction / _top(problem)
    return {
        "divergence": np.array(found.value),
        "error": np.array(found.error),
        "share": np.array(float((c > 0).double().mean())),
        "bridge": np.array(float((c.abs() < 0.8).double().mean())),
        "histogram": _histogram(c),
        "curve": _curve(np.array(stage.loss) + float(problem.log_density(reference).mean())),
        "ess": np.array(stage.raw_ess),
        "simulations": np.array(float(stage.simulations)),
    }


def _curve(values: np.ndarray) -> np.ndarray:
    """Means over CURVE stretches of values; NaN without any."""
    return np.array([part.mean() for part in np.array_split(values, CURVE)]) if len(values) else np.full(CURVE, np.nan)


def _top(problem: Synthetic) -> float:
    """|c| at the modes."""
    return float((problem.y - problem.gamma**2 / (2 * problem.tau**2)).clamp_min(0).sqrt())


def _centres() -> np.ndarray:
    """Middle of each bin."""
    return ((EDGES[1:] + EDGES[:-1]) / 2).round(6)


def _histogram(c: Tensor) -> np.ndarray:
    """Share of c in each bin."""
    return np.histogram(c.cpu().numpy(), EDGES)[0] / len(c)


def _exact_histogram(problem: Synthetic) -> np.ndarray:
    """The exact probability of each bin, by quadrature on a fine grid."""
    grid = torch.from_numpy(np.linspace(-2, 2, 80 * 500 + 1)) * _top(problem)
    density = problem.critical_density(grid).numpy()
    steps = (density[1:] + density[:-1]) / 2 * np.diff(grid.numpy())
    return steps.reshape(80, 500).sum(1)
