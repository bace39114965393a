"""Executors: the machines on which the jobs of a run are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from raykd.runtime.channel import Command
from raykd.runtime.cluster import (
    Resources,
    check_resources,
    check_storage,
    here,
    plan_slots,
    ray_session,
    uses_existing_ray,
)
from raykd.runtime.gpu_sharing import best, packed, remember, remembered, room
from raykd.runtime.jobs import Assignment
from raykd.storage import Storage, is_uri
from raykd.study.config import Cluster
from raykd.tuning.planner import Planner
from raykd.tuning.run import Executor, StudyRun
from raykd.tuning.session import RunSession


class RayExecutor(Executor):
    """Trains jobs in warm slots of a Ray cluster."""

    def check(self, cluster: Cluster) -> None:
        check_resources(cluster)

    def execute(self, run: StudyRun[Any], session: RunSession) -> Planner:
        folder = session.folder
        session.bus.tell({"event": "phase", "phase": "ray"})
        outlived = uses_existing_ray()
        cluster = session.study.settings.cluster
        slots = 0 if outlived else plan_slots(cluster, here()).slots
        groups = cluster.workers_per_trial > 1
        with ray_session(verbose=session.verbose, groups=groups, slots=slots) as nodes:
            plan = plan_slots(_with_measured_sharing(session, nodes), nodes)
            check_storage(folder.storage, f"{folder.name}/reachable", nodes)
            planner = run.planner(session, plan.slots)
            _announce(session, plan, planner)
            from raykd.runtime.ray_tune import run_planner  # imports Ray, whose settings stand now

            root = f"{folder.storage}/{folder.name}" if is_uri(folder.storage) else folder.path
            run_planner(
                planner,
                plan,
                session.study.settings,
                session.prepared.search,
                session.data,
                storage=folder.storage,
                folder=f"{root}/ray",
                verbose=session.verbose,
                outlived=outlived,
            )
        if not planner.finished:
            raise KeyboardInterrupt  # Tune takes Ctrl-C for itself, and just returns
        if not session.verbose:  # resuming never reads them
            Storage(folder.storage).remove_folder(f"{folder.name}/ray")
            for name in ("logs", "states"):
                with contextlib.suppress(OSError):  # not empty
                    (folder.path / name).rmdir()
        return planner


class LocalExecutor(Executor):
    """Trains jobs in this process, one after another, without Ray."""

    def execute(self, run: StudyRun[Any], session: RunSession) -> Planner:
        from raykd.runtime.worker import Bench, Seat, obey

        planner = run.planner(session, slots=1)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        data = session.data.to(device)
        seat = Seat(Bench(Storage(session.folder.storage), data, device, rank=0, world=1))
        _announce(session, None, planner)
        try:
            while (assignment := planner.next()) is not None:
                for result in _trained(seat, assignment, obey):
                    planner.report({"id": assignment.id, **assignment.metrics, **result})
        finally:
            seat.stop()
        return planner


def _announce(session: RunSession, plan: Any, planner: Planner) -> None:
    """Tell the listeners what will run, and in how many slots."""
    session.bus.tell(
        {
            "event": "plan",
            "plan": plan,
            "study": session.study,
            "folder": session.folder,
            "trials": planner.expected_trials,
        }
    )


def _with_measured_sharing(session: RunSession, nodes: Sequence[Resources]) -> Cluster:
    """Return the cluster settings; where trials may share a GPU, with their measured number."""
    cluster, bus = session.study.settings.cluster, session.bus
    if room(cluster, nodes) == 1:
        return cluster
    file = session.folder.packing
    rates = remembered(file, nodes)
    if rates:
        return replace(cluster, gpus_per_worker=1 / best(rates))
    bus.tell({"event": "phase", "phase": "packing"})
    cluster, rates = packed(session.study, session.task, session.data, nodes)
    if rates:
        remember(file, nodes, rates)
        bus.tell({"event": "packing", "images_per_second": rates, "chosen": best(rates)})
        metrics = {f"images_per_second_{count}_a_gpu": rate for count, rate in rates.items()}
        tags = {"trials_a_gpu": str(best(rates))}
        bus.write("note", id=None, tags=tags, metrics=metrics, step=0)
    return cluster


def _trained(seat: Any, assignment: Assignment, obey: Any) -> Iterator[dict[str, Any]]:
    """Yield the results of one training, epoch by epoch, as a slot reports them."""
    begun = obey(seat, Command(0, "start", assignment.plain()))
    history = begun.get("history", [])
    while True:
        answer = begun if begun.get("failed") else obey(seat, Command(0, "epoch", {}))
        if answer.get("failed"):
            failed = {"failed": answer["reason"]}
            failed |= {key: answer[key] for key in ("traceback", "raised_at")}
            yield {"epoch": 0, "done": True, **failed}
            return
        yield {**answer["metrics"], **{k: answer[k] for k in ("epoch", "done")}, "history": history}
        history = []
        if answer["done"]:
            return
