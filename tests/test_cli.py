import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from companion import __version__, cli, experiments

TINY = Path(__file__).parent / "experiments"


def companion(*arguments, **environment):
    code = "import sys, tiny_experiment; from companion.cli import main; sys.exit(main())"
    path = os.pathsep.join([str(TINY), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_reader_who_has_gone_is_no_failure(tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "companion.cli", "list", "--out", str(tmp_path)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.syspath_prepend(str(TINY))
    return __import__("tiny_experiment")


def call(capsys, *arguments):
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.slow
def test_run_stores_a_result_and_list_shows_it(tiny, capsys, tmp_path):
    done = companion("run", "test.tiny", "--profile", "quick", "--out", tmp_path, "--seed", 2, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "stored in" in done.stdout and done.stdout.count("\n") == 1
    document = json.loads((tmp_path / "test.tiny" / "quick.json").read_text())
    assert document["provenance"]["seed"] == 2
    code, listed, _ = call(capsys, "list", "--json", "--out", tmp_path)  # in another process than the run
    entry = next(entry for entry in json.loads(listed) if entry["name"] == "test.tiny")
    assert code == 0 and entry["stored"] == {"quick": "current"}
    assert entry["profiles"] == ["quick", "laptop"]


@pytest.mark.slow
def test_a_terminal_without_an_experiments_letters_shows_their_codes(tiny, capsys, tmp_path):
    listed = call(capsys, "list", "--out", tmp_path)[1]
    plain = companion("list", "--out", tmp_path, PYTHONIOENCODING="ascii")
    assert plain.returncode == 0, plain.stderr
    # other tests may have declared more here
    assert "×" in listed and "\\xd7" in plain.stdout
    assert set(plain.stdout.splitlines()) <= set(listed.encode("ascii", "backslashreplace").decode().splitlines())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["sing"], "'sing'"),
        (["run"], "NAME"),
        (["list", "--out", "/nonexistent"], "out: got /nonexistent; allowed: a folder that is there"),
        (["verify", "--out", "/nonexistent"], "out: got /nonexistent"),
        (["verify", "test.nothing"], "experiment: got 'test.nothing'"),
        (["run", "test.tiny", "--set", "images"], "set: got 'images'; allowed: NAME=VALUE"),
        (["run", "test.tiny", "--set", "images=many"], "images: got 'many'; allowed: int, as 2"),
        (["run", "test.tiny", "--set", "images={[]: 1}"], "images: got '{[]: 1}'; allowed: int, as 2"),
        (["run", "test.tiny", "--store", "--set", "images=3"], "changes: got some"),
        (["run", "test.tiny", "--workers", "0"], "workers: got 0"),
        (["run", "test.nothing"], "(did you mean "),
        (["run", "test.tiny", "--module", "work.py"], "module: got 'work.py'; allowed: a module's name without .py"),
        (["run", "test.tiny", "--module", "./work"], "module: got './work'; allowed: a module's name without .py"),
        (["run", "test.tiny", "--module", "no.such"], "module: got 'no.such'; allowed: one in this folder"),
        (["run", "test.tiny", "--profile", "huge"], "profile: got 'huge'; allowed: quick, laptop"),
        (["run", "test.tiny", "--seed", "-1"], "seed: got -1"),
        (["run", "test.tiny", "--seed", "one"], "--seed"),
        (["run", "test.tiny", "--device", "tpu"], "device: got 'tpu'; allowed: auto, cpu, cuda"),
        (["run", "test.tiny", "--colour", "red"], "--colour"),
        (["run", "test.tiny", "--out", __file__], "out: got"),
        (["data"], "ACTION"),
        (["data", "fetch", "moon"], "data set: got 'moon'; allowed: digits"),
        (["train", "moon"], "recipe: got 'moon'; allowed: a-flow"),
        (["train", "a-flow", "--profile", "huge"], "profile: got 'huge'; allowed: quick, laptop"),
    ],
)
def test_bad_arguments_exit_2_with_one_line_that_says_which(
    tiny, fakes, capsys, tmp_path, monkeypatch, arguments, says
):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert code == 2 and out == "" and says in err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def fakes(monkeypatch):
    """Stand-ins for the modules that train and fetch, so that neither happens here."""
    experiments.names()  # imports them all, with the modules that there are
    calls = []
    training = types.ModuleType("companion.training")
    training.PROFILES = ("quick", "laptop", "paper")
    training.recipe_names = lambda: ["a-flow"]
    training.train_recipe = lambda *given, **named: calls.append((given, named)) or Path("there.safetensors")
    training.quality = lambda path: "for trying out only"
    data = types.ModuleType("companion.data")
    data.names = lambda: ["digits", "mnist"]
    data.licence = lambda name: "free"
    data.fetch = lambda name: calls.append(name) or ([] if name == "digits" else [Path("mnist/a.gz")])
    monkeypatch.setitem(sys.modules, "companion.training", training)
    monkeypatch.setitem(sys.modules, "companion.data", data)
    return calls


HOW = {"replace": False, "start": None, "export": False, "pictures": None}


def test_python_m_companion_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "companion", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"flow-priors {__version__}\n")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            "assign",
            "Make of assignments the students' notebooks, the solved ones, the tests. From each assignments/NAME/",
        ),
        ("grade", "Grade notebooks that students hand in. Each runs in a process of its own"),
        ("list", "Experiments, their profiles, and what is stored."),
    ],
)
def test_help_says_what_a_command_does(capsys, command, says):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0 and says in " ".join(out.split())


