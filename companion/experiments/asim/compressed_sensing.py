"""Compressed sensing: learned priors (flow, GAN, VAE) and classical ones on the same images and measurements.

One comparison, registered for four data sets. A method meets, for every m, the same A, noise and images as all others;
its options are chosen on validation images and other measurements; it spends at most the same number of evaluations on
an image, restarts included.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from companion import data, evaluate, measure, priors, recover
from companion.experiments.context import Context
from companion.experiments.registry import experiment
from companion.priors.base import Prior

CLASSICAL: dict[str, Callable[..., recover.Result]] = {
    "lasso-dct": partial(recover.lasso, basis="dct"),
    "lasso-wavelet": partial(recover.lasso, basis="wavelet"),
    "lasso-pixel": partial(recover.lasso, basis="pixel"),
    "tv": recover.tv,
}

# Mean PSNR over 12 flowers at 64×64 (Asim et al. 2020, fig. 31 and the numbers published with their code; mean of three
# runs for the Lassos). Their wavelet images were divided by their largest pixel before scoring.
PUBLISHED_FLOWERS = {
    "m": [500, 1000, 2500, 5000, 7500, 10000, 12288],
    "glow": [22.22, 25.27, 30.03, 33.01, 34.31, 35.01, 35.33],
    "lasso-dct": [15.81, 17.58, 21.29, 25.88, 29.97, 33.57, 35.98],
    "lasso-wavelet": [13.25, 14.80, 18.16, 22.06, 25.82, 29.70, 32.31],
}


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Attributes:
        data, size: data set and side of its images.
        priors: checkpoint of each learned method, "glow", "gan" or "vae".
        classical: methods without learning.
        images: held-out images reported on; the first `pictures` of them are stored as recovered from the first draw.
        seeds: draws of the matrix, of the noise and of the generators' starts.
        measurements: numbers of measurements m.
        budget: gradient evaluations allowed for one image, the same for every method.
        tuned_on, weights: validation images on which the weight of each classical method is chosen, for every m.
        learned_on, gammas, restarts: likewise for GAN and VAE, where the restarts share the budget.
        flow_gammas: weights of ‖z‖ among which the flow's is chosen; 0 alone is the paper's choice.
        vae_first: evaluations of the VAE whose estimate "vae-glow" hands to the flow as its start; 0 for none.
        spread: take images at equal distances from the whole split, which some sets order by class, not its first ones.
        range_restarts: searches, each with the whole budget, for the image of a GAN or VAE nearest to the truth.
        starts, starts_m: single searches of a quarter of the budget from each of so many random starts, at this m.
    """

    data: str
    size: int
    priors: dict[str, str]
    images: int
    seeds: int
    measurements: tuple[int, ...]
    budget: int
    tuned_on: int = 8
    weights: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    classical: tuple[str, ...] = ("lasso-dct", "lasso-wavelet", "tv")
    learned_on: int = 4
    gammas: tuple[float, ...] = (0.0, 0.01, 0.1)
    restarts: tuple[int, ...] = (1, 4)
    flow_gammas: tuple[float, ...] = (0.0,)
    vae_first: int = 0
    spread: bool = False
    range_restarts: int = 4
    starts: int = 10
    starts_m: int = 614
    pictures: int = 4


class Method(NamedTuple):
    """solve(operator, y, seed, **option) → Result, the options to choose from, and the validation images used."""

    solve: Callable[..., recover.Result]
    options: list[dict[str, float]]
    tuned_on: int


