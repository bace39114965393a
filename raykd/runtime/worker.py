"""Worker of a slot: a long-lived process of Ray Train that runs job after job.

Every rank runs `serve`.  Rank 0 receives the slot's requests through its channel and broadcasts
them to the other ranks.  All ranks train in lockstep, one epoch a request.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist

from raykd.data import Dataset, Placement
from raykd.models import Model
from raykd.models.compression import inheritance_metrics
from raykd.models.normalization import copy_normalization, to_metadata
from raykd.runtime.channel import (
    Address,
    ChannelClient,
    ContinueJob,
    Exit,
    Request,
    StartJob,
)
from raykd.runtime.cluster import SlotPlan
from raykd.runtime.jobs import (
    OUT_OF_MEMORY,
    AnyJob,
    CacheJob,
    Clock,
    EvaluateJob,
    IdleJob,
    Job,
    JobFailure,
    Metrics,
    ProbeJob,
    Report,
    TrainJob,
)
from raykd.runtime.node_drain import NodeDrain
from raykd.schemes import LiveTeacher
from raykd.schemes.base import origin_of
from raykd.storage import Storage
from raykd.study.config import Study, read_study
from raykd.tasks import Classification
from raykd.training.build import signature_of
from raykd.training.checkpoint import dump_network, dump_weights
from raykd.training.log_file import TrainingLog, raised_at
from raykd.training.memory_format import to_device
from raykd.training.metrics import (
    Diverged,
    all_reduce_sum,
    autocast_for,
    count_class_hits,
    evaluate_split,
)
from raykd.training.normalization import training_normalization
from raykd.training.out_of_memory import is_out_of_memory
from raykd.training.output_check import check_outputs
from raykd.training.state_file import StateFiles
from raykd.training.stored_networks import (
    load_stored_network,
    save_network,
    with_preprocessing,
)
from raykd.training.teacher_cache import (
    CacheBuilder,
    CachedOutputs,
    CacheStore,
    TeacherHandle,
    open_cached_outputs,
)
from raykd.training.teacher_cache.builder import provenance_of
from raykd.training.teacher_responses import TeacherResponses
from raykd.training.trainer import Training
from raykd.user_code import UserCode

if TYPE_CHECKING:
    from ray import ObjectRef

POLL_S = 20.0
"""Seconds between two signs of life of idle ranks; well below any collective's timeout."""

HUNG_S = 10.0
"""Seconds in which a rank must answer after a collective operation has timed out."""

MAX_LOADED_TEACHERS = 16
MAX_CLASSES = 40
"""Maximum number of classes whose correct predictions are counted."""
"""Teachers' networks that stay loaded between jobs; the least recently used ones are dropped."""

CACHE_REPORT_S = 2.0
"""Seconds of computing a cache entry between two reports."""


@dataclass(frozen=True)
class WorkerContext:
    """Resources of one rank that stay the same for all jobs.

    Attributes:
        storage: root of the study's files.
        data: on the device.
        placement: device and rank.
        threads: for computing on a CPU; 0: as many as torch uses by default.
        exclusive_threads: the same, for a job that all other slots wait for.
        allow_code: whether whole networks may run code of their files.
    """

    storage: Storage
    data: Dataset
    placement: Placement
    threads: int = 0
    exclusive_threads: int = 0
    allow_code: bool = False

    @property
    def device(self) -> torch.device:
        """Device to compute on."""
        return torch.device(self.placement.device)

    @property
    def rank(self) -> int:
        """Number of this rank."""
        return self.placement.rank

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.placement.world_size

    def set_threads(self, *, exclusive: bool) -> None:
        """Compute with as many threads as the job may use."""
        count = self.exclusive_threads if exclusive else self.threads
        if count and count != torch.get_num_threads():
            torch.set_num_threads(count)


