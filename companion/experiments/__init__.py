"""The runs behind every figure and table: by name, in profiles, with stored results that say where they come from.

``run`` computes and stores, ``load`` reads the best that is stored, ``stale`` tells whether the code has changed since.
:mod:`companion.experiments.registry` shows how an experiment's module looks.
"""

from companion.experiments.context import Context
from companion.experiments.provenance import Provenance, resolve_device
from companion.experiments.registry import PROFILES, experiment, names
from companion.experiments.results import Result, describe, load, path, run, stale

__all__ = [
    "PROFILES",
    "Context",
    "Provenance",
    "Result",
    "describe",
    "experiment",
    "load",
    "names",
    "path",
    "resolve_device",
    "run",
    "stale",
]
