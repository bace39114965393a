"""A slot and rank 0 on one socket: numbered requests, lost groups, strangers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from typing import Any

import pytest

from raykd.runtime import channel as channels
from raykd.runtime.channel import (
    Address,
    Channel,
    ChannelClient,
    ContinueJob,
    Exit,
    Request,
    StartJob,
    WorkersGone,
    WorkersLost,
)
from raykd.runtime.jobs import JobFailure, Report, TrainJob

HOST = "127.0.0.1"


def ok(reason: str = "fine") -> JobFailure:
    """Return an outcome with this reason."""
    return JobFailure(reason)


@pytest.fixture
def channel() -> Iterator[Channel]:
    channel = Channel(HOST)
    yield channel
    channel.close()


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def connect(channel: Channel) -> ChannelClient:
    """A worker's client that has announced itself."""
    clients: list[ChannelClient] = []
    before = channel.announcements
    thread = in_thread(lambda: clients.append(ChannelClient(channel.address)))
    until = time.monotonic() + 10
    while channel.announcements == before and time.monotonic() < until:
        channel._accept_caller(0.1)
    thread.join()
    return clients[0]


def respond_to(client: ChannelClient, answers: int = 1) -> threading.Thread:
    """Respond to requests with the text of their action."""

    def work() -> None:
        for _ in range(answers):
            request = client.receive(10)
            assert request is not None
            client.respond(request, ok(str(request.action)))

    return in_thread(work)


def test_requests_are_answered(channel: Channel) -> None:
    client = connect(channel)
    respond_to(client, 3)
    start = StartJob(TrainJob("trial-0000", "trial", {}, seed=0, epochs=1))
    assert channel.request(start) == ok(str(start))
    assert channel.request(ContinueJob()) == ok("ContinueJob()")
    assert channel.request(ContinueJob()) == ok("ContinueJob()")
    assert channel.announcements == 1


def test_requests_are_numbered(channel: Channel) -> None:
    client = connect(channel)
    numbers: list[int] = []

    def work() -> None:
        for _ in range(3):
            request = client.receive(10)
            assert request is not None
            numbers.append(request.id)
            client.respond(request, ok())

    worker = in_thread(work)
    for _ in range(3):
        channel.request(ContinueJob())
    worker.join()
    assert numbers == sorted(set(numbers)) and len(numbers) == 3


def test_late_answer_is_discarded(channel: Channel) -> None:
    client = connect(channel)

    def work() -> None:
        request = client.receive(10)
        assert request is not None
        client.respond(Request(request.id - 1, ContinueJob()), ok("late"))
        client.respond(Request(request.id + 7, ContinueJob()), ok("strange"))
        client.respond(request, ok("in time"))

    in_thread(work)
    assert channel.request(ContinueJob()) == ok("in time")


def test_second_answer_to_request_is_skipped(channel: Channel) -> None:
    """A second answer to the same request is still in the socket when the next is asked."""
    client = connect(channel)

    def work() -> None:
        first = client.receive(10)
        assert first is not None
        client.respond(first, ok("1"))
        client.respond(first, ok("1 again"))
        second = client.receive(10)
        assert second is not None
        client.respond(second, ok("2"))

    in_thread(work)
    assert channel.request(ContinueJob()) == ok("1")
    assert channel.request(ContinueJob()) == ok("2")


def test_restarted_group_loses_request(channel: Channel) -> None:
    first = connect(channel)
    clients: list[ChannelClient] = []

    def work() -> None:
        assert first.receive(10) is not None  # takes the request and never answers
        clients.append(ChannelClient(channel.address))

    worker = in_thread(work)
    with pytest.raises(WorkersLost, match="started again"):
        channel.request(ContinueJob())
    worker.join()
    assert channel.announcements == 2
    respond_to(clients[0])
    assert channel.request(ContinueJob()) == ok("ContinueJob()")


def test_dead_group_is_reported_and_awaited(channel: Channel) -> None:
    client = connect(channel)

    def work() -> None:
        assert client.receive(10) is not None
        client._connection.close()

    in_thread(work)
    with pytest.raises(WorkersLost, match="went away"):
        channel.request(ContinueJob())
    with pytest.raises(WorkersLost, match="no worker group"):
        channel.request(ContinueJob())
    clients: list[ChannelClient] = []
    newcomer = in_thread(lambda: clients.append(ChannelClient(channel.address)))
    channel.wait_for_workers(10)
    newcomer.join()
    respond_to(clients[0])
    assert channel.request(ContinueJob()) == ok("ContinueJob()")


def test_group_that_died_between_requests_is_reported(channel: Channel) -> None:
    client = connect(channel)
    respond_to(client)
    channel.request(ContinueJob())
    client._connection.close()
    with pytest.raises(WorkersLost):
        channel.request(ContinueJob())


