"""Super-resolution and deblurring beside compressed sensing, with what needs no flow or no training beside the flow."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from companion import _support, data, evaluate, measure, priors, recover
from companion.experiments import Context, Part, experiment, gather, named, problems, shared
from companion.measure.base import LinearOperator
from companion.priors.deep_image_prior import DeepImagePrior
from companion.priors.networks import ConvConditioner
from companion.recover.denoisers import plug_and_play

BLUR_STD = 1.0  # pixels
SHARE = 0.2  # measurements of compressed sensing over pixels
SHRINK = 0.9  # of the denoiser's strength, after each of its runs
GREY = 0.5  # what a Glow that nobody trained makes of z = 0, and what Tikhonov's penalty pulls to

PROBLEMS = ("super-resolution", "blur", "compressed sensing")

# from which validation images choose, for every problem
WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "simple": (0.0,),  # nothing to choose
    "tikhonov": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),  # of ‖x − ½‖²
    "gaussian": (1.0,),
    "tv": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1),
    "pnp-bm3d": (0.05, 0.1, 0.2, 0.4, 0.8),  # strength of the first denoising
    "dip": (50, 100, 150, 200, 300, 400, 600, 800, 1200, 1600),  # iterations, of which a run passes all
    "untrained": (0.0,),  # deviation of the random last layers
    "random": (0.01,),
    "glow": (0.0,),  # γ, as in the paper
    "glow-map": (0.06, 0.12, 0.25, 0.5, 1.0, 2.0),  # β
}


@dataclass(frozen=True, kw_only=True)
class Settings(shared.OnImages):
    """Sizes of the comparison."""

    flow: str = "glow-photos32"
    gaussian: str = "gaussian-photos32"
    std: float = 0.02  # of the noise of super-resolution and blur; compressed sensing has its chapter's
    images: int = 72  # three crops of each photograph
    weights: Mapping[str, tuple[float, ...]]
    tuned_on: int = 5  # validation images
    problems: tuple[str, ...] = PROBLEMS
    budget: int = 60  # evaluations of a search by a flow
    denoisings: int = 40  # at most, of plug-and-play
    tv_iterations: int = 5000
    width: int = 32  # of the deep image prior
    learning_rate: float = 0.03  # of its Adam
    shown: int = 3  # images whose estimates are stored

    @property
    def methods(self) -> list[str]:
        """Those with weights; the package of BM3D is optional."""
        return [name for name in self.weights if name != "pnp-bm3d" or find_spec("bm3d")]


_FEW = {name: weights[:1] for name, weights in WEIGHTS.items()} | {"dip": (5, 10), "tikhonov": (1e-3, 1e-2)}
_FEW["glow-map"] = (0.25,)
_SMALL: dict[str, Any] = {"data": "photos", "images": 1, "tuned_on": 1, "budget": 3, "denoisings": 2}
_SMALL |= {"problems": PROBLEMS[:2], "tv_iterations": 100, "width": 8, "shown": 1}


@experiment(
    "asim.operators",
    paper="Asim et al. 2020; Venkatakrishnan et al. 2013; Ulyanov et al. 2018",
    shows="Fig. 4 in kind, for operators other than random ones, and priors that are denoisers or architectures",
    profiles={
        "quick": Settings(weights=_FEW, **_SMALL),
        "laptop": Settings(weights=WEIGHTS),
    },
    tolerances={"psnr": 0.05, "path": 0.05, "seconds": None},
)
def operators(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers crops from fewer or blurred pixels by flows trained and untrained, a denoiser, and simple methods.

    Arrays by problem and method: psnr, ssim (both of the pixels that :func:`inside` keeps), evaluations, recovered, and
    seconds (of one image; those solved at once share them). "path": PSNR of the deep image prior by iteration, on the
    validation images.
    """
    methods, names = settings.methods, settings.problems
    items = [(problem, method) for problem in names for method in methods]
    choices = context.map(_choose, items, "weights")
    weights = [choice.metrics["weight"] for choice in choices]
    paths = [choice for choice in choices if choice.named]
    solved = context.map(_solve, [(*item, w) for item, w in zip(items, weights, strict=True)], "searches")
    truth = settings.truth(context)
    photo = data.load(settings.data, "test", settings.size).photo
    chosen = {name: {m: w for (p, m), w in zip(items, weights, strict=True) if p == name} for name in names}
    return {"chosen": chosen}, gather(solved, problem=names, method=methods) | gather(paths, problem=names) | {
        "photograph": named(np.asarray(photo)[: len(truth)], image=len(truth)),
        "truth": shared.pictures(truth[: settings.shown]),
    }


def pose(settings: Settings, part: Part, name: str, truth: Tensor, draw: str | int = 0) -> tuple[Any, Tensor]:
    """The problem of that name, and measurements of images, [batch, ...]."""
    shape = tuple(truth.shape[1:])
    if name == "compressed sensing":
        return problems.compressed(part, truth, int(SHARE * truth[0].numel()), draw)
    operator = measure.Downsample(shape, 2) if name == "super-resolution" else measure.Blur.gaussian(shape, BLUR_STD)
    problem = measure.Problem(operator, measure.GaussianNoise(settings.std))
    return problem, problem.observe(truth, shared.seed_of(part, name, draw))


