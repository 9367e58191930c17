"""A record of the stored files that a computation reads: whoever loads one says so, whoever keeps a record hears it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_record: ContextVar["set[Path] | None"] = ContextVar("record", default=None)


def note(path: Path) -> Path:
    """Enter a file that is about to be read in the record that is kept, if one is; return its path."""
    kept = _record.get()
    if kept is not None:
        kept.add(path)
    return path


@contextmanager
def recording() -> Iterator[set[Path]]:
    """Keep a record in this context; the set fills as files are read, and adds to a record kept around it."""
    outer, kept = _record.get(), set[Path]()
    token = _record.set(kept)
    try:
        yield kept
    finally:
        _record.reset(token)
        if outer is not None:
            outer |= kept
