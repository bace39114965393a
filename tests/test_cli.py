"""The verbs, as they are typed: what they print, where, and with which exit code they leave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import raykd
from raykd.cli.commands import EPILOG, app
from raykd.errors import Problem, StudyError
from raykd.tracking.events import Event, RunStarted, StudyStarted

STUDY = """\
name: small
data: {name: digits, limit: 100}
teacher: {model: {name: mlp, depth: 2, width: 16}, train: {epochs: 1}}
student: {model: {name: mlp, depth: 2, width: {choice: [8, 12]}}}
knowledge:
  - loss: {name: kd, temperature: 4}
train: {epochs: 1}
search: {trials: 2, replicates: 1}
"""
CLOSED = ("--set", "student.model.width=8")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A study file; the test's folder is the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "small.yaml").write_text(STUDY)
    return "small.yaml"


def typed(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


# What is imported, and what never is


def imported_after(statement: str, cwd: Path) -> set[str]:
    """The modules a fresh Python has imported after a statement."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    root = str(Path(raykd.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_command_line_imports_nothing_heavy(tmp_path: Path) -> None:
    modules = imported_after("import raykd.cli.commands, raykd.tuning", tmp_path)
    assert "raykd.cli.commands" in modules
    heavy = {"torch", "ray", "mlflow", "optuna", "numpy", "scipy", "pydantic", "pandas"}
    assert not heavy & modules


def test_wrong_studies_start_no_ray(study: str, tmp_path: Path) -> None:
    statement = (
        "from typer.testing import CliRunner, Result\n"
        "from raykd.cli.commands import app\n"
        f"for verb in ('search', 'distill', 'teacher', 'validate'):\n"
        f"    done = CliRunner().invoke(app, [verb, {study!r}, '--set', 'train.epohs=3'])\n"
        "    assert done.exit_code == 2, done.output"
    )
    modules = imported_after(statement, tmp_path)
    assert "raykd.tuning.search_run" in modules
    assert not {"ray", "mlflow"} & modules
    assert not (tmp_path / "studies").exists()


# Wrong studies


@pytest.mark.parametrize("verb", ["search", "distill", "teacher", "validate"])
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epohs=3", ["train.epohs", "did you mean 'epochs'"]),
        ("knowledge[0].loss.temperature=-3", ["knowledge[0].loss.temperature: got -3"]),
        ("knowledge[0].loss.name=kdd", ["knowledge[0].loss", "kd"]),
        ("student.model.width={choice: []}", ["student.model.width"]),
        ("search.objectives={test_accuracy: max}", ["search.objectives.test_accuracy"]),
    ],
)
def test_wrong_value_is_named_and_unfit(
    study: str, verb: str, override: str, said: Sequence[str]
) -> None:
    done = typed(verb, study, "--set", override)
    assert done.exit_code == 2
    assert done.stdout == ""
    for text in said:
        assert text in done.stderr


def test_problem_names_file_and_line(study: str) -> None:
    Path(study).write_text(STUDY.replace("temperature: 4", "temperature: -3"))
    done = typed("validate", study)
    assert done.exit_code == 2
    assert "small.yaml:6: knowledge[0].loss.temperature: got -3; must be > 0" in done.stderr


def test_missing_file_is_invalid(study: str) -> None:
    done = typed("search", "nowhere.yaml")
    assert done.exit_code == 2
    assert "nowhere.yaml: no such file" in done.stderr


def test_study_that_fits_no_node_is_refused(study: str) -> None:
    for verb in ("search", "validate"):
        done = typed(verb, study, "--set", "cluster.cpus_per_worker=4096")
        assert done.exit_code == 2
        assert "cluster.cpus_per_worker" in done.stderr
        assert "RAY_ADDRESS" in done.stderr


