"""Gain of the losses on real values by their weight.

    python benchmarks/value_weights.py [--repeats 10] [--folder value_weights] [--json FILE]

Four tables: `diabetes` (scikit-learn), `boston` and `autompg` (mlxtend), each with one target, and
`halves`, in which the upper half of a digit (scikit-learn) predicts the pixels of the lower half.
The teacher is a file of outputs: gradient-boosted trees, for `halves` a random forest, which
predict the training samples by cross-validation.  The student is an MLP with one layer of 16 units.
Every loss is trained with every weight, and the student alone, with the same seeds, each with
another split of the data.  For each: R2 on the validation split less that of the student alone,
with 95% intervals.  Searches in FOLDER that are complete are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import Findings, arguments, searched_once
from mlxtend.data import autompg_data, boston_housing_data
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.model_selection import cross_val_predict

from raykd.data.tabular import TabularSource
from raykd.study.checks.load import load_study
from raykd.tuning.estimates import estimate
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import StudyResult
from raykd.tuning.search_run import search

WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)
LOSSES = {
    "diabetes": ("bounded_regression", "logit_mse"),
    "boston": ("bounded_regression", "logit_mse"),
    "autompg": ("bounded_regression", "logit_mse"),
    "halves": ("bounded_regression", "logit_mse", "cosine_response"),
}
STUDY = """\
name: {name}
seed: {seed}
data:
  {{name: table, file: {file}, target: {targets}, kind: number, split_seed: {seed}, val: 0.3,
   test: 0.1{limit}}}
task: {{name: regression, metrics: [r2]}}
teacher: {{outputs: {outputs}}}
student: {{model: {{name: mlp, depth: 1, width: 16}}}}
knowledge: [{{loss: {{choice: [null, {losses}]}}, weight: {{choice: {weights}}}}}]
train: {{epochs: {epochs}, batch_size: 32, clip_norm: 1}}
search:
  objectives: {{val_r2: max}}
  sampler: grid
  scheduler: none
  trials: {trials}
  finalists: 1
  replicates: 0
cluster: {{storage: "{folder}"}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""


def diabetes() -> tuple[pd.DataFrame, list[str]]:
    """Return the table and the names of its targets."""
    data: Any = load_diabetes(as_frame=True, scaled=False)
    return data.frame, ["target"]


def from_arrays(
    load: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> tuple[pd.DataFrame, list[str]]:
    """Return a table of mlxtend's with one target."""
    inputs, target = load()
    table = pd.DataFrame(inputs.astype(float)).add_prefix("input_")
    table = table.dropna(axis="columns", how="all")  # the names of cars
    return table.assign(target=target.astype(float)), ["target"]


def halves() -> tuple[pd.DataFrame, list[str]]:
    """Return the pixels of digits that vary; those of the lower half are the targets."""
    data: Any = load_digits()
    table = pd.DataFrame(data.data).add_prefix("pixel_")
    varies = (table.std() > 1).to_numpy()
    return table.loc[:, varies], [*table.columns[32:][varies[32:]]]


TABLES: dict[str, Callable[[], tuple[pd.DataFrame, list[str]]]] = {
    "diabetes": diabetes,
    "boston": lambda: from_arrays(boston_housing_data),
    "autompg": lambda: from_arrays(autompg_data),
    "halves": halves,
}


def write_outputs(table: pd.DataFrame, source: TabularSource, file: Path) -> None:
    """Write the outputs of trees for every sample; those of the training split are held out."""
    targets = list(source.targets)
    inputs = table.drop(columns=targets)
    inputs, values = inputs.fillna(inputs.median()), table[targets].to_numpy()
    train = source.load().train.index.numpy()
    if len(targets) == 1:
        values = values[:, 0]
        trees = GradientBoostingRegressor(
            n_estimators=100, max_depth=2, learning_rate=0.05, random_state=0
        )
    else:
        trees = RandomForestRegressor(n_estimators=50, min_samples_leaf=2, random_state=0)
    outputs: Any = trees.fit(inputs.iloc[train], values[train]).predict(inputs)
    outputs[train] = cross_val_predict(trees, inputs.iloc[train], values[train], cv=5)
    columns = dict(zip(targets, outputs.reshape(len(table), -1).T, strict=True))
    pd.DataFrame({"sample": range(len(table)), **columns}).to_parquet(file)


def searched(folder: Path, case: str, seed: int, *, quick: bool) -> StudyResult:
    """Train every loss with every weight, unless this was done before."""
    name = f"{case}-{seed}"

    def train() -> None:
        table, targets = TABLES[case]()
        file, outputs = folder / f"{case}.parquet", folder / f"{name}-outputs.parquet"
        table.to_parquet(file)
        limit = 300 if len(table) > 1000 else None  # of the digits: few, as in the other tables
        target = targets if len(targets) > 1 else targets[0]
        source = TabularSource(
            file=str(file),
            target=target,  # type: ignore[arg-type]  # a list is read like a tuple
            kind="number",
            split_seed=seed,
            val=0.3,
            test=0.1,
            limit=limit,
        )
        write_outputs(table, source, outputs)
        study = folder / f"{name}.yaml"
        text = STUDY.format(
            name=name,
            seed=seed,
            file=file,
            targets=target,
            outputs=outputs,
            losses=", ".join(LOSSES[case]),
            weights=list(WEIGHTS),
            epochs=3 if quick else 30,
            trials=1 + len(LOSSES[case]) * len(WEIGHTS),
            limit="" if limit is None else f", limit: {limit}",
            folder=folder,
        )
        study.write_text(text)
        search(load_study(study), executor=LocalExecutor(threads=1))

    return searched_once(folder, name, train)


def gains(result: StudyResult) -> tuple[float, dict[tuple[str, float], float]]:
    """Return the R2 of the student alone, and by loss and weight the R2 less that."""
    alone, values = 0.0, {}
    for record in result.records.of("trial"):
        [item] = record.job.study["knowledge"]
        value = record.metrics["val_r2"]
        if item["loss"] is None:
            alone = value
        else:
            values[item["loss"]["name"], item["weight"]] = value
    return alone, {arm: value - alone for arm, value in values.items()}


def summarized(case: str, results: list[StudyResult]) -> Iterator[dict[str, object]]:
    """Yield a row for each loss, with a column for each weight."""
    each = [gains(result) for result in results]
    alone = sum(value for value, _ in each) / len(each)
    for loss in LOSSES[case]:
        row: dict[str, object] = {"table, loss": f"{case}, {loss}", "alone": f"{alone:.3f}"}
        for weight in WEIGHTS:
            gain = estimate([values[loss, weight] for _, values in each], -2.0, 2.0)
            row[f"weight {weight:g}"] = f"{gain.mean:+.3f} ± {gain.half_width:.3f}"
        yield row


def main() -> None:
    parser = arguments(__doc__, repeats=10)
    parser.add_argument(
        "--folder", type=Path, default=Path("value_weights"), help="of the searches"
    )
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    findings = Findings("value_weights", {"seeds": options.repeats})
    for case in LOSSES:
        results = [
            searched(folder, case, seed, quick=options.quick) for seed in range(options.repeats)
        ]
        findings.rows += summarized(case, results)
    findings.tell(options.json)


if __name__ == "__main__":
    main()
