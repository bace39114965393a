"""Failed trainings, grouped by their cause."""

from __future__ import annotations

from pathlib import Path

from raykd.report.failures import FailureAnnouncer, failure_lines, group_failures
from raykd.runtime.jobs import TrainJob
from raykd.tuning.records import Record


def failed(number: int, reason: str, raised_at: str = "", log: str = "") -> Record:
    work = TrainJob(f"trial-{number:04}", "trial", {}, seed=0, epochs=1)
    return Record(work, status="failed", reason=reason, raised_at=raised_at, log=log)


PLACE = "/elsewhere/my_pkg/models.py:12"
FAILED = [
    failed(0, "diverged in epoch 2: term 'kd' not finite in step 3", log="logs/trial-0000.log"),
    failed(1, "RuntimeError: shapes (16x64 and 32x10)", PLACE, "logs/trial-0001.log"),
    failed(2, "RuntimeError: shapes (8x64 and 32x10)", PLACE),
    failed(3, "its teacher teacher-1 failed: RuntimeError: shapes (1x1 and 2x2)"),
    failed(4, "RuntimeError: shapes (8x64 and 32x10)", "/elsewhere/other.py:3"),
]


def test_equal_failures_are_one_cause() -> None:
    found = group_failures(FAILED)
    assert [[record.id[-1] for record in cause.records] for cause in found] == [
        ["1", "2", "3"],
        ["0"],
        ["4"],
    ]
    assert found[0].reason == "RuntimeError: shapes (16x64 and 32x10)"
    assert found[0].plain()["count"] == 3


def test_summary_names_error_place_and_log_once(tmp_path: Path) -> None:
    assert failure_lines(group_failures(FAILED), tmp_path)[:3] == [
        "3 trainings (trial-0001, trial-0002, trial-0003): RuntimeError: shapes (16x64 and 32x10)",
        f"  raised at {PLACE}",
        f"  log: {tmp_path}/logs/trial-0001.log",
    ]


def test_many_causes_and_many_trainings_are_cut_short(tmp_path: Path) -> None:
    names = "abcdefg"
    many = [failed(number, f"Error{names[number % 7]}: no") for number in range(70)]
    said = failure_lines(group_failures(many), tmp_path)
    assert len(said) == 6 and "and 2 more" in said[0]
    assert said[-1] == "and 20 more with 2 other errors (raykd report --json)"


def test_error_is_announced_in_full_once() -> None:
    announcer = FailureAnnouncer()
    said = [announcer.line(record) for record in FAILED[1:3]]
    assert said == [
        f"trial-0001 failed: RuntimeError: shapes (16x64 and 32x10) (raised at {PLACE})",
        "trial-0002 failed with the same error (2 so far)",
    ]
