"""Layer studies of tasks other than classification: arms are compared by the leading metric."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from helpers.box_files import write_coco
from helpers.mask_files import write_mask_folder
from raykd.errors import StudyError
from raykd.layer_study.result import LayerStudyResult
from raykd.layer_study.run import pairs
from raykd.report.page.layer_study_page import layer_study_page
from raykd.report.python import draw_layer_study
from raykd.report.summary import summarize
from raykd.report.terminal import render_summary
from raykd.tracking.journal import events
from raykd.tuning.executors import LocalExecutor

COMMON = """\
train: {epochs: 1, batch_size: 16}
search: {replicates: 1, pairs: {seeds: 2, arms: []}}
cluster: {storage: FOLDER/studies}
tracking: {uri: 'sqlite:///FOLDER/mlflow.db'}
"""

REGRESSION = """\
name: regression
data: {name: table, file: FOLDER/table.csv, target: y}
teacher: {model: {name: mlp, depth: 2, width: 8}, train: {epochs: 1}}
student: {model: {name: mlp, depth: 2, width: 4}}
knowledge:
- loss: hint
  pairs: {pairing: {hint: [stage1, stage2], guided: [stage1, stage2]}}
"""

SEGMENTATION = """\
name: segmentation
data: {name: mask_folder, root: FOLDER/masks}
teacher: {model: {name: unet, depth: 1, width: 4}, train: {epochs: 1}}
student: {model: {name: unet, depth: 1, width: 2}}
knowledge:
- loss: kd
- loss: hint
  pairs: {pairing: {hint: [stage2], guided: [stage1, stage2]}}
"""

DETECTION = """\
name: detection
data: {name: coco, root: FOLDER/boxes}
teacher: {model: {name: retinanet, levels: 2, width: 4, channels: 8}, train: {epochs: 1}}
student: {model: {name: retinanet, levels: 2, width: 2, channels: 8}}
knowledge:
- loss: hint
  pairs: {pairing: {hint: [level1], guided: [level1, level2]}}
"""

TEXTS = {"r2": REGRESSION, "mean_iou": SEGMENTATION, "map": DETECTION}


def write_table(folder: Path) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(90, 3))
    target = values @ [1.0, -2.0, 0.5] + 0.1 * generator.normal(size=90)
    table = pd.DataFrame(values, columns=["a", "b", "c"]).assign(y=target)
    table.to_csv(folder / "table.csv", index=False)


def write_study(folder: Path, lead: str) -> Path:
    if lead == "r2":
        write_table(folder)
    elif lead == "mean_iou":
        write_mask_folder(folder / "masks")
    else:
        write_coco(folder / "boxes")
    file = folder / "study.yaml"
    file.write_text((TEXTS[lead] + COMMON).replace("FOLDER", str(folder)))
    return file


@pytest.mark.parametrize("lead", TEXTS)
def test_arms_are_compared_by_the_leading_metric(lead: str, tmp_path: Path) -> None:
    file = write_study(tmp_path, lead)
    result = pairs(file, executor=LocalExecutor(), draw=draw_layer_study)
    assert not result.failed, [record.reason for record in result.failed]
    assert result.val_metric == f"val_{lead}"
    trained = {arm.id for arm in result.plan.arms if not arm.skip_reason}
    assert {*result.accuracies} == trained and len(trained) > 1
    check_gains(result)
    best = result.best
    assert best is not None and best.gain is not None and best.test_accuracy is not None
    assert best.gain.is_share is (lead != "r2")
    plain = json.loads((result.folder / "pairing.json").read_text())
    assert plain["metric"] == f"val_{lead}"
    assert (result.folder / "pairs.csv").read_text().startswith(f"hint,guided,seed,val_{lead},")
    assert all(math.isfinite(seed.steps) for seed in result.predictors.by_seed.values())
    console = Console(file=io.StringIO(), width=120)
    console.print(render_summary(summarize(result)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    name = {"r2": "val R2", "mean_iou": "val mean iou", "map": "val map"}[lead]
    assert name in text and "accuracy" not in text
    page = layer_study_page(summarize(result), events(result.folder / "journal.jsonl"))
    assert f"V{name[1:]}" in page.sections[0].text
    assert "accuracy" not in repr(page.answer) + repr(page.facts)


def check_gains(result: LayerStudyResult) -> None:
    for arm, contrast in result.contrasts.items():
        for seed, gain in contrast.by_seed.items():
            values = (result.accuracies[each][seed] for each in (arm, "none"))
            assert gain == pytest.approx(next(values) - next(values))


def test_metric_of_which_less_is_better_is_refused(tmp_path: Path) -> None:
    file = write_study(tmp_path, "r2")
    with pytest.raises(StudyError, match="more is better, and mae is none") as error:
        pairs(file, overrides=["task={name: regression, metrics: [mae, r2]}"])
    assert "list another metric of task 'regression' first" in str(error.value)
