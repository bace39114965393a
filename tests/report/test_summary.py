from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console

from helpers.events import STUDY, Teller
from raykd.report.commands import commands
from raykd.report.summary import facts, gain_in_words, seconds_at_work, summary
from raykd.study.checks.load import load_study
from raykd.tracking.events import (
    Event,
    ModelSaved,
    Note,
    RunStarted,
    StudyEnded,
    StudyStarted,
    to_json,
)
from raykd.tracking.journal import Journal, events
from raykd.tuning.number_format import clock, compact, duration, interval, percent, points, rough
from raykd.tuning.result import StudyResult, read_result
from raykd.tuning.statistics import Estimate, estimate
from raykd.tuning.study_lock import locked

LIVE_ONLY = ("phase", "plan", "tracked")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)


def result_of(teller: Teller, told: Iterable[Event]) -> StudyResult:
    with Journal(teller.folder.journal) as journal:
        for event in told:
            if event.journaled:
                journal.append(event)
    return read_result(teller.folder.path)


def text_of(result: StudyResult, width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(summary(result), crop=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_summary_tells_what_was_found(teller: Teller) -> None:
    text = text_of(result_of(teller, teller.whole()))
    assert "made-up: 6 trials in 0 s; 4 completed, 1 stopped early, 1 failed" in text
    assert "Pareto front (max val accuracy, min params; validation split)" in text
    front = text[text.index("Pareto front") : text.index("Chosen students")]
    assert "trial-0000  resnet d14 w16  offline  1.93 kd T=1.12 + 47.3 hint" in front
    assert "98.15%  174,970  1.65M" in front
    assert "trial-0001" in front and "trial-0002" not in front
    assert "97.60% ± 0.50 (n=3)  95.40% ± 0.90 (n=3)  +2.20 ± 0.90 (n=3)" in text
    assert "trial-0000: better than without teacher." in text
    assert "trial-0001: not significant (95% CI includes 0)" in text
    assert "trial-0000 and trial-0001 differ by +0.83 ± 0.38 (n=3): trial-0000 is better" in text
    assert "Teacher resnet d14 w32: val accuracy 98.61%, test accuracy 97.50%" in text
    assert "The teacher is worse" not in text
    assert "trial-0005: diverged in epoch 2" in text
    assert "raykd report studies/made-up-" in text
    assert "--resume" not in text


def test_brackets_in_a_student_s_name_are_no_markup(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    stages = "[{width: {choice: [8, 16]}, depth: 2, block: depthwise}]"
    study = load_study(file, overrides=[f"student.model={{name: cnn, stages: {stages}}}"])
    teller = Teller(study, tmp_path)
    told = [*teller.opening(), *teller.trial(0, 0.98)]
    assert "stages=[d2 w" in " ".join(text_of(result_of(teller, told), width=200).split())


def test_the_summary_fits_80_columns_but_for_commands(teller: Teller) -> None:
    text = text_of(result_of(teller, teller.whole()), width=80)
    told, _, _ = text.partition("Next steps")
    assert max(len(line) for line in told.splitlines() if "weights: " not in line) <= 80
    assert "optuna.log" in text.splitlines()[-1], "a command is never broken"


def test_a_weak_teacher_is_said_out_loud(teller: Teller) -> None:
    told = [*teller.opening(), *teller.teacher(test=0.93), *teller.trial(0, 0.95)]
    told += [*teller.replicates(0, [0.95, 0.96], [0.94, 0.95])]
    text = " ".join(text_of(result_of(teller, told)).split())
    assert "The teacher is worse than the student of trial-0000 trained without it (93.00%" in text
    warning = "teacher t is worse than its student alone: val accuracy 93.0%"
    told.append(Note(tags={"warning_below_student": warning}))
    text = " ".join(text_of(result_of(teller, told)).split())
    assert text.count("teacher t is worse than its student") == 1, "once is enough"
    assert "The teacher is worse" not in text


def test_students_that_cannot_be_told_apart_are_said_to_be(teller: Teller) -> None:
    told = [*teller.opening(), *teller.trial(0, 0.98), *teller.trial(1, 0.97)]
    told += [*teller.replicates(0, [0.95, 0.96, 0.94], [0.94, 0.95, 0.93])]
    told += [*teller.replicates(1, [0.96, 0.94, 0.95], [0.94, 0.95, 0.93])]
    text = text_of(result_of(teller, told))
    assert "trial-0000 and trial-0001 differ by +0.00" in text
    assert "paired by seed: not significant (95% CI includes 0)" in " ".join(text.split())


def test_an_interrupted_search_says_how_to_go_on(teller: Teller) -> None:
    result = result_of(teller, [*teller.halfway(), StudyEnded("interrupted")])
    text = text_of(result)
    assert "made-up (interrupted): 6 trials" in text
    assert "2 interrupted" in text
    assert f"raykd search --resume studies/{teller.folder.name}" in text


def test_a_killed_search_is_interrupted(teller: Teller) -> None:
    assert facts(result_of(teller, teller.halfway()))["status"] == "interrupted"


def test_a_running_search_is_running(teller: Teller) -> None:
    """Also one that was interrupted before, and is not to be resumed a second time."""
    told = [*teller.halfway(), StudyEnded("interrupted")]
    result = result_of(teller, told)
    with locked(teller.folder.path, "search"):
        found, text = facts(result), text_of(result)
        assert found["status"] == "running" and found["unfinished"] is False
        assert "made-up (running): 6 trials" in text and "2 running" in text
        assert "--resume" not in text and "raykd sync" not in text
    assert facts(result)["status"] == "interrupted"
    assert "--resume" in text_of(result)


def test_a_search_without_a_whole_trial_has_no_front(teller: Teller) -> None:
    told = [*teller.opening(), *teller.trial(0, 0.9, epochs=1, status="failed")]
    assert "No trial completed, so there is no Pareto front." in text_of(result_of(teller, told))


def test_the_facts_are_json_and_complete(teller: Teller) -> None:
    found = facts(result_of(teller, teller.whole()))
    read = json.loads(json.dumps(to_json(found)))
    assert read["best"] == "trial-0000"
    assert [record["id"] for record in read["front"]] == ["trial-0000", "trial-0001"]
    first, second = read["chosen"]
    assert first["gain"]["mean"] == pytest.approx(0.022)
    assert (first["gain_is_clear"], second["gain_is_clear"]) == (True, False)
    assert read["differences"][0]["is_clear"]
    assert read["failed"] == {"trial-0005": "diverged in epoch 2: term 'kd' not finite in step 3"}
    assert {"report", "mlflow", "optuna"} <= read["commands"].keys()


def test_commands_are_typed_as_this_one_was(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = result_of(teller, teller.whole())
    told = events(teller.folder.journal)
    assert next(c.text for c in commands(result, told) if c.name == "mlflow") == (
        "mlflow ui --backend-store-uri sqlite:///mlflow.db"
    )
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    typed = {command.name: command.text for command in commands(result, told)}
    assert typed["report"].startswith("uv run raykd report studies/")
    assert typed["optuna"].startswith("uv run ")
    assert not Path("mlflow.db").exists(), "looking for runs must not create a store"


def test_the_students_file_is_named_while_mlflow_has_no_model(teller: Teller) -> None:
    model = ModelSaved("trial-0000/seed-2", "students/s.pt", aliases=["champion"])
    result = result_of(teller, [*teller.whole(), model])
    load = next(c for c in commands(result, events(teller.folder.journal)) if c.name == "load")
    assert load.what == "load the student of trial-0000/seed-2"
    assert str(teller.folder.path / "students" / "s.pt") in load.text


def test_pauses_are_no_work() -> None:
    told = [
        StudyStarted("a", at=0),
        RunStarted("t", "trial", at=4000),
        StudyStarted("a", at=100_000),
        StudyEnded(at=103_000),
    ]
    assert seconds_at_work(told) == 7.0
    assert seconds_at_work([]) == 0.0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.02, 0.021, 0.022], "better than without teacher."),
        ([-0.02, -0.021, -0.022], "worse than without teacher."),
        ([0.02, -0.021, 0.01], "not significant (95% CI includes 0)."),
        ([0.02], "1 seed is too few for a verdict."),
        ([0.02, 0.02], "2 seeds are too few for a verdict."),
        ([-0.0084, -0.0083], "2 seeds are too few for a verdict."),
        (
            [0.02, 0.02, 0.02],
            "no confidence interval: all seeds differ by the same number of test samples.",
        ),
        ([0.0, 0.0, 0.0], "no difference at the resolution of the test set."),
    ],
)
def test_a_gain_is_called_what_it_is(values: list[float], said: str) -> None:
    assert gain_in_words(estimate(values, -1, 1)) == said


