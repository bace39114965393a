"""How `raykd layers` looks: a table in a terminal, aligned lines in a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from raykd.architecture.layers import Layer
from raykd.report.layers import Layers, Shown
from raykd.search.figures import compact
from raykd.tables import Column, Grid, unbroken

HEADINGS = ("stage", "layer", "type", "shape", "depth", "MACs")
FIGURES = ("depth", "MACs")


def tables(found: Layers, *, stages: bool) -> RenderableType:
    """The layers for a terminal; rows that do not fit are stacked, nothing is cut."""
    blocks: list[RenderableType] = []
    if len(found.models) > 1:
        blocks += [_table(*_side_by_side(found.models)), Text()]
    for model in found.models if len(found.models) == 1 or not stages else ():
        rows = [_row(layer) for layer in model.layers(stages=stages)]
        blocks += [Text(_title(model, found), style="bold"), _table(HEADINGS, rows), Text()]
    blocks += [Text(line) for line in _notes(found)]
    return unbroken(blocks)


def lines(found: Layers, *, stages: bool) -> Iterator[str]:
    """The same without colours, a layer a line, whatever its length."""
    if len(found.models) > 1:
        yield from _aligned(*_side_by_side(found.models))
        yield ""
    for model in found.models if len(found.models) == 1 or not stages else ():
        yield _title(model, found)
        yield from _aligned(HEADINGS, [_row(layer) for layer in model.layers(stages=stages)])
        yield ""
    yield from _notes(found)


def _title(model: Shown, found: Layers) -> str:
    shape = "x".join(map(str, found.task.input_shape))
    cost = f"{model.anatomy.params:,} parameters, {compact(model.anatomy.macs)} MACs"
    role = "" if model.role == "model" else f"{model.role} "
    return f"{role}{model.name}: {cost}; input {shape}, {found.task.classes} classes"


def _row(layer: Layer) -> tuple[str, ...]:
    name = layer.module if layer.side == "output" else f"{layer.module} (its input)"
    shape = layer.shape_text
    return layer.stage, name, layer.type, shape, f"{layer.depth:.2f}", compact(layer.macs)


def _side_by_side(models: Sequence[Shown]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """The aliases, with what bears them in each of the models."""
    held = [{layer.stage: layer for layer in one.layers(stages=True)} for one in models]
    order = {alias: None for one in held for alias in one if alias != "embedding"}
    aliases = [*sorted(order, key=lambda alias: int(alias.removeprefix("stage"))), "embedding"]
    rows = [(alias, *(_beside(one.get(alias)) for one in held)) for alias in aliases]
    return ["stage", *(f"{one.role} {one.name}" for one in models)], rows


def _beside(layer: Layer | None) -> str:
    if layer is None:
        return "-"
    return f"{layer.module} {layer.shape_text} at {layer.depth:.2f}"


def _notes(found: Layers) -> Iterator[str]:
    if found.more:
        yield f"and {found.more} more students, all between these in size"
    for parameter, pairing in (found.pairings or {}).items():
        for side, reading in zip(("hint", "guided"), pairing["reading"], strict=True):
            of = f"{reading}: " if reading != "list" else ""
            yield f"{parameter} samples {side} from {of}{', '.join(pairing[side]) or 'nothing'}"
    yield from found.left_out


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid:
    columns = [
        Column(
            heading,
            right=heading in FIGURES,
            whole=heading in FIGURES,
            style="cyan" if heading == "stage" else "",
        )
        for heading in headings
    ]
    grid = Grid(columns, header_style="bold", gap=1)
    for row in rows:
        grid.add(*row)
    return grid


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    told = [headings, *rows]
    widths = [max(len(row[i]) for row in told) for i in range(len(headings))]
    for row in told:
        cells = [
            cell.rjust(width) if heading in FIGURES else cell.ljust(width)
            for cell, width, heading in zip(row, widths, headings, strict=True)
        ]
        yield "  ".join(cells).rstrip()
