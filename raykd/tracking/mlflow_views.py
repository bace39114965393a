"""Saved views of an experiment: tables of MLflow's pages with filter, order and columns.

MLflow's pages read a view from the experiment tag `mlflow.sharedViewState.KEY`; the address
`.../runs?viewStateShareKey=KEY` opens it.  The tag has the view's state as JSON, which may also be
compressed (`deflate;` and Base64).  With a name around it, MLflow 3.17 and later list the view in
the menu "Views".  A view cannot open nested runs: MLflow ignores `runsExpanded` in it, and nests
runs only in tables without a filter that are ordered by time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from raykd.tracking.journal_state import JournalState
from raykd.tracking.mlflow_values import clean_key

TAG = "mlflow.sharedViewState."
RUN_NAME = "attributes.`Run Name`"
WIDTHS: Mapping[str, int] = {"student": 190, "pairs": 150, "losses": 90, "raykd.status": 90}
MAX_NUMBERS = 12
"""Maximum number of params in a table."""

TRIALS, FINALISTS, ARMS, STUDIES = "trials", "finalists", "arms", "studies"
NAMES: Mapping[str, str] = {
    TRIALS: "Trials, best first",
    FINALISTS: "Finalists over seeds",
    ARMS: "Arms of layer studies, best first",
    STUDIES: "Studies",
}
INTERVAL = ("mean", "low", "high", "n")
"""Suffixes of the metrics of a figure over seeds: its mean, 95% interval and number of seeds."""


@dataclass(frozen=True)
class View:
    """Saved view of an experiment.

    Attributes:
        key: its key in MLflow; also the end of its tag.
        filter: MLflow's filter of the runs.
        order_by: column that orders the runs.
        ascending: direction of the order.
        columns: columns from left to right.
        name: name in the menu "Views"; empty: it is opened by its address only.
    """

    key: str
    filter: str
    order_by: str
    ascending: bool = False
    columns: tuple[str, ...] = ()
    name: str = ""

    def tag(self, at: int) -> tuple[str, str]:
        """Return key and value of the experiment's tag.

        Args:
            at: time of the view in milliseconds since 1970.
        """
        state = json.dumps(
            {
                "searchFilter": self.filter,
                "orderByKey": self.order_by,
                "orderByAsc": self.ascending,
                "startTime": "ALL",
                "lifecycleFilter": "Active",
                "datasetsFilter": [],
                "modelVersionFilter": "All Runs",
                "selectedColumns": list(self.columns),
                "columnOrder": [RUN_NAME, *self.columns],
                "columnWidths": {RUN_NAME: 260, **_widths(self.columns)},
            }
        )
        if self.name:
            named = {"name": self.name, "createdAt": at, "updatedAt": at, "state": state}
            return TAG + self.key, json.dumps(named)
        return TAG + self.key, state


def view_key(table: str, study_id: str = "") -> str:
    """Return the key of a view: of one study, or without `study_id` of the whole experiment."""
    return f"raykd-{table}-{study_id[:12]}" if study_id else f"raykd-{table}"


def view_link(experiment_id: str, key: str) -> str:
    """Return the address of a view within MLflow's pages, from `#` on."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}&{TRAINING}"


TRAINING = "workflowType=machine_learning"
"""Part of an address that opens the pages for training.  MLflow's default are those for agents."""


def tables_of(state: JournalState) -> tuple[str, ...]:
    """Return the tables that show a study."""
    return (FINALISTS, TRIALS) if state.arms is None else (ARMS,)


def views_of(state: JournalState) -> list[View]:
    """Return the views of a study, and of all studies of its experiment."""
    assert state.study is not None
    builders = {TRIALS: _trials, FINALISTS: _finalists, ARMS: _arms}
    tables = {name: builders[name](state) for name in tables_of(state)}
    of_study = f" and tags.`raykd.study` = '{state.study.id}'"
    only = [
        replace(view, key=view_key(name, state.study.id), filter=view.filter + of_study, name="")
        for name, view in tables.items()
    ]
    return [*only, *tables.values(), _studies(state)]


