"""Zhang et al. 2021, sec. 6.1.2: how far the two modes of the elliptic posterior depend on what had to be guessed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from companion import bayes
from companion.experiments import Context, Part, experiment, gather, named


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The problem's constants that the paper prints unclearly, draws without numbers, or leaves out."""

    source: float = 1.0  # times 50/π, in front of f
    side: float = 1 / 8  # of the squares that measure
    gap: float = 1 / 8  # between the centres of neighbours; 1/5 is where squares of side 1/5 tile the domain
    alpha: float = 0.5  # of the prior
    noise: bool = True  # in y


READINGS = {
    "50/π, squares of side 1/8, α = 0.5": Reading(),
    "f with 50/2": Reading(source=torch.pi / 2),
    "f with 50": Reading(source=torch.pi),
    "f with 5 · 50/π": Reading(source=5.0),
    "squares of side 1/16": Reading(side=1 / 16),
    "squares of side 1/5, side by side": Reading(side=1 / 5, gap=1 / 5),
    "α = 0.1": Reading(alpha=0.1),
    "α = 1": Reading(alpha=1.0),
    "f with 50/2, α = 1": Reading(source=torch.pi / 2, alpha=1.0),
    "data without noise": Reading(noise=False),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    lattices: tuple[tuple[int, int], ...]  # side of the field, and of the mesh
    readings: tuple[str, ...] = tuple(READINGS)
    amplitude: float = 1.0  # of the truth, the paper's
    starts: int = 2  # of each search for a maximum


@experiment(
    "msign.readings",
    paper="Zhang et al. 2021",
    shows="whether the posterior of Fig. 4 has two modes, for several readings of the problem",
    profiles={
        "quick": Settings(lattices=((2, 8), (8, 8)), readings=tuple(READINGS)[:3], starts=1),
        "laptop": Settings(lattices=((2, 8), (8, 8), (16, 16), (32, 32), (64, 64))),
    },
    tolerances={"barrier": 0.01},
)
def readings(settings: Settings, context: Context) -> tuple[dict, dict]:
    """The barrier between the modes, array "barrier" by reading and lattice (side of the field/mesh), in nats."""
    items = [(name, *lattice) for name in settings.readings for lattice in settings.lattices]
    lattices = [f"{side}/{mesh}" for side, mesh in settings.lattices]
    found = context.map(_barrier, items, "barriers")
    return {}, gather(found, reading=settings.readings, lattice=lattices)


def _barrier(settings: Settings, part: Part, item: tuple[str, int, int]) -> tuple[dict, dict]:
    name, side, mesh = item
    scales = {one.side: one for one in problem(READINGS[name], mesh, settings.amplitude).scales()}
    height = bayes.barrier(scales[side], settings.starts).height
    part.count_evaluations(scales[side].simulations)
    return {}, {"barrier": named(max(height, 0.0))}  # a maximum without the constraint is never the lower one


def problem(reading: Reading, mesh: int, amplitude: float = 1.0) -> bayes.Elliptic:
    """The elliptic problem in another reading, on a mesh of so many squares a side; its noise is the same."""
    one = bayes.Elliptic(mesh, amplitude, alpha=reading.alpha)
    noise = one.y - one.operator(one.truth[None])[0]
    one.operator.force = reading.source * one.operator.force
    one.operator.measurements = squares(mesh, reading.side, reading.gap)
    one.y = one.operator(one.truth[None])[0] + reading.noise * noise
    return one


def squares(mesh: int, side: float, gap: float) -> Tensor:
    """As `companion.measure.elliptic.paper_measurements`, with other squares; integrals by the midpoint rule."""
    nodes = torch.arange(1, mesh, dtype=torch.float64)[:, None]
    inside = side * ((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000 - 0.5)
    lines = [(1 - (mesh * (0.5 + k * gap + inside) - nodes).abs()).clamp_min(0).mean(1) for k in range(-2, 3)]
    pairs = [(lines[0] + lines[4]) / 2**0.5, (lines[1] + lines[3]) / 2**0.5, lines[2]]
    return side * torch.stack([torch.outer(column, pair).flatten() for column in lines for pair in pairs])
