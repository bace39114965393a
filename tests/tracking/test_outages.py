"""A server that answers with errors, late or not at all: nothing waits, is lost or doubled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.faulty_proxy import RESET, Proxy
from helpers.mlflow_runs import Store
from helpers.mlflow_server import Server
from helpers.small_study import start
from raykd.tracking import Journal, Tracker, upload_journal
from raykd.tracking.events import EpochFinished, RunEnded, RunStarted, StudyEnded
from raykd.tracking.mlflow_client import connect
from raykd.tracking.store_uri import absolute

pytestmark = pytest.mark.slow

EPOCHS = 60
SLOWEST_APPEND_S = 2.0
"""A loaded machine may take this long to write a line; a request would take longer."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def address(shared: Server) -> Iterator[Proxy]:
    """Start one proxy for all tests: MLflow remembers the address of a run's artifacts."""
    proxy = Proxy(shared.port)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(address: Proxy) -> Proxy:
    """Return the proxy, without a fault."""
    address.fault, address.delay = None, 0.0
    return address


@pytest.fixture
def journal(folder: Path, shared: Server) -> Iterator[Journal]:
    """Write a journal whose study is new to the server that the tests share."""
    _remove_experiments(shared)
    with Journal(folder / "study" / "journal.jsonl") as journal:
        yield journal


def _remove_experiments(server: Server) -> None:
    client = connect(server.uri)
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id], max_results=1000):
            client.delete_run(run.info.run_id)


def wait(seconds: float, condition: object) -> bool:
    assert callable(condition)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def train(journal: Journal, first: int = 1, last: int = EPOCHS) -> None:
    """Write the epochs of a trial; no write may wait for the server."""
    for epoch in range(first, last + 1):
        began = time.monotonic()
        journal.append(EpochFinished("trial-0000", epoch, {"accuracy": epoch / 256}))
        assert time.monotonic() - began < SLOWEST_APPEND_S
        time.sleep(0.01)


def finish(journal: Journal) -> None:
    journal.append(RunEnded("trial-0000", "finished"))
    journal.append(StudyEnded())


def check(server: Server) -> None:
    """Check that the store has every epoch and every run once."""
    store = Store(server.uri)
    assert sorted(run[0] for run in store.everything().values()) == ["digits", "trial-0000"]
    history = store.history("trial-0000", "accuracy")
    expected = [(epoch, epoch / 256) for epoch in range(1, EPOCHS + 1)]
    assert [(step, value) for step, value, _ in history] == expected
    assert store.run("trial-0000").info.status == "FINISHED"


@pytest.mark.parametrize("fault", [401, 403, 429, 500, 502, 503, RESET])
@pytest.mark.parametrize("from_start", [True, False], ids=["from the start", "meanwhile"])
def test_server_that_refuses_everything_for_while(
    fault: int | str, from_start: bool, journal: Journal, proxy: Proxy, shared: Server
) -> None:
    proxy.fault = fault if from_start else None
    tracker = Tracker(journal.path, proxy.uri, poll=0.05, start_after=0)
    start(journal)
    journal.append(RunStarted("trial-0000", role="trial"))
    if not from_start:
        assert wait(120, lambda: tracker.status.delivered >= 3), tracker.status
        proxy.fault = fault
    train(journal)
    assert wait(60, lambda: tracker.status.error), tracker.status
    assert "events wait" in str(tracker.status)
    proxy.fault = None
    finish(journal)
    assert tracker.close(120), tracker.status
    assert (tracker.status.pending, tracker.status.refused) == (0, 0)
    check(shared)


def test_body_that_is_too_large_for_while(journal: Journal, proxy: Proxy, shared: Server) -> None:
    """It is refused, which the end says; a later upload from the start makes it good."""
    tracker = Tracker(journal.path, proxy.uri, poll=0.05, start_after=0)
    start(journal)
    journal.append(RunStarted("trial-0000", role="trial"))
    assert wait(120, lambda: tracker.status.delivered >= 3), tracker.status
    proxy.fault = 413
    train(journal)
    assert wait(60, lambda: tracker.status.error), tracker.status
    proxy.fault = None
    finish(journal)
    tracker.close(120)
    upload_journal(journal.path, proxy.uri, from_start=True)
    check(shared)


def test_server_that_takes_five_seconds_request(
    journal: Journal, proxy: Proxy, shared: Server
) -> None:
    proxy.delay = 5.0
    tracker = Tracker(journal.path, proxy.uri, poll=0.05, start_after=0)
    start(journal)
    journal.append(RunStarted("trial-0000", role="trial"))
    train(journal)
    finish(journal)
    began = time.monotonic()
    assert not tracker.close(2)
    assert time.monotonic() - began < 6
    assert "events wait" in str(tracker.status)
    proxy.delay = 0.0
    assert wait(60, lambda: not tracker._thread.is_alive()), "it goes on after `close`"
    assert upload_journal(journal.path, proxy.uri, patience=60).pending == 0
    check(shared)


@pytest.mark.parametrize("victim", ["trial", "study"])
def test_deleted_runs_are_created_again(
    victim: str, journal: Journal, proxy: Proxy, shared: Server
) -> None:
    tracker = Tracker(journal.path, proxy.uri, poll=0.05, start_after=0)
    start(journal)
    journal.append(RunStarted("trial-0000", role="trial"))
    train(journal, last=20)
    assert wait(120, lambda: tracker.status.delivered >= 23), tracker.status
    client, store = connect(absolute(shared.uri)), Store(shared.uri)
    run = store.run("trial-0000" if victim == "trial" else None)
    client.delete_run(run.info.run_id)
    train(journal, first=21)
    finish(journal)
    tracker.close(120)
    upload_journal(journal.path, proxy.uri, from_start=True)
    check(shared)
