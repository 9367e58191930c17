"""Samples of a model, moved to the posterior by Hamiltonian steps in the model's own latents."""

from typing import Any

import torch
from torch import Tensor

from companion import _support, sample
from companion.bayes.problems import FieldProblem
from companion.priors.msign import Mirrored, MsIGN
from companion.sample.state import Rows

_LEAPFROGS, _STEP = 4, 0.4  # a path of about 1.6 in latents whose posterior is nearly N(0, I)


@torch.inference_mode(False)  # gradients are needed, whatever mode the caller is in
def moved(
    problem: FieldProblem,
    model: Mirrored | MsIGN,
    x: Tensor,
    moves: int,
    seed: int = 0,
    stream: tuple[str | int, ...] = (),
) -> Tensor:
    """Fields x [n, side²], each moved so many times by steps that leave the posterior as it is, [n or fewer, side²].

    The steps are Hamiltonian ones in the latents z of x = T(z): where the model fits, the posterior is N(0, I) there,
    so the model is the metric (neural transport, Hoffman et al. 2019). Under a :class:`Mirrored` model each field is
    taken on the side of f first. Importance weights, which the paper has alone, pick the best of what a proposal
    offers; moved samples go where it offers nothing. A move costs 4 gradients of the posterior for each field. Fields
    at which the posterior or its gradient is not finite, as where a simulation fails, are left out.
    """
    half = model.half_model if isinstance(model, Mirrored) else model
    with torch.no_grad():
        if half is not model:
            mirrored = problem.field.mirror(x)
            x = mirrored.where((half.log_prob(mirrored) > half.log_prob(x))[:, None], x)
        z = half.encode(x)

    def energy(z: Tensor) -> Tensor:
        fields, log_det = half.decode_with_log_det(z)
        return -(problem.log_density(fields) + log_det)

    steps: dict[str, Any] = {"leapfrogs": _LEAPFROGS, "step": _STEP, "warmup": _support.count("moves", moves) - 1}
    try:
        chains = sample.hmc(energy, z[None], draws=1, seed=seed, stream=stream, **steps)
    except ValueError:
        fine = Rows(energy, z[None]).at(z).finite  # only now, as it costs a gradient for each field
        if fine.all() or not fine.any():
            raise
        return moved(problem, model, x[fine], moves, seed, stream)
    with torch.no_grad():
        return half.decode(chains.last[0])
