"""Ray Train's side of a slot: one long-lived worker group that serves trial after trial.

Every rank runs `serve`.  Rank 0 talks to the slot through its mailbox and passes each command on
to the other ranks; all ranks then train in lock step, one epoch a command.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist

from raykd.data import Dataset, Placement
from raykd.models import Model
from raykd.models.compression import inherited
from raykd.models.normalization import like, to_metadata
from raykd.runtime.channel import Command, WorkerEnd
from raykd.runtime.jobs import Assignment
from raykd.storage import Storage
from raykd.study.config import Study, read_study
from raykd.study.teachers import teachers_of
from raykd.training.build import task_of
from raykd.training.checkpoint import dump_weights
from raykd.training.log_file import TrainingLog, raised_at
from raykd.training.metrics import Diverged, all_reduce_sum, autocast_for, evaluate_split
from raykd.training.normalization import training_normalization
from raykd.training.output_check import output_signs
from raykd.training.stored_networks import delivered, load_stored_network
from raykd.training.teacher_cache import (
    Build,
    CacheStore,
    Description,
    Outputs,
    TeacherHandle,
    open_cached_outputs,
)
from raykd.training.trainer import Training

POLL_S = 20.0
"""How often idle ranks exchange a sign of life; well below any collective's timeout."""

MOST_TEACHERS = 16
"""Networks that teach and stay loaded between trials; beyond, the one unused longest goes."""


BUILD_S = 2.0
"""How long a worker computes a teacher's outputs before it says how far it is."""


@dataclass(frozen=True)
class Bench:
    """What stays warm between trials on one rank.

    Attributes:
        threads: that compute on a CPU; 0: as many as torch takes by itself.
        sole_threads: the same, for a training that all other slots wait for.
    """

    storage: Storage
    data: Dataset
    device: torch.device
    rank: int
    world: int
    threads: int = 0
    sole_threads: int = 0

    def take_threads(self, *, sole: bool) -> None:
        """Compute with as many threads as this training may use."""
        count = self.sole_threads if sole else self.threads
        if count and count != torch.get_num_threads():
            torch.set_num_threads(count)


