"""Looking for the brightest pixel of digits under a slope of light (Ang's Figures 7, 8 and 10, Algorithms 3 and 4)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion import _support, sample
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.problems import truths

RULES = (
    "random",
    "training image",
    "gp, ucb",
    "gaussian, ucb",
    "gaussian, thompson",
    "vae, mean",
    "vae, ucb",
    "vae, printed ucb",
    "vae, thompson",
)
_FOUR = ("random", "training image", "gp, ucb", "gaussian, ucb", "gaussian, thompson", "vae, ucb", "vae, thompson")
PRINTED_KAPPA = 50.0  # of the variance, in Ang's code
LENGTHS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # in pixels, of the process's kernel; the likeliest one is taken


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    prior: str = "vae-mnist"
    data: str
    images: int
    training: int  # images that the Gaussian, the process and "training image" know
    slopes: tuple[int, ...] = (2,)  # directions of the light: 2, down and up, or 4
    rounds: int
    std: float = 0.05
    chains: int = 4
    search: int = 20
    draws: int = 20
    rules: tuple[str, ...] = RULES


@experiment(
    "ang.optimisation",
    paper="Ang 2021",
    shows="Fig. 7, 8, 10, Algorithms 3 and 4",
    profiles={
        "quick": Settings(
            data="prior",
            images=4,
            training=200,
            rounds=5,
            chains=3,
            draws=10,
            rules=("random", "gaussian, ucb", "vae, thompson"),
        ),
        "laptop": Settings(data="mnist", images=100, training=10_000, rounds=20),
        "paper": Settings(data="mnist", images=1000, training=60_000, rounds=40, slopes=(2, 4)),
    },
    tolerances={"regret": 0.5},
)
def optimisation(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Measures one pixel a round by every rule, until the brightest is found."""
    items = [(number, rule) for number in settings.slopes for rule in settings.rules]
    return {}, gather(context.map(_optimise, items, "rules"), slopes=settings.slopes, rule=settings.rules)


