"""Study folder: the study file, the journal, and what is needed to resume."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raykd.errors import Problem, StudyError
from raykd.storage import is_uri

FORMAT = 1
Verb = Literal["search", "distill", "teacher", "pairs"]


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
    """

    path: Path
    storage: str
    name: str
    verb: Verb = "search"
    start_from: tuple[str, ...] = ()
    begun_in: str | None = None

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
) -> StudyFolder:
    """Create a new folder below `storage` (below ./studies if `storage` is a URI).

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
    content = {
        "format": FORMAT,
        "verb": verb,
        "storage": folder.storage,
        "overrides": list(overrides),
        "start_from": list(start_from),
        "begun_in": folder.begun_in,
        "path": str(path),
    }
    (path / "folder.json").write_text(json.dumps(content, indent=1))
    return folder


def open_folder(path: str | os.PathLike[str]) -> tuple[StudyFolder, list[str]]:
    """Return the folder of an earlier run, and its overrides.

    Raises:
        StudyError: it is not a study's folder.
    """
    at = Path(path).expanduser().absolute()
    try:
        content = json.loads((at / "folder.json").read_text())
        written_format = content["format"]
        keys = ("storage", "overrides", "verb") if written_format == FORMAT else ()
        fields = [content[key] for key in keys]
    except (FileNotFoundError, NotADirectoryError):
        raise StudyError(
            Problem(
                f"{path} is not a study's folder: it has no folder.json",
                fix="name the folder that `raykd search` printed (below `cluster.storage`)",
            )
        ) from None
    except (ValueError, KeyError, TypeError):
        raise StudyError(
            Problem(
                f"{path} is not a study's folder: its folder.json was not written by raykd",
                fix="name the folder that `raykd search` printed (below `cluster.storage`)",
            )
        ) from None
    if written_format != FORMAT:
        raise StudyError(
            f"{path} was written by another version of raykd: its format is {written_format}, "
            f"and this version reads {FORMAT}"
        )
    storage, overrides, verb = fields
    if not is_uri(storage) and Path(storage) != at.parent:
        storage = str(at.parent)  # the folder was moved whole
    start_from = tuple(content.get("start_from", ()))
    begun_in = _begun_in(content, at)
    return StudyFolder(at, storage, at.name, verb, start_from, begun_in), overrides


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
