"""Code of the user in a study, `FILE.py:NAME`: refused, run, part of keys, sent to workers."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from helpers.documents import ROOT, user_files
from raykd.errors import StudyError
from raykd.losses import ResponseLoss
from raykd.runtime.cluster import ray_session
from raykd.study.checks.load import load_study
from raykd.study.config import plain, read_study
from raykd.study.open_study import OpenStudy
from raykd.tracking.journal import events
from raykd.training.build import signature_of
from raykd.training.teacher_cache.spec import model_digest, plain_augment
from raykd.training.teacher_keys import spec_key
from raykd.tuning.resume import check_same_files, file_digests
from raykd.tuning.search_run import search
from raykd.tuning.single_run import distill
from raykd.tuning.study_input import load_data
from raykd.user_code import UserCode, user_names

STUDY = {
    "name": "coded",
    "data": {"name": "digits", "limit": 100, "val_limit": 50, "augment": ["augment.py:Darken"]},
    "teacher": {
        "model": {"name": "networks.py:two_layers", "args": {"hidden": 16}},
        "train": {"epochs": 1, "batch_size": 50},
    },
    "student": {"model": {"name": "networks.py:two_layers", "args": {"hidden": 8}}},
    "scheme": {"name": "schemes.py:EarlyLabels", "epochs": 1},
    "knowledge": [{"loss": {"name": "losses.py:Huber", "delta": 0.5}, "weight": 1}],
    "train": {"epochs": 2, "batch_size": 50},
    "search": {"replicates": 1},
    "cluster": {"slots": 1, "gpus_per_worker": 0},
}
"""A study of the options in docs/user-code.md."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study in `project`, and the files that it names next to it."""
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "project"
    project.mkdir()
    for name, text in user_files(ROOT / "docs/user-code.md").items():
        (project / name).write_text(text)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    study = {**STUDY, "tracking": {"uri": store}}
    (project / "study.yaml").write_text(yaml.safe_dump(study))
    return tmp_path


def opened(folder: Path) -> OpenStudy:
    return load_study(folder / "project/study.yaml", allow_import=True)


PLACES = {
    "teacher.model": "networks.py:two_layers",
    "student.model": "networks.py:two_layers",
    "knowledge": "[{loss: 'losses.py:Huber'}]",
    "scheme": "schemes.py:EarlyLabels",
    "data": "rings.py:TwoRings",
    "data.augment": "['augment.py:Darken']",
}


@pytest.mark.parametrize("place", PLACES)
def test_code_is_not_run_without_permission(place: str, folder: Path) -> None:
    project = folder / "project"
    for file in project.glob("*.py"):
        file.write_text("raise SystemExit('it was run')")
    study = project / "plain.yaml"
    models = {"teacher": {"model": "mlp"}, "student": {"model": "mlp"}}
    study.write_text(yaml.safe_dump({"name": "plain", "scheme": "offline", **models}))
    written = PLACES[place] if "[" in PLACES[place] else f"'{PLACES[place]}'"
    overrides = ["data={name: digits}", f"{place}={written}"]
    with pytest.raises(StudyError, match=r"would run code .*(.|\n)*--allow-import"):
        load_study(study, overrides)


WRONG = {
    "nothing.py:Loss": r"there is no file .*nothing\.py.*relative to the study file",
    "../outside.py:Loss": r"is not below .*move the file next to the study",
    "losses.py:Hubber": r"losses\.py has no Hubber; it has Huber, Cosine",
    "broken.py:Loss": r"broken\.py cannot be imported: ZeroDivisionError: division by zero",
    "bare.py:Bare": r"bare\.py:Bare is no option; write @option",
    "bare.py:NUMBER": r"bare\.py:NUMBER is a int; a name means a class or a function",
    "networks.py:two_layers": r"unknown loss 'networks\.py:two_layers'",
    "schemes.py:EarlyLabels": r"unknown loss 'schemes\.py:EarlyLabels'",
}


@pytest.mark.parametrize("name", WRONG)
def test_code_that_does_not_fit_is_refused(name: str, folder: Path) -> None:
    (folder / "outside.py").write_text("")
    (folder / "project/broken.py").write_text("1 / 0")
    code = "from raykd.losses import ResponseLoss\nNUMBER = 3\n\nclass Bare(ResponseLoss): ..."
    (folder / "project/bare.py").write_text(code)
    with pytest.raises(StudyError, match=r"study\.yaml|--set") as error:
        load_study(
            folder / "project/study.yaml", [f"knowledge[0].loss.name={name}"], allow_import=True
        )
    assert error.match(WRONG[name])


def test_fields_of_user_options_are_checked(folder: Path) -> None:
    file = folder / "project/study.yaml"
    with pytest.raises(StudyError, match=r"delta: got -1; must be > 0"):
        load_study(file, ["knowledge[0].loss.delta=-1"], allow_import=True)
    with pytest.raises(StudyError, match=r"unknown key `detla`.*(.|\n)*did you mean 'delta'"):
        load_study(file, ["knowledge[0].loss.detla=1"], allow_import=True)


