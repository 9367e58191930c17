import json
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_experiment
import torch

from companion import experiments
from companion._support import generator
from companion.experiments import fingerprint, results, states, store
from companion.experiments.arrays import named
from companion.experiments.context import Context
from companion.experiments.parts import check_outcome


@pytest.fixture
def log(tmp_path, monkeypatch):
    path = tmp_path / "computed.txt"
    path.touch()
    monkeypatch.setenv("TINY_LOG", str(path))
    return path


def run_in_process(out, **environment):
    folder = Path(tiny_experiment.__file__).parent
    code = f"import tiny_experiment; from companion import experiments; experiments.run('test.tiny', out={str(out)!r})"
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, **environment}, capture_output=True
    )


def test_run_stores_what_load_reads(tmp_path):
    result = experiments.run("test.tiny", seed=3, out=tmp_path)
    again = experiments.load("test.tiny", out=tmp_path)
    assert (result.name, result.profile) == ("test.tiny", "quick")
    assert again.metrics == result.metrics and again.provenance == result.provenance
    draws = torch.randn(2, 8, generator=generator(3, "draws", 8)).numpy()
    assert result.metrics["mean"]["normal"][1] == float(draws.mean())
    np.testing.assert_array_equal(again.take("spread", m=8), draws.std(1))
    assert experiments.path("test.tiny", "quick", tmp_path) == tmp_path / "test.tiny" / "quick.json"
    assert not list((tmp_path / "parts").rglob("*.json"))


def test_provenance_says_where_numbers_come_from_and_nothing_private(tmp_path):
    origin = experiments.run("test.tiny", device="cpu", seed=1, out=tmp_path).provenance
    assert (origin.profile, origin.seed) == ("quick", 1)
    assert origin.settings == {"images": 2, "measurements": [4, 8, 16], "scale": 1.0, "label": "none"}
    assert origin.evaluations == 2 * (4 + 8 + 16)
    assert origin.versions["torch"] == torch.__version__ and origin.versions["python"] == platform.python_version()
    assert origin.reads == {}
    assert set(origin.versions) == {"python", "torch", "numpy", "companion"}
    assert 0 <= origin.wall_seconds < 60 and re.fullmatch(r"\d{4}-\d\d-\d\d", origin.date)
    assert re.search(r"\(\d+ threads?\)$", origin.device)
    text = experiments.path("test.tiny", "quick", tmp_path).read_text()
    assert socket.gethostname() not in origin.device and str(tmp_path) not in text and str(Path.home()) not in text


def test_same_seed_same_files_but_for_time(tmp_path):
    first, second = (experiments.run("test.tiny", seed=5, out=tmp_path / name) for name in "ab")
    other = experiments.run("test.tiny", seed=6, out=tmp_path / "c")
    assert first.metrics == second.metrics != other.metrics
    packed = [(tmp_path / name / "test.tiny" / "quick.npz").read_bytes() for name in "abc"]
    assert packed[0] == packed[1] != packed[2]


