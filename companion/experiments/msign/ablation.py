"""Zhang et al. 2021, sec. 6.1.3: MsIGN with parts exchanged, on the synthetic problem; mode balance as a number.

Two variants are not the paper's: MsIGN and Glow as one half of a mixture that has the problem's symmetry.
"""

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from companion.bayes import Synthetic, Training, jeffreys, train_msign
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.priors import HaarConditioning
from companion.priors.bijections import Bijection, Mapped, Squeeze
from companion.priors.msign import Mirrored, MsIGN


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    side: int  # of the finest scale of the problem
    scales: int  # of the models
    draws: int
    first_iterations: int  # at the coarsest scale, where all that climb are trained on the Jeffreys divergence
    iterations: int  # at each scale above
    batch: int
    samples: int  # of the model, and as many exact ones
    steps: int
    width: int
    pool: int
    rate: float = 3e-3


@dataclass(frozen=True)
class Variant:
    """What a model is made of and how it is trained; without `stages` at the finest scale alone."""

    layer: str  # between scales: "prior", "nearest" (stochastic nearest neighbour) or "split" (Glow's)
    objective: str
    stages: bool
    mirrored: bool = False


VARIANTS = {
    "MsIGN": Variant("prior", "jeffreys", True),
    "MsIGN-KL": Variant("prior", "kl", True),
    "MsIGN-AS": Variant("prior", "stein", True),
    "MsIGN-KL-S": Variant("prior", "kl", False),
    "MsIGN-AS-S": Variant("prior", "stein", False),
    "MsIGN-SNN": Variant("nearest", "jeffreys", True),
    "MsIGN-SNN-KL-S": Variant("nearest", "kl", False),
    "Glow-KL-S": Variant("split", "kl", False),
    "Glow-AS-S": Variant("split", "stein", False),
    "MsIGN, mirrored": Variant("prior", "jeffreys", True, mirrored=True),
    "Glow-KL-S, mirrored": Variant("split", "kl", False, mirrored=True),
}


@experiment(
    "msign.ablation",
    paper="Zhang et al. 2021",
    shows="Fig. 5, 13; Table 5",
    profiles={
        "quick": Settings(
            side=8,
            scales=2,
            draws=1,
            first_iterations=8,
            iterations=4,
            batch=50,
            samples=500,
            steps=2,
            width=8,
            pool=500,
        ),
        "laptop": Settings(
            side=64,
            scales=3,
            draws=3,
            first_iterations=150,
            iterations=100,
            batch=200,
            samples=8000,
            steps=4,
            width=16,
            pool=10_000,
            rate=5e-3,
        ),
    },
    tolerances={"divergence": 0.3, "error": 0.5, "share": 0.1, "balance": 0.2},
)
def ablation(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Trains MsIGN without its prior conditioning, Jeffreys divergence or stages, and asks what is lost."""
    items = list(itertools.product(VARIANTS, range(settings.draws)))
    outcomes = context.map(_fit, items, "variants")
    return {"d": 4**settings.scales}, gather(outcomes, variant=VARIANTS, draw=settings.draws)


def _fit(settings: Settings, part: Part, item: tuple[str, int]) -> tuple[dict, dict]:
    """Train one variant with as many steps as any other, and compare it with exact samples at the finest scale."""
    name, draw = item
    variant = VARIANTS[name]
    problems = Synthetic(settings.side, dtype=torch.float32).scales()[: settings.scales]
    problem, seed = problems[-1], shared.seed_of(part, "draw", draw)
    model = _model(settings, variant, problems, seed)
    how = Training(batch=settings.batch, pool=settings.pool, rate=settings.rate, objective=variant.objective)
    if variant.stages:
        first = problems[0].sample(settings.pool, seed=shared.seed_of(part, "first", draw))
        coarsest = replace(how, iterations=settings.first_iterations, objective="jeffreys")
        train_msign(problem, model, coarsest, [1], first, seed=seed)
        above = replace(how, iterations=settings.iterations)
        train_msign(problem, model, above, range(2, settings.scales + 1), seed=seed)
    else:
        total = settings.first_iterations + settings.iterations * (settings.scales - 1)
        once = replace(how, iterations=total)
        train_msign(problem, model, once, [settings.scales], seed=seed)
    part.count_evaluations(problem.simulations)
    with torch.no_grad():
        own = model.sample(settings.samples, seed=shared.seed_of(part, "own", name, draw))
        reference = problem.sample(settings.samples, seed=shared.seed_of(part, "reference", draw))
        found = jeffreys(model.log_prob, problem.log_density, own, reference)
    c, exact = own @ problem.direction, reference @ problem.direction
    share = float((c > 0).double().mean())
    return {}, {
        "divergence": named(found.value),
        "error": named(found.error),
        "share": named(share),
        "balance": named(2 * min(share, 1 - share)),
        "bridge": named(float((c.abs() < 0.8 * exact.abs().mean()).double().mean())),
        "simulations": named(float(problem.simulations)),
    }


def _model(settings: Settings, variant: Variant, problems: list[Synthetic], seed: int) -> MsIGN | Mirrored:
    """All that differs between the models is what stands between their scales."""
    conditionings: list[Bijection] | None = None
    if variant.layer == "nearest":
        conditionings = [
            HaarConditioning.fitted(p.field.sample(2000, seed=seed).view(-1, 1, p.side, p.side)) for p in problems[1:]
        ]
    elif variant.layer == "split":
        conditionings = [_Split(p.side) for p in problems[1:]]
    half = MsIGN(
        problems[-1].field, settings.scales, settings.steps, settings.width, conditionings=conditionings, seed=seed
    )
    return Mirrored(half) if variant.mirrored else half


class _Split(Bijection):
    """Glow's way from one level to the next: of each block of 2 × 2 pixels one goes on, three are latents."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.coarse_side, self.squeeze = side // 2, Squeeze()

    def encode(self, x: Tensor) -> Mapped:
        h, log_det = self.squeeze.encode(x)
        return h.flatten(1), log_det

    def decode(self, z: Tensor) -> Mapped:
        return self.squeeze.decode(z.unflatten(1, (4, self.coarse_side, self.coarse_side)))
