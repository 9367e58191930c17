"""Images unlike the training images: how much each prior loses on them, and what tells that they are unlike."""

import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage import data as skimage_data
from torch import Tensor

from companion import _support, data, evaluate, measure, priors, recover
from companion.experiments.context import Context
from companion.experiments.registry import experiment

DATA_SETS = {"satellite": "eurosat"} | {name: name for name in ("photos", "flowers", "mnist", "fashion-mnist")}
RENDERED = ("textures", "text", "checkerboards", "constant", "noise", "letters")
CLASSICAL: dict[str, Callable[..., recover.Result]] = {
    "tv": recover.tv,
    "lasso-dct": partial(recover.lasso, basis="dct"),
}
TINTS = {"brick": (1.0, 0.65, 0.55), "grass": (0.7, 1.0, 0.5), "gravel": (1.0, 0.95, 0.8)}
FACES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold")
WORDS = "few linear sums of pixels hide a picture until some prior tells which one we should believe in"


@dataclass(frozen=True)
class Family:
    """A flow, the generators trained on the same images ("" for none), and sets of images, its own first."""

    flow: str
    gan: str
    vae: str
    sets: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of what is compared: the flow first, then the generators, then the classical ones."""
        return ("glow", *(kind for kind in ("gan", "vae") if getattr(self, kind)), *CLASSICAL)


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Attributes:
        families: priors and the sets of images on which they are tried.
        images: images of each set that are recovered.
        shown: which of them is stored as a picture.
        scored: images of each set whose density is computed; the recovered ones are the first of them.
        shares: measurements m as shares of the pixels n.
        budget: evaluations allowed for one image, the same for every method (all restarts of a generator together).
        restarts: of the generators' searches.
        tuned_on: images of the flow's own validation split on which the classical weights are chosen, for every m.
        weights: the weights to choose from.
        long_images, long_budget: images and evaluations of a longer search by the flow at the middle share, beside
            total variation with the same budget and with its weight chosen on these very images.
        inpainted: sets of the first family whose centre is hidden and filled in.
    """

    families: tuple[Family, ...]
    images: int
    shown: int
    scored: int
    shares: tuple[float, ...]
    budget: int
    restarts: int
    tuned_on: int
    weights: tuple[float, ...]
    long_images: int
    long_budget: int
    inpainted: tuple[str, ...]


WEIGHTS = (0.001, 0.003, 0.01, 0.03, 0.1)
FAR = ("textures", "text", "checkerboards", "constant", "noise")
FEW = Family("glow-photos32", "gan-photos32", "vae-photos32", ("photos", "textures"))
PHOTOS = Family("glow-photos32", "gan-photos32", "vae-photos32", ("photos", "satellite", *FAR))
SATELLITE = Family("glow-eurosat32", "", "", ("satellite", "photos"))
DIGITS = Family("glow-mnist", "gan-mnist", "vae-mnist", ("mnist", "letters", "fashion-mnist", "photos"))
FLOWERS = Family("glow-flowers64", "", "", ("flowers", "photos", "satellite", *FAR))
HIDDEN = ("photos", "satellite", "textures", "text")
PUBLISHED = (1000 / 12288, 2500 / 12288, 5000 / 12288, 7500 / 12288, 10000 / 12288)


