"""A process and folder of its own for a student's code, under limits and without network where the system allows."""

import ast
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from companion.grading.master import Assignment

PACKAGE = Path(__file__).resolve().parents[1]
OUTPUT = 20_000  # bytes of a student's output that are kept
_RUNNER = Path(__file__).with_name("runner.py")
_MESSAGES = 2**22  # bytes of messages that a run may send
_FILE = 2**26  # bytes of a file that a student's code may write
_PROCESSES = 64
_NAMESPACE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")


@dataclass
class Run:
    """What one process did: where it stands, and what its tests gave (None: passed, else why not)."""

    cell: int | None = None
    test: str | None = None
    ran: bool = False
    done: bool = False
    ended: str = ""
    errors: dict[int, str] = field(default_factory=dict)
    results: dict[str, str | None] = field(default_factory=dict)
    output: bytes = b""
    cut: bool = False


@cache
def isolation() -> tuple[str, ...]:
    """Command that starts a process without network in a process table of its own; empty where the system has none."""
    if shutil.which(_NAMESPACE[0]) is None:
        return ()
    return _NAMESPACE if subprocess.run([*_NAMESPACE, "true"], capture_output=True).returncode == 0 else ()


def attempt(cells: list[tuple[int, str]], tests: dict[str, str], task: Assignment) -> Run:
    """Run the cells and tests in a new process, until it is done, ends, or its time is over."""
    limits = {
        "RLIMIT_CPU": task.seconds + 1,
        "RLIMIT_AS": task.memory_mb * 2**20,
        "RLIMIT_FSIZE": _FILE,
        "RLIMIT_CORE": 0,
    }
    if isolation():
        limits["RLIMIT_NPROC"] = _PROCESSES  # elsewhere it would count all processes of this user
    modules = sorted({name for text in tests.values() for name in _imports(text)})
    token = os.urandom(16).hex()
    first = {"modules": modules, "limits": limits, "cells": cells}
    run = Run()
    here, there = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as folder, here:
        home, path = Path(folder, "home"), Path(folder, "path")
        for made in (home, path):
            made.mkdir()
        (path / PACKAGE.name).symlink_to(PACKAGE)  # beside it lie no masters, as in the clone
        with there:
            process = subprocess.Popen(
                [*isolation(), sys.executable, "-P", "-B", str(_RUNNER), str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=home,
                env=_environment(home, path),
                pass_fds=[there.fileno()],
                start_new_session=True,
            )
        try:
            _converse(process, here, first, {"token": token, "tests": list(tests.items())}, task.seconds, run)
        except OSError:
            run.ended = run.ended or "closed its connection to the grader"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            assert process.stdout is not None
            process.stdout.close()
    if not run.done and not run.ended:
        run.ended = f"ended its process (exit code {code})"
    return run


def _converse(
    process: "subprocess.Popen[bytes]", here: socket.socket, first: Any, second: Any, seconds: int, run: Run
) -> None:
    """Send the cells, then the tests; read messages and output into `run`."""
    assert process.stdout is not None
    over = time.monotonic() + seconds
    here.settimeout(seconds)
    here.sendall(json.dumps(first).encode() + b"\n")
    buffer, received, gone = b"", 0, False
    readers: list[Any] = [here, process.stdout]
    while not run.done:
        left = over - time.monotonic()
        if left <= 0:
            run.ended = f"ran past the limit of {seconds} s"
            return
        ready, _, _ = select.select(readers, [], [], min(left, 0.2))
        if process.stdout in ready and not _keep_output(process.stdout.fileno(), run):
            readers.remove(process.stdout)
        if here in ready:
            piece = here.recv(2**16)
            received += len(piece)
            if not piece or received > _MESSAGES:
                return
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in lines:
                if _hear(line, second["token"], run):
                    here.sendall(json.dumps(second).encode() + b"\n")
        elif gone and not ready:
            return  # a child of the student's code holds the socket open
        gone = process.poll() is not None
    while process.stdout in readers and not run.cut and select.select([process.stdout], [], [], 0)[0]:
        if not _keep_output(process.stdout.fileno(), run):
            return


def _keep_output(number: int, run: Run) -> bool:
    """Read a piece of output and keep it up to the limit; False at the end of the output."""
    piece = os.read(number, 2**16)
    run.cut = run.cut or len(run.output) + len(piece) > OUTPUT
    run.output = (run.output + piece)[:OUTPUT]
    return bool(piece)


def _hear(line: bytes, token: str, run: Run) -> bool:
    """Take one message; True when the tests are to be sent. Results without the run's token count for nothing."""
    try:
        message = json.loads(line)
        if message.get("token") == token:
            run.test, run.done = message.get("test"), bool(message.get("done"))
            if "passed" in message:
                run.results[message["test"]] = None if message["passed"] else str(message["error"])
        elif "ran" in message and not run.ran:
            run.ran = True
            return True
        elif "cell" in message and not run.ran:
            run.cell = int(message["cell"])
            if "error" in message:
                run.errors[run.cell] = str(message["error"])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        pass  # written by the student's code, not by the runner
    return False


def _imports(text: str) -> set[str]:
    """Modules that a test imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _environment(home: Path, path: Path) -> dict[str, str]:
    """Variables of a run: none of the grader's but the path of commands."""
    one = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    places = {name: str(home) for name in ("HOME", "TMPDIR", "MPLCONFIGDIR")}
    return one | places | {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(path), "MPLBACKEND": "Agg"}
