"""Content of the run that a comparison writes to MLflow."""

from __future__ import annotations

import math
import os

from raykd.errors import Problem, StudyError
from raykd.report.comparison.comparison import Comparison
from raykd.report.comparison.files import comparison_html
from raykd.report.comparison.members import Member
from raykd.report.comparison.texts import difference_text, mean_text, p_text
from raykd.tracking.mlflow_comparison import ComparisonRun, MemberLink, log_comparison
from raykd.tracking.store_check import check_store
from raykd.tracking.store_uri import DEFAULT_STORE, TRACKING, absolute, masked
from raykd.tuning.number_format import words

MAX_ARMS = 20
"""Maximum number of arms in the note."""


def log_as_run(comparison: Comparison, tracking_uri: str | None = None) -> str:
    """Write a comparison as a run of MLflow; see `Comparison.log`."""
    uri = absolute(tracking_uri or _store_of(comparison))
    check = check_store(uri)
    if not check.ok:
        raise StudyError(Problem(f"MLflow: {check.message}", fix=check.fix))
    reference = next((group.reference for group in comparison.groups if group.reference), None)
    run = ComparisonRun(
        members=[_link(member, uri) for member in comparison.members],
        summary=_summary(comparison),
        metrics={} if reference is None else reference.mean.metrics(comparison.metric.name),
        files={
            "comparison.html": comparison_html(comparison),
            "arms.csv": comparison.table.to_csv(index=False),
        },
    )
    try:
        return log_comparison(uri, run)
    except ValueError as error:
        raise StudyError(Problem(str(error), fix="name another store: --tracking-uri")) from None


def _store_of(comparison: Comparison) -> str:
    """Return the store of the first member; for groups without one MLflow's default."""
    stores = (member.place.uri for member in comparison.members)
    return next(filter(None, stores), os.environ.get(TRACKING) or DEFAULT_STORE)


def _link(member: Member, uri: str) -> MemberLink:
    place = member.place
    if masked(absolute(place.uri)) != masked(uri):
        return MemberLink(member.name, "", "")
    return MemberLink(member.name, place.experiment_id, place.run_id)


def _summary(comparison: Comparison) -> str:
    """Return verdict, remarks and arms as Markdown."""
    metric = comparison.metric
    lines = [*comparison.verdicts, *map(str, comparison.comparability.remarks)]
    lines = [line for sentence in lines for line in (sentence, "")]
    lines += [f"| study | arm | {words(metric.name)} | difference | p (Holm) |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    rows = [
        (arm, group.contrasts.get(index))
        for group in comparison.groups
        for index, arm in enumerate(group.arms)
        if arm.mean.count > 1 or arm in comparison.best_arms
    ]
    for arm, contrast in rows[:MAX_ARMS]:
        cells = [arm.member, arm.label, mean_text(metric, arm.mean)]
        if contrast is not None:
            p = "" if math.isnan(contrast.p_holm) else p_text(contrast.p_holm)
            cells += [difference_text(metric, contrast.difference), p]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)
