"""The project's files agree: lock, pyproject.toml, environment.yml, Makefile and README."""

import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = dict(
    (canonicalize_name(name), pin)
    for name, _, pin in (line.partition("==") for line in (ROOT / "requirements.lock").read_text().split())
)


def direct() -> list[Requirement]:
    """Everything that pyproject.toml asks for, extras included."""
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in PROJECT["dependencies"] + extras]


def test_lock_is_pins_and_nothing_else() -> None:
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.]+", line)
    assert len(LOCK) == len((ROOT / "requirements.lock").read_text().splitlines())


@pytest.mark.parametrize("requirement", direct(), ids=lambda requirement: requirement.name)
def test_lock_pins_what_pyproject_asks_for(requirement: Requirement) -> None:
    assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)])


def test_lock_is_complete() -> None:
    seen: set[str] = set()
    todo = [(canonicalize_name(r.name), frozenset(r.extras)) for r in direct()] + [
        (name, frozenset()) for name in ("hatchling", "editables")
    ]
    missing = []
    while todo:
        name, extras = todo.pop()
        if name in seen and not extras:
            continue
        seen.add(name)
        if name not in LOCK:
            missing.append(name)
        if name == "torch":
            continue  # a CUDA build brings packages of its own
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    assert missing == []


def test_torch_range_admits_what_the_readme_promises() -> None:
    torch = next(requirement for requirement in direct() if requirement.name == "torch")
    assert [v for v in ("2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.0") if torch.specifier.contains(v)] == [
        "2.11.0",
        "2.12.1",
        "2.13.0",
    ]


def test_environment_yml_installs_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, nested = environment["dependencies"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(Version(python.removeprefix("python=")))
    assert (pip, nested) == ("pip", {"pip": ["-r requirements.lock", "-e ."]})


def test_pyproject_says_why_each_dependency_is_there() -> None:
    lines = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if re.match(r'    "[\w-]+[=<>]', line)]
    assert len(lines) == len(direct())
    # the theme's two pins share one reason
    assert [line for line in lines if "#" not in line and "pydata-sphinx-theme" not in line] == []


def test_make_lists_its_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert re.findall(r"^make (\w+)", shown, re.MULTILINE) == [t for t in targets if t != "help"]


def test_version_is_the_same_everywhere() -> None:
    import companion

    assert PROJECT["version"] == companion.__version__
    assert f"Version {companion.__version__}" in (ROOT / "README.md").read_text()
    assert f"## {companion.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_variables_are_those_of_make() -> None:
    named = re.findall(r"^\| `(\w+)=", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(named) == 5
    for name in named:
        assert re.search(rf"^{name} +\?=", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line]) <= 12
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.startswith("torch.Size([1, 3, 32, 32])")
