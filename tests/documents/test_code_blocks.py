"""Blocks of code in the documents: commands are parsed, Python is executed, YAML is validated."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import typer.main
import yaml
from PIL import Image

import raykd
from helpers.documents import (
    PAGES,
    ROOT,
    Block,
    all_blocks,
    blocks,
    commands,
    raykd_arguments,
    user_files,
)
from raykd.cli.commands import app
from raykd.export import export_student, find_student
from raykd.runtime.cluster import ray_session

LANGUAGES = {"sh", "python", "yaml", "toml", "text"}
FOLDER_OF_A_STUDY = re.compile(r"studies/quickstart-\d{8}-\d{6}")
PATH = re.compile(r"(search_spaces|tests|docker|docs|benchmarks|raykd)/")
STARTS_STUDIES = re.compile(
    r"raykd\.(search|pairs|extend|compare|read_\w+|distill)\(|find_student|mlflow|onnxruntime"
)

QUICK = {
    "data": {"name": "digits", "limit": 200},
    "train": {"epochs": 1, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.05}},
    "tracking": {"uri": "sqlite:///mlflow.db", "register": "digits"},
    "cluster": {"slots": 2},
}
"""Parts of the delivered studies that are replaced, so that a study takes a few seconds."""


def identify(block: Block) -> str:
    return block.place


# Blocks


def test_every_block_has_language() -> None:
    bare = [each.place for page in PAGES for each in blocks(page) if each.language not in LANGUAGES]
    assert bare == [], f"write ```sh, ```text, ... (one of {sorted(LANGUAGES)})"


def test_blocks_that_are_not_run_are_few() -> None:
    excused = [each.place for page in PAGES for each in blocks(page) if each.excuse]
    assert len(excused) <= 3, excused


# Commands


def parse(arguments: list[str]) -> None:
    """Parse the arguments of `raykd` without running anything.

    Raises:
        ClickException: an option is unknown, or an argument is missing.
    """
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert arguments and arguments[0] in command.commands, f"No such command: {arguments}"
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context("raykd", arguments)


@pytest.mark.parametrize("block", all_blocks("sh"), ids=identify)
def test_commands_exist(block: Block) -> None:
    for words in commands(block.text):
        arguments = raykd_arguments(words)
        if arguments is not None:
            parse(arguments)
        missing = [word for word in words if PATH.match(word) and not (ROOT / word).exists()]
        assert missing == []


@pytest.mark.parametrize(
    "line",
    [
        "raykd serach x.yaml",
        "uv run raykd search x.yaml --trails 3",
        "raykd report",
        "ray job submit -- raykd search x.yaml --nothing",
        "docker compose -f x run --rm study validate",
    ],
)
def test_wrong_commands_are_reported(line: str) -> None:
    (words,) = commands(line)
    arguments = raykd_arguments(words)
    assert arguments is not None
    with pytest.raises(Exception, match=r"No such|Missing"):
        parse(arguments)


# YAML


def alternatives(text: str) -> Iterator[dict[str, Any]]:
    """Yield the mappings of a block; a key that comes again begins another one."""
    part: list[str] = []
    keys: set[str] = set()
    for line in text.splitlines():
        key = line.partition(":")[0]
        if line[:1].isalpha():
            if key in keys:
                yield yaml.safe_load("\n".join(part))
                part, keys = [], set()
            keys.add(key)
        part.append(line)
    yield yaml.safe_load("\n".join(part))


def quickstart() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "search_spaces/quickstart.yaml").read_text(encoding="utf-8"))


def complete(part: dict[str, Any]) -> dict[str, Any]:
    """Complete a part of a study, or of a term, with the quickstart's other values."""
    if {"name", "data", "student"} <= part.keys():
        return part  # a whole study
    study = quickstart()
    del study["search"]["constraints"]
    if part.keys() <= raykd.Study.__dataclass_fields__.keys():
        return {**study, **part}
    kd, hint = study["knowledge"]
    return {**study, "knowledge": [kd, {**hint, **part}]}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with pictures: `photos/Training/CLASS`, `photos/holdout/CLASS`."""
    monkeypatch.chdir(tmp_path)
    for split in ("Training", "holdout"):
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(10):
                pixels = np.full((8, 8, 3), 20 * number, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("block", all_blocks("yaml"), ids=identify)
def test_yaml_is_valid_in_study(block: Block, tmp_path: Path) -> None:
    code = user_files(ROOT / block.place.rpartition(":")[0])
    for name, text in code.items():
        (tmp_path / name).write_text(text)
    for part in alternatives(block.text):
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(complete(part), sort_keys=False))
        raykd.load_study(file, allow_import=bool(code))


# Python


def python_blocks(*, slow: bool) -> list[Block]:
    """Return the blocks that start studies, or those that do not.

    tests/test_plugins.py runs that of CONTRIBUTING.md, tests/test_python_objects.py the study of
    docs/user-code.md.
    """
    pages = [each for each in all_blocks("python") if not each.place.startswith("CONTRIBUTING.md")]
    right = [each for each in pages if bool(STARTS_STUDIES.search(each.text)) == slow]
    return [
        each
        for each in right
        if not each.excuse and not (slow and each.place.startswith("docs/user-code.md"))
    ]


@pytest.mark.parametrize("block", python_blocks(slow=False), ids=identify)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.place, "exec"), {})


def run_block(block: Block, folder: Path) -> None:
    """Execute a block in a folder; studies that it names are replaced by the one there."""
    studies = sorted((folder / "studies").glob("quickstart-*"))
    text = FOLDER_OF_A_STUDY.sub(f"studies/{studies[0].name}" if studies else "", block.text)
    script = folder / "example.py"  # a script has the source of its classes
    script.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        try:
            runpy.run_path(str(script), run_name="__main__")
        finally:
            mlflow.set_tracking_uri("")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with quick forms of the delivered studies, where the README's example has run."""
    place = tmp_path_factory.mktemp("examples")
    (place / "search_spaces").mkdir()
    for name in ("quickstart", "pairing"):
        study = yaml.safe_load((ROOT / f"search_spaces/{name}.yaml").read_text(encoding="utf-8"))
        study |= QUICK | {"name": name}
        study["teacher"]["train"] = {"epochs": 1}
        study["search"] |= {"replicates": 2, "pairs": {"seeds": 1, "arms": [], "batches": 0}}
        study["knowledge"][-1]["pairs"] = {"pairing": {"hint": ["stage3"], "guided": "auto"}}
        text = yaml.safe_dump(study, sort_keys=False)
        (place / f"search_spaces/{name}.yaml").write_text(text)
    study["search"] |= {"trials": 1, "replicates": 1}
    (place / "mine.yaml").write_text(yaml.safe_dump({**study, "name": "mine"}, sort_keys=False))
    (readme,) = (each for each in all_blocks("python") if each.place.startswith("README.md"))
    run_block(readme, place)
    (study,) = (place / "studies").glob("quickstart-*")
    export_student(find_student(str(study)), ["onnx"], place / "student")
    with ray_session(verbose=False, groups=False):  # a Ray for all that follows
        yield place


@pytest.mark.slow
@pytest.mark.parametrize("block", python_blocks(slow=True), ids=identify)
def test_python_on_studies_runs(block: Block, folder: Path) -> None:
    if not block.place.startswith("README.md"):  # the fixture has run it
        run_block(block, folder)
