"""Run a student's cells, then the tests, in a process of its own that `companion.grading.grade` starts.

Messages are lines of JSON on the socket whose number is the first argument. The tests and the token that signs their
results come only when the student's cells have run, so that a cell can neither read nor sign them. Builtins, the
attributes of the modules that the tests name, and what torch and NumPy keep for the whole process (but seeds) are then
put back as they were. That stops edited tests and patched functions, and what a cell innocently left switched on. It
does not put back the attributes of classes or what else lies inside objects, nor stop code written against this very
file: both share one interpreter.
"""

import ast
import builtins
import json
import resource
import socket
import sys
import threading
import types
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any


def main() -> None:
    """Serve one submission."""
    # What is used after the student's cells is taken before them.
    load, dump, run, build, output = json.loads, json.dumps, exec, compile, sys.stdout
    stream = socket.socket(fileno=int(sys.argv[1])).makefile("rw", encoding="utf-8")

    def tell(**message: Any) -> None:
        stream.write(dump(message) + "\n")
        stream.flush()

    job = load(stream.readline())
    for name in job["modules"]:
        with suppress(ImportError):  # the test that imports it will say so
            import_module(name)
    roots = {name.partition(".")[0] for name in job["modules"]} | {"builtins", "json", "threading", "warnings"}
    modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] in roots}
    before = [(vars(module), dict(vars(module))) for module in modules.values()]
    builtin, clean = vars(builtins), dict(vars(builtins))
    settrace, setprofile = sys.settrace, sys.setprofile
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    notebook = types.ModuleType("__main__")
    sys.modules["__main__"] = notebook
    space = vars(notebook)
    space |= {"get_ipython": lambda: _Shell(space), "display": lambda *shown, **_: print(*shown)}
    for index, source in job["cells"]:
        tell(cell=index)
        try:
            _execute(source, f"<cell {index}>", space)
        except BaseException as error:
            tell(cell=index, error=_text(error))
    settrace(None)
    setprofile(None)
    builtin.update(clean)  # first: what follows calls them
    sys.modules.update(modules)
    for now, saved in before:
        now.update(saved)
    _reset()
    tell(ran=True)
    second = load(stream.readline())

    def examine() -> None:
        for key, source in second["tests"]:
            tell(token=second["token"], test=key)
            names = {name: value for name, value in space.items() if name not in clean}
            try:
                run(build(source, f"<test {key}>", "exec"), {**names, "__builtins__": dict(clean)})
                error_text = None
            except BaseException as error:
                error_text = _text(error)
            tell(token=second["token"], test=key, passed=error_text is None, error=error_text)

    # A new thread has its own grad and inference mode, autocast, default device, torch's modes and NumPy's errstate.
    threading.stack_size(2**24)
    thread = threading.Thread(target=examine)
    thread.start()
    thread.join()
    with suppress(OSError, ValueError):  # closed by the student's code
        output.flush()
    tell(token=second["token"], done=True)


class _Shell:
    """What a cell gets from `get_ipython()`: magics that time or capture code run it, all else does nothing."""

    def __init__(self, space: dict[str, Any]) -> None:
        self._space = space

    def run_line_magic(self, name: str, line: str, *_: Any) -> None:
        """Run the code behind ``%time``."""
        if name == "time":
            _execute(line, "<%time>", self._space)

    def run_cell_magic(self, name: str, _: str, cell: str) -> None:
        """Run the code below ``%%time``, ``%%timeit``, ``%%capture`` or ``%%prun``."""
        if name in ("time", "timeit", "capture", "prun"):
            _execute(cell, f"<%%{name}>", self._space)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def _execute(source: str, name: str, space: dict[str, Any]) -> None:
    """Run a cell as IPython does: with its magics, `!` and `?`, which are calls of the shell, and with `await`."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        code = compile(source, name, "exec", flags)
    except SyntaxError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from IPython.core.inputtransformer2 import TransformerManager  # a third of a second: only where needed
        code = compile(TransformerManager().transform_cell(source), name, "exec", flags)
    waiting = eval(code, space)
    if waiting is not None:
        import asyncio

        asyncio.run(waiting)


def _reset() -> None:
    """Put back what a cell may have set for all threads: warnings and torch's switches. Tests fix their own seeds."""
    warnings.resetwarnings()
    if torch := sys.modules.get("torch"):
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        torch.autograd.set_detect_anomaly(False)
        torch.set_num_threads(1)


def _text(error: BaseException) -> str:
    """Kind and message of an error; the message is the student's and may itself fail."""
    try:
        message = str(error)[:500]
    except BaseException:
        message = "(no message)"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


if __name__ == "__main__":
    main()
