"""Output of `raykd cache` and `raykd validate` about teachers' cached outputs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from raykd.models.base import format_option
from raykd.report.format import in_bytes
from raykd.terminal_tables import Column, Grid, unbroken
from raykd.training.teacher_cache.plan import CachePlan, PlannedEntry, estimate_build_time
from raykd.training.teacher_cache.store import CacheEntry, CacheStore
from raykd.training.teacher_cache.verify import Comparison

MAX_LINES = 4
"""Maximum number of teachers listed one by one."""


def plan_lines(plan: CachePlan, device: str = "cpu") -> list[str]:
    """Return lines with the outputs that a study would cache, their cost and break-even point."""
    lines = [_plan_line(entry, plan, device) for entry in list(plan.all.values())[:MAX_LINES]]
    more = len(plan.all) - MAX_LINES
    return lines + ([f"and {more} more"] if more > 0 else [])


def _plan_line(entry: PlannedEntry, plan: CachePlan, device: str) -> str:
    model = entry.teacher.model
    name = str(entry.teacher.weights) if model is None else format_option(model)
    if entry.why_not:
        return f"teacher {name} runs in every training step: {entry.why_not}"
    outputs = " + ".join(["logits", *entry.layers])
    seconds = estimate_build_time(entry, plan.signature, device)
    size = f"{in_bytes(entry.row_bytes)} per sample and view" if entry.bytes is None else ""
    time_ = "" if seconds is None else f", about {seconds:.1f} s to compute on one worker"
    uncached = f"; too large to cache: {', '.join(entry.live)}" if entry.live else ""
    views = "1 view" if entry.views == 1 else f"{entry.views} views"
    epochs = "epoch" if f"{entry.break_even_epochs:.3g}" == "1" else "epochs"
    return (
        f"{outputs} of teacher {name}, {views}: "
        f"{size or in_bytes(entry.bytes or 0)}{time_}"
        f"; faster than running the teacher from {entry.break_even_epochs:.3g} {epochs} on, "
        f"about {entry.expected_epochs:.0f} are planned in all trainings{uncached}"
    )


def entries_table(entries: Sequence[CacheEntry], now: float | None = None) -> RenderableType:
    """Return a table of the entries of a cache for a `rich` console."""
    if not entries:
        return Text("the cache is empty")
    headings = ("address", "size", "teacher", "data", "views", "outputs", "last used")
    table = Grid([*map(Column, headings)], header_style="bold", gap=1)
    for entry in entries:
        table.add(*_cells(entry, time.time() if now is None else now))
    total = in_bytes(sum(entry.bytes for entry in entries))
    count = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
    return unbroken([table, Text(f"{count}, {total}", style="dim")])


def entries_json(entries: Iterable[CacheEntry]) -> list[dict[str, Any]]:
    """Return the entries of a cache as plain data."""
    return [
        {
            "key": entry.key,
            "bytes": entry.bytes,
            "used": entry.used,
            "complete": entry.manifest is not None,
            "description": entry.manifest.spec.plain() if entry.manifest else None,
        }
        for entry in entries
    ]


def chosen_keys(store: CacheStore, prefixes: Sequence[str]) -> list[str]:
    """Return the addresses that start with the given prefixes, or all if none is given.

    Raises:
        ValueError: a prefix matches no address.
    """
    keys = [entry.key for entry in store.entries()]
    for prefix in prefixes:
        if not any(key.startswith(prefix) for key in keys):
            raise ValueError(
                f"no cached outputs with address {prefix} in {store.storage.root}; list them with "
                "`raykd cache ls`, or set another folder with --storage"
            )
    return [key for key in keys if not prefixes or key.startswith(tuple(prefixes))]


def comparison_line(comparison: Comparison) -> str:
    """Format one line of `raykd cache verify --check`."""
    verdict = "agrees" if comparison.agrees else "DIFFERS"
    return (
        f"  {comparison.name}: {verdict}; largest difference {comparison.difference:.2g} "
        f"(largest value {comparison.largest:.3g}), {comparison.samples} samples"
    )


def _cells(entry: CacheEntry, now: float) -> tuple[str, ...]:
    manifest = entry.manifest
    used = "never" if not entry.used else f"{(now - entry.used) / 3600:.1f} h ago"
    if manifest is None:
        return entry.key[:12], in_bytes(entry.bytes), "still being computed", "", "", "", used
    study, described = manifest.provenance["study"], manifest.spec
    model = (study.get("teacher") or {}).get("model") or {}
    return (
        entry.key[:12],
        in_bytes(entry.bytes),
        str(model.get("name", "?")),
        f"{study['data']['name']}, {described.rows:,} samples",
        str(described.views),
        ", ".join(["logits", *described.layers]) + f" ({described.dtype})",
        used,
    )