def test_group_that_restarted_between_requests_is_detected(channel: Channel) -> None:
    """The old connection still looks alive (its node disappeared without closing it)."""
    old = connect(channel)
    clients: list[ChannelClient] = []
    in_thread(lambda: clients.append(ChannelClient(channel.address)))
    with pytest.raises(WorkersLost, match="started again"):
        channel.request(ContinueJob())
    request = old.receive(10)
    assert request is not None and request.action == ContinueJob(), (
        "it was asked before it was found out"
    )
    with pytest.raises(EOFError):
        old.receive(10)


def test_wrong_key_is_rejected(channel: Channel) -> None:
    refused: list[BaseException] = []

    def stranger() -> None:
        address = channel.address
        try:
            ChannelClient(Address(address.host, address.port, b"a guess"))
        except (AuthenticationError, OSError, EOFError) as error:
            refused.append(error)

    thread = in_thread(stranger)
    with pytest.raises(WorkersGone):
        channel.wait_for_workers(1.0)
    thread.join(10)
    assert refused and channel.announcements == 0


def test_unauthenticated_connection_does_not_lose_request(channel: Channel) -> None:
    client = connect(channel)

    def work() -> None:
        request = client.receive(10)
        assert request is not None
        try:
            ChannelClient(Address(channel.address.host, channel.address.port, b"a guess"))
        except (AuthenticationError, OSError, EOFError):
            client.respond(request, ok())

    in_thread(work)
    assert channel.request(ContinueJob()) == ok()
    assert channel.announcements == 1


def test_silent_connection_does_not_block_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "HANDSHAKE_S", 1)
    channel = Channel(HOST)
    client = connect(channel)
    with socket.create_connection((HOST, channel.address.port)):

        def work() -> None:
            request = client.receive(10)
            assert request is not None
            time.sleep(0.3)
            client.respond(request, ok())

        in_thread(work)
        began = time.monotonic()
        assert channel.request(ContinueJob()) == ok()
        assert time.monotonic() - began < 8
    channel.close()


def test_slow_epoch_is_not_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "HANDSHAKE_S", 1)
    channel = Channel(HOST)
    client = connect(channel)

    def work() -> None:
        request = client.receive(10)
        assert request is not None
        time.sleep(2.5)
        client.respond(request, ok())

    in_thread(work)
    assert channel.request(ContinueJob()) == ok()
    channel.close()


def test_large_answers_arrive(channel: Channel) -> None:
    client = connect(channel)
    history = [{"val_accuracy": i / 1000, "x" * 100: 0.0} for i in range(20_000)]

    def work() -> None:
        request = client.receive(10)
        assert request is not None
        client.respond(request, Report(1, {}, done=False, history=tuple(history)))

    in_thread(work)
    outcome = channel.request(ContinueJob())
    assert isinstance(outcome, Report) and list(outcome.history) == history


def test_closing_slot_notifies_worker() -> None:
    channel = Channel(HOST)
    client = connect(channel)
    channel.close()
    request = client.receive(10)
    assert request is not None and request.action == Exit()
    with pytest.raises(EOFError):
        client.receive(10)


def test_worker_detects_dead_slot() -> None:
    channel = Channel(HOST)
    client = connect(channel)
    assert channel._connection is not None
    channel._connection.close()  # as the system does for a process that was killed
    with pytest.raises((EOFError, OSError)):
        client.receive(10)
    channel.close()


def test_close_is_idempotent_after_workers_died() -> None:
    channel = Channel(HOST)
    client = connect(channel)
    client._connection.close()
    channel.close()
    channel.close()


def test_idle_worker_receives_none(channel: Channel) -> None:
    client = connect(channel)
    assert client.receive(0.05) is None


def test_wait_ends_if_no_worker_can_connect() -> None:
    def check_alive() -> None:
        raise WorkersGone("Ray Train ended the worker group")

    channel = Channel(HOST, check_alive)
    with pytest.raises(WorkersGone, match="ended"):
        channel.wait_for_workers(60)
    channel.close()


def test_request_ends_if_no_worker_can_connect() -> None:
    errors: list[str] = []

    def check() -> None:
        if errors:
            raise WorkersGone(errors[0])

    channel = Channel(HOST, check)
    client = connect(channel)
    errors.append("the controller failed")
    with pytest.raises(WorkersGone, match="controller"):
        channel.request(ContinueJob())
    assert client.receive(1) is not None
    channel.close()


def test_connection_timeout(channel: Channel) -> None:
    with pytest.raises(WorkersGone, match=r"within 0 s; .*doctor"):
        channel.wait_for_workers(0.2)


def test_each_slot_has_its_own_key() -> None:
    left, right = Channel(HOST), Channel(HOST)
    assert left.address.key != right.address.key and len(left.address.key) >= 32
    assert left.address.port != right.address.port
    assert repr(left.address.key) not in repr(Request(1, ContinueJob()))
    left.close()
    right.close()
