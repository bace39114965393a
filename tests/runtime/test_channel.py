"""A slot and rank 0 on one socket: numbered commands, lost groups, strangers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import AuthenticationError
from typing import Any

import pytest

from raykd.runtime import channel as mailboxes
from raykd.runtime.channel import (
    Address,
    Answer,
    Command,
    Mailbox,
    WorkerEnd,
    WorkersGone,
    WorkersLost,
)

HOST = "127.0.0.1"


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    mailbox = Mailbox(HOST)
    yield mailbox
    mailbox.close()


def meanwhile(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def connected(mailbox: Mailbox) -> WorkerEnd:
    """A worker's end that has announced itself."""
    ends: list[WorkerEnd] = []
    before = mailbox.announcements
    thread = meanwhile(lambda: ends.append(WorkerEnd(mailbox.address)))
    until = time.monotonic() + 10
    while mailbox.announcements == before and time.monotonic() < until:
        mailbox._accept_if_calling(0.1)
    thread.join()
    return ends[0]


def served(end: WorkerEnd, answers: int = 1) -> threading.Thread:
    """Answers so many commands with what they ask."""

    def work() -> None:
        for _ in range(answers):
            command = end.next(10)
            assert command is not None
            end.answer(command, {"verb": command.verb, **command.body})

    return meanwhile(work)


def test_commands_are_answered(mailbox: Mailbox) -> None:
    end = connected(mailbox)
    served(end, 3)
    assert mailbox.ask("start", {"id": "trial-0000"}) == {"verb": "start", "id": "trial-0000"}
    assert mailbox.ask("epoch") == {"verb": "epoch"}
    assert mailbox.ask("stop") == {"verb": "stop"}
    assert mailbox.announcements == 1


def test_commands_are_numbered(mailbox: Mailbox) -> None:
    end = connected(mailbox)
    seen: list[int] = []

    def work() -> None:
        for _ in range(3):
            command = end.next(10)
            assert command is not None
            seen.append(command.id)
            end.answer(command, {})

    worker = meanwhile(work)
    for _ in range(3):
        mailbox.ask("epoch")
    worker.join()
    assert seen == sorted(set(seen)) and len(seen) == 3


def test_a_late_answer_is_not_taken_for_the_next(mailbox: Mailbox) -> None:
    end = connected(mailbox)

    def work() -> None:
        command = end.next(10)
        assert command is not None
        end.answer(Command(command.id - 1, "epoch", {}), {"late": True})
        end.answer(Command(command.id + 7, "epoch", {}), {"strange": True})
        end.answer(command, {"late": False})

    meanwhile(work)
    assert mailbox.ask("epoch") == {"late": False}


def test_an_answer_that_was_not_waited_for_is_passed_over(mailbox: Mailbox) -> None:
    """A second answer to the same command is still in the socket when the next is asked."""
    end = connected(mailbox)

    def work() -> None:
        first = end.next(10)
        assert first is not None
        end.answer(first, {"number": 1})
        end.answer(first, {"number": "1 again"})
        second = end.next(10)
        assert second is not None
        end.answer(second, {"number": 2})

    meanwhile(work)
    assert mailbox.ask("epoch") == {"number": 1}
    assert mailbox.ask("epoch") == {"number": 2}


def test_a_group_that_starts_again_means_that_the_command_is_lost(mailbox: Mailbox) -> None:
    first = connected(mailbox)
    ends: list[WorkerEnd] = []

    def work() -> None:
        assert first.next(10) is not None  # takes the command and never answers
        ends.append(WorkerEnd(mailbox.address))

    worker = meanwhile(work)
    with pytest.raises(WorkersLost, match="started again"):
        mailbox.ask("epoch")
    worker.join()
    assert mailbox.announcements == 2
    served(ends[0])
    assert mailbox.ask("start") == {"verb": "start"}


def test_a_group_that_dies_is_lost_and_waited_for(mailbox: Mailbox) -> None:
    end = connected(mailbox)

    def work() -> None:
        assert end.next(10) is not None
        end._connection.close()

    meanwhile(work)
    with pytest.raises(WorkersLost, match="went away"):
        mailbox.ask("epoch")
    with pytest.raises(WorkersLost, match="no worker group"):
        mailbox.ask("epoch")
    ends: list[WorkerEnd] = []
    newcomer = meanwhile(lambda: ends.append(WorkerEnd(mailbox.address)))
    mailbox.wait_for_workers(10)
    newcomer.join()
    served(ends[0])
    assert mailbox.ask("epoch") == {"verb": "epoch"}


def test_a_group_that_died_between_two_commands_is_lost(mailbox: Mailbox) -> None:
    end = connected(mailbox)
    served(end)
    mailbox.ask("epoch")
    end._connection.close()
    with pytest.raises(WorkersLost):
        mailbox.ask("epoch")


def test_a_group_that_restarted_between_two_commands_is_noticed(mailbox: Mailbox) -> None:
    """The old connection still looks alive (its node went away without a word)."""
    old = connected(mailbox)
    ends: list[WorkerEnd] = []
    meanwhile(lambda: ends.append(WorkerEnd(mailbox.address)))
    with pytest.raises(WorkersLost, match="started again"):
        mailbox.ask("epoch")
    command = old.next(10)
    assert command is not None and command.verb == "epoch", "it was asked before it was found out"
    with pytest.raises(EOFError):
        old.next(10)


