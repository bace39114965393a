"""Layers of models as text: tables for a terminal, plain lines for a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from raykd.models.introspection.layers import Layer
from raykd.report.layers import LayerList, ListedModel
from raykd.terminal_tables import Column, Grid, unbroken
from raykd.tuning.number_format import compact

HEADINGS = ("stage", "layer", "type", "shape", "depth", "MACs")
NUMBERS = ("depth", "MACs")
"""Headings of the columns with numbers."""

Row = Sequence[str]


def layer_tables(layers: LayerList, *, stages: bool) -> RenderableType:
    """Return tables of the layers for a terminal; rows that do not fit are stacked, not cut."""
    blocks: list[RenderableType] = []
    for title, headings, rows in _tables(layers, stages=stages):
        blocks += [Text(title, style="bold")] if title else []
        blocks += [_grid(headings, rows), Text()]
    blocks += [Text(line) for line in _notes(layers)]
    return unbroken(blocks)


def layer_lines(layers: LayerList, *, stages: bool) -> Iterator[str]:
    """Yield the tables as plain text without colors, one line per layer of any length."""
    for title, headings, rows in _tables(layers, stages=stages):
        if title:
            yield title
        yield from _aligned_lines(headings, rows)
        yield ""
    yield from _notes(layers)


def _tables(layers: LayerList, *, stages: bool) -> Iterator[tuple[str, Row, Sequence[Row]]]:
    """Yield title, headings and rows of each table.

    Several models have a table of their stages side by side; with `stages`, no other.
    """
    if len(layers.models) > 1:
        yield "", *_side_by_side(layers.models)
        if stages:
            return
    for model in layers.models:
        rows = [_row(layer) for layer in model.layers(stages=stages)]
        yield _title(model, layers), HEADINGS, rows


def _title(model: ListedModel, layers: LayerList) -> str:
    shape = "x".join(map(str, model.input_shape or layers.signature.input_shape))
    cost = f"{model.profile.params:,} parameters, {compact(model.profile.macs)} MACs"
    role = "" if model.role == "model" else f"{model.role} "
    return f"{role}{model.name}: {cost}; input {shape}, {layers.signature.classes} outputs"


def _row(layer: Layer) -> Row:
    name = layer.module if layer.side == "output" else f"{layer.module} (its input)"
    shape = layer.shape_text
    return layer.stage, name, layer.type, shape, f"{layer.depth:.2f}", compact(layer.macs)


def _side_by_side(models: Sequence[ListedModel]) -> tuple[Row, Sequence[Row]]:
    """Return the headings and rows of a table of aliases with their layer in each model."""
    by_alias = [{layer.stage: layer for layer in model.layers(stages=True)} for model in models]
    stages = {alias for layers in by_alias for alias in layers if alias != "embedding"}
    aliases = [*sorted(stages, key=lambda alias: int(alias.removeprefix("stage"))), "embedding"]
    rows = [[alias, *(_cell(layers.get(alias)) for layers in by_alias)] for alias in aliases]
    return ["stage", *(f"{model.role} {model.name}" for model in models)], rows


def _cell(layer: Layer | None) -> str:
    if layer is None:
        return "-"
    return f"{layer.module} {layer.shape_text} at {layer.depth:.2f}"


def _notes(layers: LayerList) -> Iterator[str]:
    if layers.more_students:
        yield f"and {layers.more_students} more students, all between these in size"
    for parameter, pairing in layers.pairings.items():
        sides = {"hint": pairing.hint, "guided": pairing.guided}
        for (side, names), reading in zip(sides.items(), pairing.reading, strict=True):
            source = f"{reading}: " if reading != "list" else ""
            yield f"{parameter} samples {side} from {source}{', '.join(names) or 'nothing'}"
    yield from layers.excluded


def _grid(headings: Row, rows: Sequence[Row]) -> Grid:
    columns = [
        Column(
            heading,
            right=heading in NUMBERS,
            whole=heading in NUMBERS,
            style="cyan" if heading == "stage" else "",
        )
        for heading in headings
    ]
    grid = Grid(columns, header_style="bold", gap=1)
    for row in rows:
        grid.add(*row)
    return grid


def _aligned_lines(headings: Row, rows: Sequence[Row]) -> Iterator[str]:
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if heading in NUMBERS else cell.ljust(width)
            for cell, width, heading in zip(line, widths, headings, strict=True)
        ]
        yield "  ".join(cells).rstrip()
