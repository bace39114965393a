"""Files of a layer study: `pairing.json` has all results, `pairs.csv` a line per cell and seed.

Keys of `pairing.json`:
- `format`, `study`, `id`, `metric` (unit of gains, a fraction), `data_split`;
- `term` (its index in `knowledge`), `loss` (plain data), `weight`;
- `hints`, `guided`: the layers, each with `name`, `shape`, `depth`; `seeds`;
- `noise`: `deviation` of one training and its degrees of `freedom`;
- `cells`: one per hint and guided layer, with `hint`, `guided`, `arm`, `why_not` (null if it was
  trained), `gain` and `predictors`;
- `arms`: each with `id`, `kind`, `pairs` (a list of pairs per seed, or one for all seeds), `values`
  by seed, `why_not` and `gain`;
- a `gain`: `mean`, `low`, `high`, `count`, `by_seed`, `p`, `p_holm`, `clear`, or null;
- `best`: `arm`, `pairs` (list of `{hint, guided}`), `loss`, `weight`, `gain`, and `test` with
  `taught`, `untaught`, `gain` (each `mean`, `low`, `high`, `count`); or null;
- `rankings`: predictor -> `tau`, `low`, `high`, `cells`, `what`;
- `cka`: `hints` and `guided` (names), `start`, `steps`, `trained`: matrices, hints as rows.
NaN and infinite numbers are null.
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

from raykd.layer_study.arm_record import Arm
from raykd.layer_study.result import METRIC, PREDICTORS, LayerStudyResult, pairs_of
from raykd.layer_study.statistics import Contrast
from raykd.tuning.statistics import Estimate

FORMAT = 1
JSON_FILE, CSV_FILE = "pairing.json", "pairs.csv"


def write_files(result: LayerStudyResult) -> tuple[Path, ...]:
    """Write both files into the study's folder; the same result gives the same bytes."""
    json_path, csv_path = result.folder / JSON_FILE, result.folder / CSV_FILE
    json_path.write_text(json.dumps(facts_of(result), indent=1, allow_nan=False) + "\n")
    csv_path.write_text(table_of(result))
    return json_path, csv_path


def facts_of(result: LayerStudyResult) -> dict[str, Any]:
    """Return a result as plain data, with the keys of `pairing.json`."""
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
                name: {**asdict(correlation), "what": PREDICTORS[name]}
                for name, correlation in result.rankings.items()
            },
            "cka": {
                "hints": [layer.name for layer in result.cka_hints],
                "guided": [layer.name for layer in result.cka_guided],
                "after_steps": result.steps,
                **{when: cka.tolist() for when, cka in maps.items() if cka is not None},
            },
        }
    )


def table_of(result: LayerStudyResult) -> str:
    """Return `pairs.csv`: hint, guided, seed, value, gain, and each predictor's mean."""
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


def _arm(result: LayerStudyResult, arm: Arm) -> dict[str, Any]:
    plain = arm.plain()
    pairs = [[{"hint": h, "guided": g} for h, g in each] for each in plain["pairs"]]
    return {
        **plain,
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


def _estimate(value: Estimate | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _finite(value: Any) -> Any:
    """Return plain data with None for every NaN and infinite number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
