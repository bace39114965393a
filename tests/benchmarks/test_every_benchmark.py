"""Every benchmark begins, and its arms compute what they say; nothing is timed here."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from raykd.data import SOURCES
from raykd.models import Resnet

Load = Callable[[str], ModuleType]
FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "def main" in path.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_description_states_purpose(
    name: str, load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert f"python benchmarks/{name}.py" in (module.__doc__ or ""), "its docstring has its command"


@pytest.fixture
def bench(load: Load, tmp_path: Path) -> Any:
    """The sizes of step.py, as small as can be."""
    return load("step").Bench(
        data=SOURCES["digits"](limit=96).load(),
        teacher_model=Resnet(depth=8, width=16),
        student_model=Resnet(depth=8, width=16),  # plain loops do not go round oneDNN's mistake
        batch=32,
        epochs=3,
        precision="fp32",
        device=torch.device("cpu"),
        folder=tmp_path,
        loader_workers=0,
    )


def test_arms_of_step_train(bench: Any) -> None:
    step = sys.modules["step"]
    found = step.compare(bench, 2, step.METHODS)
    arms = {row["epoch"] for row in found.rows}
    by_others = {arm for arm in step.build_arms(bench, step.METHODS) if "torchdistill" in arm}
    assert arms >= set(step.build_arms(bench, step.METHODS)) - by_others
    for losses in found.raw["losses"].values():
        assert len(losses) == 3, "one epoch to warm up and two that are timed"
        assert all(map(math.isfinite, losses))
    names = [demand.claim for demand in found.demands if demand.value is None]
    assert names in ([], ["torchdistill KD / cached KD"])


@pytest.mark.parametrize("method", ["kd", "hint"])
def test_cached_and_live_train_same(method: str, bench: Any) -> None:
    step = sys.modules["step"]
    live, cached = (step.raykd_epoch(bench, method, cached=cached) for cached in (False, True))
    for _ in range(2):
        assert cached() == pytest.approx(live(), rel=1e-3), "as far as float16 goes"


def test_driver_begins_every_trial(load: Load, tmp_path: Path) -> None:
    driver = load("driver")
    began = driver.starts(5, 2, tmp_path, tune=False, tracking=False)
    assert len(began) == 5 and began == sorted(began)
    assert set(driver.per_trial(began)) == {"early", "late"}


def test_arms_take_turns_and_are_compared_within_repeat(load: Load) -> None:
    measuring = load("measuring")
    seen: list[str] = []
    arms = {name: lambda name=name: seen.append(name) for name in "abc"}
    times = measuring.in_turn(arms, 3, warm_up=0)
    assert "".join(seen) == "abccbaabc"
    assert all(len(taken.wall) == 3 for taken in times.values())
    fast, slow = measuring.Times([1.0, 1.0, 10.0]), measuring.Times([2.0, 2.0, 20.0])
    assert slow.over(fast) == 2.0, "a slow moment that meets both does not count"


def test_requirement_is_met_or_not(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    measuring = load("measuring")
    at_most, at_least = measuring.Demand("a", 1.0, 0.5), measuring.Demand("b", 2.0, 1.5, True)
    lacking = measuring.Demand("c", 1.0, None)
    assert (at_most.met, at_least.met, lacking.met) == (True, False, None)
    measuring.Findings("x", {}, demands=[at_most, at_least, lacking]).tell()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[-3:]] == ["yes", "NO", "measured"]
