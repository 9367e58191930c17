"""Compressed sensing: learned priors (flow, GAN, VAE) and classical ones on the same images and measurements.

One comparison, registered for four data sets. A method meets, for every m, the same A, noise and images as all others;
its options are chosen on validation images and other measurements; it spends at most the same number of evaluations on
an image, restarts included. The quick profiles need no download: with the priors of each set, they take photographs, or
digits in the frame of MNIST's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import data, evaluate, measure, recover
from companion.experiments import Context, Part, experiment, gather, named, problems, shared

CLASSICAL: dict[str, Callable[..., recover.Result]] = {
    "lasso-dct": partial(recover.lasso, basis="dct"),
    "lasso-wavelet": partial(recover.lasso, basis="wavelet"),
    "lasso-pixel": partial(recover.lasso, basis="pixel"),
    "tv": recover.tv,
}

# Mean PSNR over 12 flowers at 64×64 (Asim et al. 2020, fig. 31 and the numbers published with their code; mean of three
# runs for the Lassos). Their wavelet images were divided by their largest pixel before scoring.
PUBLISHED_FLOWERS = named(
    [
        [22.22, 25.27, 30.03, 33.01, 34.31, 35.01, 35.33],
        [15.81, 17.58, 21.29, 25.88, 29.97, 33.57, 35.98],
        [13.25, 14.80, 18.16, 22.06, 25.82, 29.70, 32.31],
    ],
    method=("glow", "lasso-dct", "lasso-wavelet"),
    m=(500, 1000, 2500, 5000, 7500, 10000, 12288),
)


FITTED = "fitted"


@dataclass(frozen=True, kw_only=True)
class Settings(shared.OnImages):
    """Sizes of the comparison."""

    # checkpoint of each learned method
    priors: dict[str, str] = field(
        default_factory=lambda: {"glow": "glow-photos32", "gan": "gan-photos32", "vae": "vae-photos32"}
    )
    seeds: int = 3  # draws of the matrix, of the noise and of the generators' starts
    measurements: tuple[int, ...] = (154, 307, 614, 922, 1229, 1536)  # numbers of measurements m
    budget: int = 400  # gradient evaluations allowed for one image, the same for every method
    tuned_on: int = 8  # validation images on which the weight of each classical method is chosen, for every m
    weights: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    classical: tuple[str, ...] = ("lasso-dct", "lasso-wavelet", "tv")  # methods without learning
    learned_on: int = 4  # likewise for flow, GAN and VAE
    gammas: tuple[float, ...] = (0.0, 0.001, 0.01)
    restarts: tuple[int, ...] = (1, 4)  # of GAN and VAE, which share the budget
    flow_gammas: tuple[float, ...] = (0.0,)  # weights of ‖z‖ for the flow; 0 alone is the paper's choice
    # the method "gaussian": checkpoint of the Gaussian of the training images; "fitted" for one of all their pixels; ""
    gaussian: str = ""
    floors: tuple[float, ...] = (0.0, 0.01, 0.03)  # τ of the τ² I added to the covariance of a fitted one
    betas: tuple[float, ...] = ()  # weights of −log p(x) for "glow-map", which starts at the answer of "gaussian"
    classical_iterations: int = 0  # of the methods without learning, which need no network; 0 for the budget
    vae_first: int = 0  # evaluations of the VAE whose estimate "vae-glow" hands to the flow as its start; 0 for none
    spread: bool = False  # take images from the whole split, which some sets order by class, not its first ones
    range_restarts: int = 4  # searches, each with the whole budget, for a generator's image nearest to the truth
    starts: int = 10  # random starts, from each of which a single search spends a quarter of the budget
    starts_m: int = 614  # at this m
    pictures: int = 4  # images that are stored, as recovered from the first draw

    @property
    def generators(self) -> list[str]:
        """The learned methods with a range of their own."""
        return [name for name in self.priors if name != "glow"]

    @property
    def methods(self) -> list[str]:
        """All methods, the flow first."""
        flow = [name for name in self.priors if name == "glow"]
        exact = [*["gaussian"] * bool(self.gaussian), *["glow-map"] * bool(self.betas)]
        handed_over = ["vae-glow"] if self.vae_first else []
        return [*flow, *exact, *self.classical, *self.generators, *handed_over]

    def options(self, method: str) -> dict[str, tuple[Any, ...]]:
        """What a method may choose from: the names of its options, and the values of each."""
        if method in CLASSICAL:
            return {"weight": self.weights}
        if method == "gaussian":
            return {"floor": self.floors} if self.gaussian == FITTED else {}
        if method == "glow":
            return {"gamma": self.flow_gammas}
        if method == "glow-map":
            return {"beta": self.betas}
        return {"restarts": self.restarts[-1:] if method == "vae-glow" else self.restarts, "gamma": self.gammas}


_PHOTOS = Settings(
    images=72,  # three crops of each of 24 photographs
    seeds=1,
    measurements=(154, 307, 614, 1229),
    budget=200,
    classical_iterations=1000,
    tuned_on=24,
    learned_on=8,
    gammas=(0.0, 0.01),
    restarts=(2,),
    gaussian="gaussian-photos32",
    betas=(0.3, 1.0, 3.0, 10.0),
)
_MNIST = Settings(
    data="mnist",
    size=28,
    priors={"glow": "glow-mnist", "gan": "gan-mnist", "vae": "vae-mnist"},
    measurements=(25, 50, 100, 200, 300, 400, 500, 750),
    classical=("lasso-dct", "lasso-wavelet", "lasso-pixel", "tv"),
    gammas=(0.0, 0.01, 0.1),
    flow_gammas=(0.0, 0.1),
    gaussian=FITTED,
    vae_first=100,
    starts_m=100,
)
_EUROSAT = Settings(
    data="eurosat",
    priors={"glow": "glow-eurosat32"},
    measurements=(154, 307, 614, 1229),
    spread=True,
    gaussian=FITTED,
)
_FLOWERS = Settings(
    data="flowers",
    size=64,
    priors={"glow": "glow-flowers64"},
    seeds=1,
    measurements=(500, 1000, 2500, 5000),
    budget=300,
    tuned_on=2,
    weights=(0.003, 0.03, 0.3),
    spread=True,
    pictures=0,
)


def _tiny(settings: Settings, *measurements: int) -> Settings:
    """The same comparison in a few seconds."""
    few: dict[str, Any] = {"images": 1, "seeds": 1, "budget": 12, "tuned_on": 1, "learned_on": 1, "range_restarts": 2}
    few |= {"measurements": measurements, "weights": (0.01, 0.03), "gammas": (0.01,)}
    few |= {"starts": 2, "starts_m": measurements[-1], "vae_first": min(settings.vae_first, 8)}
    few |= {"betas": settings.betas[-2:-1], "floors": (0.01,), "classical_iterations": 0}
    return replace(settings, **few, pictures=min(settings.pictures, 1))


@experiment(
    "asim.compressed-sensing",
    paper="Asim et al. 2020",
    shows="Fig. 4 left, 15, 16, beside the Gaussian with the training images' covariance",
    profiles={
        "quick": _tiny(replace(_PHOTOS, data="photos"), 614),
        "laptop": _PHOTOS,
        "paper": Settings(
            size=64,
            priors={"glow": "glow-photos64"},
            images=72,
            seeds=1,
            measurements=shared.GRID,
            budget=600,
            pictures=2,
        ),
    },
)
def photos(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers crops of the 24 Kodak photographs, by priors that learned from hundreds of other photographs."""
    metrics, arrays = compare(settings, context)
    photo = data.load(settings.data, "test", settings.size).photo
    return metrics, arrays | {"photograph": named(np.asarray(photo)[: settings.images], image=settings.images)}


