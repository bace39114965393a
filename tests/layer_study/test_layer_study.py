"""Layer studies without training: what they ask, their arms, their books, their figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from helpers.pairs_cases import (
    GAINS,
    PAIRING,
    TASK,
    PairsWorld,
    asked,
    conduct,
    pretended,
    pretended_result,
    study_of,
)
from helpers.search_cases import FakeTune, roles
from raykd.errors import StudyError
from raykd.layer_study.arm_record import Arm
from raykd.layer_study.arms import build_arms, study_of_arm
from raykd.layer_study.files import write_files
from raykd.layer_study.result import LayerStudyResult, best_of, read_layer_study
from raykd.layer_study.run import check_layer_study
from raykd.layer_study.statistics import contrasts, holm, kendall, noise_of, rank_correlation
from raykd.losses import Pair
from raykd.runtime.jobs import JournalJob
from raykd.tracking.events import RunEnded, RunStarted

# What is asked


def test_layers_come_shallow_to_deep_with_their_shapes() -> None:
    question = asked(f"{PAIRING}.hint=[stage3, stage1]")
    assert [layer.name for layer in question.hints] == ["stage1", "stage3"]
    assert [layer.name for layer in question.guided] == ["stage1", "stage2", "stage3"]
    assert question.hints[0].shape == (8, 8, 8) and question.guided[0].shape == (4, 8, 8)
    assert [layer.name for layer in question.cka_layers("hint")][-1] == "embedding"
    assert question.term == 1


def test_pairs_may_be_listed_and_then_stand_for_their_layers() -> None:
    listed = "knowledge[1].pairs=[{hint: stage1, guided: stage2}, {hint: stage3, guided: stage2}]"
    question = asked(listed)
    assert [layer.name for layer in question.hints] == ["stage1", "stage3"]
    assert len(question.all_pairs) == 2


MISTAKES = {
    "no term takes pairs": (["knowledge=[{loss: kd}]"], "no term of `knowledge` takes layer pairs"),
    "two terms": (
        ["knowledge=[{loss: hint}, {loss: at}]"],
        r"knowledge\[0\] \(hint\) and knowledge\[1\] \(at\) take layer pairs",
    ),
    "open elsewhere": (
        ["train.optimizer.lr={uniform: [0.1, 0.2]}"],
        r"(?s)train\.optimizer\.lr: left open.*--set 'train\.optimizer\.lr=",
    ),
    "an open weight": (["knowledge[1].weight={uniform: [1, 2]}"], r"knowledge\[1\]\.weight: left"),
    "no teacher": (["scheme={name: dml}"], "does not have exactly one trained teacher"),
    "one pair": (
        [f"{PAIRING}={{hint: [stage1], guided: [stage2]}}"],
        "only one pair, stage1>stage2",
    ),
    "weights of their own": ([f"{PAIRING}.weight=2"], "their own weights or losses"),
    "written pairs with weights of their own": (
        [
            "knowledge[1].pairs=[{hint: stage1, guided: stage1}, "
            "{hint: stage2, guided: stage2, weight: 2}]"
        ],
        "their own weights or losses",
    ),
    "a loss of two pairs": (
        ["knowledge[1].loss=fsp", f"{PAIRING}.max=2"],
        "none of its 9 pairs can be compared",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_anything_starts(mistake: str) -> None:
    overrides, said = MISTAKES[mistake]
    with pytest.raises(StudyError, match=said) as caught:
        check_layer_study(study_of(*overrides), TASK)
    assert all(problem.fix for problem in caught.value.problems) or mistake == "a loss of two pairs"


def test_a_scheme_that_takes_no_knowledge_is_refused() -> None:
    with pytest.raises(StudyError, match="uses no `knowledge`"):
        study_of("scheme={name: alone}")


def test_of_two_terms_the_one_whose_pairs_are_open_is_studied() -> None:
    at = "{loss: at, pairs: [{hint: stage1, guided: stage1}]}"
    question = asked(f"knowledge=[{at}, {{loss: hint, pairs: {{pairing: {{}}}}}}]")
    assert question.term == 1
    [left] = question.baseline.knowledge
    assert left.loss is not None and left.loss.name == "at"


# LayerStudyPlanner


def by_id(*overrides: str) -> dict[str, Arm]:
    study = study_of(*overrides)
    return {arm.id: arm for arm in build_arms(asked(*overrides), study.settings.search.pairs)}


def written(arm: Arm, number: int = 0) -> list[str]:
    return [f"{pair.hint[-1]}>{pair.guided[-1]}" for pair in arm.pairs_under(number)]


def test_every_pair_is_an_arm_and_the_null_arms_are_what_they_say() -> None:
    arms = by_id()
    assert sum(arm.kind == "pair" for arm in arms.values()) == 9
    assert next(iter(arms)) == "none" and not any(arm.why_not for arm in arms.values())
    assert written(arms["stage3-to-stage1"]) == ["3>1"]
    assert written(arms["forward"]) == ["1>1", "2>2", "3>3"]
    assert written(arms["reverse"]) == ["3>1", "2>2", "1>3"]
    assert written(arms["all_to_one"]) == ["3>1", "3>2", "3>3"]
    assert {pair[0] for pair in written(arms["semckd"])} == {"1", "2", "3"}


def test_random_pairings_are_matchings_and_differ_by_seed_alone() -> None:
    random = by_id("search.pairs.seeds=8")["random"]
    assert len(random.pairs) == 8 and len({*random.pairs}) > 2
    for pairs in random.pairs:
        assert {pair.hint for pair in pairs} == {pair.guided for pair in pairs}
    assert by_id("search.pairs.seeds=8")["random"] == random


@pytest.mark.parametrize(
    ("hint", "guided", "forward", "reverse"),
    [
        ("[stage1, stage2, stage3]", "[stage1, stage3]", ["1>1", "3>3"], ["3>1", "1>3"]),
        ("[stage1, stage3]", "auto", ["1>1", "1>2", "3>3"], ["3>1", "3>2", "1>3"]),
    ],
)
def test_lists_of_different_length_are_aligned(
    hint: str, guided: str, forward: list[str], reverse: list[str]
) -> None:
    arms = by_id(f"{PAIRING}.hint={hint}", f"{PAIRING}.guided={guided}")
    assert written(arms["forward"]) == forward and written(arms["reverse"]) == reverse


def test_an_arm_that_is_another_is_not_trained_twice() -> None:
    arms = by_id(f"{PAIRING}.guided=[stage2]")
    assert arms["forward"].why_not == "the same pairs as stage3-to-stage2"
    assert arms["all_to_one"].why_not and arms["reverse"].why_not


def test_impossible_pairs_keep_their_reason() -> None:
    arms = by_id(f"{PAIRING}.hint=[stage1, embedding]", f"{PAIRING}.guided=[stage2, embedding]")
    assert "embedding" in arms["stage1-to-embedding"].why_not
    assert not arms["stage1-to-stage2"].why_not and not arms["embedding-to-embedding"].why_not


def test_pairs_that_were_not_named_are_not_asked() -> None:
    arms = by_id(f"{PAIRING}={{pairs: [[stage1, stage2], [stage2, stage3]]}}")
    trained = [arm.id for arm in arms.values() if arm.kind == "pair" and not arm.why_not]
    assert trained == ["stage1-to-stage2", "stage2-to-stage3"]


def test_sampled_sets_keep_the_order_and_are_all_new() -> None:
    arms = by_id("search.pairs.sets=6", f"{PAIRING}.max=3", f"{PAIRING}.order=monotone")
    sets = [arm for arm in arms.values() if arm.kind == "set"]
    assert len({frozenset(arm.pairs[0]) for arm in sets}) == 6
    for arm in sets:
        assert 2 <= len(arm.pairs[0]) <= 3
        sides = [*zip(*(pair.split(">") for pair in written(arm)), strict=True)]
        assert all(list(side) == sorted(side) for side in sides)
    forward = frozenset(arms["forward"].pairs[0])
    assert forward not in {frozenset(arm.pairs[0]) for arm in sets}


def test_arms_differ_in_their_pairs_alone() -> None:
    question, arms = asked(), by_id()
    none, pair, semckd = (
        study_of_arm(question, arms[name], 1) for name in ("none", "stage1-to-stage2", "semckd")
    )
    assert none.seed == pair.seed == semckd.seed == 8
    assert [term.loss.name for term in none.knowledge if term.loss] == ["kd"]
    assert pair.knowledge[1].pairs == (Pair(hint="stage1", guided="stage2"),)
    assert pair.knowledge[1].weight == 1 and pair.train == none.train
    assert semckd.knowledge[1].loss is not None and semckd.knowledge[1].loss.name == "semckd"
    assert semckd.knowledge[1].effective_weight == 4, "its own default"


def test_without_other_knowledge_the_student_learns_alone() -> None:
    question = asked("knowledge=[{loss: hint, pairs: {pairing: {}}}]")
    assert question.baseline.scheme.name == "alone" and not question.baseline.knowledge


def test_an_arm_is_written_down_whole() -> None:
    for arm in by_id("search.pairs.sets=1").values():
        assert Arm.from_plain(json.loads(json.dumps(arm.plain()))) == arm


# Conducting


@pytest.fixture
def world(tmp_path: Path) -> PairsWorld:
    return PairsWorld(study_of(), tmp_path)


ARMS = 1 + 9 + 5


def test_all_arms_have_the_same_seeds_and_the_same_budget(world: PairsWorld) -> None:
    arms = conduct(world)
    assert arms.finished and not arms.fatal
    trials = arms.records.of("trial")
    assert len(trials) == ARMS * 3 == arms.expected_trials
    for record in trials:
        assert len(record.epochs) == record.job.epochs == 2
        assert record.job.seed == 7 + int(record.job.tags["seed_number"])
        assert not record.job.test, "validation data choose"
    assert roles(world.journal).count("teacher") == 1
    assert len(arms.records.of("probe")) == 3
    tags = arms.records["stage1-to-stage2/seed-1"].job.tags
    assert (tags["hint"], tags["guided"], tags["seed"]) == ("stage1", "stage2", "8")


def test_the_best_set_and_no_hint_are_tested_under_fresh_seeds(world: PairsWorld) -> None:
    arms = conduct(world)
    [chosen] = arms.finalists
    assert chosen.job.tags["arm"] == "stage2-to-stage3", "it gains most"
    again = arms.records.of("replicate")
    assert sorted({r.job.tags["arm"] for r in again}) == ["none", "stage2-to-stage3"]
    assert {r.job.seed for r in again} == {10, 11}, "none of the arms' own"
    assert all("test_accuracy" in r.metrics for r in again) and len(again) == 4
    kept = [r.job.network_file for r in again if r.job.tags["arm"] != "none"]
    assert all(kept) and {r.job.parent for r in again} == {chosen.id, "none/seed-0"}


def test_a_probe_waits_for_the_student_without_hint_and_uses_it(world: PairsWorld) -> None:
    conduct(world, slots=3)
    told = world.journal.events
    for number in range(3):
        probe = f"predictors/seed-{number}"
        begun = next(i for i, e in enumerate(told) if isinstance(e, RunStarted) and e.id == probe)
        ended = next(
            i
            for i, e in enumerate(told)
            if isinstance(e, RunEnded) and e.id == f"none/seed-{number}"
        )
        assert ended < begun
    probe = next(e for e in world.journal.of(RunStarted) if e.role == "probe")
    none = next(e for e in world.journal.of(RunStarted) if e.id == "none/seed-0")
    assert probe.assignment["probe"]["trained"] == none.assignment["keep"]
    assert len(probe.assignment["probe"]["possible"]) == 9


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [1, 4, 40, 70, 89, 93])
def test_an_interrupted_study_comes_to_the_same(
    world: PairsWorld, tmp_path_factory: pytest.TempPathFactory, at: int
) -> None:
    whole = PairsWorld(study_of(), tmp_path_factory.mktemp("whole"))
    conduct(whole)
    steps = 0

    def dying(job: JournalJob, epoch: int) -> dict[str, Any]:
        nonlocal steps
        steps += 1
        if steps == at:
            raise Killed
        return pretended(job, epoch)

    with pytest.raises(Killed):
        FakeTune(world, world.arms(), dying, 1).run()  # type: ignore[arg-type]
    conduct(world)
    assert results(world) == results(whole)
    assert len(world.trained) <= len(whole.trained) + 1, "at most one epoch again"


def results(world: PairsWorld) -> dict[str, Any]:
    return {e.id: (e.status, e.metrics) for e in world.journal.of(RunEnded)}


def test_an_arm_that_fails_is_left_out_of_the_choice(world: PairsWorld) -> None:
    class Failing(FakeTune):
        def _results(self, job: Any) -> Any:
            if job.id != "stage2-to-stage3/seed-1":
                yield from super()._results(job)
                return
            yield {"failed": "diverged"}

    arms = world.arms()
    Failing(world, arms, pretended).run()  # type: ignore[arg-type]
    assert arms.records["stage2-to-stage3/seed-1"].status == "failed"
    assert arms.finalists[0].job.tags["arm"] == "stage3-to-stage3"


def test_without_predictors_nothing_is_probed(tmp_path: Path) -> None:
    arms = conduct(PairsWorld(study_of("search.pairs.batches=0"), tmp_path))
    assert arms.finished and not arms.records.of("probe")


# Statistics


VALUES = {
    "none": {0: 0.50, 1: 0.54, 2: 0.52},
    "good": {0: 0.60, 1: 0.65, 2: 0.61},
    "same": {0: 0.51, 1: 0.53, 2: 0.52},
    "some": {0: 0.52, 1: 0.55, 2: 0.55},
}


def test_the_noise_is_what_arm_and_seed_leave_over() -> None:
    table = np.array([list(of.values()) for of in VALUES.values()])
    left = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    noise = noise_of(VALUES)
    assert noise.freedom == 6
    assert noise.deviation == pytest.approx(math.sqrt((left**2).sum() / 6))


def test_a_gain_has_the_interval_of_the_pooled_noise() -> None:
    noise, found = noise_of(VALUES), contrasts(VALUES, "none")
    good = found["good"]
    assert good.gain.mean == pytest.approx(0.1)
    assert good.by_seed == pytest.approx({0: 0.10, 1: 0.11, 2: 0.09})
    error = noise.deviation * math.sqrt(2 / 3)
    assert good.gain.half_width == pytest.approx(stats.t.ppf(0.975, 6) * error)
    assert good.p == pytest.approx(2 * stats.t.sf(0.1 / error, 6))
    assert good.is_clear and not found["same"].is_clear


def test_holm_multiplies_the_smallest_by_their_number_and_never_falls() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_kendalls_tau_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for cells in (2, 3, 9, 30):
        for ties in (2, 5, 1000):
            one, other = rng.integers(ties, size=(2, cells)).astype(float)
            known: Any = stats.kendalltau(one, other)
            assert kendall(one, other) == pytest.approx(known.statistic, abs=1e-15, nan_ok=True)


def test_a_mark_must_survive_the_number_of_arms() -> None:
    some = contrasts(VALUES, "none")["some"]
    assert some.leaves_zero_out and not some.is_clear


def test_a_missing_seed_is_a_missing_seed() -> None:
    values = {**VALUES, "half": {0: 0.7}, "strange": {9: 0.9}}
    found = contrasts(values, "none")
    assert found["half"].gain.count == 1 and found["half"].gain.mean == pytest.approx(0.2)
    assert "strange" not in found, "no seed in common with no hint"
    assert found["half"].gain.half_width > found["good"].gain.half_width


def test_one_seed_tells_no_noise() -> None:
    found = contrasts({"none": {0: 0.5}, "a": {0: 0.6}}, "none")
    assert math.isnan(found["a"].gain.low) and not found["a"].is_clear
    same = contrasts({"none": {0: 0.5, 1: 0.6}, "a": {0: 0.6, 1: 0.7}}, "none")
    assert not same["a"].is_clear, "values without noise are counts of a small split"


def test_chance_is_not_marked() -> None:
    """Of 200 studies without any effect few have a mark: 5% and what chance adds."""
    rng = np.random.default_rng(0)
    marked = 0
    for _ in range(200):
        values = {str(arm): dict(enumerate(rng.normal(size=3))) for arm in range(17)}
        marked += any(found.is_clear for found in contrasts(values, "0").values())
    assert marked <= 20


def test_tau_is_scipys_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(1)
    truth = np.linspace(0, 1, 12)
    gains = truth[:, None] + rng.normal(scale=0.1, size=(12, 3))
    found = rank_correlation(np.repeat(truth[:, None], 3, axis=1), gains)
    assert found.tau == pytest.approx(stats.kendalltau(truth, gains.mean(1))[0])
    assert 0 < found.low <= found.tau <= found.high <= 1 and found.cells == 12
    assert rank_correlation(np.repeat(-truth[:, None], 3, axis=1), gains).tau == -found.tau


def test_what_cannot_be_ranked_is_not() -> None:
    gains = np.arange(12.0).reshape(6, 2)
    assert math.isnan(rank_correlation(np.ones((6, 2)), gains).tau), "all the same"
    missing = np.arange(12.0).reshape(6, 2)
    missing[1:5] = np.nan
    assert rank_correlation(missing, gains).cells == 2 and math.isnan(
        rank_correlation(missing, gains).tau
    )


def test_the_best_was_trained_under_every_seed() -> None:
    arms = [Arm("none", "none"), Arm("a", "pair"), Arm("b", "pair"), Arm("random", "random")]
    values = {
        "none": {0: 9.0, 1: 9.0},
        "a": {0: 0.9},
        "b": {0: 0.1, 1: 0.2},
        "random": {0: 1, 1: 1},
    }
    best = best_of(arms, values, 2)
    assert best is not None and best.id == "b"
    assert best_of(arms, {"a": {0: 0.9}}, 2) is None


# Files


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> LayerStudyResult:
    return pretended_result(tmp_path_factory.mktemp("result"))


def test_the_result_is_read_from_the_journal(result: LayerStudyResult) -> None:
    assert [layer.name for layer in result.hints] == ["stage1", "stage2", "stage3"]
    assert len(result.cells) == 9 and all(cell.contrast for cell in result.cells)
    best = result.best
    assert best is not None and best.arm.id == "stage2-to-stage3"
    assert best.contrast is not None and best.contrast.is_clear
    assert best.contrast.gain.mean == pytest.approx(GAINS["stage2-to-stage3"], abs=0.015)
    assert best.gain is not None and best.gain.count == 2
    assert result.contrasts["reverse"].is_clear and result.contrasts["reverse"].gain.mean < 0
    cell = result.cell("stage1", "stage1")
    assert cell.predictors["gradient"] == pytest.approx(0.33) and cell.predictors["depth"] == 0
    assert math.isnan(result.cell("stage2", "stage1").predictors["gradient"])
    found = result.cka("start")
    assert found is not None and found.shape == (4, 4) and found[0, 0] == 1


def test_the_files_hold_all_of_it_and_are_read_back(result: LayerStudyResult) -> None:
    told, table = write_files(result)
    first = told.read_bytes(), table.read_bytes()
    assert write_files(read_layer_study(result.folder)) == (told, table)
    assert (told.read_bytes(), table.read_bytes()) == first
    found = json.loads(told.read_text())
    assert found["best"]["pairs"] == [{"hint": "stage2", "guided": "stage3"}]
    assert found["best"]["loss"]["name"] == "hint" and found["best"]["weight"] == 1
    assert len(found["cells"]) == 9 and len(found["arms"]) == ARMS
    cell = next(c for c in found["cells"] if (c["hint"], c["guided"]) == ("stage2", "stage3"))
    assert cell["gain"]["clear"] and set(cell["gain"]["by_seed"]) == {"7", "8", "9"}
    assert cell["predictors"]["gradient"] is None, "JSON knows no NaN"
    assert np.array(found["cka"]["trained"]).shape == (4, 4)
    lines = table.read_text().splitlines()
    assert len(lines) == 1 + 9 * 3 and lines[0].startswith("hint,guided,seed,val_accuracy,gain")


def test_a_folder_of_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not a study's folder"):
        read_layer_study(tmp_path)