@experiment(
    "ang.optimisation-four",
    paper="Ang 2021",
    shows="Fig. 7, 8, 10, the images with four gradients",
    profiles={
        "quick": Settings(
            data="prior",
            images=3,
            training=200,
            slopes=(4,),
            rounds=4,
            chains=1,
            draws=10,
            rules=("random", "gaussian, ucb", "vae, thompson"),
        ),
        # two chains of each of four hypotheses: as many in all as under two slopes
        "laptop": Settings(data="mnist", images=100, training=10_000, slopes=(4,), rounds=12, chains=2, rules=_FOUR),
        "paper": Settings(data="mnist", images=1000, training=60_000, slopes=(4,), rounds=40),
    },
    tolerances={"regret": 0.5},
)
def four(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Measures one pixel a round under light from one of four sides, until the brightest is found."""
    return optimisation(settings, context)


class Sloped:
    """Images ½ G(z) + slope, with a slope [*shape] between 0 and ½: a hypothesis of where the light comes from."""

    def __init__(self, prior: Any, slope: Tensor) -> None:
        self.prior, self.slope = prior, slope
        self.shape, self.latent_dim = prior.shape, prior.latent_dim

    def decode(self, z: Tensor) -> Tensor:
        return 0.5 * self.prior.decode(z) + self.slope


def slopes(number: int, shape: tuple[int, ...]) -> list[Tensor]:
    """The slopes of light: down, up, and for four of them right and left."""
    down = torch.linspace(0, 0.5, shape[1])[:, None].expand(shape)
    right = torch.linspace(0, 0.5, shape[2]).expand(shape)
    return [down, down.flip(1), right, right.flip(2)][:number]


def lit(part: Part, x: Tensor, number: int, stream: str) -> Tensor:
    """Images ½ x + a slope chosen at random for each."""
    every = slopes(number, tuple(x.shape[1:]))
    chosen = torch.randint(number, (len(x),), generator=_support.generator(part.seed, "slope", stream))
    return 0.5 * x + torch.stack([every[k] for k in chosen.tolist()]).to(x)


def _optimise(settings: Settings, part: Part, item: tuple[int, str]) -> tuple[dict, dict]:
    """The regret of one rule on all images, under light from so many directions."""
    number, rule = item
    prior = shared.prior(part, settings.prior)
    truth = lit(part, truths(part, prior, settings.data, settings.images), number, "test")
    known = lit(part, truths(part, prior, settings.data, settings.training, "train"), number, "train")
    options: dict[str, Any] = {"rounds": settings.rounds, "std": settings.std, "seed": shared.seed_of(part, "search")}
    kind, _, how = rule.partition(", ")
    if not how:
        found = sample.bayesian_optimisation(truth, None, "order", order=_order(settings, part, known, kind), **options)
    else:
        model = _posterior(settings, part, prior, known, kind, number)
        if how == "printed ucb":
            found = sample.bayesian_optimisation(truth, squared_spread(model), "ucb", kappa=PRINTED_KAPPA, **options)
        else:
            found = sample.bayesian_optimisation(truth, model, how, **options)
        part.count_evaluations(getattr(model, "evaluations", 0))
    return {}, {"regret": named(shared.numpy(found.regret.T), image=settings.images, round=settings.rounds)}


def _order(settings: Settings, part: Part, known: Tensor, kind: str) -> Tensor:
    """Pixels to try in turn, [images, rounds]: at random, or the brightest one of a training image each."""
    found = []
    for k in range(settings.images):
        source = _support.generator(part.seed, kind, k)
        if kind == "random":
            found.append(torch.randperm(known[0].numel(), generator=source)[: settings.rounds])
        else:
            chosen = torch.randint(len(known), (settings.rounds,), generator=source)
            found.append(known[chosen].flatten(1).argmax(1))
    return torch.stack(found)


def squared_spread(posterior: sample.Posterior) -> sample.Posterior:
    """Draws whose standard deviation at each pixel is the square of that of `posterior`, about the same mean.

    With them mean + κ deviations is mean + κ variances, which Ang's code calls UCB.
    """

    def draws(mask: Tensor, y: Tensor, round_: int) -> Tensor:
        x = posterior(mask, y, round_)
        return x.mean(0) + x.std(0) * (x - x.mean(0))

    return draws


def _posterior(settings: Settings, part: Part, prior: Any, known: Tensor, kind: str, number: int) -> sample.Posterior:
    seed = shared.seed_of(part, "posterior")
    if kind == "vae":
        hypotheses = [Sloped(prior, slope.to(known)) for slope in slopes(number, tuple(prior.shape))]
        sizes = {"chains": settings.chains, "search": settings.search, "draws": settings.draws}
        return sample.LatentPosterior(hypotheses, settings.std, worst=8.0, seed=seed, **sizes)
    flat = known.flatten(1)
    mean = flat.mean(0)
    covariance = torch.cov(flat.mT) if kind == "gaussian" else process(flat, tuple(known.shape[2:]), settings.std)
    return sample.GaussianPosterior(
        mean if kind == "gaussian" else mean.mean().expand_as(mean), covariance, settings.std, seed=seed
    )


def process(images: Tensor, sides: tuple[int, ...], std: float, most: int = 200) -> Tensor:
    """Covariance of the Gaussian process with a squared-exponential kernel that fits images, [N, pixels], best.

    Its variance is the images', its length the likeliest of LENGTHS.
    """
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in sides), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1)
    squared = torch.cdist(places, places).square()
    offsets = (images[:most] - images.mean()).double()
    best, found = -torch.inf, squared
    for length in LENGTHS:
        covariance = offsets.square().mean() * torch.exp(-squared / (2 * length**2))
        noisy = covariance + std**2 * torch.eye(len(squared), dtype=torch.float64)
        likelihood = torch.distributions.MultivariateNormal(torch.zeros(len(squared)).double(), noisy)
        value = float(likelihood.log_prob(offsets).mean())
        if value > best:
            best, found = value, covariance
    return found.to(images)
