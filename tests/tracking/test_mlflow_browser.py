"""MLflow's own pages of a study, opened in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.browser import new_page
from helpers.mlflow_server import Server
from helpers.pairs_cases import synthetic_result
from helpers.small_study import STUDY, start, trial
from raykd.layer_study.description import arm_metrics
from raykd.tracking import Journal, find_run, upload_journal
from raykd.tracking.events import Note, RunStarted, StudyEnded, SummaryWritten
from raykd.tracking.mlflow_client import view_page
from raykd.tracking.mlflow_views import ARMS, FINALISTS, TRIALS, view_key

pytestmark = pytest.mark.slow
SETTLE_MS = 60_000


@pytest.fixture
def page() -> Iterator[Any]:
    """A page whose console must have no error in the end."""
    with new_page(width=2200) as (page, errors):
        page.set_default_timeout(SETTLE_MS)
        # the panel of MLflow's assistant opens by itself and covers half of the table
        closed = "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')"
        page.add_init_script(f"if (location.protocol === 'http:') {closed}")
        yield page
        # MLflow asks its server for parts that it does not have
        assert [error for error in errors if "Failed to load resource" not in error] == []


def test_pages_of_study(journal: Journal, server: Server, page: Any) -> None:
    start(journal)
    for number in range(3):
        trial(journal, number, epochs=number + 1)
    journal.append(RunStarted("trial-0001/seed-1", "replicate", "trial-0001", name="seed 1"))
    journal.append(Note("trial-0001", {"chosen": "true"}, {"test_accuracy_mean": 0.9731}))
    journal.append(SummaryWritten("**trial-0001** won.", "More: `raykd report`"))
    journal.append(StudyEnded())
    server.start()
    assert upload_journal(journal.path, server.uri).refused == 0
    run = find_run(server.uri, STUDY)
    assert run is not None

    # trials: the columns of the view, the best first
    page.goto(view_page(server.uri, run.experiment_id, view_key(TRIALS, STUDY)))
    names = page.locator("[role=row] a:has-text('trial-')")
    page.locator("[role=columnheader][col-id*=val_accuracy]").wait_for()
    names.first.wait_for()
    assert names.all_inner_texts() == ["trial-0002", "trial-0001", "trial-0000"]
    heads = page.locator("[role=columnheader]").all_inner_texts()
    assert {"val_accuracy", "params", "losses", "student.model.depth"} <= {*map(str.strip, heads)}

    # the note, and its link to the finalists
    page.get_by_text("won.").wait_for()
    link = page.get_by_role("link", name="Finalists over seeds").get_attribute("href")
    page.goto("about:blank")
    page.goto(f"{server.uri}/{link}")
    page.locator("[role=columnheader][col-id*=test_accuracy_mean]").wait_for()
    page.get_by_text("0.9731").wait_for()
    assert names.all_inner_texts() == ["trial-0001"]
    assert view_key(FINALISTS, STUDY) in page.url

    # without a view, runs are nested below their study
    page.goto("about:blank")
    page.goto(f"{server.uri}/#/experiments/{run.experiment_id}/runs?workflowType=machine_learning")
    page.get_by_role("link", name="digits", exact=True).first.wait_for()
    assert names.count() == 0


def test_table_of_layer_study(tmp_path: Path, server: Server, page: Any) -> None:
    result = synthetic_result(tmp_path)
    with Journal(result.folder / "journal.jsonl") as journal:
        for id, metrics in arm_metrics(result).items():
            journal.append(Note(id, metrics=metrics))
        journal.append(StudyEnded())
    server.start()
    assert upload_journal(result.folder / "journal.jsonl", server.uri).refused == 0
    run = find_run(server.uri, result.study_id)
    assert run is not None

    # arms: the columns of the view, the largest gain first
    page.goto(view_page(server.uri, run.experiment_id, view_key(ARMS, result.study_id)))
    page.locator("[role=columnheader][col-id*=gain_mean]").wait_for()
    names = page.locator("[role=row] a:has-text('stage')")
    names.first.wait_for()
    heads = {*map(str.strip, page.locator("[role=columnheader]").all_inner_texts())}
    assert {"arm", "hint", "guided", "gain_mean", "gain_low", "gain_high", "gain_p_holm"} <= heads
