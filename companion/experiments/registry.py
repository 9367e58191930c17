'''Every experiment of the book by name, and the decorator that declares one.

An experiment is one function in a module of this package; dropping the file into a folder here registers it::

    """Asim et al. 2020: compressed sensing with a flow prior."""

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        images: int
        measurements: tuple[int, ...]


    @experiment(
        "asim.compressed-sensing",
        paper="Asim et al. 2020",
        shows="Fig. 4 left, 15, 16",
        profiles={"quick": Settings(images=4, measurements=(307, 614)), "laptop": Settings(...)},
        tolerances={"psnr": 0.05},
    )
    def compressed_sensing(settings: Settings, context: Context) -> tuple[dict, dict]:
        """Recovers held-out photographs from m random measurements."""
        parts = context.map(recover_all, settings.measurements, "measurements")
        return {"n": 3072}, gather(parts, m=settings.measurements)


    def recover_all(settings: Settings, part: Part, m: int) -> tuple[dict, dict]:
        ...
        found = part.count(recover.flow_latent(...))
        return {}, {"psnr": named(evaluate.psnr(found.x, truth).numpy(), image=settings.images)}

The function takes its profile's settings (a dataclass or a dict of JSON values) and a
:class:`~companion.experiments.context.Context`; it returns metrics (nested dict of JSON values, None for what is
missing) and arrays (dict of numpy arrays, their axes named by :func:`~companion.experiments.arrays.named`). What takes
long goes through ``context.map``: parts that do not depend on each other, each a function of the settings, device, seed
and one item. ``context.seed`` (``part.seed``) is the only source of randomness. Settings named ``images``, ``seeds``
and ``budget`` appear in the captions of figures.
'''

import dataclasses
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from companion._support import PROFILES, one_of
from companion.experiments import store

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A declared experiment: its function, the settings of each profile, and how closely a run must repeat another."""

    name: str
    paper: str
    shows: str
    function: Callable[..., Any]
    settings: Mapping[str, Any]
    tolerances: Mapping[str, float | None]

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


_registered: dict[str, Experiment] = {}


def experiment(
    name: str,
    *,
    paper: str,
    shows: str,
    profiles: Mapping[str, Any],
    tolerances: Mapping[str, float | None] | None = None,
) -> Callable[[Function], Function]:
    """Declare an experiment; the function itself stays as it is. See this module's text for what it takes and returns.

    Parameters
    ----------
    name
        Lower-case words with dots and hyphens, paper first: "asim.compressed-sensing".
    paper, shows
        Who published what it reproduces, and which figures and tables.
    profiles
        Settings (dataclass instance or dict) of "quick", "laptop", "overnight" and "paper", or of some of them.
    tolerances
        How far metrics and arrays of these names (or patterns, "seconds*") may lie from the stored ones when the quick
        profile is run again; see :mod:`companion.experiments.verify`. None for numbers that no run repeats, as times.

    Raises ValueError for a malformed or taken name, or for profiles or settings that are not as above.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)+", name):
        raise ValueError(f"name: got {name!r}; allowed: lower-case words with dots and hyphens, as asim.denoising")
    if not profiles:
        raise ValueError(f"profiles: got none for {name!r}; allowed: {', '.join(PROFILES)}")
    for profile, settings in profiles.items():
        one_of("profiles", profile, PROFILES)
        settings_dict(settings)
    ordered = {profile: profiles[profile] for profile in PROFILES if profile in profiles}

    def register(function: Function) -> Function:
        entry = Experiment(name, paper, shows, function, ordered, dict(tolerances or {}))
        known = _registered.setdefault(name, entry).function
        # The same function may come again, as when a notebook's cell is run twice.
        if (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise ValueError(f"name: got {name!r}, which {known.__module__} has; allowed: a name not taken yet")
        _registered[name] = entry
        return function

    return register


def settings_dict(settings: object) -> dict[str, Any]:
    """Return settings (dataclass instance or dict) as a dict of JSON values; ValueError for anything else."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return store.plain("settings", dataclasses.asdict(settings))
    if isinstance(settings, Mapping):
        return store.plain("settings", settings)
    raise ValueError(f"settings: got {type(settings).__name__}; allowed: a dataclass instance or a dict")


def with_changes(settings: Any, changes: Mapping[str, Any], profiles: Iterable[Any] = ()) -> Any:
    """Settings with some values replaced by others of the same types.

    ValueError for a name or type that they lack, and, unless the settings or those of another of the `profiles` have
    such, for a whole number below 1 and for no numbers where there are several.
    """
    present = settings if isinstance(settings, Mapping) else vars(settings)
    for name in changes:
        one_of("setting", name, present)
    new = {name: _like(name, value, present[name]) for name, value in changes.items()}
    for name, value in new.items():
        least = min(_least(settings_dict(each).get(name, 1)) for each in (settings, *profiles))
        if _least(value) < min(least, 1):
            raise ValueError(f"{name}: got {value!r}; allowed: one or more, of whole numbers those >= {min(least, 1)}")
    return {**settings, **new} if isinstance(settings, Mapping) else dataclasses.replace(settings, **new)


def _least(value: Any) -> int:
    """The least whole number in a setting; 0 where a tuple is empty, and 1 for what is no whole number."""
    if isinstance(value, tuple | list):
        return min(map(_least, value), default=0)
    return value if type(value) is int else 1


def _like(name: str, given: Any, present: Any) -> Any:
    if isinstance(present, tuple | list):
        each = given if isinstance(given, tuple | list) else (given,)
        return type(present)(_like(name, value, present[0]) if present else value for value in each)
    if isinstance(present, float) and type(given) is int:
        return float(given)
    if type(given) is not type(present):
        raise ValueError(f"{name}: got {given!r}; allowed: {type(present).__name__}, as {present!r}")
    return given


def names() -> list[str]:
    """Names of all experiments, sorted."""
    _import_all()
    return sorted(_registered)


def get(name: str) -> Experiment:
    """The experiment of that name; ValueError with the known names for an unknown one."""
    if name not in _registered:
        one_of("experiment", name, names())
    return _registered[name]


@cache
def _import_all() -> None:
    for folder in Path(__file__).parent.iterdir():
        for found in pkgutil.iter_modules([str(folder)]) if folder.is_dir() else ():
            import_module(f"{__package__}.{folder.name}.{found.name}")