@experiment(
    "asim.compressed-sensing-mnist",
    paper="Bora et al. 2017; Asim et al. 2020",
    shows="Bora et al. Fig. 1a; Asim et al. Fig. 4 left in kind",
    profiles={
        "quick": _tiny(replace(_MNIST, data="digits"), 50, 200),
        "laptop": _MNIST,
        "paper": replace(
            _MNIST, images=300, measurements=(10, *_MNIST.measurements), budget=1000, restarts=(1, 4, 10), tuned_on=32
        ),
    },
)
def mnist(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers handwritten digits from m Gaussian measurements, by three learned and four classical priors."""
    return compare(settings, context)


@experiment(
    "asim.compressed-sensing-eurosat",
    paper="Asim et al. 2020",
    shows="Fig. 4 left in kind",
    profiles={
        "quick": _tiny(replace(_EUROSAT, data="photos"), 614),
        "laptop": _EUROSAT,
        "paper": replace(_EUROSAT, images=100, measurements=_PHOTOS.measurements, budget=600),
    },
)
def eurosat(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers satellite tiles from m Gaussian measurements, by a flow and three classical priors."""
    return compare(settings, context)


@experiment(
    "asim.compressed-sensing-flowers",
    paper="Asim et al. 2020",
    shows="Fig. 31",
    profiles={
        "quick": _tiny(replace(_FLOWERS, data="photos"), 500),
        "laptop": _FLOWERS,
        "paper": replace(_FLOWERS, measurements=shared.GRID, budget=600, tuned_on=8, weights=_PHOTOS.weights),
    },
)
def flowers(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers flowers at 64×64, the paper's own data set, from m measurements; stores scores alone, no photographs."""
    metrics, arrays = compare(settings, context)
    return metrics, arrays | {"published psnr": PUBLISHED_FLOWERS}


def compare(settings: Settings, context: Context) -> tuple[dict, dict]:
    """The comparison.

    Metrics: n, and for each method the mean PSNR and the options chosen, by m. Arrays: psnr, ssim and evaluations;
    "validation NAME", the PSNR behind each choice; "range", the PSNR of a generator's image nearest to the truth;
    "starts psnr" and "starts energy" of single searches; and as bytes, unless `pictures` is 0, recovered and truth.
    """
    ms, methods = settings.measurements, settings.methods
    truth = settings.truth(context, spread=settings.spread)
    choices = context.map(_choose, [(m, name) for name in methods for m in ms], "options")
    tuned = {name: choices[k * len(ms) : (k + 1) * len(ms)] for k, name in enumerate(methods)}
    chosen = {name: [outcome.metrics for outcome in outcomes] for name, outcomes in tuned.items()}
    trials = [
        (m, draw, name, chosen[name][place])
        for place, m in enumerate(ms)
        for draw in range(settings.seeds)
        for name in methods
    ]
    solved = context.map(_solve_trial, trials, "draws")
    arrays = gather(solved, m=ms, draw=settings.seeds, method=methods)
    del arrays["recovered"]
    if settings.pictures:
        first = [outcome for (_, draw, *_), outcome in zip(trials, solved, strict=True) if draw == 0]
        arrays["recovered"] = gather(first, m=ms, method=methods)["recovered"]
        arrays["truth"] = shared.pictures(truth)
    for name, outcomes in tuned.items():
        arrays |= {f"validation {name}": array for array in gather(outcomes, m=ms).values()}
    if settings.generators:
        arrays |= gather(context.map(_explore, settings.generators, "generators"), method=settings.generators)
    means = arrays["psnr"].values.mean((1, 3)).round(4)  # [m, methods]
    mean_psnr = dict(zip(methods, means.T.tolist(), strict=True))
    return {"n": truth[0].numel(), "chosen": chosen, "mean psnr": mean_psnr}, arrays


def _solve(
    settings: Settings, part: Part, method: str, problem: Any, y: Tensor, seed: int, **option: Any
) -> recover.Result:
    """An estimate within the budget; `seed` is that of the generators' starts."""
    budget, operator = settings.budget, problem.operator
    if method in CLASSICAL:
        return CLASSICAL[method](operator, y, max_iterations=settings.classical_iterations or budget, **option)
    if method == "gaussian" and settings.gaussian == FITTED:
        fitted = problems.gaussian(settings.data, settings.size, part.device, option["floor"])
        return recover.gaussian_map(operator, y, *fitted, problem.noise.std)
    if method in ("gaussian", "glow-map"):
        gaussian = shared.stored_gaussian(part, settings.gaussian)
        if method == "gaussian":
            return recover.gaussian_map(operator, y, *gaussian, problem.noise.std)
        flow = shared.prior(part, settings.priors["glow"])
        return recover.flow_map(flow, problem, y, gaussian=gaussian, max_evaluations=budget, **option)
    if method == "glow":
        return recover.flow_latent(
            shared.prior(part, settings.priors["glow"]), operator, y, max_evaluations=budget, **option
        )
    if method != "vae-glow":
        limit = budget // option["restarts"]
        prior = shared.prior(part, settings.priors[method])
        return recover.gan_latent(prior, operator, y, seed=seed, max_evaluations=limit, **option)
    first = _solve(replace(settings, budget=settings.vae_first), part, "vae", problem, y, seed, **option)
    flow = shared.prior(part, settings.priors["glow"])
    rest = budget - settings.vae_first
    second = recover.flow_latent(flow, operator, y, z0=flow.encode(first.x), max_evaluations=rest)
    return replace(second, evaluations=first.evaluations + second.evaluations)


def _choose(settings: Settings, part: Part, item: tuple[int, str]) -> tuple[dict, dict]:
    """The options of a method with the best mean PSNR on validation images, from other measurements."""
    m, method = item
    axes = settings.options(method)
    options = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    number = settings.tuned_on if method in CLASSICAL else settings.learned_on
    truth = settings.truth(part, "validation", number)
    problem, y = problems.compressed(part, truth, m, "validation")
    seed = shared.seed_of(part, "draw", "validation")
    best, scores = problems.choose(
        part, options, lambda option: _solve(settings, part, method, problem, y, seed, **option), truth
    )
    if len(options) == 1:
        return options[0], {}
    shape = [len(values) for values in axes.values()]
    return options[best], {"psnr": named(scores.round(3).reshape(*shape, -1), **axes, image=len(truth))}


def _solve_trial(settings: Settings, part: Part, trial: tuple[int, int, str, dict[str, Any]]) -> tuple[dict, dict]:
    """A method on all test images, for one draw, with the options chosen for it."""
    m, draw, method, option = trial
    truth = settings.truth(part, spread=settings.spread)
    problem, y = problems.compressed(part, truth, m, draw)
    seed = shared.seed_of(part, "draw", draw)
    found = part.count(_solve(settings, part, method, problem, y, seed, **option))
    scores = {"psnr": evaluate.psnr(found.x, truth), "ssim": evaluate.ssim(found.x, truth)}
    scores["evaluations"] = found.evaluations
    return {}, shared.by_image(scores) | {"recovered": shared.pictures(found.x[: settings.pictures])}


def _explore(settings: Settings, part: Part, name: str) -> tuple[dict, dict]:
    """A generator's image nearest to the truth, as far as searches find it, and where single searches end, by start.

    The single searches have the first weight, 0 in the larger profiles.
    """
    prior, truth = shared.prior(part, settings.priors[name]), settings.truth(part, spread=settings.spread)
    identity, limit = measure.Identity(tuple(truth.shape[1:])), settings.budget
    restarts, seed = settings.range_restarts, shared.seed_of(part, "range")
    nearest = part.count(
        recover.gan_latent(prior, identity, truth, restarts=restarts, seed=seed, max_evaluations=limit)
    )
    problem, y = problems.compressed(part, truth, settings.starts_m)
    options: dict[str, Any] = {"restarts": 1, "max_evaluations": limit // 4}
    seeds = [shared.seed_of(part, "start", start) for start in range(settings.starts)]
    ends = [
        part.count(recover.gan_latent(prior, problem.operator, y, settings.gammas[0], seed=each, **options))
        for each in seeds
    ]
    psnr = torch.stack([evaluate.psnr(end.x, truth) for end in ends]).cpu()
    energy = torch.stack([end.energy for end in ends]).cpu()
    return {}, {
        "range": named(evaluate.psnr(nearest.x, truth).cpu(), image=len(truth)),
        "starts psnr": named(psnr, start=settings.starts, image=len(truth)),
        "starts energy": named(energy, start=settings.starts, image=len(truth)),
    }
