"""Table of the fault matrix, printed at the end of the tests."""

from __future__ import annotations

import pytest

COLUMNS = (
    "fault",
    "moment",
    "workers",
    "trials lost",
    "epochs redone",
    "metrics lost",
    "runs doubled",
    "processes left",
    "seconds",
)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one row for each case of the matrix, also for those that failed."""
    reports = [
        report
        for status in ("passed", "failed")
        for report in terminalreporter.stats.get(status, [])
        if report.when == "call" and report.nodeid.startswith("tests/faults/")
    ]
    rows = [dict(report.user_properties) for report in reports if report.user_properties]
    if not rows:
        return
    table = [COLUMNS, *([str(row.get(column, "?")) for column in COLUMNS] for row in rows)]
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    lines.insert(1, "|---" * len(COLUMNS) + "|")
    terminalreporter.section("fault matrix")
    for line in lines:
        terminalreporter.write_line(line)
