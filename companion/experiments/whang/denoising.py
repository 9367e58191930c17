"""Denoising where the noise has structure: PSNR against the noise rate, for MAP with a flow and for its rivals.

All know the noise's standard deviation at every pixel, where they can use it; "asim" and plain "bm3d" cannot. The
camera's depends on the image: there "gaussian" and "tv" have one level, that of the mean brightness, and stand beside
"gaussian by pixel" and "tv by pixel". Weights are chosen on validation images, whose noise is another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from companion import evaluate, measure, priors, recover
from companion.energy import Energy, LatentNorm, NoiseMisfit
from companion.experiments import Context, Part, experiment, gather, named, problems, shared
from companion.experiments.whang import sets

TV_ITERATIONS = 1000
BY_PIXEL = " by pixel"
LATE, BLIND = "vae, late start", "asim, blind start"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    data: str
    size: int
    flow: str  # checkpoint
    vae: str = ""  # checkpoint; "" for none
    noises: Mapping[str, tuple[float, ...]]  # kinds with their levels
    # for each method, what validation images choose from: β of "map"; γ of ‖z‖² beside −log p(y | x) for "latent" and
    # "vae", and beside squared residuals, in units of the mean noise variance, for "asim"; multiples of the root mean
    # square noise level for "bm3d", "bm3d stabilised" and "tv", by pixel, too; the weights of "vae" and "asim" where
    # these begin elsewhere: "vae, late start" at the encoded Gaussian estimate, "asim, blind start" at the estimate of
    # the Gaussian that has one noise level
    weights: Mapping[str, tuple[float, ...]]
    images: int
    tuned_on: int = 8  # validation images
    budget: int  # evaluations for one image, the same for every network
    start: str = "gaussian"  # of the flow's searches: that method's estimate, or "zero", the latents 0
    shown: int = 4  # images whose estimates are stored

    def methods(self, kind: str) -> list[str]:
        """Those with weights, for a kind of noise; the package of BM3D is optional."""
        have = [name for name in self.weights if not name.startswith("bm3d") or find_spec("bm3d")]
        return have if kind == "camera" else [name for name in have if not name.endswith(BY_PIXEL)]


@dataclass(frozen=True)
class Search:
    """One method on images with one noise."""

    kind: str
    level: float
    method: str
    weight: float = 0.0


_BM3D = (0.5, 0.7, 1.0, 1.2, 1.4, 2.0)
_TV = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
_VAE = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
_WEIGHTS: dict[str, tuple[float, ...]] = {
    "map": (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5),
    "latent": (0.2, 0.5, 1.0, 1.4, 2.0, 2.8, 4.0),  # 1/2 is the posterior of z
    "asim": (0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0),
    "bm3d": _BM3D,
    "bm3d stabilised": _BM3D,
    "tv": _TV,
    "gaussian": (1.0,),
}
_DIGITS = Settings(
    data="mnist",
    size=28,
    flow="glow-mnist-smooth",
    vae="vae-mnist",
    noises={"sinusoidal": (0.3, 1.0, 2.0), "radial": (0.5, 1.0, 2.0)},
    weights=_WEIGHTS | {"vae": _VAE},
    images=100,
    budget=80,
)
_TILES = Settings(
    data="eurosat",
    size=32,
    flow="glow-eurosat32",
    noises={"sinusoidal": (0.1, 0.3, 1.0), "camera": (0.05,)},
    weights=_WEIGHTS | {"tv by pixel": _TV, "gaussian by pixel": (1.0,)},
    images=30,
    budget=80,
)


def _quick(settings: Settings, data: str, start: str, **weights: tuple[float, ...]) -> Settings:
    few: dict[str, Any] = {"images": 1, "tuned_on": 1, "budget": 6, "shown": 1}
    return replace(settings, data=data, noises={"sinusoidal": (0.3,)}, weights=weights, start=start, **few)


def _compare(settings: Settings, context: Context) -> tuple[dict, dict]:
    """The comparison, for each kind of noise."""
    arrays, chosen = dict[str, Any](), dict[str, Any]()
    points = [
        Search(kind, level, method)
        for kind, levels in settings.noises.items()
        for level in levels
        for method in settings.methods(kind)
    ]
    choices = dict(zip(points, context.map(_choose, points, "weights"), strict=True))
    searches = [Search(p.kind, p.level, p.method, choices[p].metrics["weight"]) for p in points]
    found = dict(zip(points, context.map(_solve, searches, "searches"), strict=True))
    for kind, levels in settings.noises.items():
        methods = settings.methods(kind)
        grid = [Search(kind, level, method) for level in levels for method in methods]
        stored = gather([found[point] for point in grid], level=levels, method=methods)
        noisy = gather(context.map(_noisy, [(kind, level) for level in levels], f"{kind}: images"), level=levels)
        for name in methods:
            tried = gather([choices[Search(kind, level, name)] for level in levels], level=levels)
            stored[f"validation {name} psnr"] = tried["psnr"]
        arrays |= {f"{kind} {name}": array for name, array in (stored | noisy).items()}
        chosen[kind] = {name: [choices[Search(kind, v, name)].metrics["weight"] for v in levels] for name in methods}
    truth = sets.images(context, settings.data, "test", settings.images, settings.size)
    return {"chosen": chosen}, arrays | {"truth": shared.pictures(truth[: settings.shown])}


@experiment(
    "whang.denoising-digits",
    paper="Whang et al. 2021",
    shows="Fig. 2, 3, 7, 8 in kind, on digits",
    profiles={
        "quick": _quick(_DIGITS, "digits", "gaussian", map=(0.2, 0.5), latent=(0.5,), gaussian=(1.0,), tv=(0.7,)),
        "laptop": _DIGITS,
    },
    tolerances={"*psnr*": 0.03},
)
def digits(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Takes noise with structure off handwritten digits, by a flow of slightly noisy digits and by its rivals."""
    return _compare(settings, context)