class Worker:
    """One rank: runs at most one job at a time.

    Attributes:
        job: the present one.
        training: of the present job, if it trains.
    """

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.job: AnyJob | None = None
        self.training: Training | None = None
        self._reports: Iterator[Report] | None = None
        self._teachers: dict[str, torch.nn.Module] = {}
        self._outputs: dict[str, CachedOutputs] = {}
        self._responses: dict[str, TeacherResponses] = {}
        self._log: TrainingLog | None = None
        self._failed = False
        self._imported = 0
        """Number of modules when objects were last taken out of garbage collections."""

    def outcomes(self, job: AnyJob) -> Iterator[Report | JobFailure]:
        """Run a whole job, and yield each of its reports."""
        action: StartJob | ContinueJob = StartJob(job)
        while True:
            outcome = self.handle(action)
            yield outcome
            if isinstance(outcome, JobFailure) or outcome.done:
                return
            action = ContinueJob()

    def handle(self, action: StartJob | ContinueJob) -> Report | JobFailure:
        """Run a job up to its next report.  An error of the job is its outcome.

        With several ranks, only a failure that every rank sees can be an outcome.  After any other
        the ranks are out of step: the reason is saved, and the group starts again.
        """
        if isinstance(action, StartJob):
            self._start(action.job)
        assert self.job is not None and self._reports is not None, "no job was started"
        try:
            with self._record_log():
                return next(self._reports)
        except Exception as error:
            failure = failure_of(error)
            all_ranks_see_it = self.context.world == 1 or isinstance(error, Diverged)
            if not all_ranks_see_it or _breaks_gpu(error):
                _save_failure(self.context.storage, self.job, failure, error)
                raise
        # Only now: while it is handled, the exception holds the failed training's tensors.
        self.stop()
        return failure

    def run(self, job: AnyJob) -> Iterator[Report]:
        """Run a job from its start or from its saved state."""
        match job:
            case TrainJob():
                return self._train(job)
            case EvaluateJob():
                return self._evaluate(job)
            case ProbeJob():
                return self._probe(job)
            case CacheJob():
                return self._build_cache(job)
            case IdleJob():
                raise ValueError("an idle job needs no worker")

    def stop(self) -> None:
        """Drop the job and everything that only it needs."""
        if self.job is None:
            return
        self._close_log()
        self.job = self.training = self._reports = None
        gc.collect()
        if len(sys.modules) != self._imported:
            # Imported modules stay for good: later collections need not walk through them.
            gc.freeze()
            self._imported = len(sys.modules)
        if self.context.device.type == "cuda":
            torch.cuda.empty_cache()
        if "torch._dynamo" in sys.modules:  # where it is not imported, nothing was compiled
            torch.compiler.reset()

    def _start(self, job: AnyJob) -> None:
        self.stop()
        self.job, self._reports = job, self.run(job)
        if job.folder:
            self._log = TrainingLog(self.context.storage, job.log_file(self.context.rank))
        self.context.set_threads(exclusive=isinstance(job, TrainJob) and job.exclusive)

    @contextlib.contextmanager
    def _record_log(self) -> Iterator[None]:
        """Write the job's output, and the traceback of its error, into its log."""
        if self._log is None:
            yield
            return
        with self._log.recording():
            try:
                yield
            except Exception as error:
                self._failed = True
                self._log.failed(error)
                raise

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close(keep=self._failed or self.context.rank == 0)
        self._log, self._failed = None, False

    # One generator for each kind of job

    def _train(self, job: TrainJob) -> Iterator[Report]:
        """Train, and save the state after each epoch."""
        states = StateFiles(self.context.storage, job.state_files, job.identity)
        self.training = training = self._resumed_training(job, states)
        history: tuple[Metrics, ...] = tuple(training.history)
        while True:
            first_step = time.time()
            if training.epoch < training.epochs:
                training.run_epoch()
                if self.context.rank == 0:
                    states.save(training.state())
            metrics = dict(training.history[-1])
            done = training.epoch >= training.epochs
            class_hits: tuple[int, ...] = ()
            if done:
                extra, class_hits = self._finish(training, job)
                metrics |= extra
            clock = Clock(first_step, time.time())
            yield Report(
                training.epoch,
                metrics,
                done,
                clock,
                history,
                warnings=states.take_notes(),
                class_hits=class_hits,
            )
            if done:
                return
            history = ()

    def _resumed_training(self, job: TrainJob, states: StateFiles) -> Training:
        """Return a training after its last saved epoch, or before the first one."""
        training = self._new_training(job)
        for state in states.load():
            try:
                training.load_state(state)
                break
            except (ValueError, KeyError, TypeError) as error:
                states.notes.append(f"the state after epoch {state['epoch']}: {error}")
                training = self._new_training(job)  # a part of it may be loaded
        if states.notes:
            at = f"continues after epoch {training.epoch}" if training.epoch else "starts over"
            states.notes[-1] += f"; the training {at}"
        return training

    def _new_training(self, job: TrainJob) -> Training:
        study = read_study(job.study)
        return Training(
            study,
            self.context.data,
            seed=job.seed,
            teacher=self._teachers_of(study, job.teachers, job.cache_keys),
            placement=self.context.placement,
        )

    def _evaluate(self, job: EvaluateJob) -> Iterator[Report]:
        """Evaluate a network on the validation and test splits."""
        first_step = time.time()
        study = read_study(job.study)
        network = self._network(study.student.model, job.weights_file, study.student.input)
        metrics = self._output_signs(network, study)
        for split in ("val", "test"):
            metrics |= self._evaluate_split(network, study, split)
        yield Report(0, metrics, True, Clock(first_step, time.time()))

    def _probe(self, job: ProbeJob) -> Iterator[Report]:
        """Compare a teacher and a student that has only begun to learn; all ranks do the same."""
        from raykd.training.layer_probes import ProbedPairs, probe_layers

        first_step = time.time()
        design = job.design
        study, baseline = read_study(job.study), read_study(design.baseline)
        trained = design.trained_baseline
        spec = study.teacher_specs()[0]
        teacher = self._network(spec.model, job.teachers[0], spec.input)
        training = Training(
            baseline,
            self.context.data,
            seed=job.seed,
            teacher=self._teachers_of(baseline, design.baseline_teachers, ()),
            placement=Placement(self.context.device),
        )
        pairs = ProbedPairs(
            hints=design.hints,
            guided=design.guided,
            teacher_layers=design.teacher_layers,
            student_layers=design.student_layers,
            term=replace(study.knowledge[design.term], pairs=None),
            possible=design.possible,
            steps=design.steps,
            batches=design.batches,
            teacher_input=spec.input,
        )
        predictors = probe_layers(
            pairs,
            training,
            teacher=teacher,
            trained=self._network(None, trained, study.student.input) if trained else None,
        )
        yield Report(0, {}, True, Clock(first_step, time.time()), predictors=predictors)

    def _build_cache(self, job: CacheJob) -> Iterator[Report]:
        """Compute files of a cache entry; the last rank to finish its share ends the job."""
        context = self.context
        study = read_study(job.study)
        spec = study.teacher_specs()[job.teacher]

        def load_teacher() -> LiveTeacher:
            network = self._network(spec.model, job.weights_file, spec.input)
            signature = signature_of(context.data.as_input(spec.input))
            return LiveTeacher(to_device(network, context.device), job.entry.layers, signature)

        share, shares = job.share + job.shares * context.rank, job.shares * context.world
        build = CacheBuilder(
            job.entry,
            study,
            load_teacher,
            context.data,
            CacheStore(context.storage),
            Placement(context.device, share, shares),
        )
        done = False
        while not done:
            first_step = time.time()
            counts = torch.tensor(
                [build.advance(CACHE_REPORT_S), build.total], device=context.device
            )
            left, total = all_reduce_sum(counts, context.world).tolist()
            done = not left
            if done and context.rank == 0:
                build.finish(provenance_of(study, job.teacher, job.weights_file))
            metrics = {"shards": float(total - left)}
            yield Report(total - left, metrics, done, Clock(first_step, time.time()))

    # What the jobs share

    def _evaluate_split(
        self,
        network: torch.nn.Module,
        study: Study,
        split: Literal["val", "test"],
        teacher: TeacherResponses | None = None,
    ) -> dict[str, float]:
        """Evaluate a network on one split, shared among the ranks."""
        context = self.context
        return evaluate_split(
            network,
            context.data.as_input(study.student.input),
            split,
            task=study.learning_task,
            batch_size=study.train.batch_size,
            autocast=autocast_for(study.train.precision, context.device),
            placement=context.placement,
            teacher=teacher,
        )

    def _output_signs(self, network: torch.nn.Module, study: Study) -> dict[str, float]:
        """Check that a teacher gives logits; every rank checks the same samples."""
        device = self.context.device
        autocast = autocast_for(study.train.precision, device)
        data = self.context.data.as_input(study.student.input)
        return check_outputs(network, data, device=device, autocast=autocast)

    def _teachers_of(
        self, study: Study, files: Sequence[str], cache_keys: Sequence[str]
    ) -> list[TeacherHandle]:
        """Return the teachers of a training, each with its cached outputs if there are any."""
        specs = study.required_networks()
        keys = (*cache_keys, *[""] * len(specs))[: len(specs)]
        return [
            TeacherHandle(
                load := partial(self._network, spec.model, file, spec.input),
                self._cached_outputs(study, key),
                self._responses_of(file, load, spec.input),
            )
            for spec, file, key in zip(specs, files, keys, strict=True)
        ]

    def _responses_of(
        self, file: str, load: Callable[[], torch.nn.Module], input_name: str | None
    ) -> TeacherResponses:
        """Return the responses of a teacher on evaluated samples; they are kept between jobs."""
        if file not in self._responses:
            self._responses[file] = TeacherResponses(load, input_name)
        responses = self._responses[file] = self._responses.pop(file)
        if len(self._responses) > MAX_LOADED_TEACHERS:
            del self._responses[next(iter(self._responses))]
        return responses

    def _cached_outputs(self, study: Study, key: str) -> CachedOutputs | None:
        """Open a teacher's cached outputs; None unless every rank can read them.

        They stay open between jobs.
        """
        if not key:
            return None
        if key not in self._outputs:
            context = self.context
            outputs = open_cached_outputs(
                CacheStore(context.storage),
                key,
                context.data,
                device=context.device,
                folder=study.cache.folder,
                limit=study.cache.limit_gb * 1e9,
            )
            readable = torch.tensor([float(outputs is not None)], device=context.device)
            if all_reduce_sum(readable, context.world).item() < context.world or outputs is None:
                return None
            self._outputs[key] = outputs
        outputs = self._outputs[key] = self._outputs.pop(key)
        if len(self._outputs) > MAX_LOADED_TEACHERS:
            del self._outputs[next(iter(self._outputs))]
        return outputs

    def _network(self, model: Model | None, file: str, input_name: str | None) -> torch.nn.Module:
        """Load a saved network: its weights into `model`, or the whole of it.

        Args:
            model: of the weights.
            file: below the storage.
            input_name: input of the samples that it takes.
        """
        if file not in self._teachers:
            content = self.context.storage.read(file)
            if content is None:
                raise FileNotFoundError(
                    f"the teacher's weights {file} are not below {self.context.storage.root}; "
                    "every node must reach that folder"
                )
            context = self.context
            data = context.data.as_input(input_name)
            network = load_stored_network(file, content, model, data, allow_code=context.allow_code)
            self._teachers[file] = network.to(self.context.device)
        network = self._teachers[file] = self._teachers.pop(file)  # the most recent one is the last
        if len(self._teachers) > MAX_LOADED_TEACHERS:
            del self._teachers[next(iter(self._teachers))]
        return network

    def _class_hits(self, network: torch.nn.Module, study: Study, job: TrainJob) -> tuple[int, ...]:
        """Count the correct predictions for each class, of the trainings that a report compares."""
        context = self.context
        is_compared = job.test and job.role in ("replicate", "alone")
        is_classifier = isinstance(study.learning_task, Classification)
        if not (is_compared and is_classifier and len(context.data.class_names) <= MAX_CLASSES):
            return ()
        autocast = autocast_for(study.train.precision, context.device)
        data = context.data.as_input(study.student.input)
        return count_class_hits(network, data, autocast=autocast, placement=context.placement)

    def _finish(
        self, training: Training, job: TrainJob
    ) -> tuple[dict[str, float], tuple[int, ...]]:
        """Evaluate, deploy and save a trained network.

        Returns:
            metrics in addition to those of the last epoch, and the correct predictions for each
            class of the test split (empty if they are not counted).
        """
        study, network = training.study, training.student
        metrics = training.evaluate("test") if job.test else {}
        model = study.student.model
        inherits = origin_of(model, study.teacher_context()) is not None
        if inherits and len(job.teachers) > len(study.teacher_specs()):
            metrics |= inheritance_metrics(network)
        if job.role != "teacher" and (job.test or job.keep):
            network = copy_normalization(model.deployed(network), network)
        if job.role == "teacher":
            metrics |= self._output_signs(training.student, study)
        elif model.runs_code:  # a student may mask classes by infinite logits
            with contextlib.suppress(ValueError):
                metrics |= self._output_signs(training.student, study)
        if network is not training.student:
            metrics |= self._evaluate_deployed(network, training, metrics)
        if job.keep is not None and self.context.rank == 0:
            measured = {**training.history[-1], **metrics}
            self._save_network(network, job, job.keep, measured, training.data)
        return metrics, self._class_hits(network, study, job)

    def _evaluate_deployed(
        self, network: torch.nn.Module, training: Training, simulated: Mapping[str, float]
    ) -> dict[str, float]:
        """Measure the size of a deployed network and, if it was tested before, test it again.

        Args:
            network: the student as it is deployed.
            training: of the student.
            simulated: metrics of the student as it was trained.
        """
        metrics = {"int8_bytes": float(sum(part.nbytes for part in network.state_dict().values()))}
        if "test_loss" not in simulated:
            return metrics
        metrics |= {f"simulated_{n}": v for n, v in simulated.items() if n.startswith("test_")}
        teacher = training.reference
        return metrics | self._evaluate_split(network, training.study, "test", teacher)

    def _save_network(
        self, network: torch.nn.Module, job: TrainJob, file: str, metrics: Metrics, data: Dataset
    ) -> None:
        """Save a teacher's weights with their metadata, or a whole student.

        Args:
            network: trained.
            job: of the training.
            file: below the storage.
            metrics: of the network.
            data: as the network takes them.
        """
        context = self.context
        if file.endswith(".safetensors"):
            content = dump_weights(network, self._metadata(network, job, data))
        else:
            measured = {k: v for k, v in metrics.items() if k.startswith(("val_", "test_"))}
            whole = with_preprocessing(network.to("cpu").eval(), data, measured)
            content = dump_network(whole)
            network.to(context.device)
        if job.role == "teacher":
            save_network(context.storage, file, content)
        else:
            context.storage.write(file, content)

    def _metadata(self, network: torch.nn.Module, job: TrainJob, data: Dataset) -> dict[str, str]:
        """Return the metadata of a teacher's weights."""
        normalization = training_normalization(network, data)
        metadata = {} if normalization is None else to_metadata(normalization)
        names = json.dumps(data.class_names)
        return {"id": job.id, "raykd.classes": names, **metadata}


