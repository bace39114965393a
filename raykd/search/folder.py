"""A study's folder: what was asked, what happened, and what is needed to go on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raykd.problems import Problem, StudyError
from raykd.training.storage import is_uri

FORMAT = 1
Verb = Literal["search", "distill", "teacher", "pairs"]


@dataclass(frozen=True)
class StudyFolder:
    """The files of one search.

    Attributes:
        path: the local folder, with raykd's journal and Optuna's.
        storage: where the files are that every node must reach; a folder or a URI.
        name: the study's folder below `storage`.
        verb: what was asked for.
        start_from: the runs whose winners were to be tried first.
        begun_in: the working folder that relative paths of the study mean; None: the present one.
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
        """What was measured of students before they were trained."""
        return self.path / "latency.json"

    @property
    def packing(self) -> Path:
        """What was measured of trials that share a GPU."""
        return self.path / "packing.json"

    @property
    def optuna(self) -> str:
        """Optuna's journal, as `optuna-dashboard` takes it."""
        return str(self.path / "optuna.log")

    @property
    def given(self) -> Path:
        """The study file as it was given."""
        return self.path / "study.yaml"


def create_folder(
    name: str,
    storage: str,
    given: str,
    overrides: Sequence[str],
    verb: Verb = "search",
    start_from: Sequence[str] = (),
) -> StudyFolder:
    """A fresh folder below `storage` (or below ./studies, where that is a URI)."""
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
                    f"the folder {root} cannot be written: {error.strerror}",
                    path="cluster.storage",
                    mend="name a folder that can, or make this one writable",
                )
            ) from None
    else:
        raise StudyError(f"no fresh folder could be made below {root}")
    folder = StudyFolder(
        path,
        storage if is_uri(storage) else str(root.absolute()),
        path.name,
        verb,
        tuple(start_from),
        str(Path.cwd()),
    )
    folder.given.write_text(given)
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
    """The folder of a search that ran before, and its overrides.

    Raises:
        StudyError: it is no study's folder.
    """
    at = Path(path).expanduser().absolute()
    try:
        content = json.loads((at / "folder.json").read_text())
        found = content["format"]
        kept = [content[key] for key in ("storage", "overrides", "verb") if found == FORMAT]
    except (FileNotFoundError, NotADirectoryError):
        raise StudyError(
            Problem(
                f"{path} is no study's folder: it holds no folder.json",
                mend="name the folder that `raykd search` printed (below `cluster.storage`)",
            )
        ) from None
    except (ValueError, KeyError, TypeError):
        raise StudyError(
            Problem(
                f"{path} is no study's folder: its folder.json was not written by raykd",
                mend="name the folder that `raykd search` printed (below `cluster.storage`)",
            )
        ) from None
    if found != FORMAT:
        raise StudyError(
            f"{path} was written by another version of raykd (format {found}, "
            f"this one reads {FORMAT})"
        )
    storage, overrides, verb = kept
    if not is_uri(storage) and Path(storage) != at.parent:
        storage = str(at.parent)  # the folder was moved whole
    start_from = tuple(content.get("start_from", ()))
    begun_in = _begun_in(content, at)
    return StudyFolder(at, storage, at.name, verb, start_from, begun_in), overrides


def _begun_in(content: Mapping[str, Any], at: Path) -> str | None:
    """The working folder a study was begun in; where that is gone, the one that lies as it did
    relative to the study's folder; None: neither exists."""
    begun, path = content.get("begun_in"), content.get("path")
    if not isinstance(begun, str) or not isinstance(path, str):
        return None
    if os.access(begun, os.R_OK | os.X_OK) and Path(begun).is_dir():
        return begun
    if not Path(path).is_relative_to(begun):
        return None
    inside = Path(path).parent.relative_to(begun).parts  # as "studies"; the folder may be renamed
    around = at.parent.parts
    if inside and around[-len(inside) :] != inside:
        return None
    return str(Path(*around[: len(around) - len(inside)]))