def test_load_prefers_the_larger_profile(tmp_path):
    experiments.run("test.tiny", "laptop", out=tmp_path)
    experiments.run("test.tiny", "quick", out=tmp_path)
    assert experiments.load("test.tiny", out=tmp_path).profile == "laptop"
    assert experiments.load("test.tiny", "quick", out=tmp_path).provenance.settings["images"] == 2
    assert experiments.describe("test.tiny", tmp_path)["stored"] == {"quick": "current", "laptop": "current"}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda out: experiments.run("test.tiny", "huge", out=out), "profile: got 'huge'; allowed: quick, laptop"),
        (lambda out: experiments.run("test.tiny", "paper", out=out), "profile: got 'paper'; allowed: quick, laptop"),
        (lambda out: experiments.run("test.tiny", seed=-1, out=out), "seed: got -1"),
        (lambda out: experiments.run("test.tiny", out=3), "out: got 3; allowed: a folder"),
        (lambda out: experiments.load("test.tiny", out=b"x"), "out: got b'x'; allowed: a folder"),
        (
            lambda out: experiments.run("test.tiny", device="tpu", out=out),
            "device: got 'tpu'; allowed: auto, cpu, cuda",
        ),
        (lambda out: experiments.load("test.tiny", "huge", out=out), "profile: got 'huge'"),
        (lambda out: experiments.load("test.tiny", out=out), r"nothing.*companion run test\.tiny.* --module tiny_ex"),
        (lambda out: experiments.load("test.tiny", "laptop", out=out), "nothing is stored.*--profile laptop"),
        (lambda out: experiments.state("test.tiny", "laptop", out=out), "nothing is stored.*--profile laptop"),
        (lambda out: experiments.verify("test.tiny", out=out), "nothing is stored.*--profile quick"),
        (lambda out: experiments.run("test.tiny", out=None, changes={"images": 3}), "changes: got some for the book"),
        (lambda out: experiments.run("test.tiny", out=out, changes={"image": 3}), "did you mean images"),
        (lambda out: experiments.run("test.tiny", out=out, workers=0), "workers: got 0"),
        (lambda out: experiments.run("test.tiny", out=out, workers=2, scheduler="tcp://x:1"), "workers: got 2 and"),
    ],
)
def test_bad_arguments_are_named(tmp_path, call, says):
    with pytest.raises(ValueError, match=says) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_out_that_is_a_file_is_refused_before_the_work(tmp_path, log):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out: got .*file"):
        experiments.run("test.tiny", out=tmp_path / "file")
    assert log.read_text() == ""


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which not even root can write")
@pytest.mark.parametrize("folder", ["test.tiny", "parts/test.tiny/quick"])
def test_folder_that_is_there_and_cannot_be_written_is_refused_before_the_work(tmp_path, log, folder):
    (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / folder).symlink_to("/proc/self")
    with pytest.raises(ValueError, match=rf"out: got .*{folder} \(.*Error\); allowed: a folder that can be written"):
        experiments.run("test.tiny", out=tmp_path)
    assert log.read_text() == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_missing_gpu_is_said(tmp_path):
    with pytest.raises(ValueError, match="device: got 'cuda', but torch finds no CUDA GPU"):
        experiments.run("test.tiny", device="cuda", out=tmp_path)


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_damaged_result_says_which_file_and_what_to_run(tmp_path, suffix):
    experiments.run("test.tiny", out=tmp_path)
    path = tmp_path / "test.tiny" / f"quick{suffix}"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"quick\{suffix}: .*companion run test\.tiny --profile quick") as caught:
        experiments.load("test.tiny", out=tmp_path)
    assert "\n" not in str(caught.value)
    assert experiments.describe("test.tiny", tmp_path)["stored"]["quick"].startswith("damaged")
    assert experiments.run("test.tiny", out=tmp_path).profile == "quick"


def test_result_in_another_results_place_is_refused(tmp_path):
    experiments.run("test.tiny", out=tmp_path)
    for suffix in (".json", ".npz"):
        (tmp_path / "test.tiny" / f"quick{suffix}").rename(tmp_path / "test.tiny" / f"laptop{suffix}")
    with pytest.raises(ValueError, match=r"laptop\.json: holds schema 1, test\.tiny quick"):
        experiments.load("test.tiny", "laptop", out=tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda origin: origin.pop("seed"), "its provenance has other fields"),
        (lambda origin: origin.update(wall_seconds="fast"), "its provenance says wall_seconds = 'fast'"),
        (lambda origin: origin.update(seed=True), "its provenance says seed = True"),
        (lambda origin: origin.update(settings=[1]), r"its provenance says settings = \[1\]"),
        (lambda origin: origin.update(reads=[1]), r"its provenance says reads = \[1\]"),
    ],
)
def test_other_provenance_is_refused(tmp_path, change, says):
    experiments.run("test.tiny", out=tmp_path)
    path = experiments.path("test.tiny", "quick", tmp_path)
    document = json.loads(path.read_text())
    change(document["provenance"])
    document["sha256"] = store._digest(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=says):
        experiments.load("test.tiny", out=tmp_path)
    assert states_of(tmp_path)["quick"].startswith("damaged: ")


@pytest.fixture
def code(monkeypatch):
    """Say what the code's fingerprint is from now on."""
    return lambda value: monkeypatch.setattr(fingerprint, "code", lambda module: value)


