"""Costs of students, and checks of measured costs before anything starts."""

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
from raykd.models import MODELS, Mlp, Resnet, Signature, profile_model
from raykd.models.introspection.latency import Latency, Timing
from raykd.models.introspection.memory import peak_memory
from raykd.schemes.classifier_reuse import Reusing
from raykd.study import costs as study_costs
from raykd.study.candidate import Candidate
from raykd.study.checks.latency import check_measured
from raykd.study.config import Search
from raykd.study.costs import StudentCosts, costs_of, measurement_summary, required_costs
from raykd.study.objectives import COSTS, MEASURED, OBJECTIVES, Cost
from raykd.study.open_study import OpenStudy

TASK = Signature((1, 8, 8), 10)

OPEN = BASE.replace("width: 4\n", "width: {choice: [4, 8]}\n")
SEARCH = "search: {latency: {seconds: 0.01, batch: 4}, "


def searching(settings: str, text: str = OPEN) -> OpenStudy:
    return opened(text + SEARCH + settings + "}\n")


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Cost, nn.Module]]:
    """Fake measurement: 1 ms per 10,000 parameters, half of it in ONNX Runtime.

    Returns the requested costs and networks."""
    calls: list[tuple[Cost, nn.Module]] = []

    def timing(cost: Cost, network: nn.Module, signature: Signature, how: Latency) -> Timing:
        calls.append((cost, network))
        takes = sum(p.numel() for p in network.parameters()) / 10_000
        return Timing(takes / 2 if cost.startswith("onnx") else takes, 0.01, 9, 10)

    monkeypatch.setattr(study_costs, "measure", timing)
    return calls


def student(study: OpenStudy, width: int = 4, **fields: Any) -> Candidate:
    model = Resnet(depth=8, width=width)
    settings = study.settings
    changed = replace(settings, student=replace(settings.student, model=model), **fields)
    return study.bind(TASK).candidate(changed)


# Which are known


def test_every_cost_is_objective_and_printed() -> None:
    assert get_args(Cost) == COSTS
    assert all(OBJECTIVES[cost] == "min" for cost in COSTS)


def test_only_requested_costs_are_computed() -> None:
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


def test_costs_of_model() -> None:
    model = Resnet(depth=8, width=4)
    quick = Latency(seconds=0.01, batch=3)
    costs = costs_of(model, TASK, ("latency", "memory", "params", "macs"), quick)
    assert list(costs) == ["params", "macs", "memory", "latency"]
    assert costs["params"] == profile_model(model, TASK).params
    assert costs["memory"] == peak_memory(model.build(TASK), TASK)
    assert 0 < costs["latency"] < 100


def test_memory_constraint() -> None:
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
    known_costs = StudentCosts(study.settings.search)
    narrow, wide = student(study), student(study, 8)
    for _ in range(2):
        assert (
            known_costs.of(narrow)["latency"]
            == 2 * known_costs.of(narrow)["onnx_batch_latency"]
            == 0.5142
        )
        assert known_costs.of(wide)["latency"] > 1
    assert [cost for cost, _ in stopwatch] == ["latency", "onnx_batch_latency"] * 2
    tags = known_costs.tags(narrow)
    assert tags["params"] == "5142"
    assert tags["latency"] == "0.5142 ms (IQR 0.01, 9 of 10 runs)"
    assert tags["latency_on"].startswith("cpu: ")
    assert "latency_on" not in StudentCosts(Search()).tags(narrow)


def test_resumed_search_reuses_measurements(stopwatch: list[Any], tmp_path: Path) -> None:
    study = searching("objectives: {latency: min}")
    file = tmp_path / "latency.json"
    first = StudentCosts(study.settings.search)
    before = first.of(student(study))  # measured before there was a folder
    first.keep_in(file)
    first.of(student(study, 8))
    resumed = StudentCosts(study.settings.search)
    resumed.keep_in(file)
    assert resumed.of(student(study)) == before
    resumed.of(student(study, 8))
    assert len(stopwatch) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"on": 1, "networks": {"a": {"b": 5}}}'])
def test_damaged_figures_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    file.write_text(text)
    study = searching("objectives: {latency: min}")
    with pytest.raises(StudyError, match=r"latency\.json: not the latencies .*\n.*measured again"):
        StudentCosts(study.settings.search).keep_in(file)
    assert file.read_text() == text


