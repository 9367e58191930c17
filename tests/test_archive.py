"""The archive of an assignment's tests: what otter-grader is given passes the solution, and nothing less."""

import io
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from matplotlib import pyplot as plt

from companion import grading
from companion.cli import main
from companion.grading import master
from companion.grading.master import source

Case = tuple[bool, Callable[[dict[str, Any]], None]]

# Less of what the cells of open questions compute: nothing here looks at a figure, which `make assignments` makes.
FEWER = {
    "01-coupling-flow": {"450, 0.01": "20, 0.01"},
    "02-blur-and-projections": {
        "steps=500": "steps=20",
        "30": "3",
        "(0.003, 0.01, 0.03)": "(0.01,)",
        "(0.03, 0.1, 0.3, 1.0)": "(0.1,)",
    },
    "03-speckle": {
        "[:50]": "[:5]",
        "(200, 64": "(20, 64",
        "in (0.01, 0.03, 0.1, 0.3)": "in (0.03,)",
        "arange(-1, 9)": "arange(0, 4)",
    },
    "04-coarse-to-fine": {"range(600)": "range(30)", "400_000": "40_000"},
    "05-sample-and-plan": {"5000, 1)": "400, 1)", "kept[1000:]": "kept[80:]", "21, 120)": "21, 3)"},
}


def unpacked(content: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name).decode() for name in file.namelist()}


def loaded(text: str) -> tuple[dict[str, Any], list[Case]]:
    """Names and cases (hidden or not) of a test file, with a decorator in the place of otter-grader's."""
    cases: list[Case] = []
    otter: Any = ModuleType("otter.test_files")
    otter.test_case = lambda *, hidden: lambda function: cases.append((hidden, function))
    space: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "otter", ModuleType("otter"))
        patch.setitem(sys.modules, "otter.test_files", otter)
        exec(text, space)
    return space, cases


@pytest.mark.parametrize("name", grading.names())
def test_archive_has_every_test_of_the_master(name: str) -> None:
    wanted: dict[str, tuple[float, list[bool]]] = {}  # read from the raw cells, not by the package
    inside = ""
    for cell in json.loads((master._ASSIGNMENTS / name / "master.ipynb").read_text())["cells"]:
        text = source(cell)
        if text.startswith("# BEGIN QUESTION") and "manual: true" not in text:
            inside = re.findall(r"name: (.+)", text)[0]
            wanted[inside] = float(re.findall(r"points: (.+)", text)[0]), []
        elif cell["cell_type"] == "code" and "assert" in text:
            wanted[inside][1].append("# HIDDEN" in text)
    files = unpacked(grading.archive(grading.load(name)))
    found = {}
    for path, text in files.items():
        if path.startswith("tests/"):
            space, cases = loaded(text)
            assert path == f"tests/{space['name']}.py" and space["all_or_nothing"] and not space["OK_FORMAT"]
            found[space["name"]] = space["points"], [hidden for hidden, _ in cases]
    assert found == wanted
    assert set(files) - {f"tests/{question}.py" for question in wanted} == {
        "README.md",
        "otter_config.json",
        "requirements.txt",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", grading.names())
def test_cases_pass_the_solution_and_fail_on_nothing(name: str) -> None:
    task = grading.load(name)
    plt.switch_backend("Agg")
    solved: dict[str, Any] = {}
    fewer = FEWER[name]
    unused = set(fewer)
    for cell in task.solution["cells"]:
        kind = cell["metadata"].get("companion", {})
        if cell["cell_type"] == "code" and "test" not in kind:
            text = source(cell)
            if "answer" in kind:  # the figures to expect, too
                unused -= {old for old in unused if old in text}
                for old, new in fewer.items():
                    text = text.replace(old, new)
            exec(text, solved)
    assert not unused, f"no cell of an open question has {unused}"
    plt.close("all")
    for path, text in unpacked(grading.archive(task)).items():
        if path.startswith("tests/"):
            for _, case in loaded(text)[1]:
                case(solved)
                with pytest.raises((NameError, AssertionError)):
                    case({})


def test_a_case_leaves_the_names_alone_and_takes_any_text() -> None:
    awkward = 'text = """a\\nb"""\nassert "\\n" not in r"\\n" and text.split()[answer] == "b", "no field {a}"'
    question = grading.Question("one", 1.5, False, [awkward])
    task = grading.Assignment("awkward", "", 1, 1, [question], {}, {})
    _, ((_, case),) = loaded(unpacked(grading.archive(task))["tests/one.py"])
    names = {"answer": 1}
    case(names)
    assert names == {"answer": 1}
    with pytest.raises(AssertionError, match=r"no field \{a\}"):
        case({"answer": 0})


def test_command_writes_the_same_archive_again(tmp_path: Path) -> None:
    name = grading.names()[0]
    made = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert main(["assign", name, "--out", str(folder)]) == 0
        assert {path.name for path in folder.iterdir()} == {
            f"{name}-{kind}" for kind in ("student.ipynb", "solution.ipynb", "autograder.zip")
        }
        made.append((folder / f"{name}-autograder.zip").read_bytes())
    assert made[0] == made[1]


def test_requirements_name_the_repository_where_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = grading.load(grading.names()[0])
    monkeypatch.setattr(master, "_BOOK", tmp_path / "_config.yml")
    assert unpacked(grading.archive(task))["requirements.txt"].startswith("#")
    (tmp_path / "_config.yml").write_text('repository:\n  url: "https://b.invalid/flows"\n')
    assert unpacked(grading.archive(task))["requirements.txt"] == "flow-priors @ git+https://b.invalid/flows\n"
