"""Limits of the measures of readability."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.readability import (
    LIMITS,
    STATIC,
    WALKS,
    Measure,
    ShapeRecorder,
    Source,
    measures,
)

EXAMPLE = '''"""What it holds."""

class Reader:
    """Read rows."""

    def __init__(self, path: str, rows: Any, *, told: bool) -> None:
        """Store
        them."""
        # so many rows
        self.path = path

    def read(self) -> "Any":
        found: Any = self.path

        return found

@option
class One:
    others: int
'''


@pytest.fixture(scope="module")
def results() -> dict[str, Measure]:
    return {measure.name: measure for measure in measures()}


@pytest.mark.parametrize("name", LIMITS)
def test_no_measure_is_above_its_limit(name: str, results: dict[str, Measure]) -> None:
    measure = results[name]
    listed = "\n".join(measure.details[:20])
    assert measure.value <= measure.limit, f"{name}: {measure.value:.4g}\n{listed}"
    assert measure.goal <= measure.limit


def test_measures_of_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "example.py"
    file.write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.setattr("benchmarks.readability.PACKAGE", tmp_path)
    values = {name: measure([Source(file)])[0] for name, measure in STATIC.items()}
    assert values == {
        "docstrings that begin with a question word, %": pytest.approx(100 / 3),
        "avoided phrases": 1,
        "avoided names": 2,
        "uses of Any per 1,000 lines of code": pytest.approx(1000 * 2 / 9),
        "parameters of the largest constructor": 3,
        "lines of the longest function": 4,
        "lines of the largest file": 19,
    }
    assert values.keys() | WALKS.keys() == LIMITS.keys()


def test_every_dictionary_shape_of_metric_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flatten(record: dict[str, dict[str, float]], slot: str) -> dict[str, object]:
        return {**record["metrics"], "slot": slot}

    monkeypatch.setattr("benchmarks.readability.PACKAGE", Path(__file__).parent)
    recorder = ShapeRecorder("accuracy")
    with recorder.recording():
        flatten({"metrics": {"loss": 1.0}}, "here")
        assert not recorder.shapes
        flatten({"metrics": {"accuracy": 0.5}}, "here")
        flatten({"metrics": {"accuracy": 0.7}}, "there")
    assert list(recorder.shapes) == ["a record with metrics", "numbers and slot"]
