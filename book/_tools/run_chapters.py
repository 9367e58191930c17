"""Execute the book's chapters and store their outputs, with what they were made from: `make chapters`.

A chapter is run again when its code, a stored result that it reads, or the profile changed. Convention: a chapter reads
the experiments and checkpoints whose names stand in its code as string literals: `experiments.load("asim.denoising")`.
Chapters find the profile in the environment variable COMPANION_PROFILE.
"""

import argparse
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

import companion
from companion._support import atomic, sha256
from companion.experiments import PROFILES

BOOK = Path(__file__).resolve().parents[1]
STORE = BOOK.parent / "data"
RECORD = (
    "companion"  # the notebook's metadata field that holds what a run was made from
)
CELL_TIMEOUT = 600  # seconds; alone, on one core, no cell should take over 20
SIDE_BY_SIDE = 2  # chapters at a time
# One thread a kernel: several kernels whose threads spin for each other took hundreds of times longer on two cores.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
STRING = re.compile(r"""(["'])([A-Za-z0-9][A-Za-z0-9._-]*)\1""")


def chapters(book: Path = BOOK) -> list[Path]:
    """All chapters in reading order; folders and files whose names start with '_' or '.' are not chapters."""
    paths = book.rglob("*.ipynb")
    return sorted(
        p
        for p in paths
        if not any(part[0] in "_." for part in p.relative_to(book).parts)
    )


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_hash(notebook: NotebookNode) -> str:
    """SHA-256 of the code cells and their borders."""
    return sha256("\0".join(cell.source for cell in code_cells(notebook)))


def stored_hashes(notebook: NotebookNode, store: Path = STORE) -> dict[str, str]:
    """SHA-256 of each stored file that the chapter's code names, by path below `store`.

    Of an experiment's results these are the ones of the best profile stored, which ``experiments.load(name)`` reads.
    """
    names = {
        match[2]
        for cell in code_cells(notebook)
        for match in STRING.finditer(cell.source)
    }
    files = [store / "checkpoints" / f"{n}.safetensors" for n in names]
    for folder in (store / "results" / n for n in names):
        stored = [p for p in PROFILES if (folder / f"{p}.json").is_file()]
        files += (
            [folder / f"{stored[-1]}{suffix}" for suffix in (".json", ".npz")]
            if stored
            else []
        )
    return {
        path.relative_to(store).as_posix(): sha256(path)
        for path in sorted(p for p in files if p.is_file())
    }


def why_stale(notebook: NotebookNode, profile: str, store: Path = STORE) -> str:
    """Why the chapter has to run again; empty when it has not."""
    record = notebook.metadata.get(RECORD, {})
    if [cell.execution_count for cell in code_cells(notebook)] != list(
        range(1, len(code_cells(notebook)) + 1)
    ):
        return "not run from top to bottom"
    if record.get("code") != code_hash(notebook):
        return "its code changed"
    if record.get("stored") != stored_hashes(notebook, store):
        return "a stored result that it reads changed"
    if record.get("profile") != profile:
        return f"it was run with profile {record.get('profile')}"
    return ""


def environment() -> dict[str, Any]:
    """Device and versions that a run is recorded with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    packages = {name: version(name) for name in ("torch", "numpy", "matplotlib")}
    python = ".".join(map(str, sys.version_info[:3]))
    return {
        "device": device,
        "versions": {"python": python, "companion": companion.__version__, **packages},
    }


def execute(
    notebook: NotebookNode, folder: Path, profile: str, store: Path = STORE
) -> NotebookNode:
    """A copy run in a fresh kernel inside `folder`, without times or widget state, with its record.

    Raises nbclient's CellExecutionError when a cell fails, CellTimeoutError when one takes over 10 minutes.
    """
    fresh = nbformat.from_dict(notebook)
    for cell in fresh.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    fresh.metadata.pop("widgets", None)
    fresh.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    client = NotebookClient(
        fresh,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # else a line printed a moment later is an output of its own
        store_widget_state=False,
        extra_arguments=[
            "--HistoryManager.enabled=False",
            "--IPKernelApp.log_level=ERROR",
        ],
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, **QUIET, "COMPANION_PROFILE": profile})
    fresh.metadata["language_info"] = {"name": "python"}
    fresh.metadata[RECORD] = {
        "code": code_hash(fresh),
        "stored": stored_hashes(fresh, store),
        "profile": profile,
        **environment(),
    }
    return fresh


def write(notebook: NotebookNode, path: Path) -> None:
    """Replace the file in one step, so that an interrupted write leaves the old one whole."""
    nbformat.validate(notebook)
    with atomic(path) as part:
        nbformat.write(notebook, part)


def run(path: Path, profile: str, force: bool, store: Path = STORE) -> bool:
    """Run one chapter if it is stale; say what was done. False when a cell failed, and then the file is as it was."""
    notebook = nbformat.read(path, as_version=4)
    reason = "asked for" if force else why_stale(notebook, profile, store)
    if not reason:
        print(f"{path}: up to date")
        return True
    print(f"{path}: {reason}; running ...", flush=True)
    start = time.monotonic()
    try:
        write(execute(notebook, path.resolve().parent, profile, store), path)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        print(
            f"{path}: a cell failed, the file is as it was:\n{error}", file=sys.stderr
        )
        return False
    print(f"{path}: done in {time.monotonic() - start:.0f} s")
    return True


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit code is 1 when a chapter failed."""
    parser = argparse.ArgumentParser(
        description="Execute the chapters whose code, stored results or profile changed."
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="chapters (default: all)"
    )
    parser.add_argument("--profile", choices=PROFILES, default="quick")
    parser.add_argument(
        "--force", action="store_true", help="run also the ones that are up to date"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=SIDE_BY_SIDE,
        metavar="N",
        help="chapters side by side (default: 2)",
    )
    given = parser.parse_args(arguments)
    if given.jobs < 1:
        parser.error(f"--jobs: got {given.jobs}; allowed: 1 or more")
    for path in given.paths:
        if not path.is_file():
            parser.error(f"PATH: got {path}; allowed: an existing .ipynb file")
    paths = given.paths or [Path(os.path.relpath(p)) for p in chapters()]
    with ThreadPoolExecutor(
        given.jobs
    ) as pool:  # a thread waits for its kernel, which is a process of its own
        return (
            0
            if all(
                list(
                    pool.map(lambda path: run(path, given.profile, given.force), paths)
                )
            )
            else 1
        )


if __name__ == "__main__":
    sys.exit(main())
