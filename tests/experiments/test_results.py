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
from companion.experiments import registry, results, store
from companion.experiments.context import Context, check_outcome


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
    draws = torch.randn(2, 8, generator=torch.Generator().manual_seed(3)).numpy()
    assert result.metrics["mean"]["normal"][1] == float(draws.mean())
    np.testing.assert_array_equal(again.arrays["spread"][1], draws.std())
    assert experiments.path("test.tiny", "quick", tmp_path) == tmp_path / "test.tiny" / "quick.json"
    assert not list((tmp_path / "runs").rglob("*.json"))


def test_provenance_says_where_numbers_come_from_and_nothing_private(tmp_path):
    origin = experiments.run("test.tiny", device="cpu", seed=1, out=tmp_path).provenance
    assert (origin.profile, origin.seed) == ("quick", 1)
    assert origin.settings == {"images": 2, "measurements": [4, 8, 16]}
    assert origin.evaluations == 2 * (4 + 8 + 16)
    assert origin.versions["torch"] == torch.__version__ and origin.versions["python"] == platform.python_version()
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
        (lambda out: experiments.load("test.tiny", out=out), r"nothing is stored.*companion run test\.tiny"),
        (lambda out: experiments.load("test.tiny", "laptop", out=out), "nothing is stored.*--profile laptop"),
        (lambda out: experiments.stale("test.tiny", "laptop", out=out), "nothing is stored.*--profile laptop"),
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
@pytest.mark.parametrize("folder", ["test.tiny", "runs/test.tiny/quick/parts"])
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


def test_other_provenance_fields_are_refused(tmp_path):
    experiments.run("test.tiny", out=tmp_path)
    path = experiments.path("test.tiny", "quick", tmp_path)
    document = json.loads(path.read_text())
    del document["provenance"]["seed"]
    document["sha256"] = store._digest(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="its provenance has other fields"):
        experiments.load("test.tiny", out=tmp_path)


def test_stale_follows_the_code(tmp_path, monkeypatch):
    experiments.run("test.tiny", out=tmp_path)
    assert not experiments.stale("test.tiny", "quick", tmp_path)
    entry = registry.get("test.tiny")
    changed = registry.dataclasses.replace(entry.declaration, code_sha256="0" * 64)
    monkeypatch.setitem(registry._registered, "test.tiny", registry.dataclasses.replace(entry, declaration=changed))
    assert experiments.stale("test.tiny", "quick", tmp_path)
    assert experiments.describe("test.tiny", tmp_path)["stored"] == {"quick": "stale"}


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


def test_parts_of_another_version_of_the_package_are_not_used(tmp_path, monkeypatch, log, capsys):
    monkeypatch.setenv("TINY_STOP", "fail@16")
    with pytest.raises(RuntimeError):
        experiments.run("test.tiny", out=tmp_path)
    monkeypatch.delenv("TINY_STOP")
    monkeypatch.setattr(results, "package_hash", lambda: "another")
    log.write_text("")
    result = experiments.run("test.tiny", out=tmp_path)
    assert log.read_text().split() == ["m=4", "m=8", "m=16"]
    assert "made by other code, checkpoints, settings, seed or device" in capsys.readouterr().err
    assert result.provenance.code_sha256 == registry.declaration("test.tiny").code_sha256


def test_damaged_part_is_refused_with_a_message_and_computed_anew(tmp_path, monkeypatch, log, capsys):
    monkeypatch.setenv("TINY_STOP", "fail@16")
    with pytest.raises(RuntimeError):
        experiments.run("test.tiny", out=tmp_path)
    monkeypatch.delenv("TINY_STOP")
    (damaged,) = (tmp_path / "runs" / "test.tiny" / "quick" / "parts").glob("m=8-*.npz")
    damaged.write_bytes(damaged.read_bytes()[:-5])
    log.write_text("")
    result = experiments.run("test.tiny", out=tmp_path)
    assert log.read_text().split() == ["m=8", "m=16"]
    assert f"part 'm=8' refused: {damaged}" in capsys.readouterr().err
    assert result.metrics == experiments.run("test.tiny", out=tmp_path / "whole").metrics


def test_finished_run_keeps_no_parts_for_the_next(tmp_path, log):
    for _ in range(2):
        experiments.run("test.tiny", out=tmp_path)
    assert log.read_text().split() == ["m=4", "m=8", "m=16"] * 2


def test_part_returns_the_same_whether_computed_or_read(tmp_path):
    def values():
        return {"m": (1, np.float64(2.5))}, {"b": np.arange(2), "a": np.arange(3)}

    computed, read = (Context(torch.device("cpu"), 0, tmp_path, "same").part("m=1/seed=0", values) for _ in range(2))
    assert computed.metrics == read.metrics == {"m": [1, 2.5]}
    assert list(computed.arrays) == list(read.arrays)
    np.testing.assert_array_equal(computed.arrays["a"], read.arrays["a"])


def test_part_whose_writing_was_killed_between_its_files_is_used(tmp_path):
    Context(torch.device("cpu"), 0, tmp_path, "same").part("m", lambda: ({"m": 1}, {}))
    (text,) = tmp_path.glob("*.json")
    text.rename(store._temporary(text))
    assert Context(torch.device("cpu"), 0, tmp_path, "same").part("m", lambda: ({"m": 2}, {})).metrics == {"m": 1}


def test_parts_need_names_of_their_own(tmp_path):
    context = Context(torch.device("cpu"), 0, tmp_path, "same")
    context.part("m/1", lambda: ({}, {"a": np.array(1)}))
    assert context.part("m_1", lambda: ({}, {"a": np.array(2)})).arrays["a"] == 2
    with pytest.raises(ValueError, match="part: got 'm/1' a second time"):
        context.part("m/1", lambda: ({}, {}))


@pytest.mark.parametrize("value", [None, {}, ({}, {}, {}), ([], {})])
def test_experiments_that_return_something_else_are_refused(value):
    with pytest.raises(ValueError, match="experiment: returned"):
        check_outcome(value)


def test_evaluations_are_whole_numbers(tmp_path):
    with pytest.raises(ValueError, match=r"evaluations: got 1\.5"):
        Context(torch.device("cpu"), 0, tmp_path, "").count_evaluations(1.5)
