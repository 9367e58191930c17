"""Zhang et al. 2021, sec. 6.2: MsIGN as a model of images beside Glow, with equal parameters, steps and images."""

import itertools
import math
import time
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from companion import _support
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.priors import Flow, Glow
from companion.priors.bijections import Coupling, split_channels
from companion.priors.image_msign import ImageMsIGN, moments
from companion.priors.msign import GlowBlock, Scales
from companion.priors.networks import count_parameters
from companion.priors.pixels import MAPS, PixelMap
from companion.training import LearningCurve, Likelihood, Schedule, fit

MODELS = ("MsIGN", "MsIGN, μ = 1", "Glow", "Glow, Haar")
CONTRACTION = 0.999  # of logit pixels: see PixelMap
STOPS = 4  # snapshots in each F_l (Fig. 7)
TOLERANCES = {"bits": 0.05, "curve": 0.05, "trial": 0.05, "hidden": 0.05, "seconds": None, "*pictures": None}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    data: str = "mnist"
    size: int = 28
    scales: int = 2  # L of MsIGN, and levels of Glow
    steps: int = 6  # K, of Glow at every scale
    width: int = 48  # of Glow; MsIGN's is the one with the nearest number of parameters
    pixels: str = "logit"
    rates: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)  # of which each model's is chosen on validation images
    trial: int  # steps of the trainings that choose it
    updates: int  # steps of each training that is reported
    batch: int = 64
    draws: int  # repetitions with their own weights, batches and noise
    marks: int = 8  # of the learning curves
    images: int = 1000  # test images
    validation: int = 500
    training: int = 60_000  # training images at most
    shown: int = 8  # samples, and pictures of what is inside
    sets: tuple[tuple[str, int, int], ...] = (("mnist", 28, 2), ("photographs", 32, 3))  # with size and L, for μ


