"""Measure how easy raykd's code is to read, and check it against limits.

    python benchmarks/readability.py [--details]

Prints one line for each measure: its value, its limit, and the goal if the limit is not there yet.
A limit may only be lowered.  Exits with 1 if a value is above its limit.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import raykd

if TYPE_CHECKING:
    from raykd.models import Signature
    from raykd.storage import Storage
    from raykd.study.open_study import OpenStudy
    from raykd.tracking.journal import EventBus
    from raykd.tuning.search_planner import SearchPlanner
    from raykd.tuning.teacher_store import TeacherStore

PACKAGE = Path(raykd.__file__).parent

QUESTION_WORDS = frozenset(
    {"what", "where", "whether", "why", "how", "those", "which", "who", "whose"}
)
"""First words that a docstring must not have."""

PHRASES = (
    *(
        "anew",
        "so many",
        "(go|goes|gone|going) on( with)?",
        "mend(s|ed|ing)?",
        "told",
        "foret[eo]l\\w+",
    ),
    *("nothing but", "hangs? on", "thrown away", "said of", "(is|are) not fit", "can(not)? be had"),
    *(
        "(lie|lay)s? beside",
        "stands? (twice|in|at|beside|there)",
        "stood",
        "at hand",
        "ma[dk]e ready",
    ),
    *(
        "whoever",
        "nobody",
        "thereby",
        "dear",
        "owes?",
        "owed",
        "in vain",
        "see that",
        "dissect\\w*",
    ),
    *("obeys?", "forebears?", "pupils?", "has to be seen", "of whom", "what a .{1,20} says"),
    *("keeps? the books?", "is of no use", "whence", "hitherto", "the like"),
    *("knows nothing of", "has it that", "takes? up", "took up", "let alone", "pours?", "be it"),
    *("a walk over", "is at home", "by and by", "a mistake of raykd's own"),
    # British spelling
    *("colour\\w*", "behaviour", "(normal|optim|factor|quant|initial)is(e|ed|er|ers|es|ing|ation)"),
)
"""Patterns of phrases that texts must not contain."""

PHRASE = re.compile(rf"\b({'|'.join(PHRASES)})\b", re.IGNORECASE)

NAMES = frozenset(
    {
        *("found", "held", "told", "one", "own", "said", "again", "given", "shown", "owed", "got"),
        *("taken", "made", "wanted", "asked", "others", "what", "where", "why", "how", "who"),
        *("whose", "heard", "seen", "kept", "gone", "begun", "known"),
    }
)
"""Names that functions, classes, parameters and variables must not have."""


@dataclass(frozen=True)
class Measure:
    """One measured value with its limit.

    Attributes:
        name: what is measured.
        value: measured value.
        limit: largest value allowed now.
        goal: largest value allowed in the end.
        details: places that contribute to the value, worst first.
    """

    name: str
    value: float
    limit: float
    goal: float
    details: tuple[str, ...] = ()


LIMITS: dict[str, tuple[float, float]] = {
    "docstrings that begin with a question word, %": (0, 0),
    "avoided phrases": (0, 0),
    "avoided names": (0, 0),
    "uses of Any per 1,000 lines of code": (14, 14),
    "parameters of the largest constructor": (6, 6),
    "lines of the longest function": (56, 40),
    "lines of the largest file": (780, 450),
    "files to follow a batch": (18, 18),
    "files to follow a study": (48, 47),
    "shapes of dictionaries that a metric passes": (2, 2),
}
"""Limit of each measure today, and the goal."""


@dataclass(frozen=True)
class Source:
    """A Python file of the package."""

    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        return tuple(ast.walk(ast.parse(self.text)))

    def place(self, node: Any) -> str:
        """Return the file and line of a node, for messages."""
        return f"{self.path.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 1)}"

    @property
    def code_lines(self) -> int:
        """Number of lines that are not blank, a comment or a docstring."""
        doc_lines: set[int] = set()
        for node in self.nodes:
            if isinstance(node, ast.Expr) and _is_text(node.value):
                doc_lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        return sum(
            bool(line.strip()) and not line.strip().startswith("#") and number not in doc_lines
            for number, line in enumerate(self.text.splitlines(), start=1)
        )


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def question_docstrings(sources: list[Source]) -> tuple[float, list[str]]:
    """Return the share in % of docstrings whose first word is a question word."""
    count, places = 0, []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for source in sources:
        for node in source.nodes:
            doc = ast.get_docstring(node) if isinstance(node, documented) else None
            if doc:
                count += 1
                first = re.match(r"\W*(\w+)", doc)
                if first and first[1].lower() in QUESTION_WORDS:
                    places.append(f"{source.place(node)}: {doc.splitlines()[0]}")
    return 100 * len(places) / count, places


def phrases(sources: list[Source]) -> tuple[float, list[str]]:
    """Count avoided phrases in string constants and comments."""
    places = []
    for source in sources:
        for node in source.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                places += [f"{source.place(node)}: {m[0]}" for m in PHRASE.finditer(node.value)]
        for number, line in enumerate(source.text.splitlines(), start=1):
            comment = re.search(r"(?:^|\s)# (.*)", line)
            if comment:
                where = source.path.relative_to(PACKAGE.parent)
                places += [f"{where}:{number}: {m[0]}" for m in PHRASE.finditer(comment[1])]
    return len(places), places


def bound_name(node: ast.AST) -> str:
    """Return the name that a node binds; empty if it binds none."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    return ""