def states_of(out):
    return experiments.describe("test.tiny", out)["stored"]


def test_changed_code_is_verified_by_the_quick_numbers(tmp_path, code):
    code("first")
    for profile in ("quick", "laptop"):
        experiments.run("test.tiny", profile, out=tmp_path)
    assert states_of(tmp_path) == {"quick": "current", "laptop": "current"}
    code("renamed")
    assert states_of(tmp_path) == {"quick": "stale", "laptop": "stale"}
    assert experiments.verify("test.tiny", tmp_path) == []
    assert states_of(tmp_path) == {"quick": "verified", "laptop": "verified"}
    code("another")
    assert states_of(tmp_path) == {"quick": "stale", "laptop": "stale"}


def test_changed_numbers_are_told_and_a_new_quick_run_does_not_vouch_for_an_old_laptop_run(tmp_path, code, monkeypatch):
    code("first")
    for profile in ("quick", "laptop"):
        experiments.run("test.tiny", profile, out=tmp_path)
    code("changed")
    monkeypatch.setattr(tiny_experiment, "generator", lambda seed, *names: torch.Generator().manual_seed(99))
    differences = experiments.verify("test.tiny", tmp_path)
    assert [line.partition(":")[0] for line in differences] == ["mean.normal", "spread"]
    assert states_of(tmp_path) == {"quick": "stale", "laptop": "stale"}
    experiments.run("test.tiny", out=tmp_path)
    assert states_of(tmp_path) == {"quick": "current", "laptop": "stale"}
    assert experiments.verify("test.tiny", tmp_path) == []
    assert states_of(tmp_path) == {"quick": "current", "laptop": "stale"}


def test_parts_that_lean_on_one_another_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_STOP", "lean@")
    monkeypatch.setattr(tiny_experiment, "_left_behind", {})
    experiments.run("test.tiny", out=tmp_path)
    monkeypatch.setattr(tiny_experiment, "_left_behind", {})
    assert experiments.verify("test.tiny", tmp_path)


def test_a_quick_run_with_the_same_numbers_keeps_what_was_verified(tmp_path, code):
    code("first")
    for profile in ("quick", "laptop"):
        experiments.run("test.tiny", profile, out=tmp_path)
    code("renamed")
    experiments.run("test.tiny", out=tmp_path)
    assert states_of(tmp_path) == {"quick": "current", "laptop": "verified"}


def test_a_long_run_asks_for_the_quick_numbers_of_its_code(tmp_path, code):
    code("first")
    experiments.run("test.tiny", out=tmp_path)
    code("second")
    experiments.run("test.tiny", "laptop", out=tmp_path)
    code("third")
    assert experiments.verify("test.tiny", tmp_path) == []
    assert states_of(tmp_path) == {"quick": "verified", "laptop": "verified"}


def test_other_settings_and_changed_files_are_stale(tmp_path, monkeypatch):
    experiments.run("test.tiny", out=tmp_path, changes={"images": 3})
    assert experiments.load("test.tiny", out=tmp_path).provenance.settings["images"] == 3
    assert states_of(tmp_path) == {"quick": "stale"}
    experiments.run("test.tiny", out=tmp_path)
    monkeypatch.setattr(fingerprint, "changed", lambda read: ["checkpoints/flow.safetensors"])
    assert states_of(tmp_path) == {"quick": "stale"}


class Numbers:
    def __init__(self, metrics, **arrays):
        self.metrics, self.arrays = metrics, arrays


