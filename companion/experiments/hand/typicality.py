"""Likelihood is not typicality: the density that flows give to images which they were, or were not, trained on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from companion import _support, data, priors
from companion.experiments.context import Context
from companion.experiments.registry import experiment

SHOWN = 3  # examples of each family that are stored
SHIFT = 3  # pixels


@dataclass(frozen=True)
class Settings:
    """Which families of images are shown to which flow.

    Attributes:
        drawings: data sets shown to glow-mnist; the first is also altered (shifted, inverted, blended, shuffled).
        photographs: data sets shown to glow-photos32; likewise.
        images: images of each family, at most; fewer where a test split has fewer.
    """

    drawings: tuple[str, ...]
    photographs: tuple[str, ...]
    images: int


@experiment(
    "hand.typicality",
    paper="Hand, lecture notes",
    shows="All signals are in the range of a flow; exact likelihood of any image",
    profiles={
        "quick": Settings(("digits",), ("photos",), 12),
        "laptop": Settings(("mnist", "fashion-mnist", "digits"), ("photos", "eurosat", "flowers"), 400),
    },
)
def typicality(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Scores ordinary, altered and artificial images under a flow of digits and a flow of photographs."""
    metrics: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for kind, prior_name, sets in (
        ("drawings", "glow-mnist", settings.drawings),
        ("photographs", "glow-photos32", settings.photographs),
    ):

        def part(prior_name: str = prior_name, sets: tuple[str, ...] = sets) -> tuple[dict, dict]:
            flow = priors.load(prior_name, context.device)
            shown = families(flow, sets, settings.images, context.seed)
            scores = {name: score(flow, x.to(context.device), context.seed) for name, x in shown.items()}
            context.count_evaluations(sum(map(len, shown.values())))
            found = {"bits": [s[0] for s in scores.values()], "norm": [s[1] for s in scores.values()]}
            found["examples"] = [(x[:SHOWN] * 255).round().byte().numpy() for x in shown.values()]
            return {"families": list(shown), "n": flow.latent_dim}, {k: np.stack(v) for k, v in found.items()}

        done = context.part(kind, part)
        names = done.metrics["families"]
        means = {name: done.arrays[name].astype(np.float64).mean(1).round(3).tolist() for name in ("bits", "norm")}
        metrics[kind] = {
            **done.metrics,
            **{f"mean {name}": dict(zip(names, values, strict=True)) for name, values in means.items()},
        }
        arrays |= {f"{kind} {name}": values for name, values in done.arrays.items()}
    # bits, norm: [families, images]; examples: [families, SHOWN, C, H, W]
    return metrics, arrays


@torch.no_grad()
def score(flow: priors.Flow, x: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits per dimension and ‖z‖ of 8-bit images x, both [batch], from the same dequantised images."""
    assert flow.pixels is not None
    draw, bits, norms = _support.generator(seed), [], []
    for some in x.split(100):
        noisy = flow.pixels.dequantise(some, draw)
        bits.append(flow.pixels.bits_per_dim(flow.log_prob(noisy), flow.latent_dim))
        norms.append(flow.encode(noisy).norm(dim=1))
    return torch.cat(bits).cpu().numpy(), torch.cat(norms).cpu().numpy()


def families(flow: priors.Flow, sets: tuple[str, ...], number: int, seed: int) -> dict[str, Tensor]:
    """Named families of images in [0, 1], each [images, *shape], as many as `number` and the smallest split allow."""
    _support.count("images", number, least=SHOWN)
    loaded = {name: _load(name, "test", flow.shape) for name in sets}
    number = min(number, *map(len, loaded.values()))
    loaded = {name: x[:number] for name, x in loaded.items()}
    draw = _support.generator(seed)
    base = loaded[sets[0]]
    grey = torch.linspace(0, 1, number)[:, None, None, None].expand(-1, *flow.shape)
    order = torch.randperm(flow.shape[1] * flow.shape[2], generator=draw)
    samples = flow.sample(number, seed=draw).clamp(0, 1).cpu()
    return {
        "training": _load(sets[0], "train", flow.shape)[:number],
        **{name: x for name, x in loaded.items()},
        "own samples": samples,
        "shifted": base.roll((SHIFT, SHIFT), (2, 3)),
        "inverted": 1 - base,
        "blends of two": (base + base.roll(1, 0)) / 2,
        "half contrast": 0.5 * base + 0.25,
        "shuffled pixels": base.flatten(2)[:, :, order].view_as(base),
        "constant": grey.clone(),
        "snow": torch.randint(0, 256, (number, *flow.shape), generator=draw) / 255,
    }


def _load(name: str, split: str, shape: tuple[int, ...]) -> Tensor:
    """Images of a set in [0, 1]; 8×8 digits are enlarged to the frame of MNIST's, 20 of 28 pixels."""
    if name == "digits":
        x = data.load(name, split)[:]
        border = (shape[-1] - 20) // 2
        return F.pad(F.interpolate(x, size=(20, 20), mode="bilinear").clamp(0, 1), [border] * 4)
    # every tenth image or so: neighbours in a split may be crops of one photograph
    images = data.load(name, split, size=shape[-1])
    return images[:: max(1, len(images) // 1000)]
