"""Shell completion: option names, `--set` keys, study files and study folders.

Runs at each press of the Tab key, so it imports only light modules; the words come from
`completions.json`, which `raykd.cli.completion_words` writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from typer import Context

GROUPS = {
    "tasks": "raykd.tasks",
    "losses": "raykd.losses",
    "schemes": "raykd.schemes",
    "models": "raykd.models",
    "data": "raykd.data",
    "optimizers": "raykd.optimizers",
    "schedules": "raykd.schedules",
    "samplers": "raykd.samplers",
    "schedulers": "raykd.schedulers",
    "proxies": "raykd.proxies",
    "augmentations": "raykd.augmentations",
}
"""Entry point groups for options of other packages."""

STORAGE = "studies"
"""Default of `cluster.storage`: the folder of all studies."""

Items = list[tuple[str, str]]


def parts(incomplete: str) -> Items:
    """Complete the parts of `raykd list`."""
    return _starting(incomplete, ((part, "") for part in _words()["options"]))


def options(context: Context, incomplete: str) -> Items:
    """Complete the names in the part of `raykd list` before the cursor."""
    part = context.params.get("part") or ""
    words = _words()["options"].get(part, {})
    return _starting(incomplete, [*words.items(), *_plugins(part)])


def models(incomplete: str) -> Items:
    """Complete names of models, and study files."""
    words = _words()["options"]["models"]
    return _starting(incomplete, [*words.items(), *_plugins("models")]) + study_files(incomplete)


def keys(incomplete: str) -> Items:
    """Complete keys of a study, followed by `=`: `train.epochs=`."""
    if "=" in incomplete:
        return []
    return _starting(incomplete, ((f"{key}=", text) for key, text in _words()["keys"].items()))


def study_folders(incomplete: str) -> Items:
    """Complete folders of studies below `studies/` or below the typed path, latest first."""
    folders = [entry for entry in _entries(incomplete, STORAGE) if _is_study(entry)]
    folders.sort(key=lambda folder: (folder / "journal.jsonl").stat().st_mtime, reverse=True)
    return _starting(incomplete, ((str(folder), "") for folder in folders))


def study_files(incomplete: str) -> Items:
    """Complete YAML files and the folders that lead to them."""
    listed: list[tuple[str, str]] = []
    for entry in _entries(incomplete, "."):
        if entry.is_dir():
            listed.append((f"{entry}/", ""))
        elif entry.suffix in (".yaml", ".yml"):
            listed.append((str(entry), ""))
    return _starting(incomplete, sorted(listed))


def _is_study(folder: Path) -> bool:
    return (folder / "journal.jsonl").is_file()


def _entries(incomplete: str, default: str) -> list[Path]:
    """Return the entries of the typed folder, or of `default` without one."""
    folder = Path(os.path.dirname(incomplete) or default)
    try:
        return [folder / name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        return []


def _plugins(part: str) -> Iterator[tuple[str, str]]:
    """Return names of options in other packages, without importing them."""
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUPS.get(part, "raykd.none")):
        yield point.name, f"from {point.dist.name}" if point.dist is not None else ""


def _starting(incomplete: str, items: Any) -> Items:
    return [(word, text) for word, text in items if word.startswith(incomplete)]


@cache
def _words() -> dict[str, dict[str, Any]]:
    return json.loads(files("raykd.cli").joinpath("completions.json").read_text(encoding="utf-8"))
