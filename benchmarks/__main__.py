"""Glow beside normflows, nflows and FrEIA, the elliptic solver beside SciPy, HMC beside Pyro: ``python -m benchmarks``.

K=8 steps, L=3 levels, width 128, batch 16, 3×32×32, float32, two threads. Ratios are to the fastest peer: below 1 is
faster.
"""

import json
import platform
import sys
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.elliptic import compare_solvers
from benchmarks.measure import Worker, interleaved_medians, kept_mib, milliseconds, peak_mib
from benchmarks.peers import PEERS, Companion, installed
from benchmarks.sampling import compare_samplers
from benchmarks.tasks import STEPS, TASKS, THREADS, decoding_and_gradient, density_and_gradient, images, prepare

RESULTS = Path(__file__).parent / "results.json"


def compare(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds and MiB of every library, by task."""
    rows: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(prepare, name)) for name in installed()}
        for task in TASKS:
            rows[f"{task}, ms"] = interleaved_medians({n: partial(w, task) for n, w in workers.items()}, rounds)
        rows["kept for backward, MiB"] = {name: worker("kept") for name, worker in workers.items()}
    return rows


def depth(rounds: int) -> dict[str, float]:
    """What `memory_saving` keeps and costs at two depths."""
    kept, peak, found = {}, {}, {}
    for steps in (4, 6, 32, 96):
        model = Companion(steps, memory_saving=True)
        if steps in (4, 32):
            kept[steps] = kept_mib(model, lambda m=model: m.log_prob(images()))
        else:
            model.requires_grad_(False)  # the gradients of the parameters are no activations
            peak[steps] = peak_mib(partial(decoding_and_gradient, model))
    found["kept for backward, K=4, MiB"], found["kept for backward, K=32, MiB"] = kept[4], kept[32]
    found["kept, K=32 / K=4 (at most 1.5)"] = kept[32] / kept[4]
    found["peak, K=6, MiB"], found["peak, K=96, MiB"] = peak[6], peak[96]
    found["peak, K=96 / K=6 (below 2)"] = peak[96] / peak[6]
    plain, saving = Companion(STEPS), Companion(STEPS, memory_saving=True)
    tasks = {"plain": partial(density_and_gradient, plain), "saving": partial(density_and_gradient, saving)}
    times = interleaved_medians({name: partial(milliseconds, task) for name, task in tasks.items()}, rounds)
    found["time, memory-saving / ordinary (at most 1.4)"] = times["saving"] / times["plain"]
    return found


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    torch.set_num_threads(THREADS)
    rows = compare(rounds)
    names = list(next(iter(rows.values())))
    print(f"{'':38}" + "".join(f"{name:>12}" for name in names) + f"{'ratio':>12}")
    ratios = {}
    for row, values in rows.items():
        peers = [values[name] for name in names if name in PEERS]
        ratios[row] = values["companion"] / min(peers) if peers else float("nan")
        print(f"{row:38}" + "".join(f"{values[name]:12.1f}" for name in names) + f"{ratios[row]:12.2f}")
    if len(names) == 1:
        print("No peer is installed: make bench brings them.")
    memory = depth(rounds)
    for row, value in memory.items():
        print(f"memory_saving: {row:50}{value:10.2f}")
    solvers = compare_solvers(rounds)
    for case, measured in solvers.items():
        print(f"elliptic, {case:40}" + "".join(f"{name} {value:.3g}  " for name, value in measured.items()))
    samplers = compare_samplers()
    for case, measured in samplers.items():
        print(f"{case:50}" + "".join(f"{name} {value:.3g}  " for name, value in measured.items()))
    about = {"cpu": cpu_model(), "threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": rounds}
    about["peers"] = {name: version(name) for name in names if name in PEERS}
    result = {"about": about, "measured": rows, "ratio to the fastest peer": ratios, "memory_saving": memory}
    result |= {"elliptic": solvers, "samplers": samplers}
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
