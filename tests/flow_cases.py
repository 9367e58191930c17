"""Random architectures and perturbed weights, for the tests of every flow."""

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from companion.priors import Flow, Glow


def perturb(model: nn.Module, size: float = 0.03, seed: int = 0) -> nn.Module:
    """Add N(0, size²) to every parameter: fresh couplings are the identity, which would hide faults."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=draw, dtype=torch.float64).to(p.dtype))
    return model


@st.composite
def glow_settings(draw: st.DrawFn, largest: int = 256) -> dict:
    """Arguments of a Glow with at most `largest` pixels: channels 1 to 3, every coupling, convolution and pixel map."""
    levels = draw(st.integers(1, 3))
    unit = 2**levels
    channels = draw(st.integers(1, 3))
    height = unit * draw(st.integers(1, 2))
    width = unit * draw(st.integers(1, 2))
    if channels * height * width > largest:
        channels, height, width = 1, unit, unit
    return {
        "shape": (channels, height, width),
        "levels": levels,
        "steps": draw(st.integers(1, 3)),
        "width": draw(st.integers(1, 9)),
        "coupling": draw(st.sampled_from(["affine", "additive"])),
        "conv1x1": draw(st.sampled_from(["rotation", "lu", "dense"])),
        "pixels": draw(st.sampled_from(["uniform", "logit"])),
        "bits": draw(st.integers(1, 8)),
        "seed": draw(st.integers(0, 9)),
    }


def rand(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randn(*shape: int, seed: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tiny(seed: int = 0, dtype: torch.dtype = torch.float64, **settings: object) -> Flow:
    """A perturbed Glow on 1×4×4 images."""
    flow = Glow(**({"shape": (1, 4, 4), "levels": 2, "steps": 2, "width": 4, "seed": seed} | settings))
    return perturb(flow.to(dtype), 0.1, seed)
