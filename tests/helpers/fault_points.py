"""Points of a search at which a test can break something: all processes wait there until it has.

A test arms a point by events of the driver.  Some points lie in the driver (between two epochs or
trials); it waits where it publishes the event.  Others lie in the workers (in the middle of an
epoch); the network waits in its next forward pass.  No process sleeps for a guessed time.

Files of a point, in the folder named by `FOLDER`: `plan.json`, `armed`, `waiter-0` (one for each
process that waits), `reached` (all of them wait), `released` (by the test).
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from raykd.models import Signature

FOLDER, DRIVER = "RAYKD_FAULT_FOLDER", "RAYKD_FAULT_DRIVER"
LIMIT_S = 240.0
"""Seconds that a process waits at a point; then it continues, and the test fails."""

EVENTS = {
    "teacher": ("run", "teacher-0", None),
    "outputs": ("outputs", None, "begun"),
    "first epoch": ("run", "trial-0001", None),
    "mid-epoch": ("epoch", "trial-0001", 2),
    "between epochs": ("epoch", "trial-0001", 2),
    "between trials": ("end", "trial-0001", None),
    "replicates": ("epoch", "trial-", 2),
    "sending": ("phase", None, "tracking"),
}
"""Moments: kind of the event, its id (or how that begins), and its epoch, status or phase."""

IN_DRIVER = ("between epochs", "between trials", "sending")


class FaultyNetwork(nn.Module):
    """A linear classifier that counts its training steps and waits at a point that is armed.

    Args:
        signature: decides the size.
        width: number of hidden units.
        role: "teacher" or "student".
        step_s: seconds that a training step takes at least.
    """

    def __init__(self, signature: Signature, width: int, role: str, step_s: float = 0.0) -> None:
        super().__init__()
        inputs = torch.Size(signature.input_shape).numel()
        self.hidden, self.head = nn.Linear(inputs, width), nn.Linear(width, signature.classes)
        self._role, self._step_s = role, step_s

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        folder = os.environ.get(FOLDER)
        if folder and os.environ.get(DRIVER) != str(os.getpid()) and inputs.device.type != "meta":
            self._pass(Path(folder))
        return self.head(self.hidden(inputs.flatten(1)).relu())

    def _pass(self, folder: Path) -> None:
        if self.training:
            time.sleep(self._step_s)
            with open(folder / "steps", "ab", buffering=0) as file:
                file.write(b".")
        if (folder / "armed").exists():
            moment = json.loads((folder / "plan.json").read_text())["moment"]
            role = "teacher" if moment in ("teacher", "outputs") else "student"
            if role == self._role and self.training == (moment != "outputs"):
                wait_at(folder)


def build(signature: Signature, width: int, role: str, step_s: float = 0.0) -> nn.Module:
    return FaultyNetwork(signature, width, role, step_s)


def wait_at(folder: Path) -> None:
    """Wait until the test has broken something; only the first processes to come wait."""
    waiters = json.loads((folder / "plan.json").read_text())["waiters"]
    for number in range(waiters):
        try:
            (folder / f"waiter-{number}").touch(exist_ok=False)
            break
        except FileExistsError:
            continue
    else:
        return
    if number == waiters - 1:
        os.rename(folder / "armed", folder / "reached")
    end = time.monotonic() + LIMIT_S
    while not (folder / "released").exists() and time.monotonic() < end:
        time.sleep(0.02)


def main() -> None:
    """Run the command line with a point in it: `python -m helpers.fault_points search FILE`."""
    from raykd.tracking.events import Event
    from raykd.tracking.journal import EventBus

    faulthandler.register(signal.SIGUSR2)  # a command that does not end tells where it waits
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    folder = Path(os.environ[FOLDER])
    os.environ[DRIVER] = str(os.getpid())
    moment = json.loads((folder / "plan.json").read_text())["moment"]
    publish = EventBus.publish

    def publish_and_wait(bus: EventBus, event: Event) -> None:
        publish(bus, event)
        if not (folder / "reached").exists() and _is_moment(event.record(), moment):
            (folder / "armed").touch()
            if moment in IN_DRIVER:
                wait_at(folder)

    EventBus.publish = publish_and_wait  # type: ignore[method-assign]
    from raykd.cli.commands import main as run

    run()


def _is_moment(record: dict[str, object], moment: str) -> bool:
    kind, name, detail = EVENTS[moment]
    if record["event"] != kind:
        return False
    record_id = str(record.get("id"))
    if moment == "replicates" and "/seed-" not in record_id:
        return False
    named = name is None or record_id == name or (name.endswith("-") and record_id.startswith(name))
    values = (record.get("epoch"), record.get("status"), record.get("phase"))
    return named and (detail is None or detail in values)


if __name__ == "__main__":
    main()
