"""Files of a layer study: `pairing.json` has all results, `pairs.csv` a line per cell and seed.

Keys of `pairing.json`:
- `format`, `study`, `id`, `metric` (gains are differences of it; shares as fractions),
  `data_split`;
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
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raykd.layer_study.plan import Arm
from raykd.layer_study.predictors import CKA_TIMES, PREDICTORS
from raykd.layer_study.result import BestPairs, Cell, LayerStudyResult
from raykd.layer_study.significance import Contrast
from raykd.study.space.pairing import LayerPair
from raykd.tuning.estimates import Estimate

FORMAT = 1
JSON_FILE, CSV_FILE = "pairing.json", "pairs.csv"


def write_files(result: LayerStudyResult) -> tuple[Path, ...]:
    """Write both files into the study's folder; the same result gives the same bytes."""
    json_path, csv_path = result.folder / JSON_FILE, result.folder / CSV_FILE
    json_path.write_text(json.dumps(plain_result(result), indent=1, allow_nan=False) + "\n")
    csv_path.write_text(format_csv(result))
    return json_path, csv_path


def plain_result(result: LayerStudyResult) -> dict[str, Any]:
    """Return a result as plain data, with the keys of `pairing.json`."""
    plan, best = result.plan, result.best
    term = {"loss": dict(plan.loss), "weight": plan.weight}
    return _finite(
        {
            "format": FORMAT,
            "study": result.name,
            "id": result.study_id,
            "metric": result.val_metric,
            "data_split": "val",
            "term": plan.term,
            **term,
            "hints": [asdict(layer) for layer in plan.layers.hints],
            "guided": [asdict(layer) for layer in plan.layers.guided],
            "seeds": list(plan.seeds),
            "noise": asdict(result.noise),
            "cells": [_plain_cell(cell) for cell in result.cells],
            "arms": [_plain_arm(result, arm) for arm in plan.arms],
            "best": _plain_best(best, term) if best is not None else None,
            "rankings": {
                name: {**asdict(correlation), "what": PREDICTORS[name]}
                for name, correlation in result.rank_correlations.items()
            },
            "cka": _plain_cka(result),
        }
    )


def format_csv(result: LayerStudyResult) -> str:
    """Return `pairs.csv`: hint, guided, seed, value, gain, and each predictor's mean."""
    text = io.StringIO()
    names = list(PREDICTORS)
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["hint", "guided", "seed", result.val_metric, "gain", *names, "why_not"])
    for cell in result.cells:
        for seed in result.plan.seeds:
            value = result.accuracies.get(cell.arm, {}).get(seed)
            gain = cell.contrast.by_seed.get(seed) if cell.contrast is not None else None
            predicted = [_number(cell.predictors[name]) for name in names]
            figures = [_number(value), _number(gain), *predicted]
            rows.writerow([cell.hint, cell.guided, seed, *figures, cell.skip_reason])
    return text.getvalue()


def _plain_cell(cell: Cell) -> dict[str, Any]:
    return {
        "hint": cell.hint,
        "guided": cell.guided,
        "arm": cell.arm,
        "why_not": cell.skip_reason or None,
        "gain": _plain_gain(cell.contrast),
        "predictors": dict(cell.predictors),
    }


def _plain_arm(result: LayerStudyResult, arm: Arm) -> dict[str, Any]:
    accuracies = result.accuracies.get(arm.id, {})
    return {
        "id": arm.id,
        "kind": arm.kind,
        "pairs": [_plain_pairs(pairs) for pairs in arm.pairs],
        "why_not": arm.skip_reason or None,
        "values": {str(seed): accuracy for seed, accuracy in accuracies.items()},
        "gain": _plain_gain(result.contrasts.get(arm.id)),
    }


def _plain_best(best: BestPairs, term: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "arm": best.arm.id,
        "pairs": _plain_pairs(best.arm.pairs[0]),
        **term,
        "gain": _plain_gain(best.contrast),
        "test": {
            "taught": _plain_estimate(best.test_accuracy),
            "untaught": _plain_estimate(best.baseline_accuracy),
            "gain": _plain_estimate(best.gain),
        },
    }


def _plain_pairs(pairs: Iterable[LayerPair]) -> list[dict[str, str]]:
    """Return pairs as a study file writes them."""
    return [{"hint": pair.hint, "guided": pair.guided} for pair in pairs]


def _plain_gain(contrast: Contrast | None) -> dict[str, Any] | None:
    if contrast is None:
        return None
    return {
        **asdict(contrast.gain),
        "by_seed": {str(seed): gain for seed, gain in contrast.by_seed.items()},
        "p": contrast.p,
        "p_holm": contrast.p_holm,
        "clear": contrast.is_significant,
    }


def _plain_estimate(value: Estimate | None) -> dict[str, Any] | None:
    return None if value is None else value.plain()


def _plain_cka(result: LayerStudyResult) -> dict[str, Any]:
    layers = result.plan.layers
    maps = {when: result.predictors.cka_map(when) for when in CKA_TIMES}
    return {
        "hints": [layer.name for layer in layers.cka_hints],
        "guided": [layer.name for layer in layers.cka_guided],
        "after_steps": result.predictors.steps,
        **{when: cka.tolist() for when, cka in maps.items() if cka is not None},
    }


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