@experiment(
    "msign.images",
    paper="Zhang et al. 2021",
    shows="Fig. 6, 7, 15, 18; Table 2 (MNIST), Table 7",
    profiles={
        "quick": Settings(
            data="digits",
            size=8,
            steps=2,
            width=8,
            rates=(2e-3, 8e-3),
            trial=10,
            updates=40,
            draws=1,
            marks=4,
            images=100,
            validation=100,
            shown=3,
            sets=(("digits", 8, 2),),
        ),
        "laptop": Settings(trial=150, updates=1000, draws=3, marks=5),
        # K, hidden channels, batch and rate of Table 6; its 2,000 epochs
        "paper": Settings(
            steps=32, width=512, rates=(1e-3,), trial=1000, updates=275_000, batch=400, draws=3, images=10_000
        ),
    },
    tolerances=TOLERANCES,
)
def drawings(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Trains MsIGN and Glow by likelihood on as many images with as many parameters, and looks inside both."""
    grid = list(itertools.product(MODELS, settings.rates))
    tried = gather(context.map(_try, grid, "rates"), model=MODELS, rate=settings.rates)
    best = [settings.rates[int(each.argmin())] for each in tried["trial"].values]
    cases = [(name, rate, draw) for name, rate in zip(MODELS, best, strict=True) for draw in range(settings.draws)]
    arrays = gather(context.map(_train, cases, "trainings"), model=MODELS, draw=settings.draws)
    found = context.map(_moments, settings.sets, "moments")
    metrics = {
        "rate": dict(zip(MODELS, best, strict=True)),
        "parameters": {name: int(one[0]) for name, one in zip(MODELS, arrays["parameters"].values, strict=True)},
        "moments": {data: each.metrics for (data, *_), each in zip(settings.sets, found, strict=True)},
    }
    return metrics, arrays | tried


PHOTOGRAPHS = Settings(
    data="photographs",
    size=32,
    scales=3,
    steps=4,
    width=32,
    pixels="uniform",
    trial=100,
    updates=600,
    draws=3,
    marks=5,
    sets=(),
)


@experiment(
    "msign.images-photographs",
    paper="Zhang et al. 2021",
    shows="Fig. 6, 7, 16, 18; Table 2, on colour photographs",
    profiles={
        "quick": replace(
            PHOTOGRAPHS,
            data="photos",
            steps=1,
            width=4,
            rates=(8e-3,),
            trial=2,
            updates=4,
            batch=16,
            marks=2,
            images=12,
            validation=12,
            training=200,
            draws=1,
            shown=2,
        ),
        "laptop": PHOTOGRAPHS,
        # Table 6, CIFAR-10, whose 2,000 epochs would be ten times as many steps
        "paper": replace(PHOTOGRAPHS, steps=32, width=512, rates=(1e-3,), updates=25_000, batch=400),
    },
    tolerances=TOLERANCES,
)
def photographs(settings: Settings, context: Context) -> tuple[dict, dict]:
    """The same on colour photographs at three scales."""
    return drawings(settings, context)


def _model(settings: Settings, name: str, seed: int, train: Tensor) -> Flow:
    """A new model of images like `train`; all have as nearly as possible the parameters of the plain Glow."""
    shape = (train.shape[1], *train.shape[2:])
    pixels: dict[str, Any] = {"pixels": settings.pixels, "contraction": CONTRACTION, "seed": seed}
    glow = Glow(
        shape, settings.scales, settings.steps, settings.width, squeeze="haar" if "Haar" in name else "plain", **pixels
    )
    if "Glow" in name:
        return glow
    start = moments(train[:10_000], settings.scales, PixelMap(settings.pixels, contraction=CONTRACTION))
    if "μ = 1" in name:
        start["mu"] = (1.0,) * (settings.scales - 1)

    def msign(width: int) -> ImageMsIGN:
        return ImageMsIGN(shape, settings.scales, settings.steps, width, **start, **pixels)

    wanted = count_parameters(glow)
    # the number grows with the width; models are too large to build one of each
    above = bisect_left(range(2 * settings.width), wanted, settings.width, key=lambda one: count_parameters(msign(one)))
    near = [msign(width) for width in (above - 1, above) if settings.width <= width < 2 * settings.width]
    return min(near, key=lambda model: abs(count_parameters(model) - wanted))


def _schedule(settings: Settings, steps: int, rate: float, seed: int) -> Schedule:
    every = max(1, steps // settings.marks)
    return Schedule(steps, settings.batch, rate, warm_up=min(50, steps // 4), seed=seed, validate_every=every)


def _try(settings: Settings, part: Part, item: tuple[str, float]) -> tuple[dict, dict]:
    """Bits per dimension of validation images after a short training."""
    name, rate = item
    seed = shared.seed_of(part, "trial")
    held_out = shared.images(part, settings.data, "validation", settings.validation, settings.size)
    schedule = replace(_schedule(settings, settings.trial, rate, seed), validate_every=settings.trial)
    _, curve, _ = _fitted(settings, part, name, schedule, held_out)
    return {}, {"trial": named(curve.score[-1])}


def _fitted(
    settings: Settings, part: Part, name: str, schedule: Schedule, held_out: Tensor
) -> tuple[Flow, LearningCurve, float]:
    """A trained model, its curve, and the processor seconds of its training."""
    train = shared.images(part, settings.data, "train", settings.training, settings.size, spread=True).cpu()
    model = _model(settings, name, schedule.seed, train)
    part.count_evaluations(schedule.steps * schedule.batch_size)
    began = time.process_time()
    curve = fit(model, train, Likelihood(), schedule, validation=held_out, device=part.device, progress=False)
    return model, curve, time.process_time() - began


@torch.no_grad()
def _moments(settings: Settings, part: Part, item: tuple[str, int, int]) -> tuple[dict, dict]:
    """μ, m and s of a data set at every scale, of pixels in [0, 1] and of logits."""
    name, size, scales = item
    train = shared.images(part, name, "train", 10_000, size, spread=True)
    return {kind: moments(train, scales, PixelMap(kind, contraction=CONTRACTION)) for kind in MAPS}, {}


def _train(settings: Settings, part: Part, item: tuple[str, float, int]) -> tuple[dict, dict]:
    """Train one model; score it on test images, which choose nothing, at marked steps; sample and dissect it."""
    name, rate, draw = item
    seed = shared.seed_of(part, "draw", draw)
    test = shared.images(part, settings.data, "test", settings.images, settings.size, spread=True)
    schedule = _schedule(settings, settings.updates, rate, seed)
    model, curve, seconds = _fitted(settings, part, name, schedule, test)
    with torch.no_grad():
        noise = _support.generator(part.seed, "dequantisation")  # the same for all
        bits = torch.cat([model.bits_per_dim(some, noise) for some in test.split(250)])
        z = _support.normal((settings.shown, model.latent_dim), part.seed, model.like, "samples")
        ends = model.encode(test[:2])
        way = torch.linspace(0, 1, 6).to(z)[:, None]
        return {}, {
            "curve": named(curve.score, step=curve.validated),
            "bits": named(bits.double().cpu().numpy(), image=len(bits)),
            "seconds": named(seconds),
            "parameters": named(count_parameters(model)),
            "hidden": named(_explained(model, test)),
            "samples pictures": shared.pictures(model.decode(z)),
            "between pictures": shared.pictures(model.decode((1 - way) * ends[:1] + way * ends[1:])),
            "inside pictures": shared.pictures(
                torch.stack(_inside(model, z)), snapshot=STOPS * settings.scales, picture=len(z)
            ),
        }


@torch.no_grad()
def _explained(flow: Any, x: Tensor) -> float:
    """R² of the averages of 2 × 2 pixels on what the finest scale hands on to the next, an affine map of its channels.

    Both are as the pixel map makes them. MsIGN hands on as many channels as images have, Glow twice as many.
    """
    h = flow.pixels.encode(x)[0]
    if isinstance(flow, Glow):
        handed = split_channels(flow.bijection.levels[0].encode(h)[0])[0]  # type: ignore[index, union-attr]
    else:
        scheme = flow.bijection
        joined = scheme.conditionings[-1].encode(scheme.flows[-1].encode(h)[0])[0]
        handed = joined[:, : math.prod(scheme.shapes[-2])].view(-1, *scheme.shapes[-2])
    averages = avg_pool2d(h, 2).movedim(1, -1).flatten(0, -2).double()
    columns = handed.movedim(1, -1).flatten(0, -2).double()
    columns = torch.cat([columns, torch.ones_like(columns[:, :1])], 1)
    residual = averages - columns @ torch.linalg.lstsq(columns, averages).solution
    return 1 - float(residual.square().sum() / (averages - averages.mean(0)).square().sum())


@torch.no_grad()
def _inside(flow: Any, z: Tensor) -> list[Tensor]:
    """What latents z are on the way to images: STOPS snapshots at each scale, coarse to fine, each [batch, *shape].

    A snapshot leaves out the couplings that are still to come, so that their rotations of channels are undone. Of
    Glow's hidden channels, which are no images, the first are shown, from their lowest to their highest value.
    """
    scheme, x = flow.bijection, z
    shown: list[Tensor] = []
    blocks = list(scheme.levels[::-1]) if isinstance(flow, Glow) else list(scheme.flows)
    for level, block in enumerate(blocks):
        start = _start(scheme, level, x, z)
        for stop in range(STOPS):
            x = _partly(block, start, round(stop / (STOPS - 1) * flow.config["steps"]))
            image = x[:, : flow.shape[0]]
            if isinstance(flow, Glow) and level < len(blocks) - 1:
                image = (image - image.amin()) / (image.amax() - image.amin())
            else:
                image = flow.pixels.decode(image)[0]
            shown.append(interpolate(image, flow.shape[1:]))
    return shown


def _start(scheme: Any, level: int, x: Tensor, z: Tensor) -> Tensor:
    """What the block of a level, 0 for the coarsest, is given: the image of the coarser one, and its own latents."""
    if isinstance(scheme, Scales):
        parts = z.tensor_split([math.prod(shape) for shape in scheme.shapes[:-1]], 1)
        if level == 0:
            return scheme.root.decode(parts[0])[0].view(-1, *scheme.shapes[0])  # type: ignore[union-attr]
        return scheme.conditionings[level - 1].decode(torch.cat([x.flatten(1), parts[level]], 1))[0]
    kept = scheme.kept[::-1][level]
    parts = z.split([math.prod(shape) for shape in scheme.kept], 1)[::-1]
    own = parts[level].view(-1, *kept)
    return torch.cat([x, own], 1) if level else own


def _partly(block: Any, x: Tensor, couplings: int) -> Tensor:
    """A block's ``decode`` with the first couplings alone."""
    if isinstance(block, GlowBlock):
        return block.squeeze.decode(_partly(block.chain, block.squeeze.encode(x)[0], couplings))[0]
    for part in block.ordered("decode"):
        if isinstance(part, Coupling):
            couplings -= 1
        if couplings >= 0 or not isinstance(part, Coupling):
            x = part.decode(x)[0]
    return x
