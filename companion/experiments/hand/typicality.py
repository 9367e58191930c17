"""Likelihood is not typicality: the density that flows give to images which they were, or were not, trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from companion import _support, priors
from companion.experiments import Context, Part, experiment, named, shared

PRIORS = {"drawings": "glow-mnist", "photographs": "glow-photos32"}
SHOWN = 3  # examples of each family that are stored
SHIFT = 3  # pixels


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which families of images are shown to which flow."""

    drawings: tuple[str, ...] = ("mnist", "fashion-mnist", "digits")  # shown to glow-mnist; the first is also altered
    photographs: tuple[str, ...] = ("photographs", "eurosat", "flowers")  # likewise to glow-photos32
    images: int = 400  # of each family, at most; fewer where a test split has fewer


@experiment(
    "hand.typicality",
    paper="Hand, lecture notes",
    shows="All signals are in the range of a flow; exact likelihood of any image",
    profiles={"quick": Settings(drawings=("digits",), photographs=("photos",), images=12), "laptop": Settings()},
)
def typicality(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Scores ordinary, altered and artificial images under a flow of digits and a flow of photographs."""
    scored = zip(PRIORS, context.map(_families, list(PRIORS), "flows"), strict=True)
    return {}, {f"{kind} {name}": array for kind, outcome in scored for name, array in outcome.named.items()}


@torch.no_grad()
def _families(settings: Settings, part: Part, kind: str) -> tuple[dict, dict]:
    """Bits per dimension and ‖z‖ of 8-bit images, from the same dequantised images, and examples of each family."""
    flow = shared.prior(part, PRIORS[kind])
    assert flow.pixels is not None
    shown = families(flow, getattr(settings, kind), settings.images, shared.seed_of(part, "families", kind))
    bits, norms = [], []
    for name, x in shown.items():
        part.count_evaluations(len(x))
        draw = _support.generator(part.seed, "dequantisation", name)
        for some in x.to(part.device).split(100):
            noisy = flow.pixels.dequantise(some, draw)
            bits.append(flow.pixels.bits_per_dim(flow.log_prob(noisy), flow.latent_dim))
            norms.append(flow.encode(noisy).norm(dim=1))
    both = {"bits": torch.cat(bits), "norm": torch.cat(norms)}
    examples = shared.as_bytes(torch.stack([x[:SHOWN] for x in shown.values()]))
    axes = dict(zip(("channel", "row", "column"), flow.shape, strict=True))
    return {}, {
        "examples": named(examples, family=shown, picture=SHOWN, **axes),
        **{n: named(v.view(len(shown), -1).cpu().numpy(), family=shown, image=len(x)) for n, v in both.items()},
    }


def families(flow: priors.Flow, sets: tuple[str, ...], number: int, seed: int) -> dict[str, Tensor]:
    """Named families of images in [0, 1], each [images, *shape], as many as `number` and the smallest split allow."""
    _support.count("images", number, least=SHOWN)
    loaded = {name: _load(name, "test", flow.shape) for name in sets}
    number = min(number, *map(len, loaded.values()))
    loaded = {name: x[:number] for name, x in loaded.items()}
    draw = _support.generator(seed, "families")
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
    # every tenth image or so: neighbours in a split may be crops of one photograph
    images = shared.data_set(name, split, shape[-1])
    return images[:: max(1, len(images) // 1000)]