def keys(study: OpenStudy) -> dict[str, str]:
    """Return the keys of a study that depend on code, by the kind of code."""
    settings = study.settings
    [spec] = settings.teacher_specs()
    teacher = settings.teacher
    assert teacher is not None
    return {
        "teacher": spec_key(spec, settings, "data"),
        "network": model_digest(teacher.model),
        "augment": str(plain_augment(settings)),
        "resume": str(sorted(file_digests(study, signature_of(load_data(settings))).items())),
    }


CHANGED = {
    "networks.py": {"teacher", "network", "resume"},
    "augment.py": {"teacher", "augment", "resume"},
    "losses.py": {"resume"},
    "schemes.py": {"resume"},
    "rings.py": set(),
    "shades.py": {"teacher", "augment", "resume"},
}
"""Keys that change with the bytes of a file."""


@pytest.mark.parametrize("file", CHANGED)
def test_bytes_of_code_are_part_of_keys(file: str, folder: Path) -> None:
    project = folder / "project"
    (project / "shades.py").write_text("HALF = 2\n")
    augment = (project / "augment.py").read_text() + "\nfrom shades import HALF  # noqa\n"
    (project / "augment.py").write_text(augment)
    before = keys(opened(folder))
    assert keys(opened(folder)) == before
    with (project / file).open("a") as text:
        text.write("\n")
    after = keys(opened(folder))
    assert {name for name in before if before[name] != after[name]} == CHANGED[file]


def test_two_studies_with_files_of_the_same_name(folder: Path) -> None:
    """The second study does not change what the first one trains."""
    other = folder / "other"
    shutil.copytree(folder / "project", other)
    text = (other / "losses.py").read_text().replace("delta=self.delta", "delta=7.0")
    (other / "losses.py").write_text(text)
    file = folder / "project/study.yaml"
    first = load_study(file, allow_import=True)
    second = load_study(other / "study.yaml", allow_import=True)
    assert first.code is not None and second.code is not None
    deltas = []
    for code in (first.code, second.code, first.code):
        code.register()
        loss = read_study(plain(first.settings)).knowledge[0].loss
        assert isinstance(loss, ResponseLoss)
        value = loss(torch.zeros(1, 2), torch.full((1, 2), 100.0), torch.zeros(1).long())
        deltas.append(round(float(value) / 100, 1))
    assert deltas[0] == deltas[2] != deltas[1]


@pytest.mark.slow
def test_a_study_of_user_code_trains(folder: Path) -> None:
    result = distill(folder / "project/study.yaml", allow_import=True)
    best = result.best
    assert best is not None and "term_Huber" in best.epochs[-1]
    # the folder has the code, so that it can be read when the project is gone
    shutil.rmtree(folder / "project")
    copied = load_study(result.folder / "study.yaml", allow_import=True)
    assert copied.settings.knowledge == read_study(best.job.study).knowledge
    assert result.student(allow_import=True)(torch.zeros(2, 8, 8, dtype=torch.float64)).shape == (
        2,
        10,
    )


@pytest.mark.slow
def test_a_data_source_of_user_code_trains(folder: Path) -> None:
    models = ["teacher.model={name: mlp, width: 8}", "student.model={name: mlp, width: 4}"]
    data = "data={name: 'rings.py:TwoRings', count: 60}"
    overrides = [data, *models, "search.replicates=0"]
    result = distill(folder / "project/study.yaml", overrides=overrides, allow_import=True)
    assert result.best is not None


@pytest.mark.slow
def test_changed_copies_of_code_are_refused(folder: Path) -> None:
    study = opened(folder)
    signature = signature_of(load_data(study.settings))
    result = distill(study)
    history = list(events(result.folder / "journal.jsonl"))
    check_same_files(history, file_digests(study, signature))
    copy = result.folder / "losses.py"
    copy.write_text(copy.read_text() + "\n# another loss\n")
    changed = load_study(result.folder / "study.yaml", allow_import=True)
    with pytest.raises(StudyError, match=r"have changed since the study started.*losses\.py"):
        check_same_files(history, file_digests(changed, signature))


@pytest.mark.slow
def test_workers_get_the_files(folder: Path) -> None:
    """Another process, without the folder of the study, imports the files from their bytes."""
    names = [name for _, name in user_names(STUDY)]
    (folder / "project/shades.py").write_text("HALF = 2\n")
    with (folder / "project/augment.py").open("a") as text:
        text.write("\nfrom shades import HALF  # noqa\n")
    code = UserCode.read(folder / "project", names)
    (folder / "sent").write_bytes(pickle.dumps((code, plain(opened(folder).settings))))
    shutil.rmtree(folder / "project")
    program = (
        "import pickle, sys; from raykd.study.config import read_study\n"
        "code, plain = pickle.load(open(sys.argv[1], 'rb')); code.register()\n"
        "study = read_study(plain); print(type(study.knowledge[0].loss).__name__)\n"
    )
    command = [sys.executable, "-c", program, str(folder / "sent")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=dict(os.environ), check=False
    )
    assert done.stdout == "Huber\n", done.stderr[-500:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_slots_of_ray_run_user_code(folder: Path) -> None:
    domain = "student.model.args.hidden={choice: [4, 8]}"
    overrides = [domain, "search={sampler: grid, replicates: 0}", "cluster.slots=2"]
    with ray_session(verbose=False):
        result = search(folder / "project/study.yaml", overrides=overrides, allow_import=True)
    trials = result.records.of("trial")
    assert [trial.status for trial in trials] == ["finished", "finished"]
