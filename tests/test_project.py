"""The project's files agree with each other and do what the README says."""

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import companion

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "requirements.lock").read_text().splitlines()
LOCK = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in LINES)}


def direct() -> list[Requirement]:
    """Everything that pyproject.toml asks for, extras included."""
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in PROJECT["dependencies"] + extras]


def test_lock_is_pins_and_nothing_else() -> None:
    pins = [re.fullmatch(r"([A-Za-z0-9][\w.-]*)==[\w.]+", line) for line in LINES]
    assert [line for line, pin in zip(LINES, pins, strict=True) if pin is None] == []
    times = Counter(canonicalize_name(pin[1]) for pin in pins)
    assert [name for name in times if times[name] > 1] == []


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


def test_torch_range_is_what_the_readme_promises() -> None:
    torch = next(requirement for requirement in direct() if requirement.name == "torch")
    low, high = map(int, re.search(r"another torch, 2\.(\d+) to 2\.(\d+)", README).groups())
    admitted = [minor for minor in range(low + high) if torch.specifier.contains(f"2.{minor}.1")]
    assert admitted == list(range(low, high + 1))


def test_environment_yml_installs_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, nested = environment["dependencies"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(Version(python.removeprefix("python=")))
    assert (pip, nested) == ("pip", {"pip": ["-r requirements.lock", "-e ."]})


def test_pyproject_says_why_each_dependency_is_there() -> None:
    lines = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if re.match(r'    "[\w-]+[=<>]', line)]
    assert {re.match(r'    "([\w-]+)', line)[1] for line in lines} == {requirement.name for requirement in direct()}
    # the theme's two pins share one reason
    assert [line for line in lines if "#" not in line and "pydata-sphinx-theme" not in line] == []


def make(*arguments: str) -> str:
    """What make prints."""
    command = ["make", "--no-print-directory", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_make_lists_its_targets() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    assert re.findall(r"^make (\w+)", make(), re.MULTILINE) == [t for t in targets if t != "help"]


@pytest.mark.slow
def test_processes_of_the_tests_use_one_thread_each() -> None:
    shown = make("--dry-run", "--assume-old=.venv/.installed", "check")
    (start,) = re.findall(r"^(.*) -m pytest ", shown, re.MULTILINE)
    chosen = [word for word in start.split() if "=" in word]
    unset = [f"--unset={word.partition('=')[0]}" for word in chosen]
    code = "import torch; print(torch.get_num_threads())"
    command = ["env", *unset, *chosen, sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.slow
def test_students_get_a_wheel_beside_the_assignments() -> None:
    shown = make("--dry-run", "--assume-old=.venv/.installed", "assignments")
    assert re.search(r"-m pip wheel .*--no-deps .*--wheel-dir dist/assignments \.$", shown, re.MULTILINE)


def test_long_files_are_run_first(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n    browser\n")
    (tmp_path / "test_a.py").write_text("def test_quick(): pass\ndef test_too(): pass\n")
    slow = "@pytest.mark.slow\n@pytest.mark.parametrize('k', range(3))\ndef test_slow(k): pass\n"
    (tmp_path / "test_b.py").write_text(f"import pytest\n{slow}def test_a(): pass\n")
    (tmp_path / "test_c.py").write_text("import pytest\n@pytest.mark.browser\ndef test_seen(): pass\n")
    for name, cells in (("one", 1), ("two", 2)):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1") for _ in range(cells)])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "--collect-only", "--nbval", "-q", "-p", "no:cacheprovider", "."]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    files = dict.fromkeys(re.findall(r"^([\w.]+)::", shown, re.MULTILINE))
    assert list(files) == ["test_b.py", "two.ipynb", "one.ipynb", "test_c.py", "test_a.py"]


def test_a_commit_is_checked_by_make_check_without_downloads() -> None:
    (source,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert source["repo"] == "local"
    assert [hook["entry"].split()[-1] for hook in source["hooks"] if hook["language"] == "system"] == ["check"]


def test_citation_names_the_sources_as_the_bibliography_does() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (str(citation["version"]), citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert re.search(r"title  = \{(.*)\},", README)[1] == citation["title"]
    bibliography = re.sub(r"[{}]", "", (ROOT / "book" / "references.bib").read_text())
    for source in citation["references"]:
        entry = next(each for each in bibliography.split("\n@") if f"= {source['title']},\n" in each)
        names = [f"{a['family-names']}, {a['given-names']}" for a in source["authors"]]
        assert re.search(r"author\s+= (.*),\n", entry)[1] == " and ".join(names)
        assert str(source.get("year", "")) in entry


def test_the_page_for_lecturers_gives_the_terms_of_every_checkpoint() -> None:
    page = (ROOT / "book" / "teaching.md").read_text()
    assert [p.stem for p in (ROOT / "data" / "checkpoints").glob("*.safetensors") if f"`{p.stem}`" not in page] == []


def test_version_is_the_same_everywhere() -> None:
    import companion

    assert PROJECT["version"] == companion.__version__
    assert f"Version {companion.__version__}" in README
    assert f"## {companion.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_packages_parts_load_by_their_names() -> None:
    import companion

    parts = {path.parent.name for path in (ROOT / "companion").glob("[a-z]*/__init__.py")} - {"grading"}
    assert parts <= set(companion.__all__)
    assert all(getattr(companion, part).__name__ == f"companion.{part}" for part in parts)


def test_readme_explains_the_variables_of_make() -> None:
    named = re.findall(r"^\| `(\w+)=", README, re.MULTILINE)
    assert sorted(named) == sorted(re.findall(r"^(\w+) +\?=", MAKEFILE, re.MULTILINE))


@pytest.mark.slow
def test_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.startswith("torch.Size([1, 3, 32, 32])")


def test_readme_calls_what_the_package_has() -> None:
    import companion

    assert [
        name for name in re.findall(r"`companion\.(\w+)\(\)`", README) if not callable(getattr(companion, name))
    ] == []


def test_random_numbers_come_from_named_streams_alone() -> None:
    """`_support.generator` and `normal` make them; a seed set elsewhere is one that nobody chose."""
    call = re.compile(r"manual_seed\(|np\.random\.|torch\.Generator\(|default_rng\(")
    files = [path for path in (ROOT / "companion").rglob("*.py") if path.name != "_support.py"]
    lines = [(path.name, line.strip()) for path in files for line in path.read_text().splitlines()]
    assert [f"{name}: {line}" for name, line in lines if call.search(line)] == []


def test_what_a_package_offers_does_not_hide_its_modules() -> None:
    """`companion.recover.tv` would be a function to `from companion.recover import tv`, and a module to `import`."""
    hidden = []
    for info in pkgutil.walk_packages(companion.__path__, "companion."):
        if info.ispkg:
            package = importlib.import_module(info.name)
            modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
            hidden += [
                f"{info.name}.{name}" for name in modules if not isinstance(getattr(package, name, sys), ModuleType)
            ]
    assert hidden == []
