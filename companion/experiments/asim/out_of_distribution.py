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
Solver = Callable[..., recover.Result]
CLASSICAL: dict[str, Solver] = {
    "tv": recover.tv,
    "lasso-dct": partial(recover.lasso, basis="dct"),
}
TINTS = {"brick": (1.0, 0.65, 0.55), "grass": (0.7, 1.0, 0.5), "gravel": (1.0, 0.95, 0.8)}
FACES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold")
WORDS = "few linear sums of pixels hide a picture until some prior tells which one we should believe in"


@dataclass(frozen=True)
class Family:
    """A flow, the generators trained on the same images ("" for none), and the sets of images on which they are tried.

    Attributes:
        sets: the flow's own first.
        everywhere: those recovered at every share of measurements; the others at the middle share only.
        grey: whether the flow's search is made a second time, from the latent of an image that is grey throughout.
    """

    flow: str
    gan: str
    vae: str
    sets: tuple[str, ...]
    everywhere: tuple[str, ...]
    grey: bool = False

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
        budget: evaluations allowed for one image, the same for flow and generators (all restarts together).
        iterations: of the classical methods at most, each far cheaper than an evaluation of a network.
        restarts: of the generators' searches.
        tuned_on: images of the flow's own validation split on which the classical weights are chosen, for every m.
        weights: the weights to choose from.
    """

    families: tuple[Family, ...]
    images: int
    shown: int
    scored: int
    shares: tuple[float, ...]
    budget: int
    iterations: int
    restarts: int
    tuned_on: int
    weights: tuple[float, ...]


WEIGHTS = (0.001, 0.01, 0.1)
NEAR, FAR = ("photos", "satellite", "textures", "text"), ("checkerboards", "constant", "noise")
FEW = Family("glow-photos32", "gan-photos32", "vae-photos32", ("photos", "textures"), ("photos",), grey=True)
PHOTOS = Family("glow-photos32", "gan-photos32", "vae-photos32", (*NEAR, *FAR), NEAR)
SATELLITE = Family("glow-eurosat32", "", "", ("satellite", "photos"), ("satellite", "photos"))
DIGITS = Family("glow-mnist", "gan-mnist", "vae-mnist", ("mnist", "letters", "fashion-mnist", "photos"), (), grey=True)
FLOWERS = Family("glow-flowers64", "", "", ("flowers", *NEAR, *FAR), ("flowers", *NEAR))
PUBLISHED = (1000 / 12288, 2500 / 12288, 5000 / 12288, 7500 / 12288, 10000 / 12288)


@experiment(
    "asim.out-of-distribution",
    paper="Asim et al. 2020",
    shows="Fig. 5, 42-46",
    profiles={
        "quick": Settings((FEW,), 2, 1, 6, (0.1, 0.2), 12, 20, 2, 2, (0.001, 0.01)),
        "laptop": Settings((PHOTOS, SATELLITE, DIGITS), 12, 7, 48, (0.1, 0.2, 0.4), 600, 2000, 5, 8, WEIGHTS),
        "paper": Settings((FLOWERS,), 12, 7, 48, PUBLISHED, 2000, 2000, 5, 8, WEIGHTS),
    },
)
def out_of_distribution(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Recovers images from near to far of what a prior was trained on, and asks what tells them from its own."""
    metrics: dict[str, Any] = {"families": {}}
    arrays: dict[str, np.ndarray] = {}
    for family in settings.families:
        models = {"glow": priors.load(family.flow, context.device)}
        models |= {kind: priors.load(getattr(family, kind), context.device) for kind in family.methods[1:-2]}
        shape, n = models["glow"].shape, models["glow"].latent_dim
        counts = [round(share * n) for share in settings.shares]
        middle = counts[len(counts) // 2]
        number = max(settings.scored, settings.images)
        truth = {name: image_set(name, number, shape).to(context.device) for name in family.sets}
        found: dict[str, Any] = {"own": family.sets[0], "methods": list(family.methods), "m": counts, "weight": {}}
        for name in context.progress(family.sets, family.flow):
            stem = f"{family.flow}/{name}"
            scores = context.part(f"{stem}/scores", partial(_score, settings, context, models, truth[name]))
            found[name] = {"m": [m for m in counts if m == middle or name in family.everywhere]}
            found[name]["scores"] = scores.metrics
            arrays |= {f"{stem}/{key}": value for key, value in scores.arrays.items()}
        solved: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in family.sets}
        for m in context.progress(counts, family.flow):
            some = {name: truth[name][: settings.images] for name in family.sets if m in found[name]["m"]}
            if not some:
                continue
            problem, stem = _problem(shape, m, context.seed), f"{family.flow}/m={m}"
            choose = partial(_choose_weights, settings, context, family.sets[0], problem)
            found["weight"][f"m={m}"] = weight = context.part(f"{stem}/weights", choose).metrics
            solvers: dict[str, Solver] = {"glow": partial(_search, settings, models["glow"])}
            solvers |= {kind: partial(_project, settings, models[kind]) for kind in list(models)[1:]}
            solvers |= {
                method: partial(classical, weight=weight[method], max_iterations=settings.iterations)
                for method, classical in CLASSICAL.items()
            }
            if family.grey:
                solvers["grey"] = partial(_search, settings, models["glow"], grey=True)
            parts = {}
            for method, solver in solvers.items():
                solve = partial(_solve, settings, context, models, problem, some, method, solver)
                parts[method] = context.part(f"{stem}/{method}", solve)
            for k, name in enumerate(some):
                found[name][f"m={m}"] = {
                    key: {method: part.metrics[name][key] for method, part in parts.items()}
                    for key in ("mean psnr", "reasons")
                }
                solved[name].append(_gather(parts, family.methods, k))
        for name, runs in solved.items():
            # psnr and residual: [m, methods, images]; x: [m, methods, C, H, W] of the image shown
            arrays |= {f"{family.flow}/{name}/{key}": np.stack([run[key] for run in runs]) for key in runs[0]}
        at = {name: found[name]["m"].index(middle) for name in family.sets}
        found["auroc"] = {name: _detection(arrays, family, name, at, n) for name in family.sets[1:]}
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
    best = {}
    for method, solve in CLASSICAL.items():
        scores = {}
        for weight in settings.weights:
            estimate = solve(problem.operator, y, weight=weight, max_iterations=settings.iterations)
            scores[weight] = float(evaluate.psnr(estimate.x, x).mean())
        best[method] = max(scores, key=lambda weight: scores[weight])
    return best, {}


