"""Output of `raykd validate`: an explanation of the search space of a study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.text import Text

from raykd.data import Dataset, Survey
from raykd.errors import StudyError
from raykd.layer_study.arms import build_arms
from raykd.layer_study.design import design_layer_study
from raykd.models import Signature
from raykd.report.cache import plan_lines
from raykd.report.data import data_block, weights_block
from raykd.runtime.cluster import is_remote, plan_slots, this_machine
from raykd.runtime.gpu_sharing import max_trials_per_gpu
from raykd.study.checks.latency import check_measured
from raykd.study.checks.load import check_data, check_shapes
from raykd.study.costs import StudentCosts
from raykd.study.explain import Explanation, explain
from raykd.study.open_study import OpenStudy
from raykd.study.space.size import Dimension
from raykd.terminal_tables import Column, Grid, Labeled
from raykd.training.build import signature_of
from raykd.training.teacher_cache.plan import CachePlan
from raykd.tuning.study_input import load_or_use, located_problems
from raykd.tuning.teacher_store import (
    check_outputs_of_samples,
    check_started_models,
    check_teacher_weights,
    remarks_on_weights,
)


def explain_file(
    file: str, overrides: Sequence[str] = (), seed: int = 0, *, allow_import: bool = False
) -> RenderableType:
    """Return the search space, cost and slots of a study for a `rich` console.

    Nothing is downloaded and Ray is not started.  A few students are measured if the study has
    bounds on measured costs.

    Args:
        file: the study file.
        overrides: `a.b=value` arguments.
        seed: seed of the sampled trial.
        allow_import: let models run code of their own (import paths, networks from MLflow).

    Raises:
        StudyError: the study, its data or this machine cannot be used.
    """
    checks = [check_data, check_teacher_weights, check_started_models]
    study = load_or_use(file, overrides, checks, allow_import=allow_import)
    slots = _slots(study)
    survey = _survey(study)
    data = _local_data(study)
    signature = study.signature
    if signature is None:
        assert data is not None, "a source that does not tell its shape is read"
        signature = signature_of(data)
        check_shapes(study, signature, checks=checks)
    with located_problems(study):
        check_measured(study.bind(signature), StudentCosts(study.settings.search))
    overview = survey or data
    named = replace(signature, class_names=overview.class_names if overview is not None else ())
    with located_problems(study):
        weights = remarks_on_weights(study, named)
        if data is not None:
            check_outputs_of_samples(study, data)
    explanation = explain(
        study.bind(signature), seed, overview.sizes["train"] if overview else None
    )
    table = Labeled(width=9, gap=1)
    for label, text in (
        slots,
        *_cache_lines(study, signature, data),
        *_layer_study(study, signature),
    ):
        table.add(label, text)
    return Group(
        render_explanation(explanation),
        data_block(study.settings.data, overview, signature),
        *weights_block(weights.notes, weights.warnings),
        table,
    )


def _layer_study(study: OpenStudy, signature: Signature) -> list[tuple[str, str]]:
    """Return the size of a layer study with `raykd pairs`; empty if it is not possible."""
    try:
        design = design_layer_study(study, signature)
    except StudyError:
        return []
    settings = study.settings.search.pairs
    arms = build_arms(design, settings)
    trained = sum(not arm.skip_reason for arm in arms)
    text = f"`raykd pairs` would train {trained} arms x {settings.seeds} seeds"
    skipped = len(arms) - trained
    return [("pairs", text + (f"; {skipped} arms cannot be trained" if skipped else ""))]


def _slots(study: OpenStudy) -> tuple[str, str]:
    """Return the slots that the study would get on this machine or cluster."""
    if is_remote():
        return "slots", "as many as fit on the cluster at RAY_ADDRESS"
    cluster, nodes = study.settings.cluster, this_machine()
    max_trials = max_trials_per_gpu(cluster, nodes)
    share = f", or up to {max_trials} trials per GPU (the search measures which is fastest)"
    share = share if max_trials > 1 else ""
    return "slots", f"{plan_slots(cluster, nodes)} on this machine{share}"


def _cache_lines(
    study: OpenStudy, signature: Signature, data: Dataset | None
) -> list[tuple[str, str]]:
    """Return the teacher outputs that the study would cache."""
    plan = CachePlan(
        study,
        signature,
        None if data is None else len(data.train),
        unlabeled=0 if data is None else data.unlabeled,
    )
    return [("cache", line) for line in plan_lines(plan)]


def _survey(study: OpenStudy) -> Survey | None:
    """Return a survey of the data, or None if it is not possible without loading them."""
    try:
        return study.settings.data.survey()
    except ValueError as error:
        raise StudyError(study.document.problem(("data",), str(error))) from None


def _local_data(study: OpenStudy) -> Dataset | None:
    """Return the data if they can be read without a download.

    These are data included in a package, and data whose shape is not known otherwise.
    """
    source = study.settings.data
    if study.signature is not None and hasattr(source, "root"):
        return None
    try:
        return source.load()
    except ValueError as error:
        raise StudyError(study.document.problem(("data",), str(error))) from None


def render_explanation(explanation: Explanation) -> Group:
    """Render an explanation for a `rich` console."""
    title = Text(f"study {explanation.name}", style="bold")
    return Group(title, *_dimensions(explanation), _facts(explanation))


def _dimensions(explanation: Explanation) -> Iterator[RenderableType]:
    """Yield tables of the parameters, one for each branch, with its condition."""
    if not explanation.dimensions:
        yield Text("no open parameters: a single trial")
        return
    when = ""
    table = _parameter_table(explanation.dimensions)
    for dimension in explanation.dimensions:
        if dimension.when != when:
            yield table
            when = dimension.when
            yield Text(f"if {when}:" if when else "always:", style="italic")
            table = _parameter_table(explanation.dimensions, heading=False)
        indent = "  " if when else ""
        table.add(indent + dimension.name, dimension.text, explanation.sample_text(dimension))
    yield table


def _parameter_table(dimensions: Iterable[Dimension], *, heading: bool = True) -> Grid:
    """Return a table of parameters; all tables of a space have the same column widths."""
    longest = max(len(dimension.name) for dimension in dimensions) + 2
    columns = [Column("parameter", whole=True), Column("values"), Column("sample")]
    widths = (longest, 0, 0)
    return Grid(columns, header_style="bold", header=heading, gap=1, widths=widths)


def _facts(explanation: Explanation) -> Labeled:
    table = Labeled(gap=1)
    for label, text in explanation.facts:
        table.add(Text(label, style="dim"), text)
    return table
