"""Objects that are handed over from Python: refused, part of keys, run from their source alone."""

from __future__ import annotations

import os
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from helpers.documents import ROOT, blocks
from helpers.finished_search import copy_study
from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.study.checks.load import load_study
from raykd.study.open_study import OpenStudy
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.search_run import search

STUDY = {
    "name": "handed-over",
    "data": {"name": "digits", "limit": 100, "augment": ["python:Darken"]},
    "task": {"name": "classification", "metrics": ["accuracy", "python:Hits"]},
    "teacher": {"model": {"name": "python:small", "args": {"width": 16}}},
    "student": {"model": {"name": "python:small"}},
    "knowledge": [{"loss": {"name": "python:Divergence", "temperature": 2.0}, "weight": 1}],
    "train": {"epochs": 1},
}

DEFINITIONS = """\
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, log_softmax
from torchmetrics import Metric

from raykd.data import Augment
from raykd.losses import ResponseLoss
from raykd.registry import option
from shades import half

Positive = Annotated[float, Field(gt=0)]
FACTOR = 3.0
UNUSED = 1

def divergence(student, teacher):
    return FACTOR * F.kl_div(teacher, student, log_target=True, reduction="batchmean")

@option
class Divergence(ResponseLoss):
    temperature: Positive = 1.0

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        t = self.temperature
        return divergence(log_softmax(student / t, 1), log_softmax(teacher / t, 1))

@option
class Darken(Augment):
    def __call__(self, images: Tensor, rng) -> Tensor:
        return half(images)

class Hits(Metric):
    higher_is_better = True

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0))

    def update(self, preds, target):
        self.total += (preds.argmax(1) == target).sum()

    def compute(self):
        return self.total

def small(signature, width: int = 8):
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.Linear(width, signature.classes)
    )

weights = torch.ones(3)

@option
class Weighted(ResponseLoss):
    def __call__(self, student, teacher, targets):
        return (student * weights).mean()

class Bare(ResponseLoss):
    def __call__(self, student, teacher, targets):
        return student.mean()

CODE = "class Divergence(ResponseLoss):\\n  def __call__(self, a, b, c): ..."

def inner():
    class Hidden(ResponseLoss):
        pass
    return Hidden

objects = dict(losses=Divergence, models=[small], metrics=[Hits], augmentations=Darken)
"""

SHADES = "def half(images):\n    return images // 2\n"

