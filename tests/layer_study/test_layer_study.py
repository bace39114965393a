"""Layer studies without training: design, arms, planner, statistics, result."""

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
    conduct,
    design_of,
    study_of,
    synthetic,
    synthetic_result,
)
from helpers.search_cases import FakeTune, roles
from raykd.errors import StudyError
from raykd.layer_study.arms import build_arm_study, build_arms
from raykd.layer_study.files import write_files
from raykd.layer_study.plan import Arm
from raykd.layer_study.rank_correlation import kendall_tau, rank_correlation
from raykd.layer_study.result import LayerStudyResult, find_best_arm, read_layer_study
from raykd.layer_study.run import check_layer_study
from raykd.layer_study.significance import compare_arms, correct_holm, estimate_noise
from raykd.losses import Pair
from raykd.runtime.jobs import JournalJob
from raykd.tracking.events import RunEnded, RunStarted

# The design


def test_layers_are_ordered_by_depth_with_their_shapes() -> None:
    question = design_of(f"{PAIRING}.hint=[stage3, stage1]")
    assert [layer.name for layer in question.hints] == ["stage1", "stage3"]
    assert [layer.name for layer in question.guided] == ["stage1", "stage2", "stage3"]
    assert question.hints[0].shape == (8, 8, 8) and question.guided[0].shape == (4, 8, 8)
    assert [layer.name for layer in question.cka_layers("hint")][-1] == "embedding"
    assert question.term == 1


def test_listed_pairs_define_layers() -> None:
    listed = "knowledge[1].pairs=[{hint: stage1, guided: stage2}, {hint: stage3, guided: stage2}]"
    question = design_of(listed)
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
def test_errors_before_anything_starts(mistake: str) -> None:
    overrides, message = MISTAKES[mistake]
    with pytest.raises(StudyError, match=message) as caught:
        check_layer_study(study_of(*overrides), TASK)
    assert all(problem.fix for problem in caught.value.problems) or mistake == "a loss of two pairs"


def test_scheme_without_knowledge_raises() -> None:
    with pytest.raises(StudyError, match="uses no `knowledge`"):
        study_of("scheme={name: alone}")


def test_term_with_open_pairs_is_studied() -> None:
    at = "{loss: at, pairs: [{hint: stage1, guided: stage1}]}"
    question = design_of(f"knowledge=[{at}, {{loss: hint, pairs: {{pairing: {{}}}}}}]")
    assert question.term == 1
    [left] = question.baseline.knowledge
    assert left.loss is not None and left.loss.name == "at"


# LayerStudyPlanner


def by_id(*overrides: str) -> dict[str, Arm]:
    study = study_of(*overrides)
    return {arm.id: arm for arm in build_arms(design_of(*overrides), study.settings.search.pairs)}


def study_text(arm: Arm, number: int = 0) -> list[str]:
    return [f"{pair.hint[-1]}>{pair.guided[-1]}" for pair in arm.pairs_under(number)]


def test_every_pair_is_arm_plus_null_arms() -> None:
    arms = by_id()
    assert sum(arm.kind == "pair" for arm in arms.values()) == 9
    assert next(iter(arms)) == "none" and not any(arm.skip_reason for arm in arms.values())
    assert study_text(arms["stage3-to-stage1"]) == ["3>1"]
    assert study_text(arms["forward"]) == ["1>1", "2>2", "3>3"]
    assert study_text(arms["reverse"]) == ["3>1", "2>2", "1>3"]
    assert study_text(arms["all_to_one"]) == ["3>1", "3>2", "3>3"]
    assert {pair[0] for pair in study_text(arms["semckd"])} == {"1", "2", "3"}


def test_random_pairings_are_matchings_that_depend_only_on_seed() -> None:
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
    assert study_text(arms["forward"]) == forward and study_text(arms["reverse"]) == reverse


def test_equal_arms_are_trained_once() -> None:
    arms = by_id(f"{PAIRING}.guided=[stage2]")
    assert arms["forward"].skip_reason == "the same pairs as stage3-to-stage2"
    assert arms["all_to_one"].skip_reason and arms["reverse"].skip_reason


def test_impossible_pairs_have_reason() -> None:
    arms = by_id(f"{PAIRING}.hint=[stage1, embedding]", f"{PAIRING}.guided=[stage2, embedding]")
    assert "embedding" in arms["stage1-to-embedding"].skip_reason
    assert (
        not arms["stage1-to-stage2"].skip_reason and not arms["embedding-to-embedding"].skip_reason
    )