@pytest.mark.parametrize(
    ("stored", "again", "tolerances", "named"),
    [
        (Numbers({"a": 1.0}), Numbers({"a": 1.005}), {}, []),
        (Numbers({"a": 1.0}), Numbers({"a": 1.02}), {}, ["a"]),
        (Numbers({"a": {"b": [1.0, 2.0]}}), Numbers({"a": {"b": [1.0, 2.2]}}), {}, ["a.b"]),
        (Numbers({"a": {"b": [1.0, 2.0]}}), Numbers({"a": {"b": [1.0, 2.2]}}), {"a": 0.2}, []),
        (Numbers({"a": {"b": 1.0, "c": 1.0}}), Numbers({"a": {"b": 2.0, "c": 1.2}}), {"*.b": None, "a": 0.1}, ["a.c"]),
        (Numbers({"time ratio": 3.0}), Numbers({"time ratio": 9.0}), {"time*": None}, []),
        (Numbers({"a": "x"}), Numbers({"a": "y"}), {}, ["a"]),
        (Numbers({"a": None}), Numbers({"a": 1.0}), {}, ["a"]),
        (Numbers({"a": 1}), Numbers({}), {}, ["a"]),
        (Numbers({}, x=np.zeros(3)), Numbers({}, x=np.zeros(2)), {}, ["x"]),
        (Numbers({}, x=np.array([1, np.nan])), Numbers({}, x=np.array([1, np.nan])), {}, []),
        (Numbers({}, x=np.array([1, np.nan])), Numbers({}, x=np.array([1, 2.0])), {}, ["x"]),
        (Numbers({}, x=np.array([True, False])), Numbers({}, x=np.array([True, True])), {}, ["x"]),
        (Numbers({}, x=np.array(["a"])), Numbers({}, x=np.array(["b"])), {}, ["x"]),
        (Numbers({}, x=np.array([200], np.uint8)), Numbers({}, x=np.array([199], np.uint8)), {}, []),
    ],
)
def test_differences(stored, again, tolerances, named):
    assert [line.partition(":")[0] for line in states.differences(stored, again, tolerances)] == named


@pytest.mark.parametrize(
    ("stored", "again", "tolerances", "named"),
    [
        (Numbers({"a": 1.0}), Numbers({"a": 1.03}), {}, []),
        (Numbers({"a": 1.0}), Numbers({"a": 1.05}), {}, ["a"]),
        (Numbers({"a": 1.0}), Numbers({"a": 1.3}), {"a": 0.1}, []),
        (Numbers({"a": 1.0}), Numbers({"a": 1.5}), {"a": 0.1}, ["a"]),
        (Numbers({}, x=np.array([1, np.nan])), Numbers({}, x=np.array([1, 2.0])), {}, ["x"]),
        (Numbers({}, x=np.array([1, np.nan])), Numbers({}, x=np.array([1, 2.0])), {"x": 0.1}, []),
        (Numbers({}, x=np.array([1, 2.0, 3])), Numbers({}, x=np.array([1, np.nan, np.nan])), {"x": 0.1}, ["x"]),
        (Numbers({}, x=np.zeros(3)), Numbers({}, x=np.zeros(2)), {"x": 0.1}, ["x"]),
    ],
)
def test_more_differs_on_another_model_of_processor(stored, again, tolerances, named):
    assert [line.partition(":")[0] for line in states.differences(stored, again, tolerances, True)] == named


def test_another_processor_is_allowed_what_the_same_one_is_not(tmp_path, monkeypatch):
    experiments.run("test.tiny", out=tmp_path)
    draw = tiny_experiment.generator
    monkeypatch.setattr(states, "ELSEWHERE", 1e6)
    monkeypatch.setattr(tiny_experiment, "generator", lambda seed, *names: draw(99, *names))
    assert experiments.verify("test.tiny", tmp_path)
    monkeypatch.setattr(results, "device_words", lambda device: "another processor (1 thread)")
    assert experiments.verify("test.tiny", tmp_path) == []


