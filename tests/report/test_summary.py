from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import raykd.report.summary as summary_package
from helpers.events import STUDY, Teller
from helpers.pairs_cases import synthetic_result
from raykd.report.commands import search_commands
from raykd.report.summary import summarize
from raykd.report.summary.base import running_seconds
from raykd.report.terminal import render_summary
from raykd.study.checks.load import load_study
from raykd.tracking.events import (
    Event,
    ModelSaved,
    Note,
    RunStarted,
    StudyEnded,
    StudyStarted,
)
from raykd.tracking.journal import Journal, events
from raykd.tracking.json_types import to_json
from raykd.tuning.estimates import Estimate, estimate
from raykd.tuning.number_format import clock, compact, duration, interval, percent, points, rough
from raykd.tuning.result import StudyResult, read_result
from raykd.tuning.study_lock import locked
from raykd.tuning.verdicts import gain_verdict

LIVE_ONLY = ("phase", "plan", "tracked")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)


def result_of(teller: Teller, history: Iterable[Event]) -> StudyResult:
    with Journal(teller.folder.journal) as journal:
        for event in history:
            if event.journaled:
                journal.append(event)
    return read_result(teller.folder.path)


def text_of(result: StudyResult, width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render_summary(summarize(result)), crop=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_summary_shows_results(teller: Teller) -> None:
    text = text_of(result_of(teller, teller.whole()))
    assert "made-up: 6 trials in 0 s; 4 completed, 1 stopped early, 1 failed" in text
    assert "Pareto front (max val accuracy, min params; validation split)" in text
    front = text[text.index("Pareto front") : text.index("Finalists")]
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


def test_brackets_in_student_s_name_are_no_markup(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    stages = "[{width: {choice: [8, 16]}, depth: 2, block: depthwise}]"
    study = load_study(file, overrides=[f"student.model={{name: cnn, stages: {stages}}}"])
    teller = Teller(study, tmp_path)
    history = [*teller.opening(), *teller.trial(0, 0.98)]
    assert "stages=[d2 w" in " ".join(text_of(result_of(teller, history), width=200).split())


def test_summary_fits_80_columns_but_for_commands(teller: Teller) -> None:
    text = text_of(result_of(teller, teller.whole()), width=80)
    results, _, commands = text.partition("Next steps")
    assert max(len(line) for line in results.splitlines() if "weights: " not in line) <= 80
    assert any("optuna" in line and "optuna.log" in line for line in commands.splitlines()), (
        "a command is never broken"
    )
    assert "raykd extend studies/made-up-" in commands and "--trials +8" in commands
    assert "raykd compare studies/made-up-" in commands


def test_weak_teacher_is_reported(teller: Teller) -> None:
    history = [*teller.opening(), *teller.teacher(test=0.93), *teller.trial(0, 0.95)]
    history += [*teller.replicates(0, [0.95, 0.96], [0.94, 0.95])]
    text = " ".join(text_of(result_of(teller, history)).split())
    assert "The teacher is worse than the student of trial-0000 trained without it (93.00%" in text
    warning = "teacher t is worse than its student alone: val accuracy 93.0%"
    history.append(Note(tags={"warning_below_student": warning}))
    text = " ".join(text_of(result_of(teller, history)).split())
    assert text.count("teacher t is worse than its student") == 1, "once is enough"
    assert "The teacher is worse" not in text


def test_indistinguishable_students_are_reported(teller: Teller) -> None:
    history = [*teller.opening(), *teller.trial(0, 0.98), *teller.trial(1, 0.97)]
    history += [*teller.replicates(0, [0.95, 0.96, 0.94], [0.94, 0.95, 0.93])]
    history += [*teller.replicates(1, [0.96, 0.94, 0.95], [0.94, 0.95, 0.93])]
    text = text_of(result_of(teller, history))
    assert "trial-0000 and trial-0001 differ by +0.00" in text
    assert "paired by seed: not significant (95% CI includes 0)" in " ".join(text.split())


def test_interrupted_search_shows_how_to_resume(teller: Teller) -> None:
    result = result_of(teller, [*teller.halfway(), StudyEnded("interrupted")])
    text = text_of(result)
    assert "made-up (interrupted): 6 trials" in text
    assert "2 interrupted" in text
    assert f"raykd search --resume studies/{teller.folder.name}" in text


def test_killed_search_is_interrupted(teller: Teller) -> None:
    assert summarize(result_of(teller, teller.halfway())).status == "interrupted"


def test_running_search_is_running(teller: Teller) -> None:
    """Also one that was interrupted before, and is not to be resumed a second time."""
    history = [*teller.halfway(), StudyEnded("interrupted")]
    result = result_of(teller, history)
    with locked(teller.folder.path, "search"):
        running, text = summarize(result), text_of(result)
        assert running.status == "running" and not running.unfinished
        assert "made-up (running): 6 trials" in text and "2 running" in text
        assert "--resume" not in text and "raykd sync" not in text
    assert summarize(result).status == "interrupted"
    assert "--resume" in text_of(result)


def test_search_without_whole_trial_has_no_front(teller: Teller) -> None:
    history = [*teller.opening(), *teller.trial(0, 0.9, epochs=1, status="failed")]
    assert "No trial completed, so there is no Pareto front." in text_of(result_of(teller, history))


def test_facts_are_json_and_complete(teller: Teller) -> None:
    summary = summarize(result_of(teller, teller.whole()))
    read = json.loads(json.dumps(to_json(summary.plain())))
    assert read["best"] == "trial-0000"
    assert [record["id"] for record in read["front"]] == ["trial-0000", "trial-0001"]
    first, second = read["chosen"]
    assert first["gain"]["mean"] == pytest.approx(0.022)
    assert (first["gain_is_clear"], second["gain_is_clear"]) == (True, False)
    assert read["differences"][0]["is_clear"]
    assert read["failed"] == {"trial-0005": "diverged in epoch 2: term 'kd' not finite in step 3"}
    assert {"report", "mlflow", "optuna"} <= read["commands"].keys()


def test_commands_use_launcher_of_this_one(teller: Teller, monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_of(teller, teller.whole())
    history = events(teller.folder.journal)
    mlflow = next(c.text for c in search_commands(result, history) if c.name == "mlflow")
    assert re.fullmatch(r"raykd ui studies/[\w-]+", mlflow)
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    typed = {command.name: command.text for command in search_commands(result, history)}
    assert typed["report"].startswith("uv run raykd report studies/")
    assert typed["optuna"].startswith("uv run ")
    assert not Path("mlflow.db").exists(), "looking for runs must not create a store"


def test_students_file_is_named_while_mlflow_has_no_model(teller: Teller) -> None:
    model = ModelSaved("trial-0000/seed-2", "students/s.pt", aliases=["champion"])
    result = result_of(teller, [*teller.whole(), model])
    load = next(
        c for c in search_commands(result, events(teller.folder.journal)) if c.name == "load"
    )
    assert load.purpose == "load the student of trial-0000/seed-2"
    assert str(teller.folder.path / "students" / "s.pt") in load.text


def test_export_is_suggested_for_what_can_be_exported(teller: Teller) -> None:
    model = ModelSaved("trial-0000/seed-2", "students/s.pt", aliases=["champion"])
    result = result_of(teller, [*teller.whole(), model])
    history = list(events(teller.folder.journal))
    assert "export" in {command.name for command in search_commands(result, history)}
    of_detectors = [
        replace(event, resolved={**event.resolved, "task": {"name": "detection"}})
        if isinstance(event, StudyStarted)
        else event
        for event in history
    ]
    assert "export" not in {command.name for command in search_commands(result, of_detectors)}


def test_pauses_are_no_work() -> None:
    history = [
        StudyStarted("a", at=0),
        RunStarted("t", "trial", at=4000),
        StudyStarted("a", at=100_000),
        StudyEnded(at=103_000),
    ]
    assert running_seconds(history) == 7.0
    assert running_seconds([]) == 0.0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.02, 0.021, 0.022], "better than without teacher."),
        ([-0.02, -0.021, -0.022], "worse than without teacher."),
        ([0.02, -0.021, 0.01], "not significant (95% CI includes 0)."),
        ([0.02], "1 seed is too few for a verdict (at least 3 are needed)."),
        ([0.02, 0.02], "2 seeds are too few for a verdict (at least 3 are needed)."),
        ([-0.0084, -0.0083], "2 seeds are too few for a verdict (at least 3 are needed)."),
        (
            [0.02, 0.02, 0.02],
            "no confidence interval: the difference is the same number of test samples under every "
            "seed, so its spread over seeds is unknown.",
        ),
        ([0.0, 0.0, 0.0], "no difference at the resolution of the test set."),
    ],
)
def test_gain_is_labeled_by_its_significance(values: list[float], said: str) -> None:
    assert gain_verdict(estimate(values, -1, 1)) == said


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