OPEN = """
from raykd.tuning.study_input import load_or_use
study = load_or_use("study.yaml", objects=objects)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shades", raising=False)
    (tmp_path / "shades.py").write_text(SHADES)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def opened(folder: Path, more: str = "", definitions: str = DEFINITIONS) -> OpenStudy:
    """Run a script that hands over its objects, and return the study that it loads."""
    script = folder / "script.py"
    script.write_text(definitions + more + OPEN)
    return runpy.run_path(str(script), run_name="__main__")["study"]


def test_objects_of_a_script_are_options_of_the_study(folder: Path) -> None:
    study = opened(folder)
    loss = study.settings.knowledge[0].loss
    assert type(loss).__name__ == "Divergence"
    assert study.code is not None and "python_objects/shades.py" in study.code.files
    assert study.settings.search.objectives == {"val_accuracy": "max"}
    assert study.runs_code


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("FACTOR = 3.0", "FACTOR = 4.0", {"object_Divergence.py"}),
        ("t = self.temperature", "t = 2 * self.temperature", {"object_Divergence.py"}),
        ("width: int = 8", "width: int = 9", {"object_small.py"}),
        ("UNUSED = 1", "UNUSED = 2", set()),
    ],
)
def test_digests_are_of_what_is_used(
    before: str, after: str, changed: set[str], folder: Path
) -> None:
    first = opened(folder).code
    assert before in DEFINITIONS
    second = opened(folder, definitions=DEFINITIONS.replace(before, after)).code
    assert first is not None and second is not None
    old, new = first.digests(), second.digests()
    assert {name for name in new if old[name] != new[name]} == {
        f"python_objects/{name}" for name in changed
    }


WRONG = {
    "objects['losses'] = Hits": "losses: Hits is no loss; derive it from raykd.losses",
    "objects['losses'] = divergence": "losses: <function divergence",
    "objects['models'] = lambda signature: None": "models: a lambda has no name; write a function",
    "objects['models'] = 3": "models: 3 is no network",
    "objects['models'] = torch.nn.Linear(2, 2)": "models: hand over the class Linear itself",
    "objects['metrics'] = [Hits, Divergence]": "metrics: Divergence is no metric",
    "objects['losses'] = [Divergence, inner()]": "losses: Hidden is defined inside a function",
    "objects['losses'] = [Divergence, Weighted]": "losses: Weighted uses `weights`, a Tensor",
    "objects['losses'] = [Divergence, Bare]": "the study does not name it",
    "del objects['losses']": "'python:Divergence' is an object from Python, and it was not handed",
    "exec(CODE); objects['losses'] = Divergence": "the source of Divergence is unknown; define it",
    "objects['losses'] = [Divergence, type('Divergence', (Bare,), {})]": "two objects are called",
}


@pytest.mark.parametrize("change", WRONG)
def test_wrong_objects_are_refused(change: str, folder: Path) -> None:
    with pytest.raises(StudyError) as error:
        opened(folder, f"\n{change}\n")
    assert re.search(re.escape(WRONG[change]), str(error.value)), str(error.value)
    assert len(error.value.problems) == 1, "one message"


def test_class_without_option_is_refused_at_its_place(folder: Path) -> None:
    study = {**STUDY, "knowledge": [{"loss": "python:Bare"}]}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(StudyError, match=r"study\.yaml:\d+: .*python:Bare is no option; write @"):
        opened(folder, "\nobjects['losses'] = Bare\n")


def test_unknown_keyword_is_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match="'loss'; objects are data, models, losses"):
        opened(folder, "\nobjects['loss'] = Divergence\n")


def test_open_study_takes_no_objects(folder: Path) -> None:
    with pytest.raises(StudyError, match="give the path of the study file"):
        search(opened(folder), objects={"losses": []})


def test_copies_need_permission_or_objects(folder: Path) -> None:
    """A folder of a study has the copies, which a resumed study runs."""
    code = opened(folder).code
    assert code is not None
    code.copy_to(folder)
    with pytest.raises(StudyError, match=r"not handed over") as error:
        load_study(folder / "study.yaml")
    assert error.match(r"raykd.search\(..., losses=\[Divergence\]\); or run its copy")
    again = load_study(folder / "study.yaml", allow_import=True).code
    assert again is not None and again.digests() == code.digests()


GROWING = {
    "name": "growing",
    "data": {"name": "digits", "limit": 100, "val_limit": 40},
    "teacher": {"model": {"name": "mlp", "depth": 1, "width": 8}, "train": {"epochs": 1}},
    "student": {"model": {"name": "mlp", "depth": 1, "width": {"int": [2, 32]}}},
    "knowledge": [{"loss": {"choice": ["python:Divergence"]}, "weight": 1}],
    "train": {"epochs": 1},
    "search": {"trials": 1, "replicates": 0, "sampler": "random"},
}

SQUARE = """
@option
class Square(ResponseLoss):
    def __call__(self, student, teacher, targets):
        return (student - teacher).square().mean()
