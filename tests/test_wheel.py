"""The wheel: it holds the package and what the package stores, and works far from the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
import run_chapters

from companion.grading import master

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow

SCRIPT = """
import importlib.metadata, sys
from pathlib import Path
import companion
from companion import experiments, priors
assert importlib.metadata.version("flow-priors") == companion.__version__
flow = priors.load("glow-photos32")
kept = experiments.load("asim.linear-theory")
made = experiments.run("asim.linear-theory", "quick", out="made")
assert made.metrics and kept.metrics and flow.decode(flow.encode(flow.sample(1))).isfinite().all()
print(Path(companion.__file__).parent, *sorted(str(path) for path in Path("made").glob("*/quick.*")), sep="\\n")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from this repository, unpacked as an installation would."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("flow_priors-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site-packages")
    return folder / "site-packages"


@pytest.fixture
def elsewhere(installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, in which new processes import the unpacked wheel."""
    monkeypatch.setenv("PYTHONPATH", str(installed))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> set[str]:
    """Paths of the files below a folder, caches left out."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


def test_wheel_holds_the_package_its_store_and_nothing_else(installed: Path) -> None:
    package = files(ROOT / "companion") | {f"_stored/{name}" for name in files(ROOT / "data")}
    assert files(installed / "companion") == package
    assert not any(name.endswith(".ipynb") for name in package)  # no master, which has the solutions
    (information,) = installed.glob("*.dist-info")
    told = master._install("")["source"]
    assert f"{information.stem}-py3-none-any.whl" in told  # a student's first cell names the file
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"companion", "flow_priors"}


def test_package_computes_loads_and_stores_without_the_repository(installed: Path, elsewhere: Path) -> None:
    before = files(installed)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    where, *made = done.stdout.split()
    assert Path(where) == installed / "companion"
    assert made == ["made/asim.linear-theory/quick.json", "made/asim.linear-theory/quick.npz"]
    assert files(installed) == before


def test_downloaded_chapter_runs_with_the_wheel_alone(installed: Path, elsewhere: Path) -> None:
    chapter = nbformat.read(ROOT / "book" / "part2-flow-priors" / "loss-landscapes.ipynb", as_version=4)
    chapter.cells.append(nbformat.v4.new_code_cell("import companion; print(companion.__file__)"))
    run = run_chapters.execute(chapter, elsewhere, "quick", installed / "companion" / "_stored")
    assert run.cells[-1].outputs[0].text.strip() == str(installed / "companion" / "__init__.py")
    assert os.listdir(elsewhere) == []