class Seat:
    """One rank's seat: it holds at most one training at a time."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.assignment: Assignment | None = None
        self.training: Training | None = None
        self._teachers: dict[str, torch.nn.Module] = {}
        self._outputs: dict[str, Outputs] = {}
        self._build: Build | None = None
        self._log: TrainingLog | None = None
        self._failed = False
        self._imported = 0
        """How many modules there were when they were last taken out of collections."""

    def open_log(self, assignment: Assignment) -> None:
        """Begin the log of a training; the one before is closed."""
        self._close_log()
        if assignment.folder:
            bench = self.bench
            self._log = TrainingLog(bench.storage, assignment.log_file(bench.rank))

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Write into the training's log what is printed, and the traceback of what is raised."""
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
            self._log.close(keep=self._failed or self.bench.rank == 0)
        self._log, self._failed = None, False

    def start(self, assignment: Assignment) -> dict[str, Any]:
        """Make the training ready; goes on from its saved state where there is one."""
        self.stop()
        self.assignment = assignment
        self.bench.take_threads(sole=assignment.sole)
        if assignment.measures is not None or assignment.probe is not None:
            return {"epoch": 0, "history": []}
        study = read_study(assignment.study)
        if assignment.build is not None:
            self._build = self._building(study, assignment, assignment.build)
            return {"epoch": 0, "history": []}
        bench = self.bench
        self.training = Training(
            study,
            bench.data,
            seed=assignment.seed,
            teacher=self._at_hand(study, assignment),
            placement=Placement(bench.device, bench.rank, bench.world),
        )
        saved = bench.storage.read(assignment.state_file)
        if saved is not None:
            self.training.load_state(
                torch.load(io.BytesIO(saved), map_location=bench.device, weights_only=True)
            )
        return {"epoch": self.training.epoch, "history": list(self.training.history)}

    def epoch(self) -> dict[str, Any]:
        """Train one epoch, put its state away, and finish the training after its last."""
        training, assignment = self.training, self.assignment
        first_step = time.time()
        if assignment is not None and assignment.measures is not None:
            return self._measure(assignment, assignment.measures, first_step)
        if assignment is not None and assignment.probe is not None:
            return self._probed(assignment, assignment.probe, first_step)
        if self._build is not None:
            return self._advance(self._build, first_step)
        assert training is not None and assignment is not None, "epoch before start"
        if training.epoch < training.epochs:
            training.run_epoch()
            self._save(training, assignment)
        metrics = dict(training.history[-1])
        done = training.epoch >= training.epochs
        if done:
            metrics |= self._finish(training, assignment)
        return {
            "epoch": training.epoch,
            "metrics": metrics,
            "done": done,
            "clock": {"first_step": first_step, "end": time.time()},
        }

    def stop(self) -> dict[str, Any]:
        """Drop the training and all it held."""
        if self.assignment is None:
            return {}
        self._close_log()
        self.training = None
        self.assignment = None
        self._build = None
        gc.collect()
        if len(sys.modules) != self._imported:
            # What was imported stays for good: later collections need not walk through it.
            gc.freeze()
            self._imported = len(sys.modules)
        if self.bench.device.type == "cuda":
            torch.cuda.empty_cache()
        if "torch._dynamo" in sys.modules:  # nothing was compiled where it is not even imported
            torch.compiler.reset()
        return {}

    def _measure(self, assignment: Assignment, file: str, began: float) -> dict[str, Any]:
        """Evaluate a network that is there already."""
        study = read_study(assignment.study)
        network = self._network(study.student.model, file)
        metrics = self._output_signs(network, study)
        for split in ("val", "test"):
            metrics |= self._evaluated(network, study, split)
        clock = {"first_step": began, "end": time.time()}
        return {"epoch": 0, "metrics": metrics, "done": True, "clock": clock}

    def _probed(
        self, assignment: Assignment, probe: Mapping[str, Any], began: float
    ) -> dict[str, Any]:
        """Look at a teacher and a student that has only begun to learn; all ranks do the same."""
        from raykd.training.layer_probes import answer, question_of

        study, without = read_study(assignment.study), read_study(probe["without"])
        model = teachers_of(study)[0].model
        own = replace(assignment, teachers=tuple(probe["without_teachers"]))
        found = answer(
            question_of(probe, study.knowledge),
            without,
            self.bench.data,
            seed=assignment.seed,
            teacher=self._network(model, assignment.teachers[0]),
            teachers=self._at_hand(without, own),
            trained=self._network(None, probe["trained"]) if probe["trained"] else None,
            device=self.bench.device,
        )
        clock = {"first_step": began, "end": time.time()}
        return {"epoch": 0, "metrics": {"found": found}, "done": True, "clock": clock}

    def _evaluated(
        self, network: torch.nn.Module, study: Study, split: Literal["val", "test"]
    ) -> dict[str, float]:
        bench = self.bench
        return evaluate_split(
            network,
            bench.data,
            split,
            batch_size=study.train.batch_size,
            autocast=autocast_for(study.train.precision, bench.device),
            placement=Placement(bench.device, bench.rank, bench.world),
        )

    def _output_signs(self, network: torch.nn.Module, study: Study) -> dict[str, float]:
        """See that a network that teaches gives logits; every rank looks at the same samples."""
        device = self.bench.device
        autocast = autocast_for(study.train.precision, device)
        return output_signs(network, self.bench.data, device=device, autocast=autocast)

    def _at_hand(self, study: Study, assignment: Assignment) -> list[TeacherHandle]:
        """The teachers of a training, each with its kept outputs where there are any."""
        models = [prepared.model for prepared in teachers_of(study)]
        if len(assignment.teachers) > len(models):  # the last is what the student inherits from
            models.append(study.student.model.origin)
        keys = (*assignment.outputs, *[""] * len(models))[: len(models)]
        return [
            TeacherHandle(partial(self._network, model, file), self._kept(study, key))
            for model, file, key in zip(models, assignment.teachers, keys, strict=True)
        ]

    def _kept(self, study: Study, key: str) -> Outputs | None:
        """A teacher's outputs, which stay open between trials; every rank agrees on them."""
        if not key:
            return None
        if key not in self._outputs:
            bench = self.bench
            found = open_cached_outputs(
                CacheStore(bench.storage),
                key,
                bench.data,
                device=bench.device,
                folder=study.cache.folder,
                limit=study.cache.limit_gb * 1e9,
            )
            there = torch.tensor([float(found is not None)], device=bench.device)
            if all_reduce_sum(there, bench.world).item() < bench.world or found is None:
                return None
            self._outputs[key] = found
        found = self._outputs[key] = self._outputs.pop(key)
        if len(self._outputs) > MOST_TEACHERS:
            del self._outputs[next(iter(self._outputs))]
        return found

    def _building(self, study: Study, assignment: Assignment, build: Mapping[str, Any]) -> Build:
        bench, teacher = self.bench, int(build["about"]["teacher"])
        model = teachers_of(study)[teacher].model
        return Build(
            Description.from_plain(build["description"]),
            study,
            partial(self._network, model, assignment.teachers[0]),
            bench.data,
            task_of(bench.data),
            CacheStore(bench.storage),
            about=build["about"],
            device=bench.device,
            share=build["share"] + build["shares"] * bench.rank,
            shares=build["shares"] * bench.world,
        )

    def _advance(self, build: Build, began: float) -> dict[str, Any]:
        """Compute a few shards of a teacher's outputs; the last rank to end its share ends it."""
        counts = torch.tensor([build.advance(BUILD_S), build.total], device=self.bench.device)
        left, total = all_reduce_sum(counts, self.bench.world).tolist()
        if not left and self.bench.rank == 0:
            build.finish()
        clock = {"first_step": began, "end": time.time()}
        metrics = {"shards": float(total - left)}
        return {"epoch": total - left, "metrics": metrics, "done": not left, "clock": clock}

    def _network(self, model: Model | None, file: str) -> torch.nn.Module:
        """A network that was put away: its weights for `model`, or the whole of it."""
        if file not in self._teachers:
            content = self.bench.storage.read(file)
            if content is None:
                raise FileNotFoundError(
                    f"the teacher's weights {file} are not below {self.bench.storage.root}; every "
                    "node must reach that folder"
                )
            network = load_stored_network(file, content, model, self.bench.data)
            self._teachers[file] = network.to(self.bench.device)
        network = self._teachers[file] = self._teachers.pop(file)  # the last used is the last
        if len(self._teachers) > MOST_TEACHERS:
            del self._teachers[next(iter(self._teachers))]
        return network

    def _save(self, training: Training, assignment: Assignment) -> None:
        if self.bench.rank == 0:
            buffer = io.BytesIO()
            torch.save(training.state(), buffer)
            self.bench.storage.write(assignment.state_file, buffer.getvalue())

    def _finish(self, training: Training, assignment: Assignment) -> dict[str, float]:
        metrics = training.evaluate("test") if assignment.test else {}
        model, kept = training.study.student.model, training.student
        if model.origin is not None and len(assignment.teachers) > len(teachers_of(training.study)):
            metrics |= inherited(kept)
        if assignment.role != "teacher" and (assignment.test or assignment.keep):
            kept = like(model.deployed(kept), kept)
        if assignment.role == "teacher":
            metrics |= self._output_signs(training.student, training.study)
        elif model.runs_code:  # a student may mask classes by infinite logits
            with contextlib.suppress(ValueError):
                metrics |= self._output_signs(training.student, training.study)
        if kept is not training.student:
            metrics |= self._converted(kept, training.study, metrics)
        if assignment.keep is not None and self.bench.rank == 0:
            if assignment.keep.endswith(".safetensors"):
                content = dump_weights(kept, self._metadata(kept, assignment))
            else:
                buffer = io.BytesIO()
                told = {**training.history[-1], **metrics}
                measured = {k: v for k, v in told.items() if k.startswith(("val_", "test_"))}
                torch.save(delivered(kept.to("cpu").eval(), self.bench.data, measured), buffer)
                kept.to(self.bench.device)
                content = buffer.getvalue()
            if assignment.role == "teacher":  # another study may read the one that is there
                self.bench.storage.create(assignment.keep, content)
            else:
                self.bench.storage.write(assignment.keep, content)
        return metrics

    def _metadata(self, network: torch.nn.Module, assignment: Assignment) -> dict[str, str]:
        """What is written beside the weights of a network that teaches."""
        normalization = training_normalization(network, self.bench.data)
        known = {} if normalization is None else to_metadata(normalization)
        names = json.dumps(self.bench.data.class_names)
        return {"id": assignment.id, "raykd.classes": names, **known}

    def _converted(
        self, network: torch.nn.Module, study: Study, simulated: Mapping[str, float]
    ) -> dict[str, float]:
        """Size and test figures of what a student was converted to, and the student's own."""
        metrics = {"int8_bytes": float(sum(one.nbytes for one in network.state_dict().values()))}
        if "test_accuracy" not in simulated:
            return metrics
        metrics |= {f"simulated_{n}": v for n, v in simulated.items() if n.startswith("test_")}
        return metrics | self._evaluated(network, study, "test")