def test_unlisted_pairs_are_not_trained() -> None:
    arms = by_id(f"{PAIRING}={{pairs: [[stage1, stage2], [stage2, stage3]]}}")
    trained = [arm.id for arm in arms.values() if arm.kind == "pair" and not arm.skip_reason]
    assert trained == ["stage1-to-stage2", "stage2-to-stage3"]


def test_sampled_sets_are_ordered_and_new() -> None:
    arms = by_id("search.pairs.sets=6", f"{PAIRING}.max=3", f"{PAIRING}.order=monotone")
    sets = [arm for arm in arms.values() if arm.kind == "set"]
    assert len({frozenset(arm.pairs[0]) for arm in sets}) == 6
    for arm in sets:
        assert 2 <= len(arm.pairs[0]) <= 3
        sides = [*zip(*(pair.split(">") for pair in study_text(arm)), strict=True)]
        assert all(list(side) == sorted(side) for side in sides)
    forward = frozenset(arms["forward"].pairs[0])
    assert forward not in {frozenset(arm.pairs[0]) for arm in sets}


def test_arms_differ_only_in_their_pairs() -> None:
    question, arms = design_of(), by_id()
    none, pair, semckd = (
        build_arm_study(question, arms[name], 1) for name in ("none", "stage1-to-stage2", "semckd")
    )
    assert none.seed == pair.seed == semckd.seed == 8
    assert [term.loss.name for term in none.knowledge if term.loss] == ["kd"]
    assert pair.knowledge[1].pairs == (Pair(hint="stage1", guided="stage2"),)
    assert pair.knowledge[1].weight == 1 and pair.train == none.train
    assert semckd.knowledge[1].loss is not None and semckd.knowledge[1].loss.name == "semckd"
    assert semckd.knowledge[1].effective_weight == 4, "its own default"


def test_null_arm_without_other_terms_has_no_teacher() -> None:
    question = design_of("knowledge=[{loss: hint, pairs: {pairing: {}}}]")
    assert question.baseline.scheme.name == "alone" and not question.baseline.knowledge


def test_arm_is_recorded_completely() -> None:
    for arm in by_id("search.pairs.sets=1").values():
        assert Arm.from_plain(json.loads(json.dumps(arm.plain()))) == arm


# Conducting


@pytest.fixture
def world(tmp_path: Path) -> PairsWorld:
    return PairsWorld(study_of(), tmp_path)


ARMS = 1 + 9 + 5


def test_all_arms_have_equal_seeds_and_budget(world: PairsWorld) -> None:
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


def test_best_set_and_baseline_are_tested_with_new_seeds(world: PairsWorld) -> None:
    arms = conduct(world)
    [chosen] = arms.finalists
    assert chosen.job.tags["arm"] == "stage2-to-stage3", "it gains most"
    replicates = arms.records.of("replicate")
    assert sorted({r.job.tags["arm"] for r in replicates}) == ["none", "stage2-to-stage3"]
    assert {r.job.seed for r in replicates} == {10, 11}, "none of the arms' own"
    assert all("test_accuracy" in r.metrics for r in replicates) and len(replicates) == 4
    saved = [r.job.network_file for r in replicates if r.job.tags["arm"] != "none"]
    assert all(saved) and {r.job.parent for r in replicates} == {chosen.id, "none/seed-0"}


