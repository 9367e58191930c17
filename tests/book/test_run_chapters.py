"""The runner of the chapters: when it runs one, what it stores, and what it leaves alone."""

import hashlib
import json
from pathlib import Path

import nbformat
import pytest
import run_chapters
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one result and one checkpoint."""
    folder = tmp_path / "data"
    (folder / "results" / "asim.denoising").mkdir(parents=True)
    (folder / "results" / "asim.denoising" / "quick.json").write_text("{}")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "glow.safetensors").write_bytes(b"weights")
    return folder


def saved(path: Path, *sources: str) -> Path:
    """A notebook file with these code cells."""
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


def read(path: Path) -> NotebookNode:
    """The notebook of a file."""
    return nbformat.read(path, as_version=4)


def test_stored_files_are_found_by_the_names_in_the_code(store: Path) -> None:
    notebook = new_notebook(cells=[new_code_cell("load('asim.denoising'); priors.load(\"glow\"); load('other')")])
    digest = hashlib.sha256
    assert run_chapters.stored_hashes(notebook, store) == {
        "checkpoints/glow.safetensors": digest(b"weights").hexdigest(),
        "results/asim.denoising/quick.json": digest(b"{}").hexdigest(),
    }


def test_of_a_result_only_the_best_profile_counts(store: Path) -> None:
    folder = store / "results" / "asim.denoising"
    (folder / "laptop.json").write_text("{}")
    (folder / "laptop.npz").write_bytes(b"arrays")
    found = run_chapters.stored_hashes(new_notebook(cells=[new_code_cell("load('asim.denoising')")]), store)
    assert sorted(found) == ["results/asim.denoising/laptop.json", "results/asim.denoising/laptop.npz"]


def test_code_hash_sees_cell_borders_but_not_prose() -> None:
    one, two = new_notebook(cells=[new_code_cell("a\nb")]), new_notebook(cells=[new_code_cell("a"), new_code_cell("b")])
    assert run_chapters.code_hash(one) != run_chapters.code_hash(two)
    prose = new_notebook(cells=[nbformat.v4.new_markdown_cell("text"), new_code_cell("a\nb")])
    assert run_chapters.code_hash(one) == run_chapters.code_hash(prose)


@pytest.mark.slow
def test_a_run_stores_outputs_and_record_and_is_not_repeated(tmp_path: Path, store: Path) -> None:
    code = "import os; name = 'asim.denoising'; print(os.environ['COMPANION_PROFILE'], os.getcwd().endswith('book'))"
    (tmp_path / "book").mkdir()
    path = saved(tmp_path / "book" / "one.ipynb", code, "import ipywidgets; ipywidgets.IntSlider(3)")
    assert run_chapters.run(path, "quick", force=False, store=store)
    notebook = read(path)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    assert notebook.cells[0].outputs[0].text == "quick True\n"
    assert not any("execution" in cell.metadata for cell in notebook.cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info", "companion"}
    record = notebook.metadata.companion
    assert (record.profile, record.code) == ("quick", run_chapters.code_hash(notebook))
    assert list(record.stored) == ["results/asim.denoising/quick.json"]
    assert set(record.versions) >= {"python", "torch", "companion"}

    before = path.stat().st_mtime_ns
    assert run_chapters.run(path, "quick", force=False, store=store)
    assert path.stat().st_mtime_ns == before
    assert run_chapters.why_stale(notebook, "laptop", store)
    (store / "results" / "asim.denoising" / "quick.json").write_text(json.dumps({"psnr": 30}))
    assert "stored" in run_chapters.why_stale(notebook, "quick", store)
    notebook.cells[0].source += "\n"
    assert "code" in run_chapters.why_stale(notebook, "quick", store)
    notebook.cells[0].execution_count = None
    assert "top to bottom" in run_chapters.why_stale(notebook, "quick", store)


@pytest.mark.slow
def test_a_failing_chapter_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "bad.ipynb", "print('first')", "1 / 0")
    before = path.read_bytes()
    assert run_chapters.main([str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "one.ipynb", "1")
    before = path.read_bytes()

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", cut)
    with pytest.raises(KeyboardInterrupt):
        run_chapters.write(new_notebook(), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("arguments", [["missing.ipynb"], ["--profile", "huge"]])
def test_bad_arguments_end_with_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_chapters.main(arguments)
    assert stopped.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


def test_folders_of_the_machinery_hold_no_chapters(tmp_path: Path) -> None:
    for name in ("part1/one", "_tools/two", "part1/.ipynb_checkpoints/one-checkpoint", "_draft"):
        path = tmp_path / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert run_chapters.chapters(tmp_path) == [tmp_path / "part1" / "one.ipynb"]


@pytest.mark.slow
def test_chapters_run_side_by_side_with_one_thread_each(tmp_path: Path) -> None:
    # Each waits for the other's file: one after the other, the first would wait in vain.
    code = (
        "import os, pathlib, time, torch\npathlib.Path('{mine}').touch()\n"
        "deadline = time.monotonic() + 120\n"
        "while not pathlib.Path('{other}').exists() and time.monotonic() < deadline:\n    time.sleep(0.1)\n"
        "print(pathlib.Path('{other}').exists(), torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])"
    )
    names = ("one", "two")
    paths = [
        saved(tmp_path / f"{mine}.ipynb", code.format(mine=mine, other=other)) for mine, other in (names, names[::-1])
    ]
    assert run_chapters.main([str(path) for path in paths]) == 0
    assert [read(path).cells[0].outputs[0].text for path in paths] == ["True 1 PASSIVE\n"] * 2
