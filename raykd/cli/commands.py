"""Subcommands of the command line, without logic.  Each imports its modules when called."""

from __future__ import annotations

import contextlib
import gc
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from raykd.cli import completion

if TYPE_CHECKING:
    from rich.console import Console

    from raykd.errors import StudyError
    from raykd.layer_study.result import LayerStudyResult
    from raykd.report import Display
    from raykd.tracking.events import Event
    from raykd.tuning.result import StudyResult

OK, FAILED, UNFIT, INTERRUPTED = 0, 1, 2, 130
NOBODY_READS = 141
"""What a shell reports of a program that ended because its output's reader did."""

EPILOG = (
    "Exit codes: 0 success; 1 a training failed, or `doctor` found a problem; "
    "2 invalid study, machine setup or arguments (nothing was started); "
    "130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP."
)

app = typer.Typer(
    name="raykd",
    help="Find the best way to distill a large neural network into a small one.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyFile = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="Study file (YAML).", autocompletion=completion.study_files
    ),
]
Folder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER",
        help="The study folder printed by the search.",
        autocompletion=completion.study_folders,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="a.b=VALUE",
        help="Override a value in the study file. Can be repeated.",
        autocompletion=completion.keys,
    ),
]
AllowImport = Annotated[
    bool,
    typer.Option(
        "--allow-import",
        help="Allow the study to run third-party code: models given by import path, networks "
        "from MLflow. Use it only for studies you trust. It is not stored with the study.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print events and the result as JSON, one object per line.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the output of Ray and full tracebacks.")
]


@app.command(epilog=EPILOG)
def search(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="Study file (YAML), or FOLDER:trial-0007 to rerun that study with this trial "
            "first.",
            autocompletion=completion.study_files,
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Resume the interrupted search in this folder.",
            autocompletion=completion.study_folders,
        ),
    ] = None,
    start_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN",
            help="Start from the best trials of another study: its folder, FOLDER:trial-0007, or "
            "an MLflow run ID. Can be repeated.",
        ),
    ] = None,
    allow_import: AllowImport = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a search: train the teacher, run the trials, retrain the best students with new seeds."""
    if (file is None) == (resume is None):
        raise typer.BadParameter("give either a study FILE or --resume FOLDER")
    if resume is not None and (overrides or start_from):
        option = "--set" if overrides else "--start-from"
        raise typer.BadParameter(f"{option} cannot be used with --resume")

    def run(listeners: Sequence[Any]) -> StudyResult:
        from raykd.tuning.search_run import search as search_study

        return search_study(
            file or "",
            overrides=overrides or (),
            resume=resume,
            start_from=start_from or (),
            allow_import=allow_import,
            verbose=verbose,
            listeners=listeners,
        )

    from raykd.report import search_display

    session = _Session(as_json, verbose, resumable=True)
    result = session.run(lambda: search_display(session.console, lines=verbose), run)
    session.end(result, failed=result.best is None)


@app.command(epilog=EPILOG)
def pairs(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="Study file (YAML), or FOLDER:trial-0007 to study the layers of that trial.",
            autocompletion=completion.study_files,
        ),
    ] = None,
    overrides: Overrides = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds per pair. Default: search.pairs.seeds.")
    ] = None,
    sets: Annotated[
        int | None,
        typer.Option(min=0, help="Number of sampled sets of pairs. Default: search.pairs.sets."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Resume the interrupted study in this folder.",
            autocompletion=completion.study_folders,
        ),
    ] = None,
    allow_import: AllowImport = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare layer pairs: train every hint layer with every guided layer."""
    if (file is None) == (resume is None):
        raise typer.BadParameter("give either a study FILE or --resume FOLDER")
    asked = {"seeds": seeds, "sets": sets}
    more = [f"search.pairs.{key}={value}" for key, value in asked.items() if value is not None]
    if resume is not None and (overrides or more):
        raise typer.BadParameter("--set, --seeds and --sets cannot be used with --resume")

    def run(listeners: Sequence[Any]) -> Any:
        from raykd.report.layer_study import pairs as study_pairs

        return study_pairs(
            file or "",
            overrides=[*(overrides or ()), *more],
            resume=resume,
            allow_import=allow_import,
            verbose=verbose,
            listeners=listeners,
        )

    from raykd.report import search_display

    session = _Session(as_json, verbose, resumable=True)
    result = session.run(lambda: search_display(session.console, lines=verbose), run)
    session.end(result, failed=result.best is None)


