"""Study folder: the study file, the journal, and what is needed to resume."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from raykd.errors import Problem, StudyError
from raykd.storage import is_uri
from raykd.tuning.study_lookup import DESCRIPTION, near_folders
from raykd.user_code import UserCode

FORMAT = 1
Verb = Literal["search", "distill", "teacher", "pairs", "reproduce"]


@dataclass(frozen=True)
class StudyFolder:
    """The files of one search.

    Attributes:
        path: local folder, with raykd's journal and Optuna's.
        storage: folder or URI of the files that every node must reach.
        name: of the study's folder below `storage`.
        verb: command that created it.
        start_from: runs whose best trials are tried first.
        begun_in: working folder for relative paths of the study; None: the current one.
        extended: the overrides that were added after its first run.
    """

    path: Path
    storage: str
    name: str
    verb: Verb = "search"
    start_from: tuple[str, ...] = ()
    begun_in: str | None = None
    extended: tuple[str, ...] = ()

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def measured(self) -> Path:
        """Measured latencies of students."""
        return self.path / "latency.json"

    @property
    def gpu_sharing(self) -> Path:
        """Measured throughput of trials that share a GPU."""
        return self.path / "packing.json"

    @property
    def optuna(self) -> str:
        """Optuna's journal, which `optuna-dashboard` can open."""
        return str(self.path / "optuna.log")

    @property
    def study_file(self) -> Path:
        """Copy of the study file."""
        return self.path / "study.yaml"


def create_folder(
    name: str,
    storage: str,
    study_text: str,
    overrides: Sequence[str],
    verb: Verb = "search",
    start_from: Sequence[str] = (),
    code: UserCode | None = None,
) -> StudyFolder:
    """Create a new folder below `storage` (below ./studies if `storage` is a URI).

    Code that the study names by its file is copied next to the copy of the study file, so that a
    resumed study continues with the code that it started with.

    Raises:
        StudyError: the folder cannot be written.
    """
    root = Path("studies") if is_uri(storage) else Path(storage).expanduser()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(100):
        path = (root / (f"{name}-{stamp}" + (f"-{attempt}" if attempt else ""))).absolute()
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise StudyError(
                Problem(
                    f"cannot write to folder {root}: {error.strerror}",
                    path="cluster.storage",
                    fix="name another folder, or make this one writable",
                )
            ) from None
    else:
        raise StudyError(f"cannot create a new folder below {root}: 100 names are taken")
    folder = StudyFolder(
        path,
        storage if is_uri(storage) else str(root.absolute()),
        path.name,
        verb,
        tuple(start_from),
        str(Path.cwd()),
    )
    folder.study_file.write_text(study_text)
    if code is not None:
        code.copy_to(folder.path)
    content = {
        "format": FORMAT,
        "verb": verb,
        "storage": folder.storage,
        "overrides": list(overrides),
        "start_from": list(start_from),
        "begun_in": folder.begun_in,
        "path": str(path),
    }
    (path / DESCRIPTION).write_text(json.dumps(content, indent=1))
    return folder


def open_folder(path: str | os.PathLike[str]) -> tuple[StudyFolder, list[str]]:
    """Return the folder of an earlier run, and its overrides with those of its extensions.

    Raises:
        StudyError: it is not a study's folder, or its `folder.json` is damaged; names the line.
    """
    at = Path(path).expanduser().absolute()
    content = _read_description(at / DESCRIPTION, path)
    storage, verb, extended = content["storage"], content["verb"], content["extended"]
    if not is_uri(storage) and Path(storage) != at.parent:
        storage = str(at.parent)  # the folder was moved whole
    start_from = tuple(content["start_from"])
    begun_in = _begun_in(content, at)
    folder = StudyFolder(at, storage, at.name, verb, start_from, begun_in, tuple(extended))
    return folder, [*content["overrides"], *extended]


def save_extension(
    folder: StudyFolder, overrides: Sequence[str], code: UserCode | None = None
) -> None:
    """Keep the overrides and the code of a study that has grown, for later runs.

    Args:
        folder: of the study.
        overrides: all of them, in their order.
        code: of the user; files that the folder has are the same.
    """
    if code is not None:
        code.copy_to(folder.path)
    file = folder.path / DESCRIPTION
    content = _read_description(file, folder.path)
    content["extended"] = list(overrides[len(content["overrides"]) :])
    draft = file.with_name(f"{DESCRIPTION}.new")
    draft.write_text(json.dumps(content, indent=1))
    draft.replace(file)


def _read_description(file: Path, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the content of a folder's `folder.json`, with values of the right types."""
    try:
        text = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        text = f"{path} is not a study's folder: it has no {DESCRIPTION}"
        if not file.parent.is_dir():
            text = f"there is no folder {path}"
        raise StudyError(Problem(text, fix=near_folders(path))) from None
    except OSError as error:
        raise StudyError(Problem(f"cannot be read: {error.strerror}", file=str(file))) from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise _damaged(file, line, "not JSON") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise _damaged(file, 1, "not written by raykd: it has no `format`")
    if content["format"] != FORMAT:
        raise StudyError(
            f"{path} was written by another version of raykd: its format is {content['format']}, "
            f"and this version reads {FORMAT}"
        )
    content.setdefault("start_from", [])
    content.setdefault("extended", [])
    lists = dict.fromkeys(("overrides", "start_from", "extended"), "a list of texts")
    kinds = {"storage": "text", **lists}
    for key, kind in {**kinds, "verb": f"one of {', '.join(get_args(Verb))}"}.items():
        value = content.get(key)
        texts = [value] if key in ("storage", "verb") else value
        valid = isinstance(texts, list) and all(isinstance(item, str) for item in texts)
        if not valid or (key == "verb" and value not in get_args(Verb)):
            lines = text.decode(errors="replace").splitlines()
            line = next((n for n, written in enumerate(lines, 1) if f'"{key}"' in written), 1)
            literal = json.dumps(value)
            literal = literal if len(literal) <= 60 else f"{literal[:57]}..."
            raise _damaged(file, line, f"`{key}` must be {kind}, got {literal}")
    return content


def _damaged(file: Path, line: int, message: str) -> StudyError:
    fix = f"restore it from a copy, or start the study again from {file.parent / 'study.yaml'}"
    return StudyError(Problem(message, fix=fix, file=str(file), line=line))


def _begun_in(content: Mapping[str, Any], at: Path) -> str | None:
    """Return the working folder in which a study started; None if it cannot be determined.

    If that folder is gone, it is the folder at the same place relative to the study's folder.
    """
    folder, path = content.get("begun_in"), content.get("path")
    if not isinstance(folder, str) or not isinstance(path, str):
        return None
    if os.access(folder, os.R_OK | os.X_OK) and Path(folder).is_dir():
        return folder
    if not Path(path).is_relative_to(folder):
        return None
    inside = Path(path).parent.relative_to(folder).parts  # as "studies"; the folder may be renamed
    outside = at.parent.parts
    if inside and outside[-len(inside) :] != inside:
        return None
    return str(Path(*outside[: len(outside) - len(inside)]))
