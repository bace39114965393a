"""Extension of a finished or interrupted study: the overrides with which it grows."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from raykd.errors import Problem, StudyError
from raykd.study.config import Search
from raykd.study.yaml_file import parse_document
from raykd.tuning.study_dir import Verb, open_folder

Count = int | str
"""A new total, `10`, or a number to add, `"+4"`."""


def plan_extension(
    path: str | os.PathLike[str],
    trials: Count | None = None,
    replicates: Count | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Verb, list[str]]:
    """Return the command that continues a study, and the overrides with which it grows.

    Args:
        path: folder of the study.
        trials: trials of the search.
        replicates: trainings of each finalist under new seeds.
        overrides: `a.b=value`; numbers that may grow, and larger parts of the space.

    Raises:
        StudyError: it is not the folder of a search or a layer study, or a number cannot be read.
    """
    folder, earlier = open_folder(path)
    if folder.verb not in ("search", "pairs"):
        text = f"{folder.path} was created by `raykd {folder.verb}`, which cannot be extended"
        fix = f"run `raykd {folder.verb}` on {folder.study_file} again with other values"
        raise StudyError(Problem(text, fix=fix))
    if folder.verb == "pairs" and trials is not None:
        fix = "give more seeds: --set search.pairs.seeds=N; or sets: --set search.pairs.sets=N"
        raise StudyError(Problem("a layer study has arms and seeds instead of trials", fix=fix))
    written = parse_document(folder.study_file.read_text(), str(folder.study_file))
    search = written.with_overrides(earlier).data.get("search")
    counts = {"trials": trials, "replicates": replicates}
    grown = [
        f"search.{name}={_total(name, count, search)}"
        for name, count in counts.items()
        if count is not None
    ]
    return folder.verb, [*grown, *overrides]


def _total(name: str, count: Count, search: object) -> int:
    """Return a number after the extension."""
    text = str(count).strip()
    if not re.fullmatch(r"\+?\d+", text):
        fix = "write +4 to add four, or 10 for ten in all"
        raise StudyError(Problem(f"{name} must be a whole number; got {text!r}", fix=fix))
    now = search.get(name) if isinstance(search, Mapping) else None
    if not isinstance(now, int):
        now = getattr(Search(), name)
    return now + int(text) if text.startswith("+") else int(text)