def test_figures_keep_honest_digits() -> None:
    assert percent(0.974149) == "97.41%"
    assert percent(None) == percent(float("nan")) == "-"
    assert [compact(n) for n in (9876, 65_123, 1_234_567, 999_960)] == [
        "9876",
        "65.1k",
        "1.23M",
        "1M",
    ]
    assert interval(Estimate(0.9, 0.89, 0.91, 3)) == "90.00% ± 1.00 (n=3)"
    assert interval(estimate([0.9])) == "90.00% (n=1)"
    assert interval(estimate([0.98, 0.99, 1.0])) == "99.00% [96.52, 100.00] (n=3)"
    assert interval(estimate([0.9, 0.9, 0.9])) == "90.00% (n=3)"
    assert points(Estimate(-0.002, -0.01, 0.006, 3)) == "-0.20 ± 0.80 (n=3)"
    assert [clock(s) for s in (0, 61, 3725)] == ["0:00", "1:01", "1:02:05"]
    assert [duration(s) for s in (42, 200, 7500)] == ["42 s", "3 min 20 s", "2 h 5 min"]
    assert [rough(s) for s in (1, 62, 127, 4000)] == ["5 s", "1 min", "2 min", "1 h 5 min"]


def test_a_teacher_that_was_not_trained_to_its_end_has_no_file(teller: Teller) -> None:
    *begun, finished = teller.teacher(test=0.93, keep="teachers/0.safetensors")
    assert "teachers/0.safetensors" not in text_of(result_of(teller, [*teller.opening(), *begun]))
    assert "teachers/0.safetensors" in text_of(
        result_of(teller, [*teller.opening(), *begun, finished])
    )
