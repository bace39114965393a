"""Options of other packages: installed by their entry points, used, and refused where they must."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import TypeAdapter
from typer.testing import CliRunner

import raykd
from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.losses import KD, Loss
from raykd.registry import Registry
from raykd.report.options.catalogue import FAMILIES

FAMILY_MEMBERS = '''\
"""A scheme and a model."""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from raykd.models import Model, Signature
from raykd.registry import option
from raykd.schemes import Distiller, Offline, SchemeInputs, Scheme


@option
class Twice(Scheme):
    """The labels count twice."""

    paper = ""

    name: Literal["twice"] = "twice"

    def build(self, parts: SchemeInputs) -> Distiller:
        return Offline(task_weight=2).build(parts)


@option
class Slim(Model):
    """One hidden layer."""

    name: Literal["slim"] = "slim"
    width: Annotated[int, Field(ge=1, le=64, description="hidden units")] = 8

    def build(self, signature: Signature) -> nn.Module:
        layers = {
            "flatten": nn.Flatten(),
            "hidden": nn.Linear(prod(signature.input_shape), self.width),
            "act": nn.ReLU(),
            "classifier": nn.Linear(self.width, signature.classes),
        }
        return nn.Sequential(OrderedDict(layers))
'''
PROJECT = """\
[project]
name = "my-package"
version = "0.1"

[project.entry-points."raykd.schemes"]
twice = "my_package.others:Twice"

[project.entry-points."raykd.models"]
slim = "my_package.others:Slim"

[project.entry-points."raykd.data"]
lost = "my_package.nowhere:Lost"

[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

"""
STUDY = """\
name: plugged
data: {name: digits, limit: 100}
teacher: {model: {name: mlp, depth: 1, width: 16}, train: {epochs: 1}}
student: {model: {name: slim, width: 12}}
scheme: twice
knowledge:
  - loss: {name: cosine, power: 2}
train: {epochs: 1}
search: {replicates: 0}
"""
USED = """\
import json, sys
from typer.testing import CliRunner
from raykd.cli.commands import app

def typed(*words):
    done = CliRunner().invoke(app, words)
    return {"code": done.exit_code, "out": done.stdout, "err": done.stderr}

said = {
    "listed": typed("list", "losses", "cosine"),
    "data": typed("list", "data"),
    "valid": typed("validate", "plugged.yaml"),
    "wrong": typed("validate", "plugged.yaml", "--set", "student.model.width=65"),
}
from raykd.tuning.single_run import distill
record = distill("plugged.yaml").best
said["trained"] = {"status": record.status, "metrics": dict(record.metrics)}
print(json.dumps(said))
"""


def blocks(root: Path, language: str) -> list[str]:
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which a package with CONTRIBUTING's loss, as it stands there, is installed."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    (loss,), (entry_point,) = blocks(repository, "python"), blocks(repository, "toml")
    (source / "pyproject.toml").write_text(PROJECT + entry_point)
    (source / "my_package").mkdir()
    (source / "my_package" / "__init__.py").touch()
    (source / "my_package" / "cosine.py").write_text(loss)
    (source / "my_package" / "others.py").write_text(FAMILY_MEMBERS)
    how = ("--offline", "--no-deps", "--no-build-isolation", "--python", sys.executable)
    done = subprocess.run(
        [uv, "pip", "install", *how, "--target", str(target), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def fresh(code: str, installed: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a Python of its own that finds the installed package."""
    root = Path(raykd.__file__).parents[1]
    path = os.pathsep.join([str(installed), str(root)])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_installed_package_adds_loss_scheme_and_model(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "plugged.yaml").write_text(STUDY)
    done = fresh(USED, installed, tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["listed"]["code"] == 0
    shown = " ".join(said["listed"]["out"].split())
    assert (
        "Align the direction of a guided layer, through a connector, with that of its hint layer."
        in shown
    )
    assert "weight source An example, not measured." in shown
    assert "package my-package 0.1" in shown
    assert "power 1.0 number >= 1; larger values weigh the worst samples more" in shown

    assert said["valid"]["code"] == 0, said["valid"]
    assert "valid: " in said["valid"]["out"]
    assert said["wrong"]["code"] == 2
    assert "student.model.width: got 65; must be <= 64" in said["wrong"]["err"]

    assert said["trained"]["status"] == "finished"
    metrics = said["trained"]["metrics"]
    assert 0 < metrics["term_cosine"] < 4
    assert metrics["params"] == 64 * 12 + 12 + 12 * 10 + 10

    # The same package names a data source that is not there: said once, and all else works.
    assert said["data"]["code"] == 0 and "digits" in said["data"]["out"]
    complaints = said["listed"]["err"] + said["data"]["err"] + done.stderr
    assert complaints.count("raykd ignores the data source that my-package 0.1") == 1
    assert "lost (entry point raykd.data = my_package.nowhere:Lost)" in complaints
    assert "No module named 'my_package.nowhere'" in complaints


def test_package_may_be_imported_before_raykd(installed: Path, tmp_path: Path) -> None:
    code = (
        "from my_package.cosine import Cosine\n"
        "import my_package.others\n"
        "from raykd.losses import LOSSES, Term\n"
        "assert LOSSES['cosine'] is Cosine\n"
        "assert LOSSES.origins['cosine'] == 'my-package 0.1'\n"
    )
    done = fresh(code, installed, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# Entry points that cannot be used


@dataclass(frozen=True)
class Offered:
    """Makes a family to which a package on the path offers options."""

    folder: Path

    def __call__(self, code: str, *points: str) -> Registry:
        (self.folder / "odd_package.py").write_text(code)
        about = self.folder / "odd_package-2.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-package\nVersion: 2.0\n")
        lines = "\n".join(f"{point} = odd_package:{point}" for point in points)
        (about / "entry_points.txt").write_text(f"[raykd.odd]\n{lines}\n")
        registry = Registry("loss", base=Loss, entry_points="raykd.odd")
        registry.add(KD)
        return registry


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offered:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_package", raising=False)
    return Offered(tmp_path)


HEAD = """\
from typing import Literal
from torch import Tensor
from raykd.losses import LOSSES, Loss, ResponseLoss
from raykd.registry import option

"""
PLAIN = "class Odd:\n    pass\n"
BARE = 'class Odd(ResponseLoss):\n    name: Literal["odd"] = "odd"\n'
NAMELESS = "@option\nclass Odd(ResponseLoss):\n    size: int = 3\n"
STRANGER = '@option\nclass Odd:\n    name: Literal["odd"] = "odd"\n'
UNREADABLE = (
    '@option\nclass Odd(ResponseLoss):\n    name: Literal["odd"] = "odd"\n    size: Tensor\n'
)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import no_such_package", "cannot be imported: ModuleNotFoundError: No module named"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("Even = 1", "cannot be imported: AttributeError"),
        ("Odd = 1", "1 is no option; it must name a class with @option above it"),
        (HEAD + PLAIN, "is no option; it must name a class with @option above it"),
        (HEAD + BARE, "is no option; it must name a class with @option above it"),
        (HEAD + STRANGER, "odd_package.Odd is no loss; derive it from raykd.losses.base.Loss"),
        (HEAD + NAMELESS, "odd_package.Odd has no `name: Literal[...] = ...` field"),
        (HEAD + UNREADABLE, "its fields cannot be read from a study: Unable to generate"),
    ],
)
def test_invalid_option_is_skipped_and_named(
    code: str, why: str, offered: Offered, caplog: pytest.LogCaptureFixture
) -> None:
    family = offered(code, "Odd")
    with caplog.at_level(logging.WARNING, logger="raykd"):
        assert list(family.members) == ["kd"]
        assert family["kd"] is KD
        assert TypeAdapter(Annotated[Loss, family]).validate_python({"name": "kd"}) == KD()
    (message,) = [record.getMessage() for record in caplog.records]
    assert "ignores the loss that odd-package 2.0 provides as Odd" in message
    assert "(entry point raykd.odd = odd_package:Odd)" in message
    assert why in message
    assert "fix odd-package 2.0, or uninstall it" in message