def option_nodes(source: Source) -> set[ast.AST]:
    """Return the classes of options and their fields; both are named by keys of the study file."""
    options = [
        node
        for node in source.nodes
        if isinstance(node, ast.ClassDef)
        and any(isinstance(d, ast.Name) and d.id == "option" for d in node.decorator_list)
    ]
    fields = [
        entry.target for node in options for entry in node.body if isinstance(entry, ast.AnnAssign)
    ]
    return {*options, *fields}


def names(sources: list[Source]) -> tuple[float, list[str]]:
    """Count bindings of avoided names, except options and their fields (`scheme.others`)."""
    places = [
        f"{source.place(node)}: {bound_name(node)}"
        for source in sources
        for node in source.nodes
        if bound_name(node).lstrip("_").lower() in NAMES and node not in option_nodes(source)
    ]
    return len(places), places


def uses_of_any(sources: list[Source]) -> tuple[float, list[str]]:
    """Return how often `Any` is used per 1,000 lines of code (imports are not counted)."""
    counts = {
        source: sum(isinstance(node, ast.Name) and node.id == "Any" for node in source.nodes)
        for source in sources
    }
    worst = sorted(sources, key=lambda source: -counts[source])
    lines = sum(source.code_lines for source in sources)
    return 1000 * sum(counts.values()) / lines, [
        f"{source.path.relative_to(PACKAGE.parent)}: {counts[source]}" for source in worst
    ]


def _functions(sources: list[Source]) -> Iterator[tuple[Source, ast.FunctionDef]]:
    for source in sources:
        for node in source.nodes:
            if isinstance(node, ast.FunctionDef):
                yield source, node


def _largest(sizes: dict[str, int]) -> tuple[float, list[str]]:
    worst = sorted(sizes, key=lambda place: -sizes[place])
    return sizes[worst[0]], [f"{place}: {sizes[place]}" for place in worst]


def constructor_parameters(sources: list[Source]) -> tuple[float, list[str]]:
    """Return the number of parameters of the largest written `__init__`, without `self`."""
    sizes = {
        source.place(node): len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
        - 1
        for source, node in _functions(sources)
        if node.name == "__init__"
    }
    return _largest(sizes)


def function_lines(sources: list[Source]) -> tuple[float, list[str]]:
    """Return the number of lines of the longest function, without its docstring."""
    sizes = {}
    for source, node in _functions(sources):
        first = node.body[0]
        has_doc = isinstance(first, ast.Expr) and _is_text(first.value)
        doc = (first.end_lineno or 0) - first.lineno + 1 if has_doc else 0
        sizes[f"{source.place(node)} {node.name}"] = (node.end_lineno or 0) - node.lineno + 1 - doc
    return _largest(sizes)


def file_lines(sources: list[Source]) -> tuple[float, list[str]]:
    """Return the number of lines of the largest file."""
    return _largest(
        {str(s.path.relative_to(PACKAGE.parent)): len(s.text.splitlines()) for s in sources}
    )


STUDY = """
name: readability
data: {name: digits, limit: 200, val_limit: 60}
teacher: {model: {name: resnet, depth: 8, width: 8}}
student: {model: {name: resnet, depth: 8, width: {choice: [2, 4]}}}
scheme: {name: offline}
knowledge:
- loss: {name: kd}
- loss: {name: hint}
  pairs: [{hint: stage2, guided: stage2}]
train: {epochs: 1, batch_size: 32}
"""
"""A study of response and hint distillation on a small data set."""


