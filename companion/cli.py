"""The command line: list, run and verify experiments, train priors, fetch data.

Exit codes: 0 done; 2 bad input, as any ValueError of the package (one line on stderr says which); 1 failed; 130 stopped
with Ctrl-C. What a command needs is imported when it runs, so that ``companion --help`` is quick.
"""

import argparse
import ast
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from companion import __version__

_PROFILES = "quick, laptop, overnight or paper"
_RUNS = "runs"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_one_line(message)}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments` (the process's own by default) and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        if getattr(options, "module", None):
            _import(options.module)
        options.command(options)
    except KeyboardInterrupt:
        return _fail(130, "stopped; the same command goes on where it can")
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        if isinstance(error, ValueError):
            return _fail(2, str(error))
        return _fail(1, f"failed with {type(error).__name__}: {error} (--debug shows where)")
    return 0


def _fail(code: int, message: str) -> int:
    print(f"companion: {_one_line(message)}", file=sys.stderr, flush=True)
    return code


def _import(module: str) -> None:
    if not all(part.isidentifier() for part in module.split(".")) or module.endswith(".py"):
        raise ValueError(f"module: got {module!r}; allowed: a module's name without .py, as my_work")
    sys.path.insert(0, os.getcwd())  # as `python -m` has it; worker processes take it over
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise  # one that the module itself lacks
        raise ValueError(f"module: got {module!r}; allowed: one in this folder or on PYTHONPATH, as my_work") from None


def _print(text: str) -> None:
    """Print on stdout in any encoding; a reader who has seen enough (``companion list | head -1``) is no failure."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        # Python flushes once more as it ends: to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="companion",
        description="Flow priors for inverse problems: run the book's experiments, train its priors, fetch its data.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad input, 130 stopped.",
    )
    parser.add_argument("--version", action="version", version=f"flow-priors {__version__}")
    every = _Parser(add_help=False)
    every.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(of: Any, name: str, run: Callable[..., None], text: str, *parents: _Parser, more: str = "") -> _Parser:
        says = f"{text[0].upper()}{text[1:]}. {more}"
        added = of.add_parser(name, parents=[every, *parents], help=text, description=says)
        added.set_defaults(command=run)
        return added

    place = _Parser(add_help=False)
    place.add_argument("--out", type=_folder, default=Path(_RUNS), help=f"folder for what is made (default: ./{_RUNS})")
    place.add_argument("--store", dest="out", action="store_const", const=None, help="into the book's own store")
    place.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    place.add_argument("--profile", default="quick", help=f"{_PROFILES} (default: quick)")
    spread = _Parser(add_help=False)
    spread.add_argument("--workers", type=int, default=1, metavar="N", help="processes of one thread each (default: 1)")

    outside = _Parser(add_help=False)
    outside.add_argument("--module", metavar="MODULE", help="import it first: it declares experiments of your own")

    listing = command(commands, "list", _list, "experiments, their profiles, and what is stored", outside)
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.add_argument("--out", type=_folder, help="look for results in this folder, not in the book's store")

    run = command(commands, "run", _run, "run an experiment and store its result", place, spread, outside)
    run.add_argument("name", metavar="NAME", help="an experiment, as companion list shows it")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another value of a setting")
    run.add_argument("--scheduler", metavar="ADDRESS", help="compute on this Dask cluster, as tcp://host:8786")
    run.add_argument("--seed", type=int, default=0, help="whole number >= 0 (default: 0)")
    run.add_argument("--fresh", action="store_true", help="use no finished parts of a run that was stopped")

    verify = command(
        commands, "verify", _verify, "ask whether today's code gives the stored quick results", spread, outside
    )
    verify.add_argument("names", nargs="*", metavar="NAME", help="experiments (default: all)")
    verify.add_argument("--out", type=_folder, help="results in this folder, not in the book's store")

    train = command(commands, "train", _train, "train a prior, or resume its training", place)
    train.add_argument("name", metavar="NAME", help="a recipe; an unknown name lists them")
    train.add_argument("--data", dest="pictures", metavar="FOLDER", help="train on the pictures in this folder instead")
    train.add_argument("--replace", action="store_true", help="replace a stored checkpoint of a larger profile")
    train.add_argument("--start", help="begin with the averaged weights of this checkpoint (a name or a file)")
    train.add_argument("--export", action="store_true", help="store the averaged weights of a running training")

    data = commands.add_parser("data", help="data sets").add_subparsers(metavar="ACTION", required=True)
    command(data, "list", _data_list, "data sets and their licences")
    fetch = command(data, "fetch", _fetch, "download and check a data set, or find it")
    fetch.add_argument("name", metavar="NAME", help="a data set, as companion data list shows it")

    assign = command(
        commands,
        "assign",
        _assign,
        "make of assignments the students' notebooks, the solved ones, the tests",
        more="From each assignments/NAME/master.ipynb of this checkout: NAME-student.ipynb to hand out; "
        "NAME-solution.ipynb and NAME-autograder.zip (for otter-grader) to keep.",
    )
    assign.add_argument("names", nargs="*", metavar="NAME", help="assignments (default: all)")
    assign.add_argument("--out", type=_folder, default=Path("dist/assignments"), help="default: ./dist/assignments")

    grade = command(
        commands,
        "grade",
        _grade,
        "grade notebooks that students hand in",
        spread,
        more="Each runs in a process of its own, under limits. Made are a table (a line a student, a column a "
        "question) and, in a folder beside it, a page for each student. The same command goes on where it was stopped "
        "and keeps what a person filled in.",
    )
    grade.add_argument(
        "submissions",
        nargs="+",
        type=_folder,
        metavar="SUBMISSION",
        help="a notebook, a folder of them, or of students' folders",
    )
    grade.add_argument("--assignment", required=True, metavar="NAME", help="an assignment; an unknown name lists them")
    grade.add_argument("--out", type=_folder, help="the table (default: ./marks-NAME.csv)")
    return parser


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def _existing(folder: Path | None) -> Path | None:
    if folder is not None and not folder.is_dir():
        raise ValueError(f"out: got {folder}; allowed: a folder that is there")
    return folder


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Values as Python writes them; what it cannot read is text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"set: got {pair!r}; allowed: NAME=VALUE")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError):  # the last for a list as the key of a dictionary
            found[name] = text
    return found


def _list(options: argparse.Namespace) -> None:
    from companion import experiments

    out = _existing(options.out)
    found = [experiments.describe(name, out) for name in experiments.names()]
    if options.json:
        _print(json.dumps(found, indent=1))
    else:
        for entry in found:
            stored = ", ".join(f"{profile} ({state.partition(':')[0]})" for profile, state in entry["stored"].items())
            _print(f"{entry['name']}: {entry['paper']}, {entry['shows']}\n    {entry['summary']}")
            _print(f"    profiles: {', '.join(entry['profiles'])}; stored: {stored or 'nothing yet'}")
    damaged = [state for entry in found for state in entry["stored"].values() if state.startswith("damaged")]
    if damaged:
        raise ValueError("; ".join(damaged))


def _run(options: argparse.Namespace) -> None:
    from companion import experiments

    asked = (options.name, options.profile, options.device, options.seed, options.out)
    how = {"workers": options.workers, "scheduler": options.scheduler, "resume": not options.fresh}
    result = experiments.run(*asked, changes=_settings(options.set), **how)
    origin = result.provenance
    where = experiments.path(options.name, options.profile, options.out)
    _print(f"{result.name} {result.profile}: {origin.wall_seconds:.1f} s on {origin.device}; stored in {where}")


def _verify(options: argparse.Namespace) -> None:
    from companion import experiments

    failed = []
    names = options.names or experiments.names()
    for name, differences in experiments.verify_all(names, _existing(options.out), options.workers):
        _print(f"{name}: {'; '.join(differences) or 'the same numbers'}")
        failed += [name] if differences else []
    if failed:
        raise RuntimeError(f"other numbers than stored, or none: {', '.join(failed)}")


def _train(options: argparse.Namespace) -> None:
    from companion._support import keep_freed_memory, one_of
    from companion.experiments import resolve_device

    keep_freed_memory()
    training = import_module("companion.training")
    one_of("recipe", options.name, training.recipe_names())
    one_of("profile", options.profile, training.PROFILES)
    device = str(resolve_device(options.device))
    how = {name: getattr(options, name) for name in ("replace", "start", "export", "pictures")}
    stored = training.train_recipe(options.name, options.profile, out=options.out, device=device, progress=True, **how)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, one speaks
        _print(f"{options.name} {options.profile}: stored in {stored}; {training.quality(stored)}")


def _data_list(options: argparse.Namespace) -> None:
    data = import_module("companion.data")
    for name in data.names():
        _print(f"{name}: {data.licence(name)}")


def _fetch(options: argparse.Namespace) -> None:
    from companion._support import one_of

    data = import_module("companion.data")
    one_of("data set", options.name, data.names())
    paths = data.fetch(options.name)
    _print(f"{options.name}: {', '.join(map(str, paths)) or 'embedded, nothing to fetch'}")


def _assign(options: argparse.Namespace) -> None:
    from companion import grading
    from companion._support import atomic, writable

    tasks = [grading.load(name) for name in options.names or grading.names()]
    writable("out", options.out)
    for task in tasks:
        made = {"autograder.zip": grading.archive(task)}
        for kind, notebook in (("student", task.student), ("solution", task.solution)):
            made[f"{kind}.ipynb"] = (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()
        for name, content in made.items():
            path = options.out / f"{task.name}-{name}"
            with atomic(path) as part:
                part.write_bytes(content)
            _print(str(path))


def _grade(options: argparse.Namespace) -> None:
    from companion import grading

    out = options.out or Path(f"marks-{grading.load(options.assignment).name}.csv")
    records = grading.grade(options.submissions, options.assignment, out, workers=options.workers, progress=True)
    _print(f"{len(records)} graded; marks in {out}, a page a student in {out.with_suffix('')}")


if __name__ == "__main__":
    sys.exit(main())
