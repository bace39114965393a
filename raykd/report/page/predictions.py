"""Predictions of the best student and its teacher on test data: classes, agreement, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from raykd.data import Dataset
from raykd.errors import first_line
from raykd.export.student import SavedStudent, student_of_run
from raykd.report.page.content import BLUE, GRAY, ORANGE, Block, Cells, Picture, color_bar
from raykd.report.summary.search import SearchSummary
from raykd.storage import Storage
from raykd.study.config import read_study
from raykd.tracking.events import Event, RunEnded
from raykd.tuning.estimates import Estimate, paired_gain
from raykd.tuning.number_format import words
from raykd.tuning.records import Records
from raykd.tuning.study_dir import open_folder

BINS = 15
"""Number of bins of the calibration error (Guo 2017, arXiv:1706.04599, section 3)."""

BATCH = 256
MAX_CLASSES = 40
"""Maximum number of classes in the figures of classes."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of a network on the test split.

    Attributes:
        name: of the network.
        probabilities: (N, C).
        targets: (N,).
    """

    name: str
    probabilities: np.ndarray
    targets: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """Predicted classes, (N,)."""
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        return float((self.classes == self.targets).mean())

    def accuracy_by_class(self, classes: int) -> list[float]:
        """Return the share of correct predictions among the samples of each class (recall)."""
        hits = self.classes == self.targets
        return [float(hits[self.targets == c].mean()) for c in range(classes)]

    def reliability(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean confidence, accuracy and share of samples of each bin of confidence."""
        confidence = self.probabilities.max(1)
        hits = (self.classes == self.targets).astype(float)
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        counts = np.bincount(bins, minlength=BINS)
        filled = np.maximum(counts, 1)
        means = np.bincount(bins, confidence, BINS) / filled
        accuracies = np.bincount(bins, hits, BINS) / filled
        used = counts > 0
        return means[used], accuracies[used], counts[used] / len(hits)

    def calibration_error(self) -> float:
        """Return the expected calibration error."""
        means, accuracies, shares = self.reliability()
        return float((shares * np.abs(means - accuracies)).sum())


def prediction_blocks(summary: SearchSummary, history: Sequence[Event]) -> tuple[list[Block], str]:
    """Return the figures of the predictions, and a paragraph about them.

    Without saved students or without the data there are no figures, and the paragraph says so.
    Without classes both are empty.

    Args:
        summary: figures of the search.
        history: events of its journal.
    """
    if not summary.tested_finalists:
        return [], ""
    trial = summary.tested_finalists[0].trial.id
    try:
        saved = student_of_run(summary.result, history, trial)
        if read_study(saved.study).learning_task.kind != "softmax":
            return [], ""
        student, teacher = predict(summary, saved)
    except ValueError as error:
        return [], f"There are no predictions of the best student: {first_line(error)}"
    names = saved.network.class_names
    blocks: list[Block] = [_figures_table(student, teacher)]
    if len(names) <= MAX_CLASSES:
        blocks.append(_class_figure(student, teacher, names))
        sizes = np.bincount(student.targets, minlength=len(names))
        gains = gains_by_class(summary.result.records, history, trial, sizes)
        if gains:
            blocks.append(_gain_figure(gains, names))
        blocks.append(_confusion(student, names))
    blocks.append(_reliability(student, teacher))
    text = (
        f"The network of {saved.id}, the replicate with the best {words(summary.result.val_metric)}"
        + (", and its teacher" if teacher is not None else "")
        + f", on {len(student.targets):,} test samples."
    )
    return blocks, text


def predict(summary: SearchSummary, saved: SavedStudent) -> tuple[Predictions, Predictions | None]:
    """Compute the predictions of a student and of its first teacher on the test split.

    Raises:
        ValueError: the data or the teacher's weights are not available.
    """
    import torch

    from raykd.training.stored_networks import (
        load_stored_network,
        raw_samples,
        with_preprocessing,
    )
    from raykd.training.stored_outputs import StoredOutputs

    data = saved.load_data()
    if data.class_names != saved.network.class_names:
        raise ValueError("the data have other classes now")
    networks: dict[str, torch.nn.Module] = {f"student {saved.name}": saved.network}
    data_of: dict[str, Dataset] = {}
    for record in summary.result.teachers[:1]:
        folder, _ = open_folder(summary.result.folder)
        file = record.job.network_file
        content = Storage(folder.storage).read(file) if file else None
        teacher = read_study(saved.study).teacher
        if content is not None and file is not None and teacher is not None:
            theirs = data.as_input(teacher.input)
            network = load_stored_network(file, content, teacher.model, theirs)
            stored = isinstance(network, StoredOutputs)
            networks["teacher"] = network if stored else with_preprocessing(network, theirs)
            data_of["teacher"] = theirs
    results = []
    for name, network in networks.items():
        parts = []
        for start in range(0, len(data.test), BATCH):
            rows = torch.arange(start, min(start + BATCH, len(data.test)))
            stored = isinstance(network, StoredOutputs)
            network_data = data_of.get(name, data)
            inputs = data.test.index.cpu()[rows] if stored else raw_samples(network_data, rows)
            with torch.inference_mode():
                parts.append(network(inputs).float().softmax(1))
        probabilities = torch.cat(parts).numpy()
        results.append(Predictions(name, probabilities, data.test.targets.cpu().numpy()))
    return results[0], results[1] if len(results) > 1 else None


