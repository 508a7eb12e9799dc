"""A pytest plugin that adds up CPU seconds: `pytest -p cpu_seconds PATHS`. They say, unlike the clock, the same on a busy machine."""

import json
import os
from collections import Counter
from collections.abc import Generator

import pytest

PRINTED = 40
"""Files, and tests, that the table at the end holds."""

_spent: Counter[str] = Counter()


def seconds() -> float:
    """CPU seconds of this process and of the processes it waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Remembers when a test began; its fixtures count as its own, so the first test that needs a shared one carries it."""
    item.began = seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "teardown":
        report.user_properties.append(("cpu_seconds", round(seconds() - item.began, 3)))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds up the seconds of all workers where their results come together."""
    spent = dict(report.user_properties).get("cpu_seconds") if report.when == "teardown" else None
    if spent is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        _spent[report.nodeid] += spent
        if "CPU_SECONDS" in os.environ:
            with open(os.environ["CPU_SECONDS"], "a") as file:
                file.write(json.dumps({"test": report.nodeid, "seconds": spent}) + "\n")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    files: Counter[str] = Counter()
    for test, spent in _spent.items():
        files[test.partition("::")[0]] += spent
    terminalreporter.section(f"{sum(files.values()):.0f} CPU seconds")
    for table in (files, _spent):
        for name, spent in table.most_common(PRINTED):
            terminalreporter.write_line(f"{spent:8.1f}  {name}")
