"""Every stored result is what today's code makes, as far as the quick profile, run again, can tell."""

import pytest

from companion import experiments
from companion.experiments.registry import get

NAMES = [name for name in experiments.names() if get(name).function.__module__.startswith("companion.")]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_quick_profile_gives_the_stored_numbers_and_none_is_stale(name):
    assert experiments.verify(name) == []
    assert "stale" not in experiments.describe(name)["stored"].values()
