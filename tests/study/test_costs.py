"""What students cost, and whether what is to be measured can be, before anything starts."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from helpers.study_files import BASE, opened
from raykd.errors import Infeasible, StudyError
from raykd.models import MODELS, Mlp, Resnet, Task, profile_model
from raykd.models.introspection import onnx_latency as onnx_runtime
from raykd.models.introspection.latency import Latency, Timing
from raykd.models.introspection.memory import peak_memory
from raykd.schemes.classifier_reuse import Reusing
from raykd.study import student_costs
from raykd.study.candidate import Candidate
from raykd.study.checks.latency import check_measured
from raykd.study.config import Search
from raykd.study.costs import costs_of, measurement_summary, required_costs
from raykd.study.objectives import COSTS, MEASURED, OBJECTIVES, Cost
from raykd.study.open_study import OpenStudy
from raykd.study.student_costs import StudentCosts

TASK = Task((1, 8, 8), 10)

OPEN = BASE.replace("width: 4\n", "width: {choice: [4, 8]}\n")
SEARCH = "search: {latency: {seconds: 0.01, batch: 4}, "


def searching(settings: str, text: str = OPEN) -> OpenStudy:
    return opened(text + SEARCH + settings + "}\n")


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Cost, nn.Module]]:
    """Measures nothing: a network takes a millisecond for 10,000 parameters, in ONNX Runtime
    half of it.  Tells what was asked for."""
    told: list[tuple[Cost, nn.Module]] = []

    def timing(cost: Cost, network: nn.Module, task: Task, how: Latency) -> Timing:
        told.append((cost, network))
        takes = sum(p.numel() for p in network.parameters()) / 10_000
        return Timing(takes / 2 if cost.startswith("onnx") else takes, 0.01, 9, 10)

    monkeypatch.setattr(student_costs, "measure", timing)
    return told


def student(study: OpenStudy, width: int = 4, **fields: Any) -> Candidate:
    model = Resnet(depth=8, width=width)
    settings = study.settings
    changed = replace(settings, student=replace(settings.student, model=model), **fields)
    return study.bind(TASK).candidate(changed)


# Which are known


def test_every_cost_is_an_objective_and_is_shown() -> None:
    assert get_args(Cost) == COSTS
    assert all(OBJECTIVES[cost] == "min" for cost in COSTS)


def test_only_what_is_asked_for_is_looked_at() -> None:
    assert required_costs(Search()) == ("params", "macs")
    assert measurement_summary(Search()) == ""
    search = searching(
        "objectives: {val_accuracy: max, onnx_latency: min}, constraints: {memory: {max: 9e9}}, "
        "measure: [latency]"
    ).settings.search
    assert required_costs(search) == ("params", "macs", "memory", "latency", "onnx_latency")
    assert measurement_summary(search).startswith("latency, onnx_latency on cpu: ")
    assert measurement_summary(search).endswith(
        "1 thread, batches of 1 and 4, float32, before a trial starts"
    )


def test_costs_of_a_model() -> None:
    model = Resnet(depth=8, width=4)
    quick = Latency(seconds=0.01, batch=3)
    found = costs_of(model, TASK, ("latency", "memory", "params", "macs"), quick)
    assert list(found) == ["params", "macs", "memory", "latency"]
    assert found["params"] == profile_model(model, TASK).params
    assert found["memory"] == peak_memory(model.build(TASK), TASK)
    assert 0 < found["latency"] < 100


def test_memory_bounds_students() -> None:
    study = opened(OPEN)
    small, large = (
        student(study, width, search=Search(measure=("memory",))).costs["memory"]
        for width in (4, 8)
    )
    bounded = opened(OPEN + f"search: {{constraints: {{memory: {{max: {small:.0f}}}}}}}\n")
    drawn = {bounded.bind(TASK).sample(seed).study.student.model for seed in range(8)}
    assert drawn == {Resnet(depth=8, width=4)}
    with pytest.raises(
        StudyError,
        match=r"search.constraints.memory: no architecture of this space "
        r"has memory <= 1,000; the smallest found has \d",
    ):
        opened(OPEN + "search: {constraints: {memory: {max: 1000}}}\n")
    assert small < large


# Measured ones


def test_each_network_is_measured_once(stopwatch: list[Any]) -> None:
    study = searching("objectives: {latency: min}, measure: [onnx_batch_latency]")
    known = StudentCosts(study.settings.search, TASK)
    one, two = student(study), student(study, 8)
    for _ in range(2):
        assert known.of(one)["latency"] == 2 * known.of(one)["onnx_batch_latency"] == 0.5142
        assert known.of(two)["latency"] > 1
    assert [cost for cost, _ in stopwatch] == ["latency", "onnx_batch_latency"] * 2
    tags = known.tags(one)
    assert tags["params"] == "5142"
    assert tags["latency"] == "0.5142 ms (IQR 0.01, 9 of 10 runs)"
    assert tags["latency_on"].startswith("cpu: ")
    assert "latency_on" not in StudentCosts(Search(), TASK).tags(one)


def test_a_resumed_search_has_the_same_figures(stopwatch: list[Any], tmp_path: Path) -> None:
    study = searching("objectives: {latency: min}")
    file = tmp_path / "latency.json"
    first = StudentCosts(study.settings.search, TASK)
    before = first.of(student(study))  # measured before there was a folder
    first.keep_in(file)
    first.of(student(study, 8))
    again = StudentCosts(study.settings.search, TASK)
    again.keep_in(file)
    assert again.of(student(study)) == before
    again.of(student(study, 8))
    assert len(stopwatch) == 2


def test_figures_of_another_machine_do_not_compare(stopwatch: list[Any], tmp_path: Path) -> None:
    study = searching("objectives: {latency: min}")
    file = tmp_path / "latency.json"
    known = StudentCosts(study.settings.search, TASK)
    known.of(student(study))
    known.keep_in(file)
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "on": "cpu: a better one, 1 thread"}))
    with pytest.raises(
        StudyError,
        match="measured latencies on cpu: a better one, 1 thread; latencies measured on ",
    ):
        StudentCosts(study.settings.search, TASK).keep_in(file)
    nothing = StudentCosts(Search(), TASK)
    nothing.keep_in(tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_a_bound_on_what_is_measured(stopwatch: list[Any]) -> None:
    study = searching("constraints: {latency: {max: 0.6}}")
    known = StudentCosts(study.settings.search, TASK)
    known.check(student(study))
    with pytest.raises(Infeasible, match=r"^latency 1\.9\d* > 0\.6$"):
        known.check(student(study, 8))


def test_what_cannot_be_measured_is_infeasible(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Timing:
        raise ValueError("it cannot be exported to ONNX: no such operator\nmore")

    monkeypatch.setattr(student_costs, "measure", refuse)
    study = searching("measure: [onnx_latency]")
    known = StudentCosts(study.settings.search, TASK)
    said = "onnx_latency cannot be measured: it cannot be exported to ONNX: no such operator$"
    with pytest.raises(Infeasible, match=said):
        known.check(student(study))
    assert "onnx_latency" not in known.of(student(study))
    assert known.tags(student(study))["onnx_latency"].startswith("it cannot be exported")


def test_what_is_measured_is_what_is_deployed(stopwatch: list[Any]) -> None:
    text = OPEN.replace("      name: kd\n      temperature: 4\n", "      name: simkd\n")
    study = searching("measure: [latency]", text)
    one = student(study)
    known = StudentCosts(study.settings.search, TASK)
    assert known.of(one)["latency"] == known.of(one)["params"] / 10_000
    [(_, network)] = stopwatch
    assert isinstance(network, Reusing)
    alone = student(study, knowledge=())
    assert known.of(alone)["latency"] != known.of(one)["latency"]


def test_what_is_converted_is_measured_converted(stopwatch: list[Any]) -> None:
    study = searching("measure: [latency, memory]")
    quantized = MODELS["quantized"](base=Resnet(depth=8, width=4))
    one = replace(study.settings, student=replace(study.settings.student, model=quantized))
    StudentCosts(study.settings.search, TASK).of(study.bind(TASK).candidate(one))
    [(_, network)] = stopwatch
    assert any(b.dtype == torch.int8 for b in network.buffers())


def test_random_numbers_stay_as_they_are(stopwatch: list[Any]) -> None:
    study = searching("measure: [latency]")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    StudentCosts(study.settings.search, TASK).of(student(study))
    assert torch.equal(torch.get_rng_state(), before)


# Before anything starts


def checked(settings: str, text: str = OPEN) -> None:
    checked_text(text + SEARCH + settings + "}\n")


def test_nothing_is_measured_where_nothing_is_asked_for(stopwatch: list[Any]) -> None:
    checked("constraints: {params: {max: 1_000_000}, memory: {max: 1_000_000}}")
    assert not stopwatch


def test_one_student_is_measured_to_see_that_it_can_be(stopwatch: list[Any]) -> None:
    checked("objectives: {latency: min, onnx_latency: min}")
    assert [cost for cost, _ in stopwatch] == ["latency", "onnx_latency"]


def test_a_bound_that_a_student_keeps(stopwatch: list[Any]) -> None:
    checked("constraints: {latency: {max: 0.6}, onnx_latency: {min: 0.5}}")
    assert len(stopwatch) == 4


MISTAKES = [
    (
        "constraints: {latency: {max: 0.1}}",
        r"search.constraints.latency: no measured student has latency <= 0.1 ms; the fastest of 2 "
        r"takes 0.5142 ms\n    -> raise the bound",
    ),
    (
        "constraints: {onnx_latency: {min: 70}}",
        r"no measured student has onnx_latency >= 70 ms; the slowest of 2 takes 0.9\d+ ms",
    ),
    (
        "objectives: {latency: min}, latency: {device: cuda}",
        r"search.latency.device: latency is measured on 'cuda', but the machine that starts the "
        r"search has no CUDA device\n    -> use cpu",
    ),
    (
        "measure: [onnx_latency], latency: {threads: 99999}",
        r"search.latency.threads: 99999 threads on a machine of \d+ CPUs\n    -> use at most \d",
    ),
    ("latency: {device: gpu}", r"search.latency.device: unknown device 'gpu'; must be cpu, cuda"),
    ("latency: {device: 'cuda:x'}", r"search.latency.device: unknown device 'cuda:x'"),
    ("latency: {batch: 1}", r"search.latency.batch: got 1; must be >= 2"),
    ("latency: {seconds: 0}", r"search.latency.seconds: got 0; must be > 0"),
    ("measure: [latncy]", r"search.measure\[0\]: got 'latncy'; must be .*\n.*mean 'latency'"),
    ("measure: [val_loss]", r"search.measure\[0\]: got 'val_loss'; must be 'params', "),
    (
        "objectives: {latency: max}",
        r"search.objectives.latency: got 'max'; latency must be minimized",
    ),
    (
        "constraints: {latency: {min: 0.5, max: 0.25}}",
        r"search.constraints.latency: reversed bounds: min 0.5 is greater than max 0.25",
    ),
]


@pytest.mark.parametrize(("settings", "said"), MISTAKES, ids=[said[:40] for _, said in MISTAKES])
def test_mistakes(
    settings: str, said: str, stopwatch: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = OPEN + "search: {" + settings + "}\n"
    with pytest.raises(StudyError, match=said):
        checked_text(text)


def checked_text(text: str) -> None:
    study = opened(text)
    check_measured(study.bind(TASK), StudentCosts(study.settings.search, TASK))


def test_packages_that_are_not_installed(
    stopwatch: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        onnx_runtime.importlib.util,
        "find_spec",
        lambda name: None if name == "onnxruntime" else find(name),
    )
    said = (
        r"search.objectives.onnx_latency: latency in ONNX Runtime needs onnxruntime, which is not "
        r"installed\n    -> install raykd\[onnx\]"
    )
    with pytest.raises(StudyError, match=said):
        checked("objectives: {latency: min, onnx_latency: min}")
    checked("objectives: {latency: min}")


def test_students_of_which_none_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Timing:
        raise ValueError("no such operator")

    monkeypatch.setattr(student_costs, "measure", refuse)
    said = r"search.measure: batch_latency cannot be measured for any of 2 student\(s\): no such"
    with pytest.raises(StudyError, match=said):
        checked("measure: [batch_latency]")


def test_models_of_other_shapes_are_measured_by_their_own_figures() -> None:
    quick = Latency(seconds=0.02)
    small = costs_of(Mlp(depth=1, width=8), TASK, MEASURED[:2], quick)
    large = costs_of(Mlp(depth=4, width=1024), TASK, MEASURED[:2], quick)
    assert all(2 * small[cost] < large[cost] for cost in MEASURED[:2])