def test_probe_waits_for_baseline_student(world: PairsWorld) -> None:
    conduct(world, slots=3)
    recorded = world.journal.events
    for number in range(3):
        probe = f"predictors/seed-{number}"
        start = next(
            i for i, e in enumerate(recorded) if isinstance(e, RunStarted) and e.id == probe
        )
        ended = next(
            i
            for i, e in enumerate(recorded)
            if isinstance(e, RunEnded) and e.id == f"none/seed-{number}"
        )
        assert ended < start
    probe = next(e for e in world.journal.of(RunStarted) if e.role == "probe")
    none = next(e for e in world.journal.of(RunStarted) if e.id == "none/seed-0")
    assert probe.assignment["probe"]["trained"] == none.assignment["keep"]
    assert len(probe.assignment["probe"]["possible"]) == 9


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [1, 4, 40, 70, 89, 93])
def test_interrupted_study_resumes_to_equal_results(
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
        return synthetic(job, epoch)

    with pytest.raises(Killed):
        FakeTune(world, world.arms(), dying, 1).run()  # type: ignore[arg-type]
    conduct(world)
    assert results(world) == results(whole)
    assert len(world.trained) <= len(whole.trained) + 1, "at most one epoch again"


def results(world: PairsWorld) -> dict[str, Any]:
    return {e.id: (e.status, e.metrics) for e in world.journal.of(RunEnded)}


def test_failed_arm_is_not_selected(world: PairsWorld) -> None:
    class Failing(FakeTune):
        def _results(self, job: Any) -> Any:
            if job.id != "stage2-to-stage3/seed-1":
                yield from super()._results(job)
                return
            yield {"failed": "diverged"}

    arms = world.arms()
    Failing(world, arms, synthetic).run()  # type: ignore[arg-type]
    assert arms.records["stage2-to-stage3/seed-1"].status == "failed"
    assert arms.finalists[0].job.tags["arm"] == "stage3-to-stage3"


def test_no_probes_without_predictors(tmp_path: Path) -> None:
    arms = conduct(PairsWorld(study_of("search.pairs.batches=0"), tmp_path))
    assert arms.finished and not arms.records.of("probe")


# Statistics


VALUES = {
    "none": {0: 0.50, 1: 0.54, 2: 0.52},
    "good": {0: 0.60, 1: 0.65, 2: 0.61},
    "same": {0: 0.51, 1: 0.53, 2: 0.52},
    "some": {0: 0.52, 1: 0.55, 2: 0.55},
}


def test_noise_is_residual_of_arm_and_seed() -> None:
    table = np.array([list(of.values()) for of in VALUES.values()])
    left = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    noise = estimate_noise(VALUES)
    assert noise.freedom == 6
    assert noise.deviation == pytest.approx(math.sqrt((left**2).sum() / 6))


def test_gain_interval_uses_pooled_noise() -> None:
    noise, gains = estimate_noise(VALUES), compare_arms(VALUES, "none")
    good = gains["good"]
    assert good.gain.mean == pytest.approx(0.1)
    assert good.by_seed == pytest.approx({0: 0.10, 1: 0.11, 2: 0.09})
    error = noise.deviation * math.sqrt(2 / 3)
    assert good.gain.half_width == pytest.approx(stats.t.ppf(0.975, 6) * error)
    assert good.p == pytest.approx(2 * stats.t.sf(0.1 / error, 6))
    assert good.is_significant and not gains["same"].is_significant


def test_holm_correction() -> None:
    assert correct_holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert correct_holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_kendalls_tau_equals_scipys() -> None:
    rng = np.random.default_rng(0)
    for cells in (2, 3, 9, 30):
        for ties in (2, 5, 1000):
            left, right = rng.integers(ties, size=(2, cells)).astype(float)
            expected: Any = stats.kendalltau(left, right)
            assert kendall_tau(left, right) == pytest.approx(
                expected.statistic, abs=1e-15, nan_ok=True
            )


def test_marks_are_corrected_for_number_of_arms() -> None:
    some = compare_arms(VALUES, "none")["some"]
    assert some.is_significant_uncorrected and not some.is_significant


def test_missing_seed() -> None:
    values = {**VALUES, "half": {0: 0.7}, "strange": {9: 0.9}}
    gains = compare_arms(values, "none")
    assert gains["half"].gain.count == 1 and gains["half"].gain.mean == pytest.approx(0.2)
    assert "strange" not in gains, "no seed in common with no hint"
    assert gains["half"].gain.half_width > gains["good"].gain.half_width


def test_single_seed_gives_no_noise_estimate() -> None:
    gains = compare_arms({"none": {0: 0.5}, "a": {0: 0.6}}, "none")
    assert math.isnan(gains["a"].gain.low) and not gains["a"].is_significant
    same = compare_arms({"none": {0: 0.5, 1: 0.6}, "a": {0: 0.6, 1: 0.7}}, "none")
    assert not same["a"].is_significant, "values without noise are counts of a small split"


def test_false_positive_rate_of_marks() -> None:
    """Of 200 studies without an effect, about 5% have a mark."""
    rng = np.random.default_rng(0)
    marked = 0
    for _ in range(200):
        values = {str(arm): dict(enumerate(rng.normal(size=3))) for arm in range(17)}
        marked += any(gain.is_significant for gain in compare_arms(values, "0").values())
    assert marked <= 20


def test_rank_correlation_and_its_interval() -> None:
    rng = np.random.default_rng(1)
    truth = np.linspace(0, 1, 12)
    gains = truth[:, None] + rng.normal(scale=0.1, size=(12, 3))
    correlation = rank_correlation(np.repeat(truth[:, None], 3, axis=1), gains)
    assert correlation.tau == pytest.approx(stats.kendalltau(truth, gains.mean(1))[0])
    assert (
        0 < correlation.low <= correlation.tau <= correlation.high <= 1 and correlation.cells == 12
    )
    assert rank_correlation(np.repeat(-truth[:, None], 3, axis=1), gains).tau == -correlation.tau


def test_unrankable_values_give_no_correlation() -> None:
    gains = np.arange(12.0).reshape(6, 2)
    assert math.isnan(rank_correlation(np.ones((6, 2)), gains).tau), "all the same"
    missing = np.arange(12.0).reshape(6, 2)
    missing[1:5] = np.nan
    assert rank_correlation(missing, gains).cells == 2 and math.isnan(
        rank_correlation(missing, gains).tau
    )


def test_best_arm_has_every_seed() -> None:
    arms = [Arm("none", "none"), Arm("a", "pair"), Arm("b", "pair"), Arm("random", "random")]
    values = {
        "none": {0: 9.0, 1: 9.0},
        "a": {0: 0.9},
        "b": {0: 0.1, 1: 0.2},
        "random": {0: 1, 1: 1},
    }
    best = find_best_arm(arms, values, 2)
    assert best is not None and best.id == "b"
    assert find_best_arm(arms, {"a": {0: 0.9}}, 2) is None


# Files


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> LayerStudyResult:
    return synthetic_result(tmp_path_factory.mktemp("result"))


def test_result_is_read_from_journal(result: LayerStudyResult) -> None:
    assert [layer.name for layer in result.plan.layers.hints] == ["stage1", "stage2", "stage3"]
    assert len(result.cells) == 9 and all(cell.contrast for cell in result.cells)
    best = result.best
    assert best is not None and best.arm.id == "stage2-to-stage3"
    assert best.contrast is not None and best.contrast.is_significant
    assert best.contrast.gain.mean == pytest.approx(GAINS["stage2-to-stage3"], abs=0.015)
    assert best.gain is not None and best.gain.count == 2
    assert result.contrasts["reverse"].is_significant and result.contrasts["reverse"].gain.mean < 0
    cell = result.cell("stage1", "stage1")
    assert cell.predictors["gradient"] == pytest.approx(0.33) and cell.predictors["depth"] == 0
    assert math.isnan(result.cell("stage2", "stage1").predictors["gradient"])
    similarity = result.predictors.cka_map("start")
    assert similarity is not None and similarity.shape == (4, 4) and similarity[0, 0] == 1


def test_result_files_round_trip(result: LayerStudyResult) -> None:
    json_file, table = write_files(result)
    first = json_file.read_bytes(), table.read_bytes()
    assert write_files(read_layer_study(result.folder)) == (json_file, table)
    assert (json_file.read_bytes(), table.read_bytes()) == first
    stored = json.loads(json_file.read_text())
    assert stored["best"]["pairs"] == [{"hint": "stage2", "guided": "stage3"}]
    assert stored["best"]["loss"]["name"] == "hint" and stored["best"]["weight"] == 1
    assert len(stored["cells"]) == 9 and len(stored["arms"]) == ARMS
    cell = next(c for c in stored["cells"] if (c["hint"], c["guided"]) == ("stage2", "stage3"))
    assert cell["gain"]["clear"] and set(cell["gain"]["by_seed"]) == {"7", "8", "9"}
    assert cell["predictors"]["gradient"] is None, "JSON knows no NaN"
    assert np.array(stored["cka"]["trained"]).shape == (4, 4)
    lines = table.read_text().splitlines()
    assert len(lines) == 1 + 9 * 3 and lines[0].startswith("hint,guided,seed,val_accuracy,gain")


def test_other_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not a study's folder"):
        read_layer_study(tmp_path)