@experiment(
    "whang.denoising",
    paper="Whang et al. 2021",
    shows="Fig. 2, 3, 7, 8 in kind, on satellite tiles",
    profiles={
        "quick": _quick(_TILES, "photos", "zero", map=(0.1, 0.2), latent=(0.5,), bm3d=(1.0,), tv=(0.7,)),
        "laptop": _TILES,
    },
    tolerances={"*psnr*": 0.03},
)
def tiles(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Takes noise with structure off colour images, by a flow and by its rivals."""
    return _compare(settings, context)


@experiment(
    "whang.denoising-starts",
    paper="Whang et al. 2021",
    shows="Fig. 2, 3 in kind, on digits: what VAE and Asim's loss owe to their start",
    profiles={
        "quick": _quick(_DIGITS, "digits", "gaussian", **{LATE: (1.0, 2.0), BLIND: (2.0,)}),
        "laptop": replace(_DIGITS, weights={LATE: _VAE, BLIND: _WEIGHTS["asim"]}),
    },
    tolerances={"*psnr*": 0.03},
)
def starts(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Begins the VAE's search where the flow's begins, and that of Asim's loss where the levels are unknown."""
    return _compare(settings, context)


def _problem(
    settings: Settings, part: Part, split: str, number: int, kind: str, level: float
) -> tuple[Tensor, measure.Problem, Tensor]:
    """Truth, problem and measurements; noise of all levels is the same, scaled."""
    truth = sets.images(part, settings.data, split, number, settings.size)
    noise = sets.noise(kind, level, settings.size)
    problem = measure.Problem(measure.Identity(tuple(truth.shape[1:])), noise)
    return truth, problem, problem.observe(truth, shared.seed_of(part, split, kind))


def _choose(settings: Settings, part: Part, search: Search) -> tuple[dict, dict]:
    """The weight of a method for a noise, and the PSNR of all validation images with each."""
    truth, problem, y = _problem(settings, part, "validation", settings.tuned_on, search.kind, search.level)
    weights, scores = settings.weights[search.method], np.full((1, len(truth)), np.nan)
    best = 0
    if len(weights) > 1:
        best, scores = problems.choose(part, weights, _solver(settings, part, problem, y, search.method), truth)
    return {"weight": weights[best]}, {"psnr": named(scores.round(3), weight=weights, image=len(truth))}


def _solve(settings: Settings, part: Part, search: Search) -> tuple[dict, dict]:
    truth, problem, y = _problem(settings, part, "test", settings.images, search.kind, search.level)
    found = part.count(_solver(settings, part, problem, y, search.method)(search.weight))
    scores = {"psnr": evaluate.psnr(found.x, truth).float(), "evaluations": found.evaluations}
    return {}, shared.by_image(scores) | {"recovered": shared.pictures(found.x[: settings.shown])}


def _noisy(settings: Settings, part: Part, item: tuple[str, float]) -> tuple[dict, dict]:
    truth, _, y = _problem(settings, part, "test", settings.images, *item)
    psnr = named(evaluate.psnr(y, truth).float().numpy(), image=len(truth))
    return {}, {"noisy psnr": psnr, "noisy": shared.pictures(y[: settings.shown])}


def _solver(
    settings: Settings, part: Part, problem: measure.Problem, y: Tensor, method: str
) -> Callable[[float], recover.Result]:
    """The method, as a function of its weight; see :class:`Settings` for what that means."""
    std, operator = sets.std_map(problem.noise, y), problem.operator
    rms, options = float(std.square().mean().sqrt()), dict[str, Any](max_evaluations=settings.budget)
    assert isinstance(operator, measure.LinearOperator)
    if method == "bm3d":
        return lambda weight: recover.bm3d(y, weight * rms)
    if method == "bm3d stabilised":
        return lambda weight: _stabilised(problem.noise, y, std, weight)
    likely = NoiseMisfit(problem, y)

    factor, mean = sets.gaussian(settings.data, settings.size, part.device)

    def gaussian(level: Tensor | float) -> recover.Result:
        return recover.gaussian_map(operator, y, factor, mean, level)

    if method.endswith(BY_PIXEL):
        rough = gaussian(std)
        if method.startswith("gaussian"):  # convex but for the logarithms of σ
            energy = Energy(
                priors.Linear(factor.to(y), mean.to(y), operator.shape), likely, LatentNorm(0.5, squared=True)
            )
            return lambda _: recover.minimise(energy, rough.z, **options)
        std = sets.pixel_std(problem.noise, rough.x)
    if method.startswith("tv"):  # the misfit is Σ ((x − y) / σ)², brought to the scale of squared residuals
        scalings = [measure.Scaling(operator.shape, rms / each) for each in std.view(-1, *operator.shape)]
        whiten = scalings[0] if len(scalings) == 1 else measure.PerImage(scalings)
        return lambda weight: recover.tv(whiten, whiten(y), weight * rms, max_iterations=TV_ITERATIONS)
    if method in ("vae", LATE):
        vae = shared.prior(part, settings.vae)
        start = vae.encode((gaussian(std).x if method == LATE else y).clamp(0, 1))
        return lambda weight: recover.minimise(Energy(vae, likely, LatentNorm(weight, squared=True)), start, **options)
    if method == "gaussian":
        exact = gaussian(std)
        return lambda _: exact
    flow = shared.prior(part, settings.flow)
    if settings.start == "gaussian":
        z0 = flow.encode(gaussian(rms if method == BLIND else std).x)
    else:
        z0 = recover.start(flow, y)
    if method == "map":
        return lambda weight: recover.flow_map(flow, problem, y, weight, start=z0, **options)
    if method in ("asim", BLIND):
        return lambda weight: recover.flow_latent(flow, operator, y, weight * rms**2, squared=True, z0=z0, **options)
    return lambda weight: recover.minimise(Energy(flow, likely, LatentNorm(weight, squared=True)), z0, **options)


def _stabilised(noise: measure.Noise, y: Tensor, std: Tensor, weight: float) -> recover.Result:
    """BM3D of images brought to noise of one level: divided by its standard deviation, or by the camera's transform.

    The latter is that of Anscombe, generalised to read noise (Starck et al. 1998), with the exact unbiased inverse: the
    brightness whose noisy values have that mean when transformed (Mäkitalo & Foi 2013). The algebraic inverse comes out
    darker by a quarter of a photon, as a root's mean is less than the root of the mean.
    """
    if not isinstance(noise, measure.PoissonGaussianNoise):
        rms = std.square().mean().sqrt()
        found = recover.bm3d(y / std * rms, weight * float(rms))
        return replace(found, x=found.x * std / rms)
    read = noise.read**2 / noise.gain**2 + 0.375

    def root(value: Any) -> Any:
        return 2 * (value / noise.gain + read).clip(min=0) ** 0.5

    size = float(root(y).max())  # BM3D takes images of about [0, 1]
    found = recover.bm3d(root(y) / size, weight / size)
    nodes, share = np.polynomial.hermite_e.hermegauss(100)
    exact = np.linspace(0, float(y.max()), 2000)[:, None]
    means = root(exact + (noise.gain * exact + noise.read**2) ** 0.5 * nodes) @ (share / share.sum())
    x = np.interp(found.x.double().cpu().numpy() * size, means, exact[:, 0])
    return replace(found, x=torch.from_numpy(x).to(found.x))


def rate_ratio(levels: Any, ours: np.ndarray, theirs: np.ndarray, draws: int = 500) -> tuple[float, float, float]:
    """The noise rate at which `ours` has the PSNR of `theirs`, as a ratio to theirs, with a 95 % interval.

    Mean curves of PSNR [level, image], linear in the logarithm of the level and beyond the ends, where the first and
    the last piece go on; the geometric mean over the levels of `theirs`. The interval is the bootstrap's over images.
    """
    logs = np.log(np.asarray(levels, dtype=float))

    def curve(psnr: np.ndarray, at: float) -> float:
        k = int(np.clip(np.searchsorted(logs, at) - 1, 0, len(logs) - 2))
        return float(psnr[k] + (psnr[k + 1] - psnr[k]) * (at - logs[k]) / (logs[k + 1] - logs[k]))

    def ratio(chosen: np.ndarray) -> float:
        mine, other = ours[:, chosen].mean(1), theirs[:, chosen].mean(1)
        at = [brentq(lambda log, goal=goal: curve(mine, log) - goal, -20, 20) for goal in other]
        return float(np.exp(np.mean(at - logs)))

    return evaluate.bootstrap(ratio, ours.shape[1], resamples=draws)