def test_axes_are_read_by_name(tmp_path):
    result = experiments.run("test.tiny", out=tmp_path)
    assert result.axes("spread") == {"m": [4, 8, 16], "image": [0, 1]}
    spread = result.arrays["spread"]
    assert result.take("spread", m=8, image=1) == spread[1, 1]
    np.testing.assert_array_equal(result.take("spread", image=0, m=[16, 4]), spread[[2, 0], 0])
    np.testing.assert_array_equal(result.take("spread", m=slice(2)), spread[:2])
    for call, says in (
        (lambda: result.take("spread", m=5), r"m: got 5; allowed: 4, 8, 16$"),
        (lambda: result.take("spread", image=2), r"image: got 2; allowed: 0 to 1$"),
        (lambda: result.take("spread", n=2), r"axis: got 'n' of 'spread'; allowed: m, image$"),
        (lambda: result.take("spred", m=4), r"array: got 'spred'; allowed: spread \(did you mean spread\?\)$"),
        (lambda: result.axes("file"), r"array: got 'file'; allowed: spread$"),
        (lambda: named(np.zeros((2, 3)), m=[1, 2]), r"axes: got m=2 for an array of shape \(2, 3\)"),
        (lambda: named(np.zeros(2), m=[1, 1]), r"m: got labels \[1, 1\]; allowed: each once"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


@pytest.mark.slow
def test_processes_give_the_numbers_of_one(tmp_path):
    alone = experiments.run("test.tiny", "laptop", seed=4, out=tmp_path / "alone")
    spread = experiments.run("test.tiny", "laptop", seed=4, out=tmp_path / "spread", workers=2)
    assert spread.metrics == alone.metrics and spread.provenance.evaluations == alone.provenance.evaluations
    packed = [(tmp_path / name / "test.tiny" / "laptop.npz").read_bytes() for name in ("alone", "spread")]
    assert packed[0] == packed[1]


@pytest.mark.slow
def test_a_process_that_dies_is_told_and_the_next_run_goes_on(tmp_path, log, monkeypatch):
    monkeypatch.setenv("TINY_STOP", "kill@32")
    with pytest.raises(RuntimeError, match="a worker process was ended"):
        experiments.run("test.tiny", "laptop", out=tmp_path, workers=2)
    monkeypatch.delenv("TINY_STOP")
    stored = {path.name.partition("-")[0] for path in (tmp_path / "parts").rglob("one_*.json")}
    log.write_text("")
    resumed = experiments.run("test.tiny", "laptop", out=tmp_path)
    assert {f"one_{line.removeprefix('m=')}" for line in log.read_text().split()}.isdisjoint(stored)
    assert resumed.provenance.evaluations == 3 * (4 + 8 + 16 + 32)


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_loses_and_doubles_nothing(tmp_path, log, monkeypatch):
    distributed = pytest.importorskip("distributed")
    alone = experiments.run("test.tiny", "laptop", out=tmp_path / "alone")
    monkeypatch.setenv("TINY_STOP", "once@16")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        spread = experiments.run("test.tiny", "laptop", out=tmp_path / "spread", scheduler=cluster.scheduler_address)
    assert Path(f"{log}.dead").is_file()  # one worker was killed indeed
    assert spread.metrics == alone.metrics and spread.provenance.evaluations == alone.provenance.evaluations
    packed = [(tmp_path / name / "test.tiny" / "laptop.npz").read_bytes() for name in ("alone", "spread")]
    assert packed[0] == packed[1]


def test_no_scheduler_there_is_said(tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(ValueError, match=r"scheduler: got 'nonsense://x'"):
        experiments.run("test.tiny", out=tmp_path, scheduler="nonsense://x")


@pytest.mark.slow
def test_killed_run_resumes_to_the_result_of_an_unbroken_one(tmp_path, log):
    killed = run_in_process(tmp_path / "broken", TINY_STOP="kill@16")
    assert killed.returncode == -9
    assert log.read_text().split() == ["m=4", "m=8", "m=16"]
    log.write_text("")
    resumed = experiments.run("test.tiny", out=tmp_path / "broken")
    assert log.read_text().split() == ["m=16"]
    unbroken = experiments.run("test.tiny", out=tmp_path / "whole")
    assert resumed.metrics == unbroken.metrics
    assert resumed.provenance.evaluations == unbroken.provenance.evaluations
    packed = [(tmp_path / name / "test.tiny" / "quick.npz").read_bytes() for name in ("broken", "whole")]
    assert packed[0] == packed[1]


@pytest.mark.parametrize("change", [{"seed": 1}, {"profile": "laptop"}, {"resume": False}])
def test_parts_of_another_run_are_not_used(tmp_path, monkeypatch, log, change):
    monkeypatch.setenv("TINY_STOP", "fail@16")
    with pytest.raises(RuntimeError):
        experiments.run("test.tiny", out=tmp_path)
    monkeypatch.delenv("TINY_STOP")
    log.write_text("")
    experiments.run("test.tiny", out=tmp_path, **change)
    assert log.read_text().split()[:3] == ["m=4", "m=8", "m=16"]


@pytest.mark.parametrize("name", ["code", "changed"])
def test_parts_of_other_code_or_other_files_are_not_used(tmp_path, monkeypatch, log, capsys, name):
    monkeypatch.setenv("TINY_STOP", "fail@16")
    with pytest.raises(RuntimeError):
        experiments.run("test.tiny", out=tmp_path)
    monkeypatch.delenv("TINY_STOP")
    monkeypatch.setattr(fingerprint, name, lambda _: "another")
    log.write_text("")
    experiments.run("test.tiny", out=tmp_path)
    assert log.read_text().split() == ["m=4", "m=8", "m=16"]
    assert "made by other code, checkpoints, settings, seed or device" in capsys.readouterr().err


def test_damaged_part_is_refused_with_a_message_and_computed_anew(tmp_path, monkeypatch, log, capsys):
    monkeypatch.setenv("TINY_STOP", "fail@16")
    with pytest.raises(RuntimeError):
        experiments.run("test.tiny", out=tmp_path)
    monkeypatch.delenv("TINY_STOP")
    (damaged,) = (tmp_path / "parts" / "test.tiny" / "quick").glob("one_8-*.npz")
    damaged.write_bytes(damaged.read_bytes()[:-5])
    log.write_text("")
    result = experiments.run("test.tiny", out=tmp_path)
    assert log.read_text().split() == ["m=8", "m=16"]
    assert f"part 'one 8' refused: {damaged}" in capsys.readouterr().err
    assert result.metrics == experiments.run("test.tiny", out=tmp_path / "whole").metrics


def test_finished_run_keeps_no_parts_for_the_next(tmp_path, log):
    for _ in range(2):
        experiments.run("test.tiny", out=tmp_path)
    assert log.read_text().split() == ["m=4", "m=8", "m=16"] * 2


def values(settings, part, item):
    part.count(type("Result", (), {"evaluations": torch.tensor([2, 3])}))
    return {"m": (1, np.float64(2.5))}, {"b": np.arange(2), "a": named(np.arange(3), m=("x", "y", "z"))}


def context(parts):
    return Context(torch.device("cpu"), 0, parts=parts, fingerprint="same")


def test_part_returns_the_same_whether_computed_or_read(tmp_path):
    contexts = context(tmp_path), context(tmp_path)
    computed, read = (each.map(values, [{"m": 1, "x": np.arange(3)}], "parts")[0] for each in contexts)
    assert computed.metrics == read.metrics == {"m": [1, 2.5]}
    assert list(computed.arrays) == list(read.arrays)
    np.testing.assert_array_equal(computed.named["a"].values, read.named["a"].values)
    assert read.named["a"].axes == {"m": ["x", "y", "z"]}
    assert [each.evaluations for each in contexts] == [5, 5]


def test_parts_come_once_and_from_the_top_of_a_module(tmp_path):
    here = context(tmp_path)
    here.map(values, [1, 2], "parts")
    with pytest.raises(ValueError, match="part: got 'values 2' a second time"):
        here.map(values, [3, 2], "parts")
    for function in (lambda settings, part, item: ({}, {}), values.__call__):
        with pytest.raises(ValueError, match="allowed: a function defined at the top of a module"):
            here.map(function, [1], "parts")
    with pytest.raises(ValueError, match="item: got set"):
        here.map(values, [{1}], "parts")


def test_every_part_says_that_it_is_done(tmp_path, capsys):
    context(tmp_path).map(values, [("a", 0.5), ("b", 0.5)], "things")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "things: 1 of 2, values a, 0.5",
        "things: 2 of 2, values b, 0.5",
    ]


@pytest.mark.parametrize("value", [None, {}, ({}, {}, {}), ([], {})])
def test_experiments_that_return_something_else_are_refused(value):
    with pytest.raises(ValueError, match="experiment: returned"):
        check_outcome(value)


def test_evaluations_are_whole_numbers(tmp_path):
    with pytest.raises(ValueError, match=r"evaluations: got 1\.5"):
        context(tmp_path).count_evaluations(1.5)
