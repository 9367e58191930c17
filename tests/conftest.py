"""A passing run names the checks that this machine could not make, so that it does not claim more than it checked."""

import pytest

left_out: dict[str, list[str]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note each skipped test under its reason."""
    if report.skipped and isinstance(report.longrepr, tuple):
        name = report.nodeid.split("::")[-1].split("[")[0].removeprefix("test_")
        left_out.setdefault(report.longrepr[2].removeprefix("Skipped: "), []).append(name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each reason."""
    for reason, names in left_out.items():
        terminalreporter.write_line(f"left out: {', '.join(dict.fromkeys(names))}; because: {reason}")