_PHOTOS = Settings(
    data="photos",
    size=32,
    priors={"glow": "glow-photos32", "gan": "gan-photos32", "vae": "vae-photos32"},
    images=12,
    seeds=3,
    measurements=(154, 307, 614, 922, 1229, 1536),
    budget=400,
    gammas=(0.0, 0.001, 0.01),
)
_MNIST = replace(
    _PHOTOS,
    data="mnist",
    size=28,
    priors={"glow": "glow-mnist", "gan": "gan-mnist", "vae": "vae-mnist"},
    measurements=(25, 50, 100, 200, 300, 400, 500, 750),
    classical=("lasso-dct", "lasso-wavelet", "lasso-pixel", "tv"),
    gammas=(0.0, 0.01, 0.1),
    flow_gammas=(0.0, 0.1),
    vae_first=100,
    starts_m=100,
)
_EUROSAT = replace(
    _PHOTOS, data="eurosat", priors={"glow": "glow-eurosat32"}, measurements=(154, 307, 614, 1229), spread=True
)
_FLOWERS = replace(
    _PHOTOS,
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
# The grid of the paper's figures.
_GRID = (20, 30, 50, 100, 200, 300, 400, 500, 750, 1000, 2500, 5000, 7500, 10000, 12288)


def _tiny(settings: Settings, measurements: tuple[int, ...]) -> Settings:
    """The same comparison in a few seconds."""
    return replace(
        settings,
        images=2,
        seeds=1,
        measurements=measurements,
        budget=40,
        tuned_on=2,
        weights=(0.01, 0.03),
        learned_on=2,
        gammas=(0.01,),
        vae_first=min(settings.vae_first, 20),
        range_restarts=2,
        starts=2,
        starts_m=measurements[-1],
        pictures=min(settings.pictures, 2),
    )


@experiment(
    "asim.compressed-sensing",
    paper="Asim et al. 2020",
    shows="Fig. 4 left, 15, 16",
    profiles={
        "quick": _tiny(_PHOTOS, (307, 614)),
        "laptop": _PHOTOS,
        "paper": replace(
            _PHOTOS, size=64, priors={"glow": "glow-photos64"}, seeds=1, measurements=_GRID, budget=600, pictures=2
        ),
    },
)
def photos(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Recovers held-out photographs from m Gaussian measurements, by three learned and three classical priors."""
    return compare(settings, context)


@experiment(
    "asim.compressed-sensing-mnist",
    paper="Bora et al. 2017; Asim et al. 2020",
    shows="Bora et al. Fig. 1a; Asim et al. Fig. 4 left in kind",
    profiles={
        "quick": _tiny(_MNIST, (50, 200)),
        "laptop": _MNIST,
        "paper": replace(
            _MNIST, images=300, measurements=(10, *_MNIST.measurements), budget=1000, restarts=(1, 4, 10), tuned_on=32
        ),
    },
)
def mnist(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Recovers handwritten digits from m Gaussian measurements, by three learned and four classical priors."""
    return compare(settings, context)


@experiment(
    "asim.compressed-sensing-eurosat",
    paper="Asim et al. 2020",
    shows="Fig. 4 left in kind",
    profiles={
        "quick": _tiny(_EUROSAT, (307, 614)),
        "laptop": _EUROSAT,
        "paper": replace(_EUROSAT, images=100, measurements=_PHOTOS.measurements, budget=600),
    },
)
def eurosat(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Recovers satellite tiles from m Gaussian measurements, by a flow and three classical priors."""
    return compare(settings, context)


@experiment(
    "asim.compressed-sensing-flowers",
    paper="Asim et al. 2020",
    shows="Fig. 31",
    profiles={
        "quick": _tiny(_FLOWERS, (500,)),
        "laptop": _FLOWERS,
        "paper": replace(_FLOWERS, measurements=_GRID, budget=600, tuned_on=8, weights=_PHOTOS.weights),
    },
)
def flowers(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Recovers flowers at 64×64, the paper's own data set, from m measurements; stores scores alone, no photographs."""
    metrics, arrays = compare(settings, context)
    return metrics | {"published": PUBLISHED_FLOWERS}, arrays


def compare(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The comparison.

    Metrics: methods, m, n, mean psnr and ssim, the option chosen for each method and m, and all options. Arrays: psnr,
    ssim and evaluations [methods, m, draws, images]; "validation NAME" [m, options, images], the PSNR behind each
    choice; "range NAME" [images], the PSNR of the generator's image nearest to the truth; "starts NAME psnr" and
    "... energy" [starts, images] of single searches; and as bytes, unless `pictures` is 0, recovered [m, methods,
    pictures, C, H, W] and truth.
    """
    loaded = {name: priors.load(checkpoint, context.device) for name, checkpoint in settings.priors.items()}
    methods = _methods(settings, loaded)
    truth = _images(settings, "test", settings.images).to(context.device)
    metrics: dict[str, Any] = {
        "methods": list(methods),
        "m": list(settings.measurements),
        "n": truth[0].numel(),
        "options": {name: method.options for name, method in methods.items()},
        "chosen": {name: [] for name in methods},
    }
    scores: dict[str, list[np.ndarray]] = {"psnr": [], "ssim": [], "evaluations": []}
    validation: dict[str, list[np.ndarray]] = {name: [] for name, method in methods.items() if len(method.options) > 1}
    recovered = []
    for m in context.progress(settings.measurements, "measurements"):
        tuned = context.part(f"m={m}/options", partial(_choose, settings, context, methods, m))
        chosen = {name: methods[name].options[best] for name, best in tuned.metrics.items()}
        for name in methods:
            metrics["chosen"][name].append(chosen[name])
        for name, values in validation.items():
            values.append(tuned.arrays[name])
        draws = []
        for draw in range(settings.seeds):
            part = partial(_draw, settings, context, methods, chosen, m, truth, draw)
            draws.append(context.part(f"m={m}/draw={draw}", part).arrays)
        recovered.append(draws[0]["x"])
        for key, rows in scores.items():
            rows.append(np.stack([arrays[key] for arrays in draws], axis=1))
    arrays = {name: np.stack(values, axis=1) for name, values in scores.items()}
    for score in ("psnr", "ssim"):
        means = arrays[score].mean((2, 3)).round(4)
        metrics[f"mean {score}"] = {name: row.tolist() for name, row in zip(methods, means, strict=True)}
    arrays |= {f"validation {name}": np.stack(values).round(3) for name, values in validation.items()}
    generators = {name: prior for name, prior in loaded.items() if name != "glow"}
    arrays |= context.part("range", partial(_ranges, settings, context, generators, truth)).arrays
    arrays |= context.part("starts", partial(_starts, settings, context, generators, truth)).arrays
    if settings.pictures:
        arrays |= {"recovered": np.stack(recovered), "truth": _bytes(truth)}
    return metrics, arrays


def _methods(settings: Settings, loaded: dict[str, Any]) -> dict[str, Method]:
    """The methods by name: the flow, the classical ones, GAN and VAE, the flow that starts at the VAE's estimate."""
    methods = {}

    def flow(operator: measure.Gaussian, y: Tensor, seed: int, gamma: float) -> recover.Result:
        return recover.flow_latent(loaded["glow"], operator, y, gamma, max_evaluations=settings.budget)

    def classical(solve: Callable[..., recover.Result]) -> Callable[..., recover.Result]:
        return lambda operator, y, seed, weight: solve(operator, y, weight=weight, max_iterations=settings.budget)

    def generator(prior: Prior) -> Callable[..., recover.Result]:
        return lambda operator, y, seed, gamma, restarts: recover.gan_latent(
            prior, operator, y, gamma, restarts=restarts, seed=seed, max_evaluations=settings.budget // restarts
        )

    def handed_over(operator: measure.Gaussian, y: Tensor, seed: int, gamma: float, restarts: int) -> recover.Result:
        limit = settings.vae_first // restarts
        first = recover.gan_latent(
            loaded["vae"], operator, y, gamma, restarts=restarts, seed=seed, max_evaluations=limit
        )
        z0, rest = loaded["glow"].encode(first.x), settings.budget - settings.vae_first
        second = recover.flow_latent(loaded["glow"], operator, y, z0=z0, max_evaluations=rest)
        return replace(second, evaluations=first.evaluations + second.evaluations)

    if "glow" in loaded:
        methods["glow"] = Method(flow, [{"gamma": gamma} for gamma in settings.flow_gammas], settings.learned_on)
    for name in settings.classical:
        weights = [{"weight": weight} for weight in settings.weights]
        methods[name] = Method(classical(CLASSICAL[name]), weights, settings.tuned_on)
    pairs = [{"gamma": gamma, "restarts": each} for each, gamma in product(settings.restarts, settings.gammas)]
    for name, prior in loaded.items():
        if name != "glow":
            methods[name] = Method(generator(prior), pairs, settings.learned_on)
    if settings.vae_first:
        most = [pair for pair in pairs if pair["restarts"] == settings.restarts[-1]]
        methods["vae-glow"] = Method(handed_over, most, settings.learned_on)
    return methods


def _images(settings: Settings, split: str, number: int) -> Tensor:
    images = data.load(settings.data, split=split, size=settings.size)
    return images[torch.arange(number) * len(images) // number] if settings.spread else images[:number]


def _observe(shape: Sequence[int], m: int, truth: Tensor, seed: int) -> tuple[measure.Gaussian, Tensor]:
    """The operator of one draw and its measurements, with √E‖δ‖² = 0.1 as in the paper."""
    operator = measure.Gaussian(tuple(shape), m, seed)
    return operator, measure.Problem(operator, measure.GaussianNoise.of_norm(0.1, m)).observe(truth, seed + 1)


def _choose(settings: Settings, context: Context, methods: dict[str, Method], m: int) -> tuple[dict, dict]:
    """For each method, the option with the best mean PSNR on validation images, from other measurements."""
    images = _images(settings, "validation", max(method.tuned_on for method in methods.values())).to(context.device)
    seed = 1000 * context.seed + 900
    operator, y = _observe(images.shape[1:], m, images, seed)
    best, scores = {}, {}
    for name, (solve, options, number) in methods.items():
        best[name] = 0
        if len(options) == 1:
            continue
        results = [solve(operator, y[:number], seed, **option) for option in options]
        if name not in CLASSICAL:
            context.count_evaluations(sum(int(result.evaluations.sum()) for result in results))
        scores[name] = np.stack([evaluate.psnr(result.x, images[:number]).numpy() for result in results])
        best[name] = int(scores[name].mean(1).argmax())
    return best, scores


def _draw(
    settings: Settings,
    context: Context,
    methods: dict[str, Method],
    chosen: dict[str, dict[str, float]],
    m: int,
    truth: Tensor,
    draw: int,
) -> tuple[dict, dict]:
    """All methods on all images for one draw."""
    seed = 1000 * context.seed + draw
    operator, y = _observe(truth.shape[1:], m, truth, seed)
    estimates = [method.solve(operator, y, seed, **chosen[name]) for name, method in methods.items()]
    for name, estimate in zip(methods, estimates, strict=True):
        if name not in CLASSICAL:
            context.count_evaluations(int(estimate.evaluations.sum()))
    return {}, {
        "psnr": np.stack([evaluate.psnr(e.x, truth).numpy() for e in estimates]),
        "ssim": np.stack([evaluate.ssim(e.x, truth).numpy() for e in estimates]),
        "evaluations": np.stack([e.evaluations.cpu().numpy() for e in estimates]),
        "x": np.stack([_bytes(e.x[: settings.pictures]) for e in estimates]),
    }


def _ranges(settings: Settings, context: Context, generators: dict[str, Prior], truth: Tensor) -> tuple[dict, dict]:
    """PSNR of the image nearest to the truth in the range of each GAN or VAE, as far as the searches find it."""
    identity, found = measure.Identity(tuple(truth.shape[1:])), {}
    for name, prior in generators.items():
        options: dict[str, Any] = {"restarts": settings.range_restarts, "max_evaluations": settings.budget}
        nearest = recover.gan_latent(prior, identity, truth, seed=context.seed, **options)
        context.count_evaluations(int(nearest.evaluations.sum()))
        found[f"range {name}"] = evaluate.psnr(nearest.x, truth).numpy()
    return {}, found


def _starts(settings: Settings, context: Context, generators: dict[str, Prior], truth: Tensor) -> tuple[dict, dict]:
    """Where single searches of GAN and VAE end, by start: PSNR and energy, with the first weight, 0 in the profiles."""
    operator, y = _observe(truth.shape[1:], settings.starts_m, truth, 1000 * context.seed)
    found = {}
    for name, prior in generators.items():
        options: dict[str, Any] = {"restarts": 1, "max_evaluations": settings.budget // 4}
        ends = [
            recover.gan_latent(prior, operator, y, settings.gammas[0], seed=seed, **options)
            for seed in range(1000 * context.seed, 1000 * context.seed + settings.starts)
        ]
        context.count_evaluations(sum(int(end.evaluations.sum()) for end in ends))
        found[f"starts {name} psnr"] = np.stack([evaluate.psnr(end.x, truth).numpy() for end in ends])
        found[f"starts {name} energy"] = np.stack([end.energy.cpu().numpy() for end in ends])
    return {}, found


def _bytes(x: Tensor) -> np.ndarray:
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
