"""The order of the tests; and a passing run names the checks that this machine could not make."""

from collections import Counter

import pytest

left_out: dict[str, list[str]] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no process is left alone with one: by a chapter's cells, or a file's slow tests.

    Tests in a browser count as slow: one opens every page of the book.
    """
    long = Counter(
        item.path
        for item in items
        if item.path.suffix == ".ipynb" or any(item.get_closest_marker(name) for name in ("slow", "browser"))
    )
    items.sort(key=lambda item: -long[item.path])  # stable: the items of a file stay together


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note each skipped test under its reason."""
    if report.skipped and isinstance(report.longrepr, tuple):
        name = report.nodeid.split("::")[-1].split("[")[0].removeprefix("test_")
        left_out.setdefault(report.longrepr[2].removeprefix("Skipped: "), []).append(name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each reason."""
    for reason, names in left_out.items():
        terminalreporter.write_line(f"left out: {', '.join(dict.fromkeys(names))}; because: {reason}")