def _trials(state: JournalState) -> View:
    objectives = _objectives(state)
    first, direction = next(iter(objectives.items()))
    return View(
        view_key(TRIALS),
        "tags.`raykd.role` = 'trial'",
        _metric(first),
        direction == "min",
        (*_metrics(_figures(state)), *_tags("student", "losses", "pairs"), *_status(state)),
        NAMES[TRIALS],
    )


def _finalists(state: JournalState) -> View:
    test = f"test_{_lead(state)}"
    figures = [*_over_seeds(test), *_over_seeds("gain")[:3]]
    figures += [f"alone_{test}_mean", *_figures(state)]
    return View(
        view_key(FINALISTS),
        "tags.chosen = 'true'",
        _metric(f"{test}_mean"),
        _objectives(state).get(f"val_{_lead(state)}") == "min",
        (*_metrics(figures), *_tags("student", "losses", "pairs"), *_status(state)),
        NAMES[FINALISTS],
    )


def _arms(state: JournalState) -> View:
    assert state.arms is not None
    first = min(state.arms.seeds, default=0)
    figures = [*_over_seeds("gain")[:3], "gain_p_holm", *_over_seeds("val_accuracy")]
    return View(
        view_key(ARMS),
        f"tags.`raykd.role` = 'trial' and params.seed = '{first}'",
        _metric("gain_mean"),
        False,
        (*_tags("arm", "hint", "guided"), *_metrics(figures), *_tags("raykd.status")),
        NAMES[ARMS],
    )


def _studies(state: JournalState) -> View:
    best = [f"best_{name}" for name in _objectives(state)]
    figures = [f"test_{_lead(state)}_mean", *_over_seeds("gain")[:3], *best, "trials", "front_size"]
    return View(
        view_key(STUDIES),
        "tags.`raykd.role` = 'study'",
        "attributes.start_time",
        False,
        (*_metrics(figures), *_tags("raykd.status")),
        NAMES[STUDIES],
    )


def _lead(state: JournalState) -> str:
    """Return the metric by which networks are compared: of the objectives, or of the task."""
    assert state.study is not None
    names = [name.removeprefix("val_") for name in _objectives(state) if name.startswith("val_")]
    task = state.study.resolved.get("task") or {}
    first = task.get("metrics", ["accuracy"])[0].rpartition(":")[2]  # or code, FILE.py:NAME
    return next((name for name in names if name != "loss"), first)


def _objectives(state: JournalState) -> Mapping[str, str]:
    assert state.study is not None
    search = state.study.resolved.get("search") or {}
    return search.get("objectives") or {"val_accuracy": "max"}


def _figures(state: JournalState) -> list[str]:
    """Return the objectives and the costs that the study bounds or measures."""
    assert state.study is not None
    search = state.study.resolved.get("search") or {}
    costs = (*(search.get("constraints") or ()), *(search.get("measure") or ()))
    return list(dict.fromkeys([*_objectives(state), *costs, "params"]))


def _over_seeds(name: str) -> list[str]:
    return [f"{name}_{suffix}" for suffix in INTERVAL]


def _status(state: JournalState) -> Iterator[str]:
    yield from (f"params.`{clean_key(key)}`" for key in state.different_numbers[:MAX_NUMBERS])
    yield from _tags("raykd.status")


def _metrics(names: Iterable[str]) -> Iterator[str]:
    return (_metric(name) for name in dict.fromkeys(names))


def _metric(name: str) -> str:
    return f"metrics.`{clean_key(name)}`"


def _tags(*names: str) -> Iterator[str]:
    return (f"tags.`{name}`" for name in names)


def _widths(columns: Iterable[str]) -> dict[str, int]:
    names = {column: column.split("`")[1] for column in columns}
    return {column: WIDTHS.get(name, max(90, 8 * len(name) + 24)) for column, name in names.items()}