def _solve(
    settings: Settings,
    context: Context,
    models: dict[str, Any],
    problem: measure.Problem,
    some: dict[str, Tensor],
    method: str,
    solve: Solver,
) -> tuple[dict, dict]:
    """Estimates of one method from all sets at once, scored against the truth and against the measurements."""
    operator, truth = problem.operator, torch.cat(list(some.values()))
    y = torch.cat([problem.observe(x, 1000 * context.seed + 1) for x in some.values()])
    seen = {"psnr": lambda x, z: evaluate.psnr(torch.nan_to_num(x), truth)}
    searched = method in ("glow", "grey")
    estimate = solve(operator, y, watch=seen) if searched else solve(operator, y)
    psnr, sets = evaluate.psnr(estimate.x, truth), (len(some), settings.images)
    with torch.no_grad():
        residual = (operator(estimate.x) - y).flatten(1).norm(dim=1)
    arrays = {
        "psnr": psnr.double().cpu().numpy().reshape(sets),
        "residual": residual.double().cpu().numpy().reshape(sets),
        "x": _bytes(estimate.x[settings.shown :: settings.images]),
    }
    if method not in CLASSICAL:
        context.count_evaluations(int(estimate.evaluations.sum()))
    if searched:
        flow = models["glow"]
        with torch.no_grad():
            bits = flow.pixels.bits_per_dim(flow.log_prob_latent(estimate.z), flow.latent_dim)
        arrays["estimate norm"] = estimate.z.norm(dim=1).double().cpu().numpy().reshape(sets)
        arrays["estimate bits"] = bits.double().cpu().numpy().reshape(sets)
        at = checkpoints(settings.budget)
        spent = estimate.trace["evaluations"].cpu().numpy()
        rows = [np.searchsorted(spent[:, k], at, side="right") - 1 for k in range(len(truth))]
        path = {"psnr": estimate.trace["psnr"], "residual": estimate.trace["energy"].clamp(min=0).sqrt()}
        for key, values in path.items():
            each = np.stack([values.cpu().numpy()[row, k] for k, row in enumerate(rows)])
            arrays[f"{key} path"] = each.reshape(*sets, len(at)).astype(np.float32)
    each_reason = [estimate.reason[k : k + settings.images] for k in range(0, len(truth), settings.images)]
    return {
        name: {
            "mean psnr": round(float(mean), 3),
            "reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        }
        for name, mean, reasons in zip(some, psnr.view(sets).mean(1), each_reason, strict=True)
    }, arrays


def checkpoints(budget: int) -> np.ndarray:
    """Numbers of evaluations at which a search by the flow is looked at: from the start, 1, to the last."""
    return np.unique(np.r_[np.geomspace(1, budget, 30).round().astype(int), budget // 4])


def _search(
    settings: Settings,
    flow: priors.Flow,
    operator: measure.Operator,
    y: Tensor,
    *,
    grey: bool = False,
    watch: dict[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
) -> recover.Result:
    """Asim et al. 2020, eq. 2, with γ = 0, from z = 0 or from the latent of a grey image."""
    z0 = None
    if grey:
        with torch.no_grad():
            z0 = flow.encode(torch.full((1, *flow.shape), 0.5).to(y)).expand(len(y), -1).clone()
    # as many iterations as evaluations: only the budget stops a search that has not converged
    return recover.flow_latent(
        flow, operator, y, z0=z0, max_iterations=settings.budget, max_evaluations=settings.budget, watch=watch
    )


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


def _gather(parts: dict[str, Any], methods: tuple[str, ...], k: int) -> dict[str, np.ndarray]:
    """Arrays of set k at one m: those that all methods have, stacked, and those of the flow's search."""
    arrays = {key: np.stack([parts[method].arrays[key][k] for method in methods]) for key in ("psnr", "residual", "x")}
    arrays |= {key: value[k] for key, value in parts["glow"].arrays.items() if key not in arrays}
    if "grey" in parts:
        arrays |= {f"grey/{key}": value[k] for key, value in parts["grey"].arrays.items()}
    return arrays


def _detection(
    arrays: dict[str, np.ndarray], family: Family, name: str, at: dict[str, int], n: int
) -> dict[str, float]:
    """Area under the ROC curve of scores that are meant to be larger for `name` than for the flow's own images."""
    scores: dict[str, Callable[[str], np.ndarray]] = {
        "bits": lambda key: arrays[f"{family.flow}/{key}/bits"],
        "norm": lambda key: arrays[f"{family.flow}/{key}/norm"],
        "distance of norm": lambda key: np.abs(arrays[f"{family.flow}/{key}/norm"] - np.sqrt(n)),
        "estimate norm": lambda key: arrays[f"{family.flow}/{key}/estimate norm"][at[key]],
        "estimate bits": lambda key: arrays[f"{family.flow}/{key}/estimate bits"][at[key]],
        "residual": lambda key: arrays[f"{family.flow}/{key}/residual"][at[key], 0],
    }
    return {key: round(auroc(score(family.sets[0]), score(name)), 3) for key, score in scores.items()}


def auroc(own: np.ndarray, other: np.ndarray) -> float:
    """Chance that a score drawn from `other` is above one drawn from `own`, ties counted half (Mann-Whitney U)."""
    difference = np.asarray(other)[:, None] - np.asarray(own)
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def _bytes(x: Tensor) -> np.ndarray:
    return (x.clamp(0, 1) * 255).round().byte().cpu().numpy()