class Recorder:
    """Records the files of raykd whose functions are entered."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop()

    def start(self) -> None:
        sys.setprofile(self._profile)

    def stop(self) -> None:
        sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        path = frame.f_code.co_filename
        # The top-level code of a module is importing, not a step on the way.
        if event == "call" and frame.f_code.co_name != "<module>" and path.startswith(str(PACKAGE)):
            self.files.add(str(Path(path).relative_to(PACKAGE.parent)))


def batch_files(folder: Path) -> tuple[float, list[str]]:
    """Count the files of raykd in which a function is entered during one training step.

    The step is the second one of an epoch of `STUDY` on the CPU, in this process, without Ray:
    from the request of a batch to the end of the optimizer's step.
    """
    from raykd.data import BatchLoader
    from raykd.training.build import signature_of
    from raykd.training.trainer import Training

    study = raykd.load_study(_write(folder), overrides=["student.model.width=4"]).concrete()
    data = study.data.load()
    assert study.teacher is not None and study.teacher.model is not None
    teacher = study.teacher.model.build(signature_of(data))
    training = Training(study, data, seed=0, teacher=teacher)
    recorder, epoch, steps = Recorder(), BatchLoader.epoch, 0

    def watched(self: BatchLoader, *args: Any, **options: Any) -> Iterator[Any]:
        batches = epoch(self, *args, **options)
        yield next(batches)
        recorder.start()
        yield from batches

    def after_step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            recorder.stop()

    training.optimizer.register_step_post_hook(after_step)
    BatchLoader.epoch = watched
    try:
        training.run_epoch()
    finally:
        recorder.stop()
        BatchLoader.epoch = epoch
    return len(recorder.files), sorted(recorder.files)


def study_files(folder: Path) -> tuple[float, list[str]]:
    """Count the files of raykd in which a function is entered on the way of a study to a job.

    Three steps, in this process, without Ray: `STUDY` is read from its file, checked and opened;
    it is bound to the shape of its data; and the planner of a search returns the job of the first
    trial (the teacher is trained already).  Creating the planner does not count.
    """
    from raykd.models import Signature
    from raykd.runtime.jobs import Clock, Report, TrainJob
    from raykd.storage import Storage
    from raykd.tracking.events import Event
    from raykd.tracking.journal import EventBus, Journal
    from raykd.training.teachers import teacher_spec_of
    from raykd.tuning.teacher_store import TeacherStore

    class SilentBus(EventBus):
        """Publish nothing: events are not on the way of a study to a job."""

        def publish(self, event: Event) -> Event:
            return event

    recorder, signature = Recorder(), Signature(input_shape=(1, 8, 8), classes=10)
    with recorder.recording():
        study = raykd.load_study(_write(folder))
        study.bind(signature)
    settings, storage = study.settings, Storage(str(folder))
    store = TeacherStore(settings, "digits", storage)
    (teacher,) = study.teachers()
    storage.write(store.file(teacher_spec_of(replace(settings, teacher=teacher))), b"weights")
    planner = _planner(
        study, signature, SilentBus(Journal(folder / "journal.jsonl")), store, storage
    )
    measurement = planner.next()  # of the teacher, before the first trial
    assert measurement is not None
    metrics = {"val_accuracy": 0.5, "val_loss": 1.0, "train_loss": 1.0}
    planner.report(measurement.id, Report(epoch=0, done=True, metrics=metrics, clock=Clock(0, 0)))
    with recorder.recording():
        job = planner.next()
    assert isinstance(job, TrainJob) and job.id.startswith("trial"), job
    return len(recorder.files), sorted(recorder.files)


def metric_shapes(folder: Path) -> tuple[float, list[str]]:
    """Count the shapes of dictionaries in which a metric passes from its epoch to MLflow.

    The teacher of `STUDY` is trained for its epoch in this process.  Its reports pass through the
    slot, the callback of Ray Tune, the planner and the journal to the metrics of MLflow, without
    Ray and without a server.  Every dictionary that enters or leaves a function of raykd on the way
    is looked at: one of numbers by name is one shape; any other is a shape by its keys.
    """
    from raykd.data import Placement
    from raykd.runtime.jobs import Report
    from raykd.runtime.ray_tune import Reports, Stopping
    from raykd.runtime.slot import Slot
    from raykd.runtime.worker import Worker, WorkerContext
    from raykd.storage import Storage
    from raykd.tracking.events import EpochFinished
    from raykd.tracking.journal import EventBus, Journal, events
    from raykd.tracking.journal_state import JournalState
    from raykd.tracking.mlflow_writer import MlflowWriter
    from raykd.training.build import signature_of
    from raykd.tuning.teacher_store import TeacherStore

    study, storage = raykd.load_study(_write(folder)), Storage(str(folder))
    data, recorder = study.settings.data.load(), ShapeRecorder("val_accuracy")
    signature = signature_of(data)
    study.bind(signature)
    journal = Journal(folder / "journal.jsonl")
    store = TeacherStore(study.settings, data.fingerprint, storage)
    planner = _planner(study, signature, EventBus(journal), store, storage)
    job = planner.next()
    assert job is not None
    trial: Any = SimpleNamespace(trial_id="0", config={"job": job})
    worker = Worker(WorkerContext(storage, data, Placement("cpu")))
    reports = Reports(planner, Stopping(planner, None))
    state, epochs = JournalState(), 0
    with recorder.recording():
        for outcome in worker.outcomes(job):
            assert isinstance(outcome, Report), outcome
            slot = Slot.__new__(Slot)
            shared = SimpleNamespace(outlived=None)
            vars(slot).update(
                _job=job, _shared=shared, _next_outcome=lambda outcome=outcome: outcome
            )
            reports.on_trial_result(0, [], trial, slot.step())
        for event in events(journal.path):
            upload = state.update(event)
            if upload is not None and isinstance(upload.event, EpochFinished):
                epochs += 1
                writer = MlflowWriter.__new__(MlflowWriter)
                vars(writer).update(_metrics={})
                writer._measure("run", event, upload.event.metrics, upload.step)
    worker.stop()
    journal.close()
    assert epochs == 1, "the metric did not reach MLflow"
    return len(recorder.shapes), [
        f"{shape}, e.g. {place}" for shape, place in recorder.shapes.items()
    ]


class ShapeRecorder(Recorder):
    """Records the shapes of dictionaries with a metric that enter or leave functions of raykd.

    Attributes:
        shapes: the function in which each shape was first seen.
    """

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.shapes: dict[str, str] = {}
        self._metric = metric

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(str(PACKAGE)):
            return
        values = [argument] if event == "return" else list(frame.f_locals.values())
        for shape in filter(None, map(self._shape, values)):
            self.shapes.setdefault(shape, code.co_qualname)

    def _shape(self, value: object) -> str:
        """Return the shape of a dictionary with the metric at its top or one level below."""
        if not isinstance(value, dict):
            return ""
        if self._metric in value:
            others = sorted(k for k, v in value.items() if not isinstance(v, int | float))
            return f"numbers and {', '.join(others)}" if others else "numbers by name"
        inner = sorted(k for k, v in value.items() if isinstance(v, dict) and self._metric in v)
        return f"a record with {', '.join(inner)}" if inner else ""


def _planner(
    study: OpenStudy, signature: Signature, bus: EventBus, store: TeacherStore, storage: Storage
) -> SearchPlanner:
    """Return the planner of a search that has not begun."""
    import optuna

    from raykd.study.costs import StudentCosts
    from raykd.tuning.records import Records
    from raykd.tuning.search_planner import SearchPlanner
    from raykd.tuning.session import RunContext

    settings = study.settings
    context = RunContext(
        study=study,
        signature=signature,
        search=settings.search,
        bus=bus,
        storage=storage,
        folder=settings.name,
        teacher_store=store,
        records=Records.from_events([]),
        slots=1,
        costs=StudentCosts(settings.search),
    )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    drawn = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    return SearchPlanner(context, drawn)


def _write(folder: Path) -> Path:
    file = folder / "study.yaml"
    file.write_text(STUDY, encoding="utf-8")
    return file


STATIC: dict[str, Callable[[list[Source]], tuple[float, list[str]]]] = {
    "docstrings that begin with a question word, %": question_docstrings,
    "avoided phrases": phrases,
    "avoided names": names,
    "uses of Any per 1,000 lines of code": uses_of_any,
    "parameters of the largest constructor": constructor_parameters,
    "lines of the longest function": function_lines,
    "lines of the largest file": file_lines,
}
WALKS: dict[str, Callable[[Path], tuple[float, list[str]]]] = {
    "files to follow a batch": batch_files,
    "files to follow a study": study_files,
    "shapes of dictionaries that a metric passes": metric_shapes,
}


def measures(package: Path = PACKAGE) -> list[Measure]:
    """Measure a package; what is measured by running it is always raykd."""
    sources = [Source(path) for path in sorted(package.rglob("*.py"))]
    results = {name: measure(sources) for name, measure in STATIC.items()}
    with tempfile.TemporaryDirectory() as folder:
        results |= {name: measure(Path(folder)) for name, measure in WALKS.items()}
    return [
        Measure(name, value, *LIMITS[name], tuple(details))
        for name, (value, details) in results.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--details", action="store_true", help="list the places, worst first")
    details = parser.parse_args().details
    results = measures()
    for measure in results:
        goal = f" (goal {measure.goal:g})" if measure.goal < measure.limit else ""
        mark = "  " if measure.value <= measure.limit else "! "
        print(f"{mark}{measure.name}: {measure.value:.4g}, at most {measure.limit:g}{goal}")
        if details:
            print(*(f"      {place}" for place in measure.details[:40]), sep="\n")
    return int(any(measure.value > measure.limit for measure in results))


if __name__ == "__main__":
    sys.exit(main())