def test_others_of_same_package_stay(offered: Offered, caplog: pytest.LogCaptureFixture) -> None:
    good = 'ALL = list(LOSSES)\n@option\nclass Good(Loss):\n    name: Literal["good"] = "good"\n'
    family = offered(HEAD + good, "Good", "Bad")
    assert list(family.members) == ["kd", "good"]
    assert family.origins == {"kd": "raykd", "good": "odd-package 2.0"}
    assert "provides as Bad" in caplog.text
    read = TypeAdapter(Annotated[Loss, family]).validate_python({"name": "good"})
    assert type(read) is family["good"]


CLASH = '@option\nclass Mine(ResponseLoss):\n    name: Literal["kd"] = "kd"\n'


def test_two_options_of_one_name_are_refused(
    offered: Offered, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = offered(HEAD + CLASH, "Mine")
    with pytest.raises(StudyError, match="two loss options are called 'kd'") as caught:
        _ = family.members
    said = str(caught.value)
    assert "raykd.losses.logits.KD of raykd and odd_package.Mine of odd-package 2.0" in said
    assert "rename one of them, or uninstall odd-package 2.0" in said
    with pytest.raises(StudyError):
        TypeAdapter(Annotated[Loss, family])

    monkeypatch.setitem(FAMILIES, "losses", family)  # type: ignore[arg-type]
    done = CliRunner().invoke(app, ["list", "losses"])
    assert done.exit_code == 2
    assert "two loss options are called 'kd'" in done.stderr
    assert "Traceback" not in done.stderr


def test_repeated_option_counts_once(offered: Offered) -> None:
    again = "from raykd.losses import KD as Again\n"
    family = offered(again, "Again")
    assert list(family.members) == ["kd"]
    assert family.origins == {"kd": "raykd"}