def test_teacher_that_was_not_trained_to_its_end_has_no_file(teller: Teller) -> None:
    *begun, finished = teller.teacher(test=0.93, keep="teachers/0.safetensors")
    assert "teachers/0.safetensors" not in text_of(result_of(teller, [*teller.opening(), *begun]))
    assert "teachers/0.safetensors" in text_of(
        result_of(teller, [*teller.opening(), *begun, finished])
    )


SUMMARY_FILES = sorted(Path(summary_package.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("file", SUMMARY_FILES, ids=lambda file: file.stem)
def test_figures_are_computed_without_printing(file: Path) -> None:
    """The terminal, JSON and pages read the same figures, so none of them may be needed here."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [each.name for node in nodes if isinstance(node, ast.Import) for each in node.names]
    printers = ("rich", "raykd.report.terminal", "raykd.terminal_tables")
    assert [name for name in modules if name.startswith(printers)] == []


def test_every_kind_of_run_has_shared_figures(teller: Teller, tmp_path: Path) -> None:
    search = result_of(teller, teller.whole())
    layer_study = synthetic_result(tmp_path)
    shared = {"study", "id", "folder", "status", "seconds", "trials"}
    shared |= {"failed", "failures", "commands"}
    for summary in (summarize(search), summarize(layer_study)):
        plain = json.loads(json.dumps(to_json(summary.plain())))
        assert shared <= plain.keys()
        assert plain["trials"] == summary.trial_counts
        assert plain["study"] == summary.result.name
        assert [teacher.name for teacher in summary.teachers]