@dataclass(frozen=True)
class WorkerSetup:
    """Arguments of `serve`.

    Attributes:
        address: of the slot's channel.
        storage: root of the study's files.
        data: Ray object that holds `Dataset.arrays()`.
        plan: number of the slots, and resources of each worker.
        allow_code: whether whole networks may run code of their files.
        code: files of code that the study names.
    """

    address: Address
    storage: str
    data: ObjectRef
    plan: SlotPlan
    allow_code: bool
    code: UserCode | None = None


def serve(config: Mapping[str, WorkerSetup]) -> None:
    """Serve a slot's requests until it ends; the training function of its `TorchTrainer`.

    Args:
        config: holds "setup".
    """
    import ray.train

    setup, train_context = config["setup"], ray.train.get_context()
    rank, world = train_context.get_world_rank(), train_context.get_world_size()
    worker = Worker(_context(setup, rank, world))
    client = ChannelClient(setup.address) if rank == 0 else None
    if client is not None and world > 1:  # a single worker is watched by its own process
        client.report_progress()
    group = _control_group(world)
    drain = NodeDrain()
    while True:
        request = _next_request(client, group)
        if request is None:
            continue
        if isinstance(request.action, Exit):
            return
        with _name_hung_ranks(worker, group):
            outcome = worker.handle(request.action)
        if client is not None:
            client.respond(request, outcome)
        if isinstance(outcome, Report) and outcome.done:
            worker.stop()  # while the driver decides what is next
        if group is not None:  # a worker alone is in the slot's process, which checks it
            drain.check()  # Ray Train then starts the group on other nodes