def simple(operator: LinearOperator, y: Tensor) -> Tensor:
    """Images without a prior, [batch, C, H, W]: y enlarged by bicubic interpolation, y with its edge repeated, or A* y.

    For a :class:`~companion.measure.Downsample`, a :class:`~companion.measure.Blur`, and other linear operators.
    """
    if isinstance(operator, measure.Downsample):
        # with `antialias` the cubic is Keys's, which leaves a ramp as it is
        return F.interpolate(y, scale_factor=operator.factor, mode="bicubic", antialias=True)
    if isinstance(operator, measure.Blur):
        rows, columns = (side // 2 for side in operator.kernel.shape)
        return F.pad(y, (columns, columns, rows, rows), mode="replicate")
    return operator.adjoint(y)


def inside(operator: measure.Operator, x: Tensor) -> Tensor:
    """The pixels that measurements see in full, [batch, C, h, w]: a blur's kernel sees the border in part."""
    if not isinstance(operator, measure.Blur):
        return x
    rows, columns = (side // 2 for side in operator.kernel.shape)
    return x[:, :, rows : x.shape[2] - rows, columns : x.shape[3] - columns]


def untrained(flow: Any, std: float, seed: int) -> priors.Glow:
    """A Glow of the same sizes with its initial weights, but N(0, std²) in the couplings' last layers, which are 0."""
    fresh = priors.Glow(**flow.config).to(flow.like).eval().requires_grad_(False)
    source = _support.generator(seed, "last layers")
    for network in fresh.modules():
        if isinstance(network, ConvConditioner):
            last: Any = network[-1].weight
            last.copy_(std * torch.randn(last.shape, generator=source, device="cpu"))
    return fresh


def _choose(settings: Settings, part: Part, item: tuple[str, str]) -> tuple[dict, dict]:
    name, method = item
    weights = settings.weights[method]
    truth = settings.truth(part, "validation", settings.tuned_on)
    problem, y = pose(settings, part, name, truth, "validation")
    score = _psnr(problem.operator)
    if method == "dip":  # one run passes all of them
        found = part.count(_deep_image_prior(settings, part, problem, y, max(weights), truth))
        path = found.at("psnr", weights)
        named_path = named(path.numpy(), evaluation=weights, image=len(truth))
        return {"weight": weights[int(path.mean(1).argmax())]}, {"path": named_path}
    best, _ = problems.choose(part, weights, lambda w: _estimate(settings, part, problem, y, method, w), truth, score)
    return {"weight": weights[best]}, {}


def _solve(settings: Settings, part: Part, item: tuple[str, str, float]) -> tuple[dict, dict]:
    name, method, weight = item
    truth = settings.truth(part)
    problem, y = pose(settings, part, name, truth)
    began = time.perf_counter()
    found = part.count(_estimate(settings, part, problem, y, method, weight))
    seconds = (time.perf_counter() - began) / len(truth)
    pair = inside(problem.operator, found.x), inside(problem.operator, truth)
    scores = {"psnr": evaluate.psnr(*pair), "ssim": evaluate.ssim(*pair), "evaluations": found.evaluations}
    return {}, shared.by_image(scores) | {
        "seconds": named(seconds),
        "recovered": shared.pictures(found.x[: settings.shown]),
    }


def _psnr(operator: measure.Operator) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, truth: evaluate.psnr(inside(operator, torch.nan_to_num(x)), inside(operator, truth))


def _deep_image_prior(
    settings: Settings, part: Part, problem: Any, y: Tensor, iterations: float, truth: Tensor | None = None
) -> recover.Result:
    network = DeepImagePrior(problem.operator.shape, settings.width).to(y)
    seed, score = shared.seed_of(part, "networks"), _psnr(problem.operator)
    options: dict[str, Any] = {"learning_rate": settings.learning_rate, "max_evaluations": int(iterations)}
    options["max_iterations"] = int(iterations)  # else it would stop at the default of all searches
    if truth is not None:
        options["watch"] = {"psnr": lambda x, z: score(x, truth)}
    return recover.gan_latent(network, problem.operator, y, restarts=1, seed=seed, method="adam", **options)


def _estimate(settings: Settings, part: Part, problem: Any, y: Tensor, method: str, weight: float) -> recover.Result:
    operator, std = problem.operator, problem.noise.std
    if method == "simple":
        return problems.closed_form(simple(operator, y))
    if method == "tikhonov":
        grey = y.new_full((len(y), *operator.shape), GREY)
        return problems.closed_form(grey + recover.pseudo_inverse(operator, y - operator.forward(grey), weight).x)
    if method == "tv":
        return recover.tv(operator, y, weight, max_iterations=settings.tv_iterations)
    if method == "pnp-bm3d":
        options: dict[str, Any] = {"shrink": SHRINK, "x0": simple(operator, y), "max_iterations": settings.denoisings}
        return plug_and_play(operator, y, _bm3d, std, weight, tolerance=1e-3, **options)
    if method == "dip":
        return _deep_image_prior(settings, part, problem, y, weight)
    gaussian = shared.stored_gaussian(part, settings.gaussian)
    if method == "gaussian":
        return recover.gaussian_map(operator, y, *gaussian, std)
    flow = shared.prior(part, settings.flow)
    options = {"max_evaluations": settings.budget}
    if method == "glow-map":
        return recover.flow_map(flow, problem, y, weight, space="x", gaussian=gaussian, **options)
    if method in ("untrained", "random"):
        flow = untrained(flow, weight, shared.seed_of(part, "untrained"))
    return recover.flow_latent(flow, operator, y, **options)


def _bm3d(x: Tensor, std: float) -> Tensor:
    return recover.bm3d(x, std, exact=False).x