@app.command(epilog=EPILOG)
def distill(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Study file (YAML), or FOLDER:trial-0007 to train that trial again.",
            autocompletion=completion.study_files,
        ),
    ],
    overrides: Overrides = None,
    allow_import: AllowImport = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a single student without a search. All parameters must be fixed (see --set)."""

    def run(listeners: Sequence[Any]) -> StudyResult:
        from raykd.tuning.single_run import distill as distill_study

        return distill_study(
            file,
            overrides=overrides or (),
            allow_import=allow_import,
            verbose=verbose,
            listeners=listeners,
        )

    from raykd.report import epoch_display

    session = _Session(as_json, verbose)
    result = session.run(lambda: epoch_display(session.console), run)
    session.end(result, failed=result.best is None)


@app.command(epilog=EPILOG)
def teacher(
    file: StudyFile,
    overrides: Overrides = None,
    allow_import: AllowImport = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train or load only the teacher of a study, and evaluate it."""

    def run(listeners: Sequence[Any]) -> StudyResult:
        from raykd.tuning.single_run import train_teacher

        return train_teacher(
            file,
            overrides=overrides or (),
            allow_import=allow_import,
            verbose=verbose,
            listeners=listeners,
        )

    from raykd.report import epoch_display

    session = _Session(as_json, verbose)
    result = session.run(lambda: epoch_display(session.console), run)
    session.end(result, failed=all(record.status != "finished" for record in result.teachers))


@app.command(epilog=EPILOG)
def init(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Study file to write, or - for standard output.")
    ],
    name: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="NAME",
            help="Template: quickstart, architecture, pairing or text.",
        ),
    ] = "quickstart",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Create a commented study file from a template."""
    with _errors(verbose=False):
        from raykd.study.starters import STARTERS, starter_text, write_starter

        if file == "-":
            typer.echo(starter_text(name, "FILE"), nl=False)
            return
        write_starter(name, file, force=force)
        quoted = shlex.quote(file)
        typer.echo(f"created {file}")
        typer.echo(f"  data: {STARTERS[name].data}")
        typer.echo(f"  check it: raykd validate {quoted}")
        typer.echo(f"  run it:   raykd {STARTERS[name].verb} {quoted}")


@app.command(epilog=EPILOG)
def validate(
    file: StudyFile,
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(help="Random seed of the example trial.")] = 0,
    allow_import: AllowImport = False,
    verbose: Verbose = False,
) -> None:
    """Check a study file and show its search space, the size of the space and the cost."""
    from raykd.report import print_line

    console = _console()
    with _errors(verbose):
        from raykd.report.commands import launcher
        from raykd.report.space import explained

        found = explained(file, overrides or (), seed, allow_import=allow_import)
        console.print(found, crop=False)
        command = f"{launcher()}raykd search {file}" + _as_typed(overrides)
        command += " --allow-import" if allow_import else ""
    print_line(console, f"\nvalid: {command}")


@app.command(epilog=EPILOG)
def layers(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model name, model as a YAML mapping, or study file.",
            autocompletion=completion.models,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="a=VALUE",
            help="Override a field of the model (depth=20) or a value in the study file.",
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(metavar="NAME", help="Data source: its name or a YAML mapping.")
    ] = "",
    shape: Annotated[
        str, typer.Option("--input", metavar="C,H,W", help="Shape of one sample. Default: 3,32,32.")
    ] = "",
    classes: Annotated[
        int | None, typer.Option(min=2, help="Number of classes. Default: 10.")
    ] = None,
    text: Annotated[
        str, typer.Option(metavar="LENGTH,VOCABULARY", help="Use text inputs instead of images.")
    ] = "",
    stages: Annotated[bool, typer.Option(help="Show only layers with an alias.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    allow_import: AllowImport = False,
    verbose: Verbose = False,
) -> None:
    """List the layers usable as hint or guided layers: name, type, shape, depth, stage, cost."""
    with _errors(verbose):
        from raykd.report import print_line
        from raykd.report.layers import Inputs, layers_of, lines, tables

        inputs = Inputs(data, shape, classes, text)
        found = layers_of(model, overrides or (), inputs, allow_import=allow_import)
        console = _console()
        if as_json:
            typer.echo(found.json(stages=stages))
        elif console.is_terminal:
            console.print(tables(found, stages=stages), crop=False)
        else:
            for line in lines(found, stages=stages):
                print_line(console, line)


@app.command(epilog=EPILOG)
def schema() -> None:
    """Print the JSON Schema of study files, for completion and validation in editors."""
    import json

    from raykd.study.json_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


PARTS = tuple(completion.GROUPS)


@app.command("list", epilog=EPILOG)
def list_options(
    part: Annotated[
        str | None,
        typer.Argument(
            metavar="PART",
            help=f"{', '.join(PARTS[:-1])} or {PARTS[-1]}. Default: all, one line each.",
            autocompletion=completion.parts,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Show a single option in detail.",
            autocompletion=completion.options,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list with one object per option.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown (the source of docs/options.md).")
    ] = False,
) -> None:
    """List the options available in a study file: parameters, defaults, ranges, papers."""
    if as_json and markdown:
        raise typer.BadParameter("give either --json or --markdown")
    with _errors(verbose=False):
        from raykd.report.options.catalogue import chosen
        from raykd.report.options.render import json_of, page, view

        found = chosen(part, name)
        if as_json:
            typer.echo(json_of(found))
        elif markdown:
            typer.echo(page(found), nl=False)
        else:
            _console().print(view(found, in_full=name is not None), crop=False)


@app.command(epilog=EPILOG)
def doctor(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="Check what this study file needs.")
    ] = None,
    overrides: Overrides = None,
    uri: Annotated[
        str | None, typer.Option(help="MLflow tracking URI. Default: the one in the study.")
    ] = None,
    allow_import: AllowImport = False,
    verbose: Verbose = False,
) -> None:
    """Check this machine, or the cluster at RAY_ADDRESS, and suggest how to fix problems."""
    with _errors(verbose):
        from raykd.doctor import render, requirements_of, run_checks

        console = _console()
        fit = True
        requirements = requirements_of(file, overrides or (), uri, allow_import=allow_import)
        for result in run_checks(requirements):
            console.print(render(result), crop=False)
            fit = fit and not result.fatal
    raise typer.Exit(OK if fit else FAILED)


@app.command(epilog=EPILOG)
def sync(
    folder: Folder,
    uri: Annotated[
        str | None, typer.Option(help="MLflow tracking URI. Default: the one in the study.")
    ] = None,
    from_start: Annotated[
        bool, typer.Option(help="Upload everything again. Existing entries are not changed.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Upload what could not be sent during the search to MLflow, or upload to another server."""
    with _errors(verbose):
        from raykd.tracking.sync import sync as send
        from raykd.tuning.result import read_result
        from raykd.tuning.study_dir import open_folder
        from raykd.tuning.study_lock import locked

        study = open_folder(folder)[0]
        to = uri or read_result(folder).tracking_uri
        try:
            with locked(study.path, "sync"):  # a running search uploads its events itself
                status = send(study.journal, to, from_start=from_start, verbose=verbose)
        except ValueError as error:
            _complain(str(error))
            raise typer.Exit(FAILED) from None
    typer.echo(str(status))
    raise typer.Exit(FAILED if status.refused else OK)


