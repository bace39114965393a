"""Description of a layer study, and the figures of its arms, for its pages in MLflow."""

from __future__ import annotations

import math

from raykd.compat.packages import launcher
from raykd.layer_study.plan import NONE, format_pairs
from raykd.layer_study.planner import run_id
from raykd.layer_study.result import LayerStudyResult
from raykd.layer_study.significance import Contrast
from raykd.metrics import facts_of
from raykd.tracking.events import SummaryWritten
from raykd.tuning.estimates import estimate_metric
from raykd.tuning.number_format import interval, points, words
from raykd.tuning.study_description import markdown_table
from raykd.tuning.verdicts import gain_verdict

MOST_ARMS = 5
"""Maximum number of arms in a description."""


def arm_metrics(result: LayerStudyResult) -> dict[str, dict[str, float]]:
    """Return the figures of each arm over seeds, by the ID of its run under the first seed."""
    metrics: dict[str, dict[str, float]] = {}
    facts = facts_of(result.lead)
    for arm, accuracies in result.accuracies.items():
        record_id = run_id(arm, 0)
        if record_id not in result.records:
            continue
        metrics[record_id] = estimate_metric([*accuracies.values()], facts).metrics(
            result.val_metric
        )
        contrast = result.contrasts.get(arm)
        if contrast is not None:
            metrics[record_id] |= contrast.gain.metrics("gain")
            if math.isfinite(contrast.p_holm):
                metrics[record_id]["gain_p_holm"] = contrast.p_holm
    return metrics


def describe_layer_study(result: LayerStudyResult) -> SummaryWritten:
    """Describe the result of a layer study: the best pairs first."""
    plan = result.plan
    loss = f"loss {plan.loss['name']}, weight {plan.weight:g}, {len(plan.seeds)} seeds"
    pairs = {arm.id: format_pairs(arm.pairs[0]) for arm in plan.arms}
    ranked = sorted(result.contrasts.items(), key=lambda item: -item[1].gain.mean)
    rows = [
        (arm, pairs.get(arm, ""), points(contrast.gain), _significance(contrast))
        for arm, contrast in ranked[:MOST_ARMS]
        if arm != NONE
    ]
    unit = " (points)" if facts_of(result.lead).is_share else ""
    head = ("arm", "pairs", f"gain in {words(result.val_metric)}{unit}", "after Holm's correction")
    parts = [
        f"Gain over no hint: {loss}.",
        markdown_table(head, rows) if rows else "",
        f"More: `{launcher()}raykd report {result.folder}`",
    ]
    text = "\n\n".join(filter(None, parts))
    return SummaryWritten(_headline(result), text, has_result=result.best is not None)


def _headline(result: LayerStudyResult) -> str:
    best = result.best
    if best is None:
        return f"Layer study `{result.name}`: no set of pairs was trained under every seed."
    pairs = format_pairs(best.arm.pairs[0])
    if best.test_accuracy is None or best.gain is None:
        return f"**{pairs}** has the highest {words(result.val_metric)}, not tested."
    gain = f"gain {points(best.gain)}: {gain_verdict(best.gain)}"
    return f"**{pairs}**: {words(result.test_metric)} {interval(best.test_accuracy)}; {gain}"


def _significance(contrast: Contrast) -> str:
    return "significant" if contrast.is_significant else "not significant"
