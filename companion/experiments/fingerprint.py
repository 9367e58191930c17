"""What a result rests on: a hash of the code that can make it, and of the stored files that it read.

The code is every module of the package that the experiment's module imports, directly or not, as syntax trees without
docstrings: comments, layout and documentation do not count. What runs and stores experiments hands numbers on and makes
none, so it does not count either. Of an experiment outside the package its own file counts and what that imports of
files that are neither installed (site-packages) nor Python's; not what is imported by a name made up at run time, nor
the files that it reads. Of a notebook count its functions and classes, and the numbers and texts that these name; not
other objects that its cells make, such as a tensor.
"""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from companion._support import sha256, store

PACKAGE = Path(__file__).parents[1]
MAKES_NUMBERS = {"companion.experiments.shared", "companion.experiments.problems"}
COLLECTS_NUMBERS = "companion.experiments.arrays"  # by way of the package's __init__

_Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Import = ast.Import | ast.ImportFrom


def code(module: str) -> str:
    """Hash of the code that the functions of `module` (imported already) can reach."""
    found: dict[str, str] = {}
    todo = [module, COLLECTS_NUMBERS]
    while todo:
        name = todo.pop()
        if name not in found:
            found[name], imported = _examined(name)
            todo += imported
    return sha256("\n".join(f"{name} {found[name]}" for name in sorted(found)))


def examine(source: str, own: str | None = None) -> tuple[str, frozenset[str]]:
    """Hash of a module's syntax tree without docstrings, and the package's modules that it imports.

    For a module outside the package `own` is what its relative imports start from, "" where there is nothing: then
    modules of its author's count too.
    """
    words, imports = list[str](), list[_Import]()
    # The tree of one text is written the same by every version of Python: ast.dump and ast.unparse change.
    _write(ast.parse(source), words, imports)
    return sha256("".join(words)), frozenset(_imports(imports, own))


def reads(paths: Iterable[Path]) -> dict[str, str]:
    """Hash of each file of the store among `paths`, by its path in there; files elsewhere are the data sets' to pin."""
    root = store().resolve()
    inside = sorted(path.resolve() for path in paths if path.resolve().is_relative_to(root))
    return {path.relative_to(root).as_posix(): _file_hash(path) for path in inside}


def changed(read: Mapping[str, str]) -> list[str]:
    """Those of the files in `read`, as :func:`reads` returned it, that are gone or hold something else now."""
    return [name for name, digest in read.items() if _file_hash(store() / name) != digest]


def _file_hash(path: Path) -> str:
    if not path.is_file():
        return ""
    state = path.stat()
    return _content_hash(path, state.st_mtime_ns, state.st_size)


@cache
def _content_hash(path: Path, time: int, size: int) -> str:
    return sha256(path)


@cache
def _examined(module: str) -> tuple[str, frozenset[str]]:
    path = _path(module) or Path(getattr(sys.modules[module], "__file__", None) or "")
    if path.is_file():
        inside = module if path.stem == "__init__" else module.rpartition(".")[0]
        return examine(path.read_text(encoding="utf-8"), None if module.startswith("companion.") else inside)
    # A notebook or standard input has no file; what Python runs stands for it.
    held = vars(sys.modules[module])
    parts = dict(_parts(held, module))
    named = {name for part in parts.values() if isinstance(part, CodeType) for name in _names(part)} & held.keys()
    parts |= {name: held[name] for name in named if _is_plain(held[name])}
    own = [f"{name} {_instructions(parts[name])}" for name in sorted(parts)]
    values = held.values()
    used = {each.__name__ if inspect.ismodule(each) else str(getattr(each, "__module__", "")) for each in values}
    return sha256("\n".join(own)), frozenset(name for name in used if _own(name) and _path(name))


def _path(module: str) -> Path | None:
    """Source of a module of the package or of the author of an experiment, None for what is neither."""
    first, *rest = module.split(".")
    top = (PACKAGE if rest else None) if first == "companion" else _own(first)
    below = top and top.joinpath(*rest)
    candidates = [below.with_suffix(".py"), below / "__init__.py"] if below else []
    return next((path for path in candidates if path.is_file()), None)


@cache
def _own(module: str) -> Path | None:
    """Where a module outside the package lies, without suffix; None for what is installed, or comes with Python."""
    first = module.split(".")[0]
    if first in (*sys.stdlib_module_names, "companion", "__main__"):
        return None
    try:
        spec = importlib.util.find_spec(first)  # of a first name, so that nothing is run
    except ValueError:  # made by hand
        return None
    places = [] if spec is None else [*(spec.submodule_search_locations or []), spec.origin or ""]
    place = Path(places[0]) if places else Path()
    return None if not place.name or {"site-packages", "dist-packages"} & set(place.parts) else place.with_suffix("")


def _imports(found: Iterable[_Import], own: str | None) -> Iterator[str]:
    for node in found:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level and own:
                base = importlib.util.resolve_name("." * node.level + base, own)
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            # Python runs the packages on the way, too.
            if own is None and parts[0] != "companion":
                continue
            for chain in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
                if _path(chain) and (chain in MAKES_NUMBERS or not _is_framework(chain)):
                    yield chain


def _is_framework(module: str) -> bool:
    return module.rpartition(".")[0] == "companion.experiments" or module == "companion.experiments"


def _write(node: object, words: list[str], imports: list[_Import]) -> None:
    """Add the words of a tree, and its imports, without docstrings and imports for type checkers alone."""
    if isinstance(node, ast.AST):
        words.append(f"({type(node).__name__}")
        if isinstance(node, _Import):
            imports.append(node)
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                start = name == "body" and isinstance(node, _Scope) and ast.get_docstring(node, clean=False) is not None
                value = [each for each in value[start:] if not _for_type_checkers(each)]
            if value is not None and value != []:
                words.append(f" {name}=")
                _write(value, words, imports)
        words.append(")")
    elif isinstance(node, list):
        for each in node:
            _write(each, words, imports)
    else:
        words.append(repr(node))


def _for_type_checkers(node: object) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _parts(held: Mapping[str, object], module: str, of: str = "") -> Iterator[tuple[str, object]]:
    """By name, the code of what a module defines: functions, decorated ones too, and classes' methods and values."""
    for name, each in held.items():
        bare: Any = getattr(each, "fget", getattr(each, "__func__", each))  # of a property, of a class method
        bare = inspect.unwrap(bare) if callable(bare) else bare
        if of and not name.startswith("__") and _is_plain(bare):
            yield f"{of}{name}", bare
        elif getattr(bare, "__module__", None) == module and inspect.isfunction(bare):
            yield f"{of}{name}", bare.__code__
        elif getattr(bare, "__module__", None) == module and isinstance(bare, type):
            yield from _parts(vars(bare), module, f"{of}{name}.")


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str) or (
        isinstance(value, tuple | list) and all(map(_is_plain, value))
    )


def _instructions(part: object) -> str:
    # repr() of an inner function holds an address, and that of a set has an order, which no two processes share
    if isinstance(part, CodeType):
        return f"{part.co_code.hex()} {part.co_names} {[_instructions(each) for each in part.co_consts]}"
    return repr(sorted(map(repr, part)) if isinstance(part, frozenset) else part)
