"""Executors: the machines on which the jobs of a run are trained."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raykd.data import Dataset, Placement
from raykd.data.dataset import FileSplit
from raykd.runtime.cluster import (
    Resources,
    check_resources,
    is_remote,
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
from raykd.runtime.jobs import AnyJob, JobFailure, Report, TrainJob
from raykd.runtime.node_check import NodeRequest, check_nodes
from raykd.runtime.shipped_code import MAX_BYTES, is_too_large, modules_to_send
from raykd.storage import Storage, is_uri
from raykd.study.config import Cluster
from raykd.tracking.events import GpuSharingMeasured, Note, PhaseStarted, SlotPlan, WarningIssued
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
        code = _code_to_send(session) if is_remote() else ()
        with ray_session(verbose=session.verbose, groups=groups, slots=slots, code=code) as nodes:
            grows = outlived and cluster.max_slots is not None
            plan = plan_slots(_with_measured_sharing(session, nodes), nodes, grows=grows)
            marker = f"{folder.name}/reachable"
            check_nodes(NodeRequest(folder.storage, marker, _file_of(session.data)))
            # These import Ray, whose settings are set now.
            from raykd.runtime.early_stopping import make_stopping_rule
            from raykd.runtime.ray_tune import run_planner
            from raykd.runtime.shared_cluster import ClusterShare
            from raykd.runtime.slot import SlotSetup

            share = ClusterShare(cluster, plan) if outlived else None
            if share is not None:
                plan = replace(plan, slots=share.slots())
            planner = run.planner(session, plan.slots)
            _announce(session, plan, planner)
            root = f"{folder.storage}/{folder.name}" if is_uri(folder.storage) else folder.path
            setup = SlotSetup(
                folder.storage,
                plan,
                cluster.max_failures,
                f"{root}/ray",
                cluster.hang_timeout_s,
                outlived,
                session.study.runs_code,
                session.study.code,
            )
            epochs = session.study.settings.train.epochs
            rule = make_stopping_rule(session.prepared.search, epochs)
            try:
                run_planner(planner, setup, session.data, rule, share, verbose=session.verbose)
            finally:
                if share is not None:
                    share.close()
        if not planner.finished:
            raise KeyboardInterrupt  # Tune was stopped by a signal of its own, and just returns
        if not session.verbose:  # resuming never reads them
            Storage(folder.storage).remove_folder(f"{folder.name}/ray")
            for name in ("logs", "states"):
                with contextlib.suppress(OSError):  # not empty
                    (folder.path / name).rmdir()
        return planner


class LocalExecutor(Executor):
    """Trains jobs in this process, one after another, without Ray.

    Trials pause and are promoted as in one slot; rules that stop trials at once are not applied.

    Args:
        threads: for computing on a CPU; 0: as many as torch uses by default.
        exclusive_threads: the same, for a job that all others wait for.
    """

    def __init__(self, threads: int = 0, exclusive_threads: int = 0) -> None:
        self._threads = threads, exclusive_threads

    def execute(self, run: StudyRun[Any], session: RunSession) -> Planner:
        from raykd.runtime.worker import Worker, WorkerContext

        planner = run.planner(session, slots=1)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        data = session.data.to(device)
        storage = Storage(session.folder.storage)
        allow_code = session.study.runs_code
        placement = Placement(device)
        worker = Worker(
            WorkerContext(storage, data, placement, *self._threads, allow_code=allow_code)
        )
        _announce(session, None, planner)
        try:
            while (job := planner.next()) is not None:
                for outcome in worker.outcomes(job):
                    if isinstance(outcome, JobFailure):
                        planner.job_failed(job.id, outcome)
                    else:
                        planner.report(job.id, outcome)
                        if _leaves(planner, job, outcome):
                            planner.leave(job.id)
                    if planner.has_ended(job.id):
                        worker.stop()
                        break
        finally:
            worker.stop()
        return planner


def _leaves(planner: Planner, job: AnyJob, report: Report) -> bool:
    """Return whether a searched trial pauses after an epoch."""
    if report.done or not isinstance(job, TrainJob) or job.role != "trial":
        return False
    return not planner.keeps(job.id, {**job.metrics, **report.metrics, "epoch": report.epoch})


def _code_to_send(session: RunSession) -> list[Path]:
    """Return the modules of the user's own that the study imports."""
    modules = modules_to_send(session.prepared.digests)
    large = [module for module in modules if is_too_large(module)]
    for module in large:
        text = f"{module} has more than {MAX_BYTES >> 20} MiB and is not sent to the nodes of the "
        text += "cluster; they must be able to import it, or move its code into a package"
        session.bus.publish(WarningIssued(text))
    return [module for module in modules if module not in large]


def _file_of(data: Dataset) -> str:
    """Return a file that the workers of a study decode themselves; empty if there is none."""
    train = data.train
    return os.path.join(train.root, train.paths[0]) if isinstance(train, FileSplit) else ""


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
    cluster, rates = measure_sharing(session.study, session.signature, session.data, nodes)
    if rates:
        save_rates(file, nodes, rates)
        bus.publish(GpuSharingMeasured(rates, best_count(rates)))
        metrics = {f"images_per_second_{count}_a_gpu": rate for count, rate in rates.items()}
        bus.publish(Note(None, {"trials_a_gpu": str(best_count(rates))}, metrics))
    return cluster
