"""Errors in zero-cost proxies, reported before anything starts, and their output in `validate`."""

from __future__ import annotations

import pytest
from rich.console import Console

from raykd.errors import StudyError
from raykd.models import Signature, Text
from raykd.models.proxies import PROXIES, NoProxy, RankingProxy
from raykd.report.space import render_explanation
from raykd.study.checks.load import open_study
from raykd.study.checks.rules import bin_cost, number_kept, proxy_signature_issues
from raykd.study.explain import explain
from raykd.study.open_study import OpenStudy
from raykd.study.yaml_file import parse_document

STUDY = """\
name: screened
data: {name: digits, limit: 160}
teacher:
  model: {name: mlp, depth: 2, width: 32}
student:
  model: {name: mlp, depth: {choice: [1, 2]}, width: {int: [8, 24], step: 8}}
knowledge: [{loss: {name: kd}}]
train: {epochs: 1}
search:
  objectives: {val_accuracy: max}
  proxy: {name: naswot, keep: 3}
  trials: 6
"""
TASK = Signature((1, 8, 8), 10)


def opened(*overrides: str, text: str = STUDY) -> OpenStudy:
    return open_study(parse_document(text, "study.yaml").with_overrides(overrides))


def complaint(*overrides: str, text: str = STUDY) -> str:
    with pytest.raises(StudyError) as caught:
        opened(*overrides, text=text)
    [problem] = caught.value.problems
    return str(problem)


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown": (
        ("search.proxy={name: naswat}",),
        "search.proxy.name: unknown proxy 'naswat'; must be one of diswot, macs, naswot, "
        "none, params, zen",
    ),
    "unknown key": (
        ("search.proxy={name: naswot, candidate: 20}",),
        "search.proxy.candidate: unknown key `candidate`; proxy 'naswot' has name, candidates,",
    ),
    "grid": (
        ("search.sampler=grid",),
        "search.proxy: sampler 'grid' tries every point, so a ranking has no effect\n"
        "    -> remove `proxy`, or use another sampler",
    ),
    "more than trials": (
        ("search.proxy.keep=7",),
        "search.proxy.keep: cannot keep 7 architectures for 6 trials\n"
        "    -> lower it, or raise search.trials",
    ),
    "more than candidates": (
        ("search.proxy.candidates=2",),
        "search.proxy.keep: cannot keep 3 of 2 candidates\n    -> lower it, or raise `candidates`",
    ),
    "params, an objective": (
        ("search.proxy={name: params}", "search.objectives={val_accuracy: max, params: min}"),
        "search.proxy: 'params' cannot rank students that are compared at equal params "
        "(`params` is an objective)\n    -> use naswot, zen or diswot, or write `per_cost: none`",
    ),
    "macs within macs": (
        ("search.proxy={name: macs, per_cost: macs}",),
        "search.proxy: 'macs' cannot rank students that are compared at equal macs\n",
    ),
    "no teacher": (
        ("search.proxy={name: diswot}", "teacher=null", "scheme={name: alone}", "knowledge=[]"),
        "search.proxy: 'diswot' compares students with the teacher's model, which is missing\n"
        "    -> give `teacher: {model: ...}`, or use naswot, zen, params or macs",
    ),
    "many teachers": (
        (
            "search.proxy={name: diswot}",
            "teacher={model: {name: mlp, depth: {choice: [1, 2]}}, train: {epochs: 1}}",
        ),
        "search.proxy: 'diswot' compares students with one teacher; this space has 2\n",
    ),
    "one student": (
        ("student.model={name: mlp, depth: 1, width: 8}", "scheme={choice: [offline, alone]}"),
        "search.proxy: this space has a single student, so there is nothing to rank\n"
        "    -> leave a value of `student.model` open, or remove `proxy`",
    ),
    "left open": (
        ("search.proxy={choice: [naswot, zen]}",),
        "search.proxy: `choice` is not allowed under `search`, which is the same for all trials",
    ),
    "out of range": (
        ("search.proxy={name: zen, alpha: 0}",),
        "search.proxy.alpha: got 0; must be > 0",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_errors(mistake: str) -> None:
    overrides, message = MISTAKES[mistake]
    assert message in complaint(*overrides)


def test_noise_for_texts_raises() -> None:
    search = opened("search.proxy={name: zen}").settings.search
    words = Signature((12,), 3, Text(vocabulary=50))
    [issue] = proxy_signature_issues(search, words)
    assert str(issue).startswith("search.proxy: proxy 'zen' feeds noise to networks")
    assert list(proxy_signature_issues(search, TASK)) == []


def test_default_is_none_and_bare_names_work() -> None:
    text = STUDY.replace("  proxy: {name: naswot, keep: 3}\n", "")
    assert opened(text=text).settings.search.proxy == NoProxy()
    assert opened("search.proxy=zen", text=text).settings.search.proxy == PROXIES["zen"]()


@pytest.mark.parametrize(
    ("keep", "trials", "expected"), [(None, 6, 3), (None, 1, 1), (4, 6, 4), (4, 2, 2)]
)
def test_number_of_first_trials(keep: int | None, trials: int, expected: int) -> None:
    assert number_kept(RankingProxy(name="some", keep=keep), trials) == expected


def test_bins_use_first_cost_objective() -> None:
    proxy = RankingProxy(name="some")
    assert bin_cost(proxy, {"val_accuracy": "max", "macs": "min"}) == "macs"
    assert bin_cost(proxy, {"macs": "min", "params": "min"}) == "params"
    assert bin_cost(proxy, {"val_accuracy": "max"}) == ""


def explanation_of(study: OpenStudy) -> str:
    console = Console(width=300)
    with console.capture() as capture:
        console.print(render_explanation(explain(study.bind(TASK))))
    return capture.get()


def test_validate_prints_ranking_and_its_duration() -> None:
    explanation = explain(opened().bind(TASK)).proxy
    head = "naswot: students of 6 random points are ranked, the best 3 are tried first; about "
    assert explanation.startswith(head) and explanation.endswith(" s")
    assert head in explanation_of(opened())


def test_validate_prints_bins() -> None:
    explanation = explain(
        opened("search.objectives={val_accuracy: max, macs: min}").bind(TASK)
    ).proxy
    assert "are ranked in 3 bins of similar macs, the best 3" in explanation


def test_validate_prints_nothing_without_proxy() -> None:
    assert explain(opened("search.proxy=none").bind(TASK)).proxy == ""
    assert "proxy" not in explanation_of(opened("search.proxy=none", "name=plain"))
