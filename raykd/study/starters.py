"""Commented study files to start from (`raykd init`)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from raykd.arguments import near
from raykd.errors import Problem, StudyError

FASHION = (
    "Fashion-MNIST is downloaded once, or comes with the Debian package dataset-fashion-mnist; for "
    "your own pictures, write `data: {name: image_folder, root: FOLDER}`"
)


@dataclass(frozen=True)
class Starter:
    """A study to start from.

    Attributes:
        verb: the command that runs it.
        data: a sentence about its data.
    """

    verb: str
    data: str


STARTERS: Mapping[str, Starter] = {
    "quickstart": Starter("search", "the digits come with scikit-learn: nothing to download"),
    "architecture": Starter("search", FASHION),
    "pairing": Starter("pairs", FASHION),
    "text": Starter(
        "search",
        "the first lines of the file explain how to get the texts, the tokenizer and the teacher; "
        "for your own texts, give a CSV or Parquet file as `data.file`",
    ),
}
"""Starter studies by name; each is a file in `templates/`, identical to that in
`search_spaces/`."""


def starter_text(name: str, file: str) -> str:
    """Text of the study file `name`, with `file` in its commands.

    Raises:
        StudyError: there is no such study.
    """
    if name not in STARTERS:
        message = f"unknown study {name!r}; must be one of {', '.join(STARTERS)}"
        raise StudyError(Problem(message, path="--from", fix=near(name, [*STARTERS])))
    text = (files("raykd.study") / "templates" / f"{name}.yaml").read_text(encoding="utf-8")
    return text.replace(f"search_spaces/{name}.yaml", file)


def write_starter(name: str, file: str | Path, *, force: bool = False) -> Path:
    """Write a commented study file to start from.

    Args:
        name: quickstart, architecture, pairing or text.
        file: the file to write.
        force: replace it if it exists.

    Raises:
        StudyError: there is no such study, the file exists, or it cannot be written.
    """
    path = Path(file).expanduser()
    text = starter_text(name, shlex.quote(str(file)))
    if path.is_dir():
        raise StudyError(
            Problem("is a folder", file=str(file), fix=f"give a file: {file}/{name}.yaml")
        )
    try:
        with path.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise StudyError(
            Problem("already exists", file=str(file), fix="use another file, or add --force")
        ) from None
    except OSError as error:
        raise StudyError(Problem(f"cannot be written: {error.strerror}", file=str(file))) from None
    return path