def failure_of(error: Exception) -> JobFailure:
    """Return the failure that an error of a job means."""
    place = raised_at(error)
    is_clear = isinstance(error, Diverged)
    is_clear = is_clear or (isinstance(error, ValueError) and not place)  # raykd's own messages
    reason = str(error) if is_clear else f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        reason = f"{OUT_OF_MEMORY}: {str(error) or type(error).__name__}"
    return JobFailure(
        reason=" ".join(reason.split()) or type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
        raised_at=place,
    )


def _save_failure(storage: Storage, job: Job, failure: JobFailure, error: Exception) -> None:
    """Save the reason why the group ends.

    An error that only says that another rank is gone is no reason: that rank has saved its own, or
    it was killed, and the job continues in a new group.
    """
    if _is_secondary(error):
        return
    text = f"{failure.reason}\n{failure.raised_at}".rstrip()
    storage.write(job.failure_file, text.encode())


def _context(setup: WorkerSetup, rank: int, world: int) -> WorkerContext:
    import ray
    from ray.train.torch import get_device

    if setup.code is not None:
        setup.code.register()
    # In the slot's own process Ray Train would take any GPU that it sees.
    device = get_device() if setup.plan.gpus else torch.device("cpu")
    threads = max(1, int(setup.plan.cpus)) if device.type == "cpu" else 0
    exclusive = min(threads * setup.plan.slots, _ray_cpus()) if world == 1 else 0
    data = Dataset.from_arrays(ray.get(setup.data)).to(device)
    storage = Storage(setup.storage)
    placement = Placement(device, rank, world)
    context = WorkerContext(
        storage, data, placement, threads, max(threads, exclusive), setup.allow_code
    )
    context.set_threads(exclusive=False)
    return context