@app.command(epilog=EPILOG)
def report(folder: Folder, as_json: Json = False, verbose: Verbose = False) -> None:
    """Print the results of a finished, interrupted or running study."""
    with _errors(verbose):
        from raykd.tuning.study_dir import open_folder

        if open_folder(folder)[0].verb == "pairs":
            from raykd.layer_study.result import read_layer_study as read
        else:
            from raykd.tuning.result import read_result as read
        _show(read(folder), _console(), as_json)


cache = typer.Typer(
    help="List, verify or remove cached teacher outputs.",
    no_args_is_help=True,
)
app.add_typer(cache, name="cache", epilog=EPILOG)

Keys = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ADDRESS]...", help="Addresses or their prefixes. Default: all."),
]
StorageRoot = Annotated[
    str, typer.Option("--storage", metavar="ROOT", help="Value of cluster.storage in the study.")
]


@cache.command("ls", epilog=EPILOG)
def cache_ls(
    storage: StorageRoot = "studies",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list with one object per entry.")
    ] = False,
) -> None:
    """List cached teacher outputs, most recently used first."""
    with _errors(verbose=False):
        from raykd.report.cache import entries_json, entries_table

        entries = _outputs_store(storage).entries()
        if as_json:
            import json

            typer.echo(json.dumps(entries_json(entries)))
        else:
            _console().print(entries_table(entries), crop=False)