def test_train_and_fetch_reach_their_modules(fakes, capsys, tmp_path):
    code, out, _ = call(capsys, "train", "a-flow", "--profile", "laptop", "--out", tmp_path, "--device", "cpu")
    assert (code, out) == (0, "a-flow laptop: stored in there.safetensors; for trying out only\n")
    assert fakes == [(("a-flow", "laptop"), {"out": tmp_path, "device": "cpu", "progress": True, **HOW})]
    assert call(capsys, "train", "a-flow", "--replace")[0] == 0
    assert fakes[1][1]["replace"] is True and fakes[1][1]["out"] == Path("runs")
    assert call(capsys, "train", "a-flow", "--store")[0] == 0 and fakes[2][1]["out"] is None
    assert call(capsys, "train", "a-flow", "--data", "mine")[0] == 0 and fakes[3][1]["pictures"] == "mine"
    assert call(capsys, "data", "fetch", "mnist")[:2] == (0, "mnist: mnist/a.gz\n")
    assert call(capsys, "data", "list")[:2] == (0, "digits: free\nmnist: free\n")
    assert call(capsys, "data", "fetch", "digits")[:2] == (0, "digits: embedded, nothing to fetch\n")


def test_failure_exits_1_with_one_line_and_debug_shows_the_traceback(tiny, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TINY_STOP", "fail@8")
    code, _, err = call(capsys, "run", "test.tiny", "--out", tmp_path)
    assert code == 1 and err.startswith("measurements: 1 of 3, one 4 (")
    assert err.splitlines()[-1] == "companion: failed with RuntimeError: the solver broke (--debug shows where)"
    code, _, err = call(capsys, "run", "test.tiny", "--out", tmp_path, "--debug")
    assert code == 1 and "Traceback" in err and "tiny_experiment.py" in err


def test_damaged_result_exits_2_and_names_the_file_after_the_whole_list(tiny, capsys, tmp_path):
    call(capsys, "run", "test.tiny", "--out", tmp_path)
    (tmp_path / "test.tiny" / "quick.json").write_text("{")
    code, out, err = call(capsys, "list", "--out", tmp_path)
    assert code == 2 and "test.tiny: Nobody 1900, Fig. 0" in out and "stored: quick (damaged)" in out
    assert err.count("\n") == 1 and "quick.json" in err and "companion run test.tiny --profile quick" in err


def test_interrupt_exits_130_and_the_next_run_resumes(tiny, monkeypatch, capsys, tmp_path):
    log = tmp_path / "log"
    monkeypatch.setenv("TINY_LOG", str(log))
    monkeypatch.setenv("TINY_STOP", "interrupt@8")
    code, _, err = call(capsys, "run", "test.tiny", "--out", tmp_path)
    assert code == 130 and err.splitlines()[-1].startswith("companion: stopped") and "Traceback" not in err
    monkeypatch.delenv("TINY_STOP")
    assert call(capsys, "run", "test.tiny", "--out", tmp_path)[0] == 0
    assert log.read_text().split() == ["m=4", "m=8", "m=8", "m=16"]
    assert call(capsys, "run", "test.tiny", "--out", tmp_path, "--fresh")[0] == 0
    assert log.read_text().split()[4:] == ["m=4", "m=8", "m=16"]


@pytest.mark.slow
def test_real_interrupt_signal_exits_130_cleanly(tmp_path):
    code = (
        "import os, signal, sys, tiny_experiment; from companion import cli, experiments;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's background jobs begin without it
        "experiments.run = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT);"
        "sys.exit(cli.main(['run', 'test.tiny']))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TINY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT and "Traceback" not in done.stderr


def test_a_run_without_a_folder_goes_to_runs_below_the_working_folder(tiny, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code, _, err = call(capsys, "run", "test.tiny", "--set", "images=3", "--set", "label=a b")
    assert code == 0 and err.count("measurements: ") == 3
    document = json.loads((tmp_path / "runs" / "test.tiny" / "quick.json").read_text())
    assert (document["provenance"]["settings"]["images"], document["provenance"]["settings"]["label"]) == (3, "a b")
    assert call(capsys, "run", "test.tiny", "--out", "~/x")[0] == 0
    assert (tmp_path / "home" / "x" / "test.tiny" / "quick.json").is_file() and not (tmp_path / "~").exists()


def test_a_module_of_the_working_folder_declares_experiments_of_ones_own(monkeypatch, capsys, tmp_path):
    (tmp_path / "own_work.py").write_text("from tiny_experiment import *\n")
    (tmp_path / "lacking.py").write_text("import no_such_module\n")
    monkeypatch.setattr(sys, "path", [str(TINY), *filter(None, sys.path)])
    monkeypatch.chdir(tmp_path)
    for command in (["run", "test.tiny", "--out", "."], ["list", "--out", "."], ["verify", "test.tiny", "--out", "."]):
        monkeypatch.delitem(sys.modules, "own_work", raising=False)
        code, out, err = call(capsys, *command, "--module", "own_work")
        assert code == 0 and "test.tiny" in out and "own_work" in sys.modules, err
    assert call(capsys, "list", "--module", "lacking")[0] == 1


def test_verify_exits_0_for_the_same_numbers_and_1_for_others(tiny, monkeypatch, capsys, tmp_path):
    call(capsys, "run", "test.tiny", "--out", tmp_path)
    assert call(capsys, "verify", "test.tiny", "--out", tmp_path)[:2] == (0, "test.tiny: the same numbers\n")
    monkeypatch.setattr(tiny, "generator", lambda seed, *names: None)
    code, out, err = call(capsys, "verify", "test.tiny", "--out", tmp_path)
    assert code == 1 and "spread: off by" in out and "other numbers than stored, or none: test.tiny" in err


def test_version(capsys):
    assert call(capsys, "--version")[:2] == (0, f"flow-priors {__version__}\n")


HELPED = [(), ("list",), ("run",), ("verify",), ("train",), ("data",), ("data", "list"), ("data", "fetch")]


@pytest.mark.parametrize("command", HELPED)
def test_help_says_what_there_is(capsys, command):
    code, out, _ = call(capsys, *command, "--help")
    assert code == 0 and out.startswith("usage: companion")
    if not command:
        assert all(word in out for word in ("list", "run", "verify", "train", "data", "130"))


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_and_import_load_nothing_heavy():
    heavy = ("torch", "numpy", "scipy", "matplotlib", "skimage")
    code = (
        "import sys, companion, companion.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
        f"print('heavy:', *[name for name in {heavy} if name in sys.modules])"
    )
    assert python(code).splitlines()[-1].strip() == "heavy:"


@pytest.mark.slow
def test_import_takes_at_most_300_ms_beyond_torch():
    code = "import time, torch; start = time.perf_counter(); import companion; print(time.perf_counter() - start)"
    # One of three will do: a busy machine slows an import, nothing speeds one up.
    assert any(float(python(code)) < 0.3 for _ in range(3))
