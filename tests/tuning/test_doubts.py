"""Warnings about teachers: at chance level, or worse than the student alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy import stats
from test_teacher_weights import distilled, study_file

from raykd.models import Mlp, Signature
from raykd.tracking.events import Note, RunStarted
from raykd.tracking.journal import events
from raykd.tuning.teacher_warnings import chance_warning, cumulative, weak_teacher_warning


@pytest.mark.parametrize(
    ("hits", "samples", "chance"), [(3, 10, 0.5), (0, 7, 0.2), (900, 2000, 0.4)]
)
def test_binomial_distribution(hits: int, samples: int, chance: float) -> None:
    assert cumulative(hits, samples, chance) == pytest.approx(
        stats.binom.cdf(hits, samples, chance)
    )


@pytest.mark.parametrize(
    ("accuracy", "counts", "warns"),
    [
        (1 / 3, [20, 20, 20], True),
        (0.0, [16, 16, 16], True),  # every class is another's
        (0.10, [100] * 10, True),
        (0.13, [100] * 10, False),  # little, but more than guessing
        (0.95, [950, 50], True),  # the most frequent class
        (0.5, [5, 5], False),  # ten samples do not tell
        (0.8, [5, 5], False),
        (0.1, [5, 5], True),
        (0.9, [100] * 10, False),
        (1.0, [10, 0], False),
    ],
)
def test_chance(accuracy: float, counts: list[int], warns: bool) -> None:
    assert bool(chance_warning("t", accuracy, counts)) == warns


def test_student_better_than_its_teacher() -> None:
    assert "worse than its student alone" in weak_teacher_warning("t", 0.5, "trial-0001", 0.9, 200)
    assert not weak_teacher_warning("t", 0.89, "trial-0001", 0.9, 200)
    assert not weak_teacher_warning("t", 0.9, "trial-0001", 0.5, 200)


def test_study_warns_before_its_students_train(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Mlp(depth=1, width=32).build(Signature((1, 8, 8), 10))
    torch.save(network.state_dict(), tmp_path / "t.pth")
    result = distilled(study_file(tmp_path, tmp_path / "t.pth"))
    recorded = events(result.folder / "journal.jsonl")
    places = [
        n for n, e in enumerate(recorded) if isinstance(e, Note) and "warning_teacher_0" in e.tags
    ]
    students = [
        n for n, e in enumerate(recorded) if isinstance(e, RunStarted) and e.role == "trial"
    ]
    assert len(places) == 1 and places[0] < students[0]
    warning = recorded[places[0]].fields()["tags"]["warning_teacher_0"]
    assert "is at chance" in warning and "teacher.classes" in warning
    from raykd.report.summary import summarize

    assert summarize(result).warnings == (f"WARNING: {warning}",)