def _ray_cpus() -> int:
    """Return the number of CPUs that Ray assigns on this node."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    return int(node["Resources"].get("CPU", 1))


def _control_group(world: int) -> dist.ProcessGroup | None:
    """Create a gloo group for requests, separate from the group of the gradients."""
    if world == 1:
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=POLL_S * 15))  # type: ignore[return-value]


def _next_request(client: ChannelClient | None, group: dist.ProcessGroup | None) -> Request | None:
    """Return the next request on every rank; None as a sign of life while there is none."""
    request = None
    if client is not None:
        try:
            request = client.receive(POLL_S)
        except (EOFError, OSError):
            request = Request(0, Exit())  # the slot is gone
    if group is None:
        return request
    broadcast: list[Request | None] = [request]
    dist.broadcast_object_list(broadcast, src=0, group=group)
    return broadcast[0]


@contextlib.contextmanager
def _name_hung_ranks(worker: Worker, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Save the failure of a job in which ranks waited too long for one of them.

    The ranks that still answer meet at a barrier of the requests' group; it names the others.
    """
    job = worker.job
    try:
        yield
    except RuntimeError as error:
        job = worker.job or job
        if group is not None and job is not None and _is_timeout(error):
            storage = worker.context.storage
            if hung := _hung_ranks(group):
                reason = f"{hung} of {worker.context.world} hung: the other ranks waited for it"
                storage.write(job.failure_file, reason.encode())
        raise