def test_distill_names_open_value(study: str) -> None:
    done = typed("distill", study)
    assert done.exit_code == 2
    assert "student.model.width" in done.stderr
    assert "--set" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["search"],
        ["search", "small.yaml", "--resume", "x"],
        ["search", "--resume", "x", "--set", "a=1"],
        ["search", "--resume", "x", "--start-from", "y"],
        ["pairs"],
        ["pairs", "small.yaml", "--resume", "x"],
        ["pairs", "--resume", "x", "--set", "a=1"],
        ["pairs", "--resume", "x", "--sets", "0"],
    ],
)
def test_file_and_resume_exclude_each_other(study: str, arguments: list[str]) -> None:
    done = typed(*arguments)
    assert done.exit_code == 2
    assert "Invalid value" in done.stderr


@pytest.mark.parametrize("verb", ["report", "sync"])
def test_folder_without_study_is_invalid(study: str, verb: str) -> None:
    done = typed(verb, ".")
    assert done.exit_code == 2
    assert "is not a study's folder" in done.stderr


# How a search ends


@pytest.fixture
def searched(study: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`raykd search` with a search that tells `events` and then raises `error`."""

    def run(events: Sequence[Event], error: BaseException, *more: str) -> Result:
        def search(*_: Any, listeners: Sequence[Callable[[Any], None]], **__: Any) -> None:
            for event in events:
                for listener in listeners:
                    listener(event)
            raise error

        monkeypatch.setattr("raykd.tuning.search_run.search", search)
        return typed("search", study, *more)

    return run


def opening(tmp_path: Path) -> StudyStarted:
    return StudyStarted("a", name="small", file=str(tmp_path / "study.yaml"))


def run_event() -> RunStarted:
    assignment = {
        "id": "teacher-0",
        "role": "teacher",
        "study": {"teacher": {"model": {"name": "mlp", "depth": 2, "width": 16}}},
        "seed": 0,
        "epochs": 1,
    }
    return RunStarted("teacher-0", "teacher", assignment=assignment)


def test_failure_after_start_is_failure(searched: Callable[..., Result], tmp_path: Path) -> None:
    problem = StudyError("the teacher could not be made ready")
    assert searched([opening(tmp_path)], problem).exit_code == 2
    done = searched([opening(tmp_path), run_event()], problem)
    assert done.exit_code == 1
    assert "the teacher could not be made ready" in done.stderr


def test_interrupted_search_shows_how_to_resume(
    searched: Callable[..., Result], tmp_path: Path
) -> None:
    done = searched([opening(tmp_path)], KeyboardInterrupt())
    assert done.exit_code == 130
    assert "interrupted; to resume:" in done.stderr
    assert "raykd search --resume" in done.stderr
    early = searched([], KeyboardInterrupt())
    assert early.exit_code == 130
    assert "before the study started" in early.stderr


def test_mistake_of_ours_is_owned_up_to(searched: Callable[..., Result], tmp_path: Path) -> None:
    done = searched([opening(tmp_path)], RuntimeError("oh\nno"))
    assert done.exit_code == 1
    assert "internal error (please report): RuntimeError: oh" in done.stderr
    assert "Traceback" not in done.stderr
    assert "RuntimeError: oh" in (tmp_path / "crash.txt").read_text()
    assert "Traceback" in searched([opening(tmp_path)], RuntimeError("oh"), "-v").stderr


def test_problems_are_json_too(searched: Callable[..., Result]) -> None:
    problem = Problem("wrong", path="a.b", fix="right it", file="x.yaml", line=3)
    done = searched([], StudyError(problem), "--json")
    assert done.exit_code == 2
    event = json.loads(done.stdout)
    assert event["event"] == "error"
    assert event["problems"] == [
        {"message": "wrong", "path": "a.b", "fix": "right it", "file": "x.yaml", "line": 3}
    ]


# The verbs that need no cluster


def test_student_is_distilled_and_reported_on(study: str) -> None:
    done = typed("distill", study, *CLOSED)
    assert done.exit_code == 0, done.output
    assert "teacher-0: mlp d2 w16" in done.stdout
    assert "trial-0000: mlp d2 w8, kd T=4" in done.stdout
    assert "trial-0000/seed-1 finished" in done.stdout
    assert "trial-0000/alone-1 finished" in done.stdout
    assert "1 seed is too few for a verdict (at least 3 are needed)" in done.stdout
    assert 'mlflow.pytorch.load_model("runs:/' in done.stdout
    (folder,) = Path("studies").glob("small-*")

    again = typed("report", str(folder))
    assert again.exit_code == 0
    assert done.stdout.endswith(again.stdout)
    facts = json.loads(typed("report", str(folder), "--json").stdout)
    assert facts["event"] == "result"
    assert facts["best"] == "trial-0000"
    assert facts["chosen"][0]["distilled"]["count"] == 1

    sent = typed("sync", str(folder))
    assert (sent.exit_code, sent.stdout) == (0, "all events are in MLflow\n")


def test_teacher_is_trained_alone(study: str) -> None:
    done = typed("teacher", study, *CLOSED)
    assert done.exit_code == 0, done.stderr
    assert "teacher-0 finished (1/1 epochs)" in done.stdout
    assert "Teacher mlp d2 w16: val accuracy" in done.stdout
    assert "weights: " in done.stdout
    assert "no front" not in done.stdout


def test_distillation_in_json_is_json_alone(study: str) -> None:
    done = typed("distill", study, *CLOSED, "--set", "search.replicates=0", "--json")
    assert done.exit_code == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "study"
    assert [e["event"] for e in events].count("epoch") == 2
    assert events[-1]["event"] == "result"
    assert events[-1]["front"][0]["student"] == "mlp d2 w8"


def test_study_is_explained(study: str) -> None:
    done = typed("validate", study, "--seed", "1")
    assert done.exit_code == 0, done.stderr
    for text in ("student.model.width", "2 combinations", "samples", "each ("):
        assert text in done.stdout
    assert done.stdout.splitlines()[-1] in (
        "valid: raykd search small.yaml",
        "valid: uv run raykd search small.yaml",
    )
    assert not Path("studies").exists()


def test_schema_is_json() -> None:
    done = typed("schema")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["title"] == "raykd study"


def test_options_are_listed() -> None:
    done = typed("list", "losses")
    assert done.exit_code == 0
    assert "\nkd\n" in f"\n{done.stdout}" and "temperature" in done.stdout
    assert "\nresnet\n" not in done.stdout
    assert "resnet" in typed("list").stdout


def test_versions_are_printed() -> None:
    done = typed("version")
    assert done.stdout.startswith(f"raykd {raykd.__version__}\n")
    assert "\nray " in done.stdout and "\ntorch " in done.stdout


def test_help_lists_commands_and_exit_codes() -> None:
    done = typed("--help")
    assert done.exit_code == 0
    for verb in ("search", "distill", "teacher", "validate", "schema", "list", "doctor", "sync"):
        assert f" {verb} " in done.stdout
    assert " ".join(EPILOG.split())[:60] in " ".join(done.stdout.split())


# The same through Python


def test_public_names_are_there() -> None:
    for name in raykd.__all__:
        assert getattr(raykd, name) is not None
    assert set(raykd.__all__) <= set(dir(raykd))
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = raykd.nothing_such


def test_search_is_package_and_function(monkeypatch: pytest.MonkeyPatch) -> None:
    import raykd.tuning.search_run

    given: list[Any] = []
    monkeypatch.setattr(
        raykd.tuning.search_run, "search", lambda study, **more: given.append((study, more))
    )
    called: Any = raykd.search
    called("x.yaml", allow_import=True, progress=False)
    assert given[0][0] == "x.yaml" and given[0][1]["allow_import"]
    assert given[0][1]["listeners"] == []


def test_closed_streams_are_no_error(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from raykd.cli.commands import main; "
        "sys.argv = ['raykd', 'version']; main()"
    )
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        command = f'"$0" -c "$1" {closed}'
        done = subprocess.run(
            ["sh", "-c", command, sys.executable, program],
            check=False,
            cwd=tmp_path,
            capture_output=True,
        )
        assert (done.returncode, done.stderr) == (0, b"")
