'''Every experiment of the book by name: the decorator that declares one, and the lookup that imports it when it is run.

An experiment is one function in a module of this package; dropping the file here is all it takes to register it::

    """Asim et al. 2020: compressed sensing with a flow prior."""

    @dataclass(frozen=True)
    class Settings:
        images: int
        measurements: tuple[int, ...]


    @experiment(
        "asim.compressed-sensing",
        paper="Asim et al. 2020",
        shows="Fig. 4 left, 15, 16",
        profiles={"quick": Settings(4, (307, 614)), "laptop": Settings(16, (153, 307, 614, 1229))},
    )
    def compressed_sensing(settings: Settings, context: Context) -> tuple[dict, dict]:
        """Recovers held-out photographs from m random measurements."""
        psnr = []
        for m in context.progress(settings.measurements, "measurements"):
            metrics, arrays = context.part(f"m={m}", lambda m=m: recover_all(settings, context, m))
            psnr.append(metrics["psnr"])
        return {"psnr": {"glow": psnr}}, {"recovered": arrays["recovered"]}

The function takes its profile's settings (a dataclass or a dict of JSON values) and a
:class:`~companion.experiments.context.Context`; it returns metrics (nested dict of JSON values, None for what is
missing) and arrays (dict of numpy arrays). What takes long goes through ``context.part``, so that a killed run resumes;
``context.count_evaluations(n)`` reports forward evaluations, inside a part or outside. ``context.seed`` is the only
source of randomness. Settings named ``images``, ``seeds`` and ``budget`` appear in the captions of figures.

Names, papers, figures and profiles are read from the decorators without importing the modules; so the arguments must be
literals there, and ``profiles`` a dict whose keys are written out.
'''

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

from companion._support import one_of
from companion.experiments import store
from companion.experiments.provenance import code_hash

PROFILES = ("quick", "laptop", "paper")

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What is known of an experiment before it is imported."""

    name: str
    paper: str
    shows: str
    summary: str
    profiles: tuple[str, ...]
    module: str
    code_sha256: str


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A declared experiment with its function and the settings of each profile."""

    declaration: Declaration
    function: Callable[..., Any]
    settings: Mapping[str, Any]


_registered: dict[str, Experiment] = {}


def experiment(name: str, *, paper: str, shows: str, profiles: Mapping[str, Any]) -> Callable[[Function], Function]:
    """Declare an experiment; the function itself stays as it is. See this module's text for what it takes and returns.

    Args:
        name: lower-case words with dots and hyphens, paper first: "asim.compressed-sensing".
        paper: who published what it reproduces.
        shows: figures and tables it reproduces.
        profiles: settings (dataclass instance or dict) of "quick", "laptop" and "paper", or of some of them.

    Raises:
        ValueError: for a malformed or taken name, or for profiles or settings that are not as above.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)+", name):
        raise ValueError(f"name: got {name!r}; allowed: lower-case words with dots and hyphens, as asim.denoising")
    if not profiles:
        raise ValueError(f"profiles: got none for {name!r}; allowed: {', '.join(PROFILES)}")
    for profile, settings in profiles.items():
        one_of("profiles", profile, PROFILES)
        settings_dict(settings)

    def register(function: Function) -> Function:
        known, entry = _declarations().get(name), _registered.get(name)
        # Of one that is not imported yet, the module alone is known.
        same_function = entry is None or entry.function.__qualname__ == function.__qualname__
        if known and not (known.module == function.__module__ and same_function):
            raise ValueError(f"name: got {name!r}, which {known.module} has; allowed: a name not taken yet")
        declaration = Declaration(
            name=name,
            paper=paper,
            shows=shows,
            summary=_first_line(inspect.getdoc(function)),
            profiles=tuple(profile for profile in PROFILES if profile in profiles),
            module=function.__module__,
            code_sha256=code_hash(_source(function)),
        )
        _registered[name] = Experiment(declaration, function, dict(profiles))
        return function

    return register


def settings_dict(settings: object) -> dict[str, Any]:
    """Return settings (dataclass instance or dict) as a dict of JSON values; ValueError for anything else."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return store.plain("settings", dataclasses.asdict(settings))
    if isinstance(settings, Mapping):
        return store.plain("settings", settings)
    raise ValueError(f"settings: got {type(settings).__name__}; allowed: a dataclass instance or a dict")


def names() -> list[str]:
    """Names of all experiments, sorted; imports none of them."""
    return sorted(_declarations())


def declaration(name: str) -> Declaration:
    """Declaration of an experiment, which is not imported; ValueError with the known names for an unknown one."""
    one_of("experiment", name, names())
    return _declarations()[name]


def get(name: str) -> Experiment:
    """The experiment, imported if need be; ValueError with the known names for an unknown one."""
    found = declaration(name)
    if name not in _registered:
        import_module(found.module)
    return _registered[name]


def _declarations() -> dict[str, Declaration]:
    return {**_scanned(), **{name: entry.declaration for name, entry in _registered.items()}}


@cache
def _scanned() -> dict[str, Declaration]:
    found: dict[str, Declaration] = {}
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        module = ".".join((__package__, *path.relative_to(folder).with_suffix("").parts))
        for entry in declared_in(path.read_text(encoding="utf-8"), module):
            if entry.name in found:
                taken = found[entry.name].module
                raise ValueError(f"name: got {entry.name!r} in {module}, which {taken} has; allowed: a name not taken")
            found[entry.name] = entry
    return found


def declared_in(source: str, module: str) -> list[Declaration]:
    """Declarations in the source text of a module; ValueError where a decorator's arguments are not literals."""
    found = []
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    for node in functions:
        for decorator in node.decorator_list:
            if not isinstance(decorator, ast.Call) or ast.unparse(decorator.func).split(".")[-1] != "experiment":
                continue
            given = {keyword.arg: keyword.value for keyword in decorator.keywords}
            try:
                name, paper, shows = map(ast.literal_eval, (decorator.args[0], given["paper"], given["shows"]))
                keys = given["profiles"].keys  # type: ignore[attr-defined]
                profiles = [ast.literal_eval(key) for key in keys]
            except (ValueError, KeyError, IndexError, AttributeError, TypeError):
                allowed = "literal name, paper and shows, and a profiles dict with its keys written out"
                raise ValueError(f"{module}.{node.name}: its @experiment cannot be read; allowed: {allowed}") from None
            summary = _first_line(ast.get_docstring(node))
            ordered = tuple(profile for profile in PROFILES if profile in profiles)
            found.append(Declaration(name, paper, shows, summary, ordered, module, code_hash(source)))
    return found


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _source(function: Callable[..., Any]) -> str:
    path = Path(inspect.getsourcefile(function) or "")
    if path.is_file():
        return path.read_text(encoding="utf-8")
    try:
        # A function typed into a notebook has no file; its own text stands for its module's.
        return inspect.getsource(function)
    except (OSError, TypeError):
        # One from standard input has no text either; what Python runs stands for it.
        return _instructions(function.__code__)


def _instructions(code: CodeType) -> str:
    # repr() of an inner function holds an address, which no two processes share
    constants = [_instructions(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