def _hung_ranks(group: dist.ProcessGroup) -> str:
    """Return the ranks that do not reach a barrier, "rank 1"; empty if all do."""
    try:
        dist.monitored_barrier(group, timedelta(seconds=HUNG_S), wait_all_ranks=True)
    except RuntimeError as error:
        pattern = r"Ranks ([\d, ]+) failed to pass|send/recv from rank (\d+)"
        match = re.search(pattern, str(error))
        # A rank other than 0 cannot tell whether 0 hangs, or has left because it found another.
        if match is not None and (match[1] or "Connection closed" not in str(error)):
            return f"rank {match[1] or match[2]}"
    return ""


def _is_timeout(error: Exception) -> bool:
    """Return whether a collective operation waited for another rank for too long."""
    text = str(error)
    return "Timed out waiting" in text or "Watchdog caught collective operation timeout" in text


def _breaks_gpu(error: Exception) -> bool:
    """Return whether the process cannot use its GPU after an error."""
    text = str(error)
    return "CUDA error" in text and not isinstance(error, torch.OutOfMemoryError)


def _is_secondary(error: Exception) -> bool:
    """Return whether an error only says that another rank is gone."""
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "[gloo]")
    return isinstance(error, RuntimeError) and any(sign in text for sign in (*signs, "NCCL"))
