"""Two processes on one machine train as one does."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flow_cases import perturb, rand
from training_cases import SMALL, model, photos, start, train

from companion import data, priors
from companion.priors.checkpoint import read_tensors
from companion.training import Adversarial, Likelihood, Schedule, distributed, recipes

SHARED = replace(SMALL, steps=12, batch_size=5, checkpoint_every=4, validate_every=4, patience=3)


class Slips(Likelihood):
    """Likelihood whose loss turns into NaN on one of the processes."""

    def losses(self, model, *inputs):
        (loss,) = super().losses(model, *inputs)
        return [lambda: loss() * (float("nan") if distributed.rank() == 1 else 1.0)]


def _work(rank, folder, ports):
    """What one of two processes does; its answers go to a file of its own."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0]), "WORLD_SIZE": "2", "RANK": str(rank)}
    with distributed.process_group() as device:
        answers = {"device": str(device), "world": distributed.world(), "rank": distributed.rank()}
        different = perturb(model(torch.float64), 0.1 * rank)  # the first process's weights count
        flow, curve = train(SHARED, flow=different, checkpoint=folder / f"run{rank}.training")
        answers |= {"flow": flow.state_dict(), "score": curve.score, "stopped": curve.stopped_early}
        # what process 0 wrote is continued by both, from its own folder alone
        more = replace(SHARED, seed=1)
        train(more, flow=model(torch.float64), checkpoint=folder / f"more{rank}.training")
        again, _ = train(more, flow=model(torch.float64), checkpoint=folder / f"more{rank}.training")
        answers["again"] = again.state_dict()
        answers["value"] = distributed.from_first(lambda: f"made by {rank}")
        answers["mean"] = float(distributed.mean(torch.tensor(rank + 1.0)))
        digits = (255 * rand(20, 1, 28, 28)).to(torch.uint8)
        gan = perturb(priors.GAN((1, 28, 28), latent_dim=4, width=4), 0.1 * rank)
        few = replace(SHARED, patience=None, steps=4)
        options = {"criterion": Adversarial(), "images": digits, "validation": digits}
        answers["gan"] = train(few, flow=gan, **options)[0].state_dict()
        for name, schedule, criterion in (
            ("NaN", SHARED, Slips()),
            ("tiny batch", replace(SHARED, batch_size=1), None),
        ):
            try:
                train(schedule, criterion=criterion or Likelihood())
            except (FloatingPointError, ValueError) as error:
                answers[name] = str(error)

        def fail():
            raise KeyError(f"on process {rank}")

        for name, act in (
            ("failed", lambda: distributed.from_first(fail)),
            ("unwritable", lambda: train(SHARED, checkpoint=Path("/dev/null/run.training"))),
        ):
            try:
                act()
            except (KeyError, OSError) as error:
                answers[name] = repr(error)
    os.environ["MASTER_PORT"] = str(ports[1])
    data.load = lambda name, split, size: SimpleNamespace(images=photos())
    recipes.RECIPES["small"] = recipes.Recipe(
        data="photos",
        size=None,
        criterion=Likelihood,
        model=model,
        schedule=Schedule(batch_size=5),
        budgets={"quick": ({}, {})},
    )
    answers["recipe"] = str(recipes.train_recipe("small", "quick", out=folder, progress=False))
    answers["left open"] = torch.distributed.is_initialized()
    torch.save(answers, folder / f"answers{rank}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in (first, second)]
    children = [start(_work, rank, folder, ports) for rank in range(2)]
    for child in children:
        child.join(300)
        child.kill()
    assert [child.exitcode for child in children] == [0, 0]
    return folder, [torch.load(folder / f"answers{rank}") for rank in range(2)]


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(pair):
    _, answers = pair
    alone, curve = train(SHARED, flow=model(torch.float64))
    for answer in answers:
        assert answer["world"] == 2 and answer["device"] == "cpu"
        assert answer["score"] == pytest.approx(curve.score, rel=1e-9)
        assert answer["stopped"] == curve.stopped_early
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(answer["flow"][name], value, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
def test_both_processes_hold_the_same_weights_bit_for_bit(pair):
    _, (first, second) = pair
    for run in ("flow", "again", "gan"):
        assert all(torch.equal(first[run][k], second[run][k]) for k in first[run])


@pytest.mark.slow
def test_the_first_process_alone_writes(pair):
    folder, (first, second) = pair
    written = sorted(p.name for p in folder.iterdir() if "answers" not in p.name)
    assert written == ["more0.training", "run0.training", "small.safetensors"]
    assert (first["rank"], second["rank"]) == (0, 1)
    assert first["value"] == second["value"] == "made by 0"


@pytest.mark.slow
def test_one_process_continues_what_two_began(pair):
    folder, answers = pair
    assert read_tensors(folder / "run0.training")[1]["progress"]["step"] == SHARED.steps
    flow, _ = train(SHARED, flow=model(torch.float64), checkpoint=folder / "run0.training")
    assert all(torch.equal(answers[0]["flow"][k], v) for k, v in flow.state_dict().items())


@pytest.mark.slow
def test_a_nan_on_one_process_stops_both(pair):
    for answer in pair[1]:
        assert answer["NaN"].startswith("step 0: the loss is nan")
        assert answer["tiny batch"] == "batch_size: got 1; allowed: at least 2, the processes"


@pytest.mark.slow
def test_an_error_of_the_first_process_stops_both(pair):
    for answer in pair[1]:
        assert answer["failed"] == "KeyError('on process 0')"
        assert answer["unwritable"].startswith("FileExistsError")


@pytest.mark.slow
def test_means_run_over_both_processes(pair):
    assert pair[1][0]["mean"] == pair[1][1]["mean"] == 1.5


@pytest.mark.slow
def test_a_recipe_joins_the_processes_that_a_launcher_started(pair):
    folder, answers = pair
    assert [a["recipe"] for a in answers] == [str(folder / "small.safetensors")] * 2
    assert not any(a["left open"] for a in answers)
    assert priors.load(folder / "small.safetensors").card["data"].startswith("photos, training split, 40 images")


@pytest.mark.slow
def test_torchrun_trains_a_recipe_and_one_process_speaks(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "companion.cli", "train", "glow-photos32", "--profile", "quick", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    stored = f"glow-photos32 quick: stored in {tmp_path / 'glow-photos32.safetensors'}; "
    assert done.stdout.startswith(stored) and "bits/dim on" in done.stdout and done.stdout.count("\n") == 1
    assert done.stdout.endswith("after 20 steps: a trial of the command, not a prior to use\n")
    assert "Warning" not in done.stderr
    assert priors.load(tmp_path / "glow-photos32.safetensors").card


def test_without_a_launcher_nothing_is_shared(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.process_group("cpu") as device:
        assert device == torch.device("cpu") and distributed.world() == 1 and distributed.rank() == 0
    assert distributed.own_rows(7) == slice(0, 7)
    value = torch.ones(2)
    distributed.copy_from_first([value])
    assert torch.equal(value, torch.ones(2)) and distributed.from_first(lambda: 3) == 3
    assert distributed.mean(value) is value
    assert not isinstance(distributed.players(model(), 1), torch.nn.parallel.DistributedDataParallel)


@pytest.mark.parametrize("total", [2, 3, 7, 8, 64])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shares_cover_all_rows_once(monkeypatch, total, processes):
    monkeypatch.setattr(distributed, "world", lambda: processes)
    covered = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        share = range(total)[distributed.own_rows(total)]
        assert abs(len(share) - total / processes) < 1
        covered += share
    assert covered == list(range(total))