def test_a_wrong_key_is_refused(mailbox: Mailbox) -> None:
    refused: list[BaseException] = []

    def stranger() -> None:
        address = mailbox.address
        try:
            WorkerEnd(Address(address.host, address.port, b"a guess"))
        except (AuthenticationError, OSError, EOFError) as error:
            refused.append(error)

    thread = meanwhile(stranger)
    with pytest.raises(WorkersGone):
        mailbox.wait_for_workers(1.0)
    thread.join(10)
    assert refused and mailbox.announcements == 0


def test_a_stranger_does_not_cost_the_workers_their_command(mailbox: Mailbox) -> None:
    end = connected(mailbox)

    def work() -> None:
        command = end.next(10)
        assert command is not None
        try:
            WorkerEnd(Address(mailbox.address.host, mailbox.address.port, b"a guess"))
        except (AuthenticationError, OSError, EOFError):
            end.answer(command, {"fine": True})

    meanwhile(work)
    assert mailbox.ask("epoch") == {"fine": True}
    assert mailbox.announcements == 1


def test_a_caller_that_says_nothing_does_not_hold_the_slot_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailboxes, "SILENCE_S", 1)
    mailbox = Mailbox(HOST)
    end = connected(mailbox)
    with socket.create_connection((HOST, mailbox.address.port)):

        def work() -> None:
            command = end.next(10)
            assert command is not None
            time.sleep(0.3)
            end.answer(command, {"fine": True})

        meanwhile(work)
        began = time.monotonic()
        assert mailbox.ask("epoch") == {"fine": True}
        assert time.monotonic() - began < 8
    mailbox.close()


def test_a_slow_epoch_is_not_taken_for_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailboxes, "SILENCE_S", 1)
    mailbox = Mailbox(HOST)
    end = connected(mailbox)

    def work() -> None:
        command = end.next(10)
        assert command is not None
        time.sleep(2.5)
        end.answer(command, {"fine": True})

    meanwhile(work)
    assert mailbox.ask("epoch") == {"fine": True}
    mailbox.close()


def test_large_answers_arrive(mailbox: Mailbox) -> None:
    end = connected(mailbox)
    history = [{"val_accuracy": i / 1000, "name": "x" * 100} for i in range(20_000)]

    def work() -> None:
        command = end.next(10)
        assert command is not None
        end.answer(command, {"history": history})

    meanwhile(work)
    found: Mapping[str, Any] = mailbox.ask("start")
    assert found["history"] == history


def test_when_the_slot_closes_the_worker_is_told_and_then_sees_the_end() -> None:
    mailbox = Mailbox(HOST)
    end = connected(mailbox)
    mailbox.close()
    command = end.next(10)
    assert command is not None and command.verb == "exit"
    with pytest.raises(EOFError):
        end.next(10)


def test_a_slot_that_dies_is_seen_by_the_worker() -> None:
    mailbox = Mailbox(HOST)
    end = connected(mailbox)
    assert mailbox._connection is not None
    mailbox._connection.close()  # as the system does for a process that was killed
    with pytest.raises((EOFError, OSError)):
        end.next(10)
    mailbox.close()


def test_closing_twice_and_after_the_workers_died() -> None:
    mailbox = Mailbox(HOST)
    end = connected(mailbox)
    end._connection.close()
    mailbox.close()
    mailbox.close()


def test_an_idle_worker_gets_none(mailbox: Mailbox) -> None:
    end = connected(mailbox)
    assert end.next(0.05) is None


def test_waiting_ends_when_nobody_can_come_any_more() -> None:
    def gone() -> None:
        raise WorkersGone("Ray Train ended the worker group")

    mailbox = Mailbox(HOST, gone)
    with pytest.raises(WorkersGone, match="ended"):
        mailbox.wait_for_workers(60)
    mailbox.close()


def test_asking_ends_when_nobody_can_come_any_more() -> None:
    trouble: list[str] = []

    def check() -> None:
        if trouble:
            raise WorkersGone(trouble[0])

    mailbox = Mailbox(HOST, check)
    end = connected(mailbox)
    trouble.append("the controller failed")
    with pytest.raises(WorkersGone, match="controller"):
        mailbox.ask("epoch")
    assert end.next(1) is not None
    mailbox.close()


def test_nobody_came_in_time(mailbox: Mailbox) -> None:
    with pytest.raises(WorkersGone, match=r"within 0 s; .*doctor"):
        mailbox.wait_for_workers(0.2)


def test_every_slot_has_a_key_of_its_own() -> None:
    one, other = Mailbox(HOST), Mailbox(HOST)
    assert one.address.key != other.address.key and len(one.address.key) >= 32
    assert one.address.port != other.address.port
    assert repr(one.address.key) not in repr(Command(1, "epoch", {})) + repr(Answer(1, {}))
    one.close()
    other.close()