"""
"""Another loss of the script, which an extension adds."""


def script_of(folder: Path, call: str, definitions: str = DEFINITIONS) -> dict[str, Any]:
    """Run a script that calls raykd with its objects."""
    head = "from functools import partial\nimport raykd\n"
    (folder / "script.py").write_text(f"{head}{definitions}\n{SQUARE}\n{call}\n")
    return runpy.run_path(str(folder / "script.py"), run_name="__main__")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search whose loss was handed over."""
    folder = tmp_path_factory.mktemp("finished")
    places = {
        "cluster": {"storage": str(folder / "studies")},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    (folder / "shades.py").write_text(SHADES)
    (folder / "study.yaml").write_text(yaml.safe_dump(GROWING | places))
    call = "done = raykd.search('study.yaml', losses=[Divergence], progress=False)"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr("raykd.tuning.search_run.RayExecutor", LocalExecutor)
        return script_of(folder, call)["done"].folder


@pytest.fixture
def searched(finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder of `finished`; what continues it trains in this process."""
    monkeypatch.setattr("raykd.tuning.search_run.RayExecutor", LocalExecutor)
    return copy_study(finished, folder)


def test_studies_with_objects_are_extended_and_reproduced(folder: Path, searched: Path) -> None:
    extend = f"done = raykd.extend({str(searched)!r}, trials='+1', progress=False, losses="
    assert len(script_of(folder, f"{extend}[Divergence])")["done"].trials) == 2
    reproduce = f"done = raykd.reproduce({str(searched)!r}, progress=False, losses=[Divergence])"
    result = script_of(folder, reproduce)["done"]
    assert result.is_exact and not result.differences
    assert (result.folder / "python_objects/object_Divergence.py").is_file()


def test_extension_is_refused_if_the_source_has_changed(folder: Path, searched: Path) -> None:
    changed = DEFINITIONS.replace("FACTOR = 3.0", "FACTOR = 4.0")
    extend = f"raykd.extend({str(searched)!r}, trials='+1', progress=False, losses=Divergence)"
    with pytest.raises(StudyError, match=r"object_Divergence\.py"):
        script_of(folder, extend, changed)
    reproduce = f"done = raykd.reproduce({str(searched)!r}, progress=False, losses=Divergence)"
    result = script_of(folder, reproduce, changed)["done"]
    assert not result.agrees
    assert "file python_objects/object_Divergence.py has changed" in result.differences


def test_extension_keeps_objects_that_it_adds(folder: Path, searched: Path) -> None:
    """The larger space names another loss, whose source a later run needs."""
    losses = "{choice: ['python:Divergence', 'python:Square']}"
    added = f"knowledge=[{{loss: {losses}, weight: 1}}]"
    extend = (
        f"done = raykd.extend({str(searched)!r}, trials='+3', overrides=[{added!r}], "
        "progress=False, losses=[Divergence, Square])"
    )
    assert len(script_of(folder, extend)["done"].trials) == 4
    assert (searched / "python_objects/object_Square.py").is_file()
    assert load_study(searched / "study.yaml", allow_import=True).code is not None


@pytest.mark.parametrize("command", [["extend", "--trials", "+1"], ["reproduce"]])
def test_commands_run_the_kept_source_with_permission(command: list[str], searched: Path) -> None:
    verb, *options = command
    refused = CliRunner().invoke(app, [verb, str(searched), *options])
    text = " ".join((refused.output + refused.stderr).split())
    assert refused.exit_code == 2 and "'python:Divergence' is an object from Python" in text
    assert "--allow-import" in text
    done = CliRunner().invoke(app, [verb, str(searched), *options, "--allow-import"])
    assert done.exit_code == 0, done.output + done.stderr


CELLS = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(user_module=sys.modules["__main__"])
for cell in open("cells.txt").read().split("# cell\\n"):
    assert shell.run_cell(cell, store_history=True).success
print(sorted(shell.user_ns["study"].code.digests()))
"""


def run_script(text: str, folder: Path, *arguments: str) -> str:
    (folder / "program.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "program.py", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=dict(os.environ),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_objects_of_notebook_cells(folder: Path) -> None:
    cells = DEFINITIONS.replace("\n@option", "\n# cell\n@option") + "# cell\n" + OPEN
    (folder / "cells.txt").write_text(cells)
    out = run_script(CELLS, folder)
    assert "python_objects/object_Divergence.py" in out


@pytest.mark.slow
def test_workers_get_the_sources(folder: Path) -> None:
    """Another process, without the script, makes the options from their source."""
    study = opened(folder)
    other = folder / "other"
    other.mkdir()
    (other / "sent").write_bytes(pickle.dumps(study.code))
    program = (
        "import pickle; from raykd.user_code import find_object\n"
        "pickle.load(open('sent', 'rb')).register()\n"
        "import torch; batch = torch.ones(2, 3)\n"
        "print(find_object('python:Divergence').__name__, find_object('python:Hits')().compute())\n"
    )
    assert run_script(program, other).startswith("Divergence tensor(0.)")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_example_of_the_documents(folder: Path) -> None:
    [block] = [
        each
        for each in blocks(ROOT / "docs/user-code.md")
        if each.language == "python" and "raykd.search(" in each.text
    ]
    more = '\nraykd.search(resume=result.folder, losses=[ReverseKl])\nprint("at", result.folder)\n'
    out = run_script(block.text + more, folder)
    place = Path(out.rpartition("at ")[2].strip())
    assert (place / "python_objects/object_ReverseKl.py").is_file()
    with pytest.raises(StudyError, match=r"'python:ReverseKl' is an object from Python"):
        search("", resume=place)
    changed = block.text.replace("temperature**2", "temperature**3")
    assert changed != block.text
    start = changed.index("Path(")
    resume = f"\nraykd.search(resume={str(place)!r}, losses=[ReverseKl])\n"
    (folder / "program.py").write_text(changed[:start] + resume)
    done = subprocess.run(
        [sys.executable, "program.py"], capture_output=True, text=True, cwd=folder, check=False
    )
    assert "finished" in done.stderr or "have changed" in done.stderr
