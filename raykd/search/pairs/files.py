"""The files a layer study leaves in its folder.

`pairing.json` holds all of it:
- `format`, `study`, `id`, `metric` (what gains are measured in, a fraction), `data_split`;
- `term` (its number in `knowledge`), `loss` (plain data), `weight`;
- `hints`, `guided`: the layers, each with `name`, `shape`, `depth`; `seeds`;
- `noise`: the `deviation` of one training and its degrees of `freedom`;
- `cells`: one for each hint and guided layer, with `hint`, `guided`, `arm`, `why_not` (null where
  it was trained), `gain` and `predictors`;
- `arms`: each with `id`, `kind`, `pairs` (a list of pairs for each seed, or one for all), `values`
  by seed, `why_not` and `gain`;
- a `gain`: `mean`, `low`, `high`, `count`, `by_seed`, `p`, `p_holm`, `clear`, or null;
- `best`: `arm`, `pairs` (list of `{hint, guided}`), `loss`, `weight`, `gain`, and `test` with
  `taught`, `untaught`, `gain` (each `mean`, `low`, `high`, `count`); or null;
- `rankings`: predictor -> `tau`, `low`, `high`, `cells`, `what`;
- `cka`: `hints` and `guided` (names), `start`, `steps`, `trained`: matrices, hints as rows.
Numbers that JSON does not know are null.

`pairs.csv` has a line for each cell and seed.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raykd.problems import Problem, StudyError
from raykd.search.pairs.arm import Arm
from raykd.search.pairs.contrasts import Contrast
from raykd.search.pairs.result import METRIC, PREDICTORS, PairsResult, pairs_of
from raykd.search.statistics import Estimate

FORMAT = 1
JSON_FILE, CSV_FILE = "pairing.json", "pairs.csv"


def write_files(result: PairsResult) -> tuple[Path, ...]:
    """Write both files into the study's folder; the same result gives the same bytes."""
    told, table = result.folder / JSON_FILE, result.folder / CSV_FILE
    told.write_text(json.dumps(facts_of(result), indent=1, allow_nan=False) + "\n")
    table.write_text(table_of(result))
    return told, table


def read_file(path: str | Path) -> dict[str, Any]:
    """What `pairing.json` holds.

    Raises:
        StudyError: there is no such file, or it is another one.
    """
    try:
        told = json.loads(Path(path).read_text())
        if told["format"] == FORMAT:
            return told
        what = f"{path} has format {told['format']}; this raykd reads {FORMAT}"
    except (OSError, ValueError, KeyError, TypeError):
        what = f"{path} is no {JSON_FILE} of a layer study"
    raise StudyError(Problem(what, mend="name the file that `raykd pairs` wrote"))


def facts_of(result: PairsResult) -> dict[str, Any]:
    """All of a result as plain data; see this file's head."""
    best = result.best
    maps = {when: result.cka(when) for when in ("start", "steps", "trained")}
    return _finite(
        {
            "format": FORMAT,
            "study": result.name,
            "id": result.study_id,
            "metric": METRIC,
            "data_split": "val",
            "term": result.term,
            "loss": dict(result.loss),
            "weight": result.weight,
            "hints": [asdict(layer) for layer in result.hints],
            "guided": [asdict(layer) for layer in result.guided],
            "seeds": list(result.seeds),
            "noise": asdict(result.noise),
            "cells": [
                {
                    "hint": cell.hint,
                    "guided": cell.guided,
                    "arm": cell.arm,
                    "why_not": cell.why_not or None,
                    "gain": _gain(cell.contrast),
                    "predictors": dict(cell.predictors),
                }
                for cell in result.cells
            ],
            "arms": [_arm(result, arm) for arm in result.arms],
            "best": best
            and {
                "arm": best.arm.id,
                "pairs": pairs_of(best.arm),
                "loss": dict(result.loss),
                "weight": result.weight,
                "gain": _gain(best.contrast),
                "test": {
                    "taught": _estimate(best.tested),
                    "untaught": _estimate(best.untaught),
                    "gain": _estimate(best.gain),
                },
            },
            "rankings": {
                name: {**asdict(found), "what": PREDICTORS[name]}
                for name, found in result.rankings.items()
            },
            "cka": {
                "hints": [layer.name for layer in result.shown_hints],
                "guided": [layer.name for layer in result.shown_guided],
                "after_steps": result.steps,
                **{when: found.tolist() for when, found in maps.items() if found is not None},
            },
        }
    )


def table_of(result: PairsResult) -> str:
    """`pairs.csv`: hint, guided, seed, value, gain, and each predictor's mean."""
    text = io.StringIO()
    names = list(PREDICTORS)
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["hint", "guided", "seed", METRIC, "gain", *names, "why_not"])
    for cell in result.cells:
        for seed in result.seeds:
            value = result.values.get(cell.arm, {}).get(seed)
            gain = cell.contrast.by_seed.get(seed) if cell.contrast is not None else None
            predicted = [_number(cell.predictors[name]) for name in names]
            figures = [_number(value), _number(gain), *predicted]
            rows.writerow([cell.hint, cell.guided, seed, *figures, cell.why_not])
    return text.getvalue()


def _arm(result: PairsResult, arm: Arm) -> dict[str, Any]:
    told = arm.plain()
    pairs = [[{"hint": h, "guided": g} for h, g in one] for one in told["pairs"]]
    return {
        **told,
        "pairs": pairs,
        "why_not": arm.why_not or None,
        "values": {str(seed): v for seed, v in result.values.get(arm.id, {}).items()},
        "gain": _gain(result.contrasts.get(arm.id)),
    }


def _gain(contrast: Contrast | None) -> dict[str, Any] | None:
    if contrast is None:
        return None
    return {
        **asdict(contrast.gain),
        "by_seed": {str(seed): gain for seed, gain in contrast.by_seed.items()},
        "p": contrast.p,
        "p_holm": contrast.p_holm,
        "clear": contrast.is_clear,
    }


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _finite(value: Any) -> Any:
    """The same with null for every number that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(held) for held in value]
    return value