def serve(setup: Mapping[str, Any]) -> None:
    """The training function of a slot's `TorchTrainer`.

    Args:
        setup: `address` of the slot's mailbox, `storage` root, `data` (a Ray object holding
            `Dataset.arrays()`), `threads` and `gpus` per worker, and the `slots` there are.
    """
    import ray.train

    context = ray.train.get_context()
    seat = Seat(_bench(setup, context.get_world_rank(), context.get_world_size()))
    mailbox = WorkerEnd(setup["address"]) if seat.bench.rank == 0 else None
    others = _control_group(seat.bench.world)
    while True:
        command = _next_command(mailbox, others)
        if command is None:
            continue
        if command.verb == "exit":
            return
        body = obey(seat, command)
        if mailbox is not None:
            mailbox.answer(command, body)
        if body.get("done"):
            seat.stop()  # while the driver thinks what is next


def obey(seat: Seat, command: Command) -> dict[str, Any]:
    """Carry out one command; a trial's own exception is its answer, not the group's end.

    With several ranks only a failure that every rank sees alike can be answered: after any other
    the ranks are out of step, so the reason is put away and the group starts again.
    """
    assignment = seat.assignment
    if command.verb == "start":
        seat.stop()
        assignment = Assignment.from_plain(command.body)
        seat.open_log(assignment)
    try:
        with seat.recording():
            return _carried_out(seat, command, assignment)
    except Exception as error:
        failure = describe(error)
        alike = seat.bench.world == 1 or isinstance(error, Diverged)
        if not alike or _is_sticky(error):
            if assignment is not None:
                _put_away(seat.bench.storage, assignment, failure, error)
            raise
    # Only now: while it is handled, the exception holds the failed training's tensors.
    seat.stop()
    return failure


