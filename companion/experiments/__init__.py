"""The runs behind every figure and table: by name, in profiles, with stored results that say where they come from.

``run`` computes and stores, ``load`` reads the best that is stored, ``verify`` asks whether today's code still makes
it. :mod:`companion.experiments.registry` shows how an experiment's module looks.
"""

from companion._support import PROFILES
from companion.experiments.arrays import Named, named
from companion.experiments.context import Context
from companion.experiments.parts import Outcome, Part, gather
from companion.experiments.provenance import Provenance, resolve_device
from companion.experiments.registry import experiment, names
from companion.experiments.results import Stored, describe, load, path, run, state, verify, verify_all