def _figures_table(student: Predictions, teacher: Predictions | None) -> Cells:
    rows = [
        (each.name, f"{each.accuracy:.2%}", f"{each.calibration_error():.2%}", "")
        for each in filter(None, (teacher, student))
    ]
    if teacher is not None:
        agreement = float((student.classes == teacher.classes).mean())
        wrong = teacher.classes != teacher.targets
        shared = float((student.classes == teacher.classes)[wrong].mean()) if wrong.any() else None
        more = "" if shared is None else f"; {shared:.0%} of the teacher's errors"
        rows[-1] = (*rows[-1][:3], f"{agreement:.2%}{more}")
    return Cells(
        "prediction-table",
        "Test data",
        ("network", "accuracy", "calibration error (ECE)", "same class as the teacher"),
        rows,
    )


def _class_figure(
    student: Predictions, teacher: Predictions | None, names: Sequence[str]
) -> Picture:
    figure = go.Figure()
    for each, color, label in ((teacher, ORANGE, "teacher"), (student, BLUE, "student")):
        if each is not None:
            figure.add_bar(
                x=list(names),
                y=each.accuracy_by_class(len(names)),
                name=label,
                marker={"color": color},
                hovertemplate="%{x}: %{y:.1%}<extra>" + label + "</extra>",
            )
    figure.update_layout(barmode="group")
    figure.update_yaxes(title="accuracy", tickformat=".0%")
    figure.update_xaxes(title="class", type="category")
    text = "Share of correct predictions among the test samples of each class."
    return Picture("classes", "Accuracy by class", text, figure, 360)


def gains_by_class(
    records: Records, history: Sequence[Event], trial: str, sizes: np.ndarray
) -> list[Estimate | None]:
    """Return the gain of a finalist over its baselines in accuracy for each class of the test data.

    Args:
        records: trainings of the search.
        history: events of its journal.
        trial: ID of the finalist.
        sizes: number of test samples for each class, (C,).

    Returns:
        Mean over seeds, paired by seed, with its interval; None for a class without samples.
        Empty if the correct predictions were not counted.
    """
    counts = {event.id: event.class_hits for event in history if isinstance(event, RunEnded)}
    hits: dict[str, dict[int, Sequence[int]]] = {"replicate": {}, "alone": {}}
    for record in records.of("replicate", "alone"):
        if record.job.parent == trial and len(counts.get(record.id, ())) == len(sizes):
            hits[record.role][record.job.seed] = counts[record.id]
    if not hits["replicate"].keys() & hits["alone"].keys():
        return []
    gains: list[Estimate | None] = []
    for label, size in enumerate(sizes.tolist()):
        taught, alone = (
            {seed: of_seed[label] / max(size, 1) for seed, of_seed in of_role.items()}
            for of_role in hits.values()
        )
        gains.append(paired_gain(taught, alone) if size else None)
    return gains


def _gain_figure(gains: Sequence[Estimate | None], names: Sequence[str]) -> Picture:
    means = [None if gain is None else gain.mean for gain in gains]
    spans = [
        0.0 if gain is None or math.isnan(gain.low) else (gain.high - gain.low) / 2
        for gain in gains
    ]
    counts = {gain.count for gain in gains if gain is not None}
    figure = go.Figure(
        go.Bar(
            x=list(names),
            y=means,
            error_y={"type": "data", "array": spans, "thickness": 1.2, "color": GRAY},
            marker={"color": BLUE},
            hovertemplate="%{x}: %{y:+.1%}<extra></extra>",
        )
    )
    figure.update_yaxes(title="gain in accuracy", tickformat="+.0%", zeroline=True)
    figure.update_xaxes(title="class", type="category")
    seeds = max(counts, default=0)
    text = (
        "Accuracy of the student with the teacher minus accuracy of the same student without one, "
        f"among the test samples of each class: mean over {seeds} seed{'s' * (seeds != 1)}, paired "
        "by seed"
        + (", with the 95% interval." if any(spans) else ".")
        + " The intervals are not corrected for the number of classes."
    )
    return Picture("class-gains", "Gain by class over no teacher", text, figure, 360)


def _confusion(student: Predictions, names: Sequence[str]) -> Picture:
    count = len(names)
    matrix = np.zeros((count, count), dtype=int)
    np.add.at(matrix, (student.targets, student.classes), 1)
    errors = matrix - np.diag(np.diag(matrix))
    figure = go.Figure(
        go.Heatmap(
            z=errors.tolist(),
            x=list(names),
            y=list(names),
            text=matrix.tolist(),
            texttemplate="%{text}" if count <= 20 else None,
            colorscale="Oranges",
            hovertemplate="class %{y}, predicted %{x}: %{text}<extra></extra>",
            colorbar=color_bar("errors"),
        )
    )
    figure.update_xaxes(title="predicted by the student", type="category")
    figure.update_yaxes(title="class", type="category", autorange="reversed")
    text = "Number of test samples by class and prediction of the student; color shows errors."
    return Picture("confusion", "Confusion", text, figure, 460, 200 + 32 * min(count, 20))


def _reliability(student: Predictions, teacher: Predictions | None) -> Picture:
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line={"color": GRAY, "dash": "dot"}
    )
    for each, color, label in ((teacher, ORANGE, "teacher"), (student, BLUE, "student")):
        if each is not None:
            means, accuracies, shares = each.reliability()
            figure.add_scatter(
                x=means.tolist(),
                y=accuracies.tolist(),
                mode="lines+markers",
                name=f"{label} (ECE {each.calibration_error():.2%})",
                marker={"size": (6 + 22 * np.sqrt(shares)).tolist(), "color": color},
                line={"color": color},
                hovertemplate="confidence %{x:.1%}, accuracy %{y:.1%}<extra>" + label + "</extra>",
            )
    figure.update_xaxes(title="confidence", tickformat=".0%")
    figure.update_yaxes(title="accuracy", tickformat=".0%")
    text = (
        "Accuracy against confidence, in bins; larger points hold more samples. Points below the "
        "dotted line are overconfident."
    )
    return Picture("reliability", "Calibration", text, figure, 400)