def _carried_out(seat: Seat, command: Command, assignment: Assignment | None) -> dict[str, Any]:
    if command.verb == "start" and assignment is not None:
        return seat.start(assignment)
    return seat.epoch() if command.verb == "epoch" else seat.stop()


def _put_away(
    storage: Storage, assignment: Assignment, failure: Mapping[str, Any], error: Exception
) -> None:
    """Write down why the group ends.  That another rank went away is only said where that rank did
    not write its own reason."""
    if _is_secondhand(error) and storage.exists(assignment.failure_file):
        return
    text = f"{failure['reason']}\n{failure['raised_at']}".rstrip()
    storage.write(assignment.failure_file, text.encode())


def describe(error: Exception) -> dict[str, Any]:
    """A trial's failure as an answer: `reason` in one line, `traceback` for the log, and where the
    user's own code raised it (`raised_at`, "FILE:LINE" or empty)."""
    own = raised_at(error)
    told = isinstance(error, (Diverged, torch.OutOfMemoryError))
    told = told or (isinstance(error, ValueError) and not own)  # raykd's own messages
    reason = str(error) if told else f"{type(error).__name__}: {error}"
    return {
        "failed": True,
        "reason": " ".join(reason.split()) or type(error).__name__,
        "traceback": "".join(traceback.format_exception(error)),
        "raised_at": own,
    }


def _bench(setup: Mapping[str, Any], rank: int, world: int) -> Bench:
    import ray
    from ray.train.torch import get_device

    # Without processes of its own Ray Train takes any GPU that it sees.
    device = get_device() if setup["gpus"] else torch.device("cpu")
    threads = max(1, int(setup["threads"])) if device.type == "cpu" else 0
    alone = min(threads * int(setup["slots"]), _processors()) if world == 1 else 0
    data = Dataset.from_arrays(ray.get(setup["data"])).to(device)
    storage = Storage(setup["storage"])
    bench = Bench(storage, data, device, rank, world, threads, max(threads, alone))
    bench.take_threads(sole=False)
    return bench


def _processors() -> int:
    """How many processors of this node Ray gives away."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    return int(node["Resources"].get("CPU", 1))


def _control_group(world: int) -> dist.ProcessGroup | None:
    """A gloo group for passing commands on, apart from the group that carries gradients."""
    if world == 1:
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=POLL_S * 15))  # type: ignore[return-value]


def _next_command(mailbox: WorkerEnd | None, others: dist.ProcessGroup | None) -> Command | None:
    """The next command on every rank; None is a sign of life while there is nothing to do."""
    command = None
    if mailbox is not None:
        try:
            command = mailbox.next(POLL_S)
        except (EOFError, OSError):
            command = Command(0, "exit", {})  # the slot is gone, and with it our work
    if others is None:
        return command
    passed: list[Command | None] = [command]
    dist.broadcast_object_list(passed, src=0, group=others)
    return passed[0]


def _is_sticky(error: Exception) -> bool:
    """Whether the process cannot use its GPU any more."""
    text = str(error)
    return "CUDA error" in text and not isinstance(error, torch.OutOfMemoryError)


def _is_secondhand(error: Exception) -> bool:
    """Whether an error only says that another rank is gone."""
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "[gloo]")
    return isinstance(error, RuntimeError) and any(sign in text for sign in (*signs, "NCCL"))