def test_measurements_of_another_machine_are_ignored(stopwatch: list[Any], tmp_path: Path) -> None:
    study = searching("objectives: {latency: min}")
    file = tmp_path / "latency.json"
    known_costs = StudentCosts(study.settings.search)
    known_costs.of(student(study))
    known_costs.keep_in(file)
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "on": "cpu: a better one, 1 thread"}))
    with pytest.raises(
        StudyError,
        match="measured latencies on cpu: a better one, 1 thread; latencies measured on ",
    ):
        StudentCosts(study.settings.search).keep_in(file)
    nothing = StudentCosts(Search())
    nothing.keep_in(tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_constraint_on_measured_cost(stopwatch: list[Any]) -> None:
    study = searching("constraints: {latency: {max: 0.6}}")
    known_costs = StudentCosts(study.settings.search)
    known_costs.check(student(study))
    with pytest.raises(Infeasible, match=r"^latency 1\.9\d* > 0\.6$"):
        known_costs.check(student(study, 8))


def test_unmeasurable_student_is_infeasible(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Timing:
        raise ValueError("it cannot be exported to ONNX: no such operator\nmore")

    monkeypatch.setattr(study_costs, "measure", refuse)
    study = searching("measure: [onnx_latency]")
    known_costs = StudentCosts(study.settings.search)
    message = "onnx_latency cannot be measured: it cannot be exported to ONNX: no such operator$"
    with pytest.raises(Infeasible, match=message):
        known_costs.check(student(study))
    assert "onnx_latency" not in known_costs.of(student(study))
    assert known_costs.tags(student(study))["onnx_latency"].startswith("it cannot be exported")


def test_deployed_network_is_measured(stopwatch: list[Any]) -> None:
    text = OPEN.replace("      name: kd\n      temperature: 4\n", "      name: simkd\n")
    study = searching("measure: [latency]", text)
    candidate = student(study)
    known_costs = StudentCosts(study.settings.search)
    assert known_costs.of(candidate)["latency"] == known_costs.of(candidate)["params"] / 10_000
    [(_, network)] = stopwatch
    assert isinstance(network, Reusing)
    alone = student(study, knowledge=())
    assert known_costs.of(alone)["latency"] != known_costs.of(candidate)["latency"]


def test_converted_network_is_measured(stopwatch: list[Any]) -> None:
    study = searching("measure: [latency, memory]")
    quantized = MODELS["quantized"](base=Resnet(depth=8, width=4))
    settings_ = replace(study.settings, student=replace(study.settings.student, model=quantized))
    StudentCosts(study.settings.search).of(study.bind(TASK).candidate(settings_))
    [(_, network)] = stopwatch
    assert any(b.dtype == torch.int8 for b in network.buffers())


def test_global_generators_are_unchanged(stopwatch: list[Any]) -> None:
    study = searching("measure: [latency]")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    StudentCosts(study.settings.search).of(student(study))
    assert torch.equal(torch.get_rng_state(), before)


# Before anything starts


def checked(settings: str, text: str = OPEN) -> None:
    checked_text(text + SEARCH + settings + "}\n")


def test_nothing_is_measured_by_default(stopwatch: list[Any]) -> None:
    checked("constraints: {params: {max: 1_000_000}, memory: {max: 1_000_000}}")
    assert not stopwatch


def test_check_measures_one_student(stopwatch: list[Any]) -> None:
    checked("objectives: {latency: min, onnx_latency: min}")
    assert [cost for cost, _ in stopwatch] == ["latency", "onnx_latency"]


def test_feasible_constraint(stopwatch: list[Any]) -> None:
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


@pytest.mark.parametrize(
    ("settings", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES]
)
def test_errors(
    settings: str, message: str, stopwatch: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = OPEN + "search: {" + settings + "}\n"
    with pytest.raises(StudyError, match=message):
        checked_text(text)


def checked_text(text: str) -> None:
    study = opened(text)
    check_measured(study.bind(TASK), StudentCosts(study.settings.search))


def test_missing_packages_raise(stopwatch: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "onnxruntime" else find(name),
    )
    message = (
        r"search.objectives.onnx_latency: latency in ONNX Runtime needs onnxruntime, which is not "
        r"installed\n    -> install raykd\[onnx\]"
    )
    with pytest.raises(StudyError, match=message):
        checked("objectives: {latency: min, onnx_latency: min}")
    checked("objectives: {latency: min}")


def test_no_measurable_student_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Timing:
        raise ValueError("no such operator")

    monkeypatch.setattr(study_costs, "measure", refuse)
    message = r"search.measure: batch_latency cannot be measured for any of 2 student\(s\): no such"
    with pytest.raises(StudyError, match=message):
        checked("measure: [batch_latency]")


def test_models_of_other_shapes_have_their_own_measurements() -> None:
    quick = Latency(seconds=0.02)
    small = costs_of(Mlp(depth=1, width=8), TASK, MEASURED[:2], quick)
    large = costs_of(Mlp(depth=4, width=1024), TASK, MEASURED[:2], quick)
    assert all(2 * small[cost] < large[cost] for cost in MEASURED[:2])