@cache.command("verify", epilog=EPILOG)
def cache_verify(
    keys: Keys = None,
    storage: StorageRoot = "studies",
    check: Annotated[
        bool,
        typer.Option("--check", help="Also run the teacher on random samples and compare."),
    ] = False,
    samples: Annotated[
        int, typer.Option(min=1, help="Approximate number of samples for --check.")
    ] = 64,
    allow_import: AllowImport = False,
    verbose: Verbose = False,
) -> None:
    """Verify the checksums of cached outputs. Damaged files are removed and later recomputed."""
    with _errors(verbose):
        from raykd.report.cache import chosen_keys, comparison_line
        from raykd.training.teacher_cache.verify import compare

        store, sound = _outputs_store(storage), True
        try:
            for key in chosen_keys(store, keys or ()):
                if store.manifest(key) is None:
                    typer.echo(f"{key[:12]}: still being computed")
                    continue
                faulty = store.verify(key)
                verdict = f"damaged, removed: {', '.join(faulty)}" if faulty else "ok"
                typer.echo(f"{key[:12]}: {verdict}")
                sound = sound and not faulty
                if check and not faulty:
                    found = compare(store, key, samples=samples, allow_import=allow_import)
                    for one in found:
                        typer.echo(comparison_line(one))
                        sound = sound and one.agrees
        except ValueError as error:
            _complain(str(error))
            raise typer.Exit(UNFIT) from None
    raise typer.Exit(OK if sound else FAILED)


@cache.command("rm", epilog=EPILOG)
def cache_rm(
    keys: Keys = None,
    storage: StorageRoot = "studies",
    everything: Annotated[bool, typer.Option("--all", help="Remove all cached outputs.")] = False,
) -> None:
    """Remove cached outputs. Studies that need them recompute them."""
    if bool(keys) == everything:
        raise typer.BadParameter("give either ADDRESS arguments or --all")
    with _errors(verbose=False):
        from raykd.report.cache import chosen_keys

        store = _outputs_store(storage)
        try:
            found = chosen_keys(store, keys or ())
        except ValueError as error:
            _complain(str(error))
            raise typer.Exit(UNFIT) from None
        for key in found:
            store.remove(key)
            typer.echo(f"{key[:12]}: removed")