@experiment(
    "asim.out-of-distribution",
    paper="Asim et al. 2020",
    shows="Fig. 5, 42-46, 49",
    profiles={
        "quick": Settings((FEW,), 2, 1, 6, (0.2,), 12, 2, 2, (0.001, 0.01), 1, 20, ("textures",)),
        "laptop": Settings((PHOTOS, SATELLITE, DIGITS), 12, 7, 48, (0.1, 0.2, 0.4), 150, 1, 8, WEIGHTS, 4, 600, HIDDEN),
        "paper": Settings((FLOWERS,), 12, 7, 48, PUBLISHED, 600, 1, 8, WEIGHTS, 12, 2000, ("flowers", *HIDDEN)),
    },
)
def out_of_distribution(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Recovers images from near to far of what a prior was trained on, and asks what tells them from its own."""
    metrics: dict[str, Any] = {"families": {}}
    arrays: dict[str, np.ndarray] = {}
    for family in settings.families:
        models = {"glow": priors.load(family.flow, context.device)}
        models |= {kind: priors.load(getattr(family, kind), context.device) for kind in family.methods[1:-2]}
        shape = models["glow"].shape
        counts = [round(share * models["glow"].latent_dim) for share in settings.shares]
        problems = {f"m={m}": _problem(shape, m, context.seed) for m in counts}
        if family is settings.families[0]:
            mask = measure.Mask(measure.masks.centre(shape).to(context.device))
            noise = measure.GaussianNoise.of_norm(0.1, mask.output_shape[0])
            problems["inpainting"] = measure.Problem(mask, noise)
        chosen = {}
        for key, problem in problems.items():
            choose = partial(_choose_weights, settings, context, family.sets[0], problem)
            chosen[key] = context.part(f"{family.flow}/{key}/weights", choose).metrics
        found: dict[str, Any] = {"own": family.sets[0], "methods": list(family.methods), "m": counts, "weight": chosen}
        for name in context.progress(family.sets, family.flow):
            truth = image_set(name, max(settings.scored, settings.images), shape).to(context.device)
            some, stem = truth[: settings.images], f"{family.flow}/{name}"
            parts = {"scores": context.part(f"{stem}/scores", partial(_score, settings, context, models, truth))}
            for key, problem in problems.items():
                if key != "inpainting" or name in settings.inpainted:
                    solve = partial(_solve_all, settings, context, models, problem, some, chosen[key])
                    parts[key] = context.part(f"{stem}/{key}", solve)
            middle = problems[f"m={counts[len(counts) // 2]}"]
            longer = partial(_solve_long, settings, context, models["glow"], middle, truth[: settings.long_images])
            parts["long"] = context.part(f"{stem}/long", longer)
            found[name] = {key: part.metrics for key, part in parts.items()}
            arrays |= _gather(stem, parts, [f"m={m}" for m in counts])
        found["auroc"] = {
            name: _detection(arrays, family, name, len(counts) // 2, models["glow"].latent_dim)
            for name in family.sets[1:]
        }
        metrics["families"][family.flow] = found
    return metrics, arrays


def image_set(name: str, number: int, shape: tuple[int, ...], split: str = "test") -> Tensor:
    """Images [number, *shape] of a set, 8-bit values in [0, 1], the same on every call; the first do not depend on how
    many follow.

    "satellite" is EuroSAT; "textures" are scikit-image's brick, grass and gravel, tinted; "text" and "letters" are set
    in DejaVu, letters as MNIST is: in a box of 20 pixels about the centre. "checkerboards" have squares of 1, 2, 4 and
    8 pixels in two colours. `split` matters for data sets only, which need their files. Greyscale shapes take the mean
    over channels and the centre of photographs. ValueError for an unknown name or too many images of a data set.
    """
    _support.one_of("name", name, (*DATA_SETS, *RENDERED))
    _support.count("number", number)
    channels, height, width = shape
    draws = _support.generator(0)
    if name in DATA_SETS:
        x = _from_data(name, number, split, height)
    elif name == "textures":
        x = torch.cat([_texture(k, height) for k in range(number)])
    elif name == "text":
        x = torch.stack([_text(k, height, width) for k in range(number)])
    elif name == "letters":
        x = torch.stack([_letter(k, height, width) for k in range(number)])
    elif name == "constant":
        x = torch.rand(number, channels, 1, 1, generator=draws).expand(-1, -1, height, width)
    elif name == "noise":
        x = torch.rand(number, channels, height, width, generator=draws)
    else:
        x = torch.stack([_checkerboard(k, channels, height, width, draws) for k in range(number)])
    if x.shape[1] != channels:
        x = x.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return (x[:, :, top : top + height, left : left + width].clamp(0, 1) * 255).round() / 255


def _from_data(name: str, number: int, split: str, side: int) -> Tensor:
    images = data.load(DATA_SETS[name], split=split, size=side if "mnist" in name or side == 64 else 32)
    if number > len(images):
        raise ValueError(f"number: got {number}; allowed: at most {len(images)}, the {split} images of {name}")
    # EuroSAT and flowers come class by class
    if name in ("satellite", "flowers"):
        return images[torch.randperm(len(images), generator=_support.generator(0))[:number]]
    return images[:number]


def _texture(k: int, side: int) -> Tensor:
    """Window k of the three textures in turn, shrunk by 2, [1, 3, side, side]."""
    name = list(TINTS)[k % 3]
    picture = torch.from_numpy(getattr(skimage_data, name)()).float() / 255
    windows = picture.unfold(0, 2 * side, 2 * side).unfold(1, 2 * side, 2 * side).flatten(0, 1)
    window = torch.nn.functional.avg_pool2d(windows[(k // 3 * 29) % len(windows)][None, None], 2)
    return window * torch.tensor(TINTS[name]).view(1, 3, 1, 1)


def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf", size)


def _text(k: int, height: int, width: int) -> Tensor:
    """A page of small words: ink and paper are dark and light in turn, and tinted, [3, height, width]."""
    draws = _support.generator(k)
    dark, light = 0.25 * torch.rand(3, generator=draws), 1 - 0.25 * torch.rand(3, generator=draws)
    size = (8, 10, 13)[k % 3]
    page = Image.new("L", (width, height))
    pen, font = ImageDraw.Draw(page), _font(FACES[k % len(FACES)], size)
    for row in range(height // size + 1):
        pen.text((1 - k % 3, row * (size + 1)), WORDS[(7 * k + 11 * row) % 60 :], fill=255, font=font)
    strokes = torch.from_numpy(np.array(page)).float() / 255
    ink, paper = (dark, light) if k % 2 == 0 else (light, dark)
    return paper.view(3, 1, 1) + strokes * (ink - paper).view(3, 1, 1)


def _letter(k: int, height: int, width: int) -> Tensor:
    """White letter on black, scaled into a box of 20 pixels and centred, [1, height, width]."""
    letter = string.ascii_letters[(k * 11) % 52]
    canvas = Image.new("L", (200, 200))
    ImageDraw.Draw(canvas).text((40, 40), letter, fill=255, font=_font(FACES[k % len(FACES)], 96))
    drawing = canvas.crop(canvas.getbbox())
    scale = 20 / max(drawing.size)
    small = drawing.resize([max(1, round(side * scale)) for side in drawing.size], Image.Resampling.BOX)
    page = Image.new("L", (width, height))
    page.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return torch.from_numpy(np.array(page)).float()[None] / 255


def _checkerboard(k: int, channels: int, height: int, width: int, draws: torch.Generator) -> Tensor:
    period = (1, 2, 4, 8)[k % 4]
    colours = torch.rand(2, channels, generator=draws)
    odd = (torch.arange(height)[:, None] // period + torch.arange(width) // period) % 2
    return colours[odd].permute(2, 0, 1)


def _problem(shape: tuple[int, ...], m: int, seed: int) -> measure.Problem:
    return measure.Problem(measure.Gaussian(shape, m, 1000 * seed), measure.GaussianNoise.of_norm(0.1, m))


def _choose_weights(settings: Settings, context: Context, own: str, problem: measure.Problem) -> tuple[dict, dict]:
    """The weights with the best mean PSNR on a flow's own validation images; other sets have to live with them."""
    x = image_set(own, settings.tuned_on, problem.operator.shape, "validation").to(context.device)
    y = problem.observe(x, 1000 * context.seed + 900)
    return {
        method: _best(settings.weights, solve, problem, y, x, settings.budget)[0] for method, solve in CLASSICAL.items()
    }, {}


def _best(
    weights: tuple[float, ...],
    solve: Callable[..., recover.Result],
    problem: measure.Problem,
    y: Tensor,
    truth: Tensor,
    iterations: int,
) -> tuple[float, float]:
    """The weight with the best mean PSNR, and that PSNR."""
    scores = {}
    for weight in weights:
        estimate = solve(problem.operator, y, weight=weight, max_iterations=iterations)
        scores[weight] = float(evaluate.psnr(estimate.x, truth).mean())
    best = max(scores, key=lambda weight: scores[weight])
    return best, round(scores[best], 3)


def _solve_long(
    settings: Settings, context: Context, flow: priors.Flow, problem: measure.Problem, truth: Tensor
) -> tuple[dict, dict]:
    """Flow and total variation with a larger budget; PSNR of the flow's iterates after each of `evaluations`."""
    y, spend = problem.observe(truth, 1000 * context.seed + 1), settings.long_budget
    seen = {"psnr": lambda x, z: evaluate.psnr(torch.nan_to_num(x), truth)}
    found = recover.flow_latent(flow, problem.operator, y, max_evaluations=spend, watch=seen)
    context.count_evaluations(int(found.evaluations.sum()))
    weight, psnr = _best(settings.weights, recover.tv, problem, y, truth, spend)
    at = np.unique(np.geomspace(5, spend, 25).astype(int))
    spent, path = found.trace["evaluations"].numpy(), found.trace["psnr"].numpy()
    rows = [np.searchsorted(spent[:, k], at, side="right") - 1 for k in range(spent.shape[1])]
    metrics = {
        "glow": round(float(evaluate.psnr(found.x, truth).mean()), 3),
        "tv": psnr,
        "tv weight": weight,
        "reasons": {reason: found.reason.count(reason) for reason in sorted(set(found.reason))},
    }
    return metrics, {"evaluations": at, "path": np.stack([path[row, k] for k, row in enumerate(rows)], 1)}


def _solve_all(
    settings: Settings,
    context: Context,
    models: dict[str, Any],
    problem: measure.Problem,
    truth: Tensor,
    weights: dict[str, float],
) -> tuple[dict, dict]:
    """Estimates of all methods from the same measurements, scored against the truth and against the measurements."""
    operator, y = problem.operator, problem.observe(truth, 1000 * context.seed + 1)
    estimates = {"glow": recover.flow_latent(models["glow"], operator, y, max_evaluations=settings.budget)}
    for method, model in list(models.items())[1:]:
        estimates[method] = _project(settings, model, operator, y)
    context.count_evaluations(sum(int(estimate.evaluations.sum()) for estimate in estimates.values()))
    for method, solve in CLASSICAL.items():
        estimates[method] = solve(operator, y, weight=weights[method], max_iterations=settings.budget)
    flow, found = models["glow"], estimates["glow"]
    with torch.no_grad():
        bits = flow.pixels.bits_per_dim(flow.log_prob_latent(found.z), flow.latent_dim)
        misfits = [(operator(estimate.x) - y).flatten(1).norm(dim=1) for estimate in estimates.values()]
    return {
        "mean psnr": {method: round(float(evaluate.psnr(e.x, truth).mean()), 3) for method, e in estimates.items()},
        "reasons": {
            method: {reason: e.reason.count(reason) for reason in sorted(set(e.reason))}
            for method, e in estimates.items()
        },
    }, {
        "psnr": np.stack([evaluate.psnr(estimate.x, truth).numpy() for estimate in estimates.values()]),
        "residual": torch.stack(misfits).double().cpu().numpy(),
        "estimate norm": found.z.norm(dim=1).double().cpu().numpy(),
        "estimate bits": bits.double().cpu().numpy(),
        "x": np.stack([_bytes(estimate.x[settings.shown]) for estimate in estimates.values()]),
    }


def _project(settings: Settings, model: Any, operator: measure.Operator, y: Tensor) -> recover.Result:
    """Bora et al. 2017, eq. 4, with γ = 0 and all restarts together within the budget."""
    each = settings.budget // settings.restarts
    return recover.gan_latent(model, operator, y, restarts=settings.restarts, max_evaluations=each)


def _score(settings: Settings, context: Context, models: dict[str, Any], truth: Tensor) -> tuple[dict, dict]:
    """Density and latent length of dequantised images, length of the plain ones, round trip; generators' nearest."""
    flow = models["glow"]
    with torch.no_grad():
        noisy = flow.pixels.dequantise(truth, context.seed)
        z, log_det = flow.encode_with_log_det(noisy)
        log_density = -0.5 * (z.square().sum(1) + flow.latent_dim * np.log(2 * np.pi)) + log_det
        plain = flow.encode(truth)
        error = (flow.decode(plain) - truth).flatten(1).abs().amax(1)
    arrays = {
        "bits": flow.pixels.bits_per_dim(log_density, flow.latent_dim).double().cpu().numpy(),
        "norm": z.norm(dim=1).double().cpu().numpy(),
        "plain norm": plain.norm(dim=1).double().cpu().numpy(),
        "round trip": error.double().cpu().numpy(),
        "truth": _bytes(truth[settings.shown]),
    }
    some, identity = truth[: settings.images], measure.Identity(flow.shape)
    for method, model in list(models.items())[1:]:
        nearest = _project(settings, model, identity, some)
        context.count_evaluations(int(nearest.evaluations.sum()))
        arrays[f"nearest/{method}"] = evaluate.psnr(nearest.x, some).numpy()
    kept = ("bits", "norm", "plain norm", *(key for key in arrays if key.startswith("nearest/")))
    medians = {f"median {key}": round(float(np.median(arrays[key])), 3) for key in kept}
    return medians | {"share that comes back": round(float((arrays["round trip"] < 1e-3).mean()), 3)}, arrays


def _gather(stem: str, parts: dict[str, Any], runs: list[str]) -> dict[str, np.ndarray]:
    """Arrays of one set: scores as they are, those of the recoveries stacked over m, those of inpainting by name."""
    arrays = {f"{stem}/{key}": value for key, value in parts["scores"].arrays.items()}
    for key in parts[runs[0]].arrays:
        # psnr and residual: [m, methods, images]; x: [m, methods, C, H, W] of the image shown
        arrays[f"{stem}/{key}"] = np.stack([parts[run].arrays[key] for run in runs])
    arrays |= {f"{stem}/long/{key}": value for key, value in parts["long"].arrays.items()}
    if "inpainting" in parts:
        arrays |= {f"{stem}/inpainting/{key}": parts["inpainting"].arrays[key] for key in ("psnr", "x")}
    return arrays


def _detection(arrays: dict[str, np.ndarray], family: Family, name: str, at: int, n: int) -> dict[str, float]:
    """Area under the ROC curve of scores that are meant to be larger for `name` than for the flow's own images."""
    scores = {
        "bits": lambda stem: arrays[f"{stem}/bits"],
        "norm": lambda stem: arrays[f"{stem}/norm"],
        "distance of norm": lambda stem: np.abs(arrays[f"{stem}/norm"] - np.sqrt(n)),
        "estimate norm": lambda stem: arrays[f"{stem}/estimate norm"][at],
        "estimate bits": lambda stem: arrays[f"{stem}/estimate bits"][at],
        "residual": lambda stem: arrays[f"{stem}/residual"][at, 0],
    }
    own, other = f"{family.flow}/{family.sets[0]}", f"{family.flow}/{name}"
    return {key: round(auroc(score(own), score(other)), 3) for key, score in scores.items()}


def auroc(own: np.ndarray, other: np.ndarray) -> float:
    """Chance that a score drawn from `other` is above one drawn from `own`, ties counted half (Mann-Whitney U)."""
    difference = np.asarray(other)[:, None] - np.asarray(own)
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def _bytes(x: Tensor) -> np.ndarray:
    return (x.clamp(0, 1) * 255).round().byte().cpu().numpy()
