"""Executors: the machines on which the jobs of a run are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from raykd.data import Placement
from raykd.runtime.cluster import (
    Resources,
    check_resources,
    check_storage,
    plan_slots,
    ray_session,
    this_machine,
    uses_existing_ray,
)
from raykd.runtime.gpu_sharing import (
    best_count,
    load_rates,
    max_trials_per_gpu,
    measure_sharing,
    save_rates,
)
from raykd.runtime.jobs import JobFailure
from raykd.storage import Storage, is_uri
from raykd.study.config import Cluster
from raykd.tracking.events import GpuSharingMeasured, Note, PhaseStarted, SlotPlan
from raykd.tuning.budget import slots_planned
from raykd.tuning.planner import Planner
from raykd.tuning.run import Executor, StudyRun
from raykd.tuning.session import RunSession


class RayExecutor(Executor):
    """Trains jobs in warm slots of a Ray cluster."""

    def check(self, cluster: Cluster) -> None:
        check_resources(cluster)

    def execute(self, run: StudyRun[Any], session: RunSession) -> Planner:
        folder = session.folder
        session.bus.publish(PhaseStarted("ray"))
        outlived = uses_existing_ray()
        cluster = session.study.settings.cluster
        slots = 0 if outlived else plan_slots(cluster, this_machine()).slots
        groups = cluster.workers_per_trial > 1
        with ray_session(verbose=session.verbose, groups=groups, slots=slots) as nodes:
            plan = plan_slots(_with_measured_sharing(session, nodes), nodes)
            check_storage(folder.storage, f"{folder.name}/reachable", nodes)
            planner = run.planner(session, plan.slots)
            _announce(session, plan, planner)
            # These import Ray, whose settings are set now.
            from raykd.runtime.early_stopping import make_stopping_rule
            from raykd.runtime.ray_tune import run_planner
            from raykd.runtime.slot import SlotSetup

            root = f"{folder.storage}/{folder.name}" if is_uri(folder.storage) else folder.path
            setup = SlotSetup(
                folder.storage, plan, cluster.max_failures, f"{root}/ray", outlived=outlived
            )
            epochs = session.study.settings.train.epochs
            rule = make_stopping_rule(session.prepared.search, epochs)
            run_planner(planner, setup, session.data, rule, verbose=session.verbose)
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
        from raykd.runtime.worker import Worker, WorkerContext

        planner = run.planner(session, slots=1)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        data = session.data.to(device)
        storage = Storage(session.folder.storage)
        worker = Worker(WorkerContext(storage, data, Placement(device)))
        _announce(session, None, planner)
        try:
            while (job := planner.next()) is not None:
                for outcome in worker.outcomes(job):
                    if isinstance(outcome, JobFailure):
                        planner.job_failed(job.id, outcome)
                    else:
                        planner.report(job.id, outcome)
        finally:
            worker.stop()
        return planner


def _announce(session: RunSession, slots: SlotPlan | None, planner: Planner) -> None:
    """Publish the resources and the budget of the run."""
    trials = planner.expected_trials
    session.bus.publish(slots_planned(session.study, session.folder, slots, trials))


def _with_measured_sharing(session: RunSession, nodes: Sequence[Resources]) -> Cluster:
    """Return the cluster settings; where trials may share a GPU, with their measured number."""
    cluster, bus = session.study.settings.cluster, session.bus
    if max_trials_per_gpu(cluster, nodes) == 1:
        return cluster
    file = session.folder.gpu_sharing
    rates = load_rates(file, nodes)
    if rates:
        return replace(cluster, gpus_per_worker=1 / best_count(rates))
    bus.publish(PhaseStarted("packing"))
    cluster, rates = measure_sharing(session.study, session.task, session.data, nodes)
    if rates:
        save_rates(file, nodes, rates)
        bus.publish(GpuSharingMeasured(rates, best_count(rates)))
        metrics = {f"images_per_second_{count}_a_gpu": rate for count, rate in rates.items()}
        bus.publish(Note(None, {"trials_a_gpu": str(best_count(rates))}, metrics))
    return cluster