@app.command(epilog=EPILOG)
def version() -> None:
    """Print the versions of raykd and its main dependencies."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    import raykd

    typer.echo(f"raykd {raykd.__version__}")
    typer.echo(f"python {sys.version.split()[0]}")
    for package in ("ray", "torch", "torchvision", "optuna", "mlflow"):
        with contextlib.suppress(PackageNotFoundError):
            typer.echo(f"{package} {version_of(package)}")


def main() -> None:
    """Run the command `raykd`."""
    # Imports create hundreds of thousands of permanent objects: collecting them frees nothing.
    gc.set_threshold(50_000, 20, 50)
    try:
        app()
    except SystemExit as ended:
        if "torch" in sys.modules and isinstance(ended.code, int):
            from raykd.compat.stdlib import exit_now

            exit_now(ended.code)
        raise


class _Session:
    """Run of one subcommand: its display, its state from the events, and its exit.

    Args:
        as_json: print events and result as JSON lines on stdout, everything else on stderr.
        verbose: print full tracebacks.
        resumable: True if `--resume` of the subcommand can continue the run.
    """

    def __init__(self, as_json: bool, verbose: bool, *, resumable: bool = False) -> None:
        self.console = _console()
        self._as_json = as_json
        self._verbose = verbose
        self._resumable = resumable
        self._folder: Path | None = None
        self._begun = False
        self._undelivered = ""

    def run(
        self,
        display: Callable[[], Display],
        work: Callable[[Sequence[Any]], StudyResult],
    ) -> StudyResult:
        """Run `work` with a display; exit with an error code if it fails."""
        from raykd.report import Shielded

        stdout = sys.stdout
        with _errors(self._verbose, self), contextlib.ExitStack() as stack:
            shown = stack.enter_context(self._json(stdout) if self._as_json else display())
            if self._as_json:
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            return work([self._update, Shielded(shown, self._display_failed)])

    def end(self, result: StudyResult | LayerStudyResult, *, failed: bool) -> NoReturn:
        """Print the result and exit."""
        with _errors(self._verbose, self), contextlib.suppress(BrokenPipeError):
            _show(result, self.console, self._as_json)
        if self._undelivered:
            _complain(
                f"not everything was uploaded to MLflow: {self._undelivered}\n"
                f"    -> upload the rest later: raykd sync {result.folder}"
            )
        raise typer.Exit(FAILED if failed else OK)

    @property
    def unfit_code(self) -> int:
        """Return the exit code of a problem: FAILED once trainings have begun, else UNFIT."""
        return FAILED if self._begun else UNFIT

    def problems(self, error: StudyError) -> None:
        """Print problems as JSON if JSON output is on."""
        if self._as_json:
            from raykd.tracking.events import ProblemFound, StudyRejected

            problems = [
                ProblemFound(p.message, p.path, p.fix, p.file, p.line) for p in error.problems
            ]
            self._json(sys.stdout)(StudyRejected(problems))

    def interrupted(self) -> None:
        """Print a message about the interruption, and the command to resume."""
        if self._folder is None:
            _complain("interrupted before the study started")
        elif self._resumable:
            from raykd.report.commands import resume_command

            _complain(f"interrupted; to resume:\n    {resume_command(self._folder)}")
        else:
            _complain(f"interrupted; results so far are in {self._folder}")

    def crash_file(self) -> Path:
        """Return the file for the traceback of an internal error."""
        if self._folder is not None and self._folder.is_dir():
            return self._folder / "crash.txt"
        return _crash_file()

    def _update(self, event: Event) -> None:
        from raykd.tracking.events import RunStarted, StudyStarted, TrackingEnded

        match event:
            case StudyStarted(file=str(file)):
                self._folder = Path(file).parent
            case RunStarted():
                self._begun = True
            case TrackingEnded():
                self._undelivered = "" if event.delivered else event.status
            case _:
                pass

    def _display_failed(self, said: str, trace: str) -> None:
        _complain(f"{said}\n{trace}" if self._verbose else said)

    def _json(self, stdout: Any) -> Display:
        from raykd.report.lines import JsonLines

        return JsonLines(lambda line: print(line, file=stdout, flush=True))


@contextlib.contextmanager
def _errors(verbose: bool, session: _Session | None = None) -> Iterator[None]:
    """Convert each kind of error to its message and exit code."""
    from raykd.errors import StudyError, Terminated

    try:
        yield
    except StudyError as error:
        for problem in error.problems:
            _complain(str(problem))
        if session is not None:
            session.problems(error)
        raise typer.Exit(session.unfit_code if session is not None else UNFIT) from None
    except (KeyboardInterrupt, Terminated) as stop:
        if session is not None:
            session.interrupted()
        code = 128 + stop.signal if isinstance(stop, Terminated) else INTERRUPTED
        raise typer.Exit(code) from None
    except BrokenPipeError:  # as in `raykd list | head`
        _silence()
        raise typer.Exit(NOBODY_READS) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001 - any other error is internal
        _bug(error, verbose, session)
        raise typer.Exit(FAILED) from None


def _bug(error: Exception, verbose: bool, session: _Session | None) -> None:
    """Report an internal error, and save its traceback to a file."""
    import traceback

    text = "".join(traceback.format_exception(error))
    if verbose:
        _complain(text)
    first = (str(error).strip().splitlines() or [""])[0]
    message = f"internal error (please report): {type(error).__name__}: {first}"
    file = session.crash_file() if session is not None else _crash_file()
    with contextlib.suppress(OSError):
        file.write_text(text, encoding="utf-8")
        message += f"\n    -> attach {file} to the report"
    _complain(message)


def _crash_file() -> Path:
    import os
    import tempfile

    handle, name = tempfile.mkstemp(prefix="raykd-crash-", suffix=".txt")
    os.close(handle)
    return Path(name)


def _show(result: StudyResult | LayerStudyResult, console: Console, as_json: bool) -> None:
    """Print a result."""
    if as_json:
        from raykd.report.lines import JsonLines
        from raykd.tracking.events import ResultPrinted

        JsonLines(typer.echo)(ResultPrinted(_reporting(result).facts(result)))
        return
    console.print(_reporting(result).summary(result), crop=False)


def _reporting(result: StudyResult | LayerStudyResult) -> Any:
    """Return the module that formats a result."""
    from importlib import import_module

    from raykd.tuning.result import StudyResult

    found = "summary" if isinstance(result, StudyResult) else "layer_study.summary"
    return import_module(f"raykd.report.{found}")


def _outputs_store(root: str) -> Any:
    from raykd.storage import Storage
    from raykd.training.teacher_cache.store import CacheStore

    return CacheStore(Storage(root))


def _console() -> Console:
    """Return a console on standard output with its current size and colors."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:  # rich would exit and end the search
            raise BrokenPipeError("output closed")

    return Output()


def _silence() -> None:
    """Discard further output to closed streams."""
    import os

    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # Python's value for a stream that was closed before the start
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _as_typed(overrides: Sequence[str] | None) -> str:
    import shlex

    return "".join(f" --set {shlex.quote(override)}" for override in overrides or ())


def _complain(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # standard error may be closed, too
        typer.echo(text, err=True)


if __name__ == "__main__":
    main()
