"""The verbs of the command line; no logic.  What a verb needs is imported when it is called."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from raykd.problems import StudyError
    from raykd.report import Display
    from raykd.search.result import StudyResult

OK, FAILED, UNFIT, INTERRUPTED = 0, 1, 2, 130

EPILOG = (
    "Exit codes: 0 all is well; 1 something that was started failed, or `doctor` found something "
    "wrong; 2 the study, the machine or the command line is not fit, nothing was started; "
    "130 interrupted by Ctrl-C."
)

app = typer.Typer(
    name="raykd",
    help="Search which student, and which distillation, makes most of a teacher.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyFile = Annotated[str, typer.Argument(metavar="FILE", help="A study file (YAML).")]
Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="The study's folder, as the search printed it.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="a.b=VALUE", help="Put a value of the study in place; may be repeated."
    ),
]
AllowImport = Annotated[
    bool,
    typer.Option(
        "--allow-import",
        help="Let the study's models run code that is not raykd's: import paths, networks from "
        "MLflow. Only for studies you trust; never remembered.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object a line for each event, and the result.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Ray's own output too, and tracebacks.")
]


@app.command(epilog=EPILOG)
def search(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="A study file (YAML).")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Go on with the interrupted search in this folder."),
    ] = None,
    allow_import: AllowImport = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Search a study: its teacher, its trials, and the chosen students again under fresh seeds."""
    if (file is None) == (resume is None):
        raise typer.BadParameter("give a study FILE, or --resume FOLDER, and not both")
    if resume is not None and overrides:
        raise typer.BadParameter("a search goes on as it began: no --set with --resume")

    def run(listeners: Sequence[Any]) -> StudyResult:
        from raykd.search.driver import search as search_study

        return search_study(
            file or "",
            overrides=overrides or (),
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
    file: StudyFile,
    overrides: Overrides = None,
    allow_import: AllowImport = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train one student: the same file, nothing left open (or fixed by --set), no search."""

    def run(listeners: Sequence[Any]) -> StudyResult:
        from raykd.search.single import distill as distill_study

        return distill_study(
            file,
            overrides=overrides or (),
            allow_import=allow_import,
            verbose=verbose,
            listeners=listeners,
        )

    session = _Session(as_json, verbose)
    result = session.run(lambda: _epoch_lines(session.console), run)
    session.end(result, failed=result.best is None)


@app.command(epilog=EPILOG)
def teacher(
    file: StudyFile,
    overrides: Overrides = None,
    allow_import: AllowImport = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train (or load) the study's teacher and evaluate it, alone."""

    def run(listeners: Sequence[Any]) -> StudyResult:
        from raykd.search.single import train_teacher

        return train_teacher(
            file,
            overrides=overrides or (),
            allow_import=allow_import,
            verbose=verbose,
            listeners=listeners,
        )

    session = _Session(as_json, verbose)
    result = session.run(lambda: _epoch_lines(session.console), run)
    session.end(result, failed=all(record.status != "finished" for record in result.teachers))


@app.command(epilog=EPILOG)
def validate(
    file: StudyFile,
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(help="Of the sampled trial.")] = 0,
    allow_import: AllowImport = False,
    verbose: Verbose = False,
) -> None:
    """Check a study and explain its space: what is open, how large it is, what it would cost."""
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
def schema() -> None:
    """Print the JSON Schema of study files, for editors that complete and check them."""
    import json

    from raykd.study.editors import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


PARTS = ("losses", "schemes", "models", "data", "samplers", "schedulers", "augmentations")


@app.command("list", epilog=EPILOG)
def list_options(
    part: Annotated[
        str | None,
        typer.Argument(
            metavar="PART",
            help=f"{', '.join(PARTS[:-1])} or {PARTS[-1]}; default: all, a line each.",
            autocompletion=lambda: list(PARTS),
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One option of the part, in full.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON list, one object an option.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Markdown, of which docs/options.md is made.")
    ] = False,
) -> None:
    """List what a study may name: what it is, parameters, defaults, ranges, paper."""
    if as_json and markdown:
        raise typer.BadParameter("give --json or --markdown, not both")
    with _errors(verbose=False):
        from raykd.report.catalogue import chosen
        from raykd.report.options import json_of, view
        from raykd.report.pages import page

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
        str | None, typer.Argument(metavar="[FILE]", help="Look at what this study needs.")
    ] = None,
    overrides: Overrides = None,
    uri: Annotated[
        str | None, typer.Option(help="MLflow's tracking URI; default: the study's.")
    ] = None,
    allow_import: AllowImport = False,
    verbose: Verbose = False,
) -> None:
    """See whether this machine, or the cluster RAY_ADDRESS names, is ready; says what to do."""
    with _errors(verbose):
        from raykd.doctor import examine, needs_of, shown

        console = _console()
        fit = True
        for finding in examine(needs_of(file, overrides or (), uri, allow_import=allow_import)):
            console.print(shown(finding), crop=False)
            fit = fit and not finding.fatal
    raise typer.Exit(OK if fit else FAILED)


@app.command(epilog=EPILOG)
def sync(
    folder: Folder,
    uri: Annotated[
        str | None, typer.Option(help="MLflow's tracking URI; default: the study's.")
    ] = None,
    from_start: Annotated[
        bool, typer.Option(help="Send everything again; what is there already stays as it is.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Send to MLflow what a search could not (its server was away), or send it elsewhere."""
    with _errors(verbose):
        from raykd.search.folder import open_folder
        from raykd.search.result import read_result
        from raykd.tracking.runs import sync as send

        journal = open_folder(folder)[0].journal
        to = uri or read_result(folder).tracking_uri
        try:
            status = send(journal, to, from_start=from_start, verbose=verbose)
        except ValueError as error:
            _complain(str(error))
            raise typer.Exit(FAILED) from None
    typer.echo(str(status))
    raise typer.Exit(FAILED if status.refused else OK)


@app.command(epilog=EPILOG)
def report(folder: Folder, as_json: Json = False, verbose: Verbose = False) -> None:
    """Print what a search found, finished or not."""
    with _errors(verbose):
        from raykd.search.result import read_result

        _show(read_result(folder), _console(), as_json)


@app.command(epilog=EPILOG)
def version() -> None:
    """Print the versions of raykd and of what it stands on."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    import raykd

    typer.echo(f"raykd {raykd.__version__}")
    typer.echo(f"python {sys.version.split()[0]}")
    for package in ("ray", "torch", "torchvision", "optuna", "mlflow"):
        with contextlib.suppress(PackageNotFoundError):
            typer.echo(f"{package} {version_of(package)}")


def main() -> None:
    """The command `raykd`."""
    app()


class _Session:
    """One running verb: its display, what it learns from the events, and how it ends.

    Args:
        as_json: events and result as JSON lines on stdout, everything else on stderr.
        verbose: tracebacks in full.
        resumable: whether `raykd search --resume` can go on with it.
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
        """Do the work under a display; leaves with an exit code where it fails."""
        from raykd.report import Shielded

        stdout = sys.stdout
        with _errors(self._verbose, self), contextlib.ExitStack() as stack:
            shown = stack.enter_context(self._json(stdout) if self._as_json else display())
            if self._as_json:
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            return work([self._heard, Shielded(shown, self._display_failed)])

    def end(self, result: StudyResult, *, failed: bool) -> NoReturn:
        """Print the result and leave."""
        with _errors(self._verbose, self):
            _show(result, self.console, self._as_json)
        if self._undelivered:
            _complain(
                f"MLflow has not got everything: {self._undelivered}\n"
                f"    -> send the rest later: raykd sync {result.folder}"
            )
        raise typer.Exit(FAILED if failed else OK)

    @property
    def unfit_code(self) -> int:
        """The exit code of a problem: once trainings have begun, they have failed."""
        return FAILED if self._begun else UNFIT

    def problems(self, error: StudyError) -> None:
        """Say what is wrong, for machines too."""
        if self._as_json:
            from dataclasses import asdict

            self._print_json("error", problems=[asdict(problem) for problem in error.problems])

    def interrupted(self) -> None:
        """Say how to go on."""
        if self._folder is None:
            _complain("interrupted before anything was started")
        elif self._resumable:
            from raykd.report.commands import resume_command

            _complain(f"interrupted; go on with:\n    {resume_command(self._folder)}")
        else:
            _complain(f"interrupted; what was done stands in {self._folder}")

    def crash_file(self) -> Path:
        """Where the traceback of a mistake of ours goes."""
        if self._folder is not None and self._folder.is_dir():
            return self._folder / "crash.txt"
        return _crash_file()

    def _heard(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "study":
            self._folder = Path(event["file"]).parent
        elif event["event"] == "run":
            self._begun = True
        elif event["event"] == "tracked":
            self._undelivered = "" if event["delivered"] else event["status"]

    def _display_failed(self, said: str, trace: str) -> None:
        _complain(f"{said}\n{trace}" if self._verbose else said)

    def _json(self, stdout: Any) -> Display:
        from raykd.report.machine import JsonLines

        return JsonLines(lambda line: print(line, file=stdout, flush=True))

    def _print_json(self, event: str, **fields: Any) -> None:
        self._json(sys.stdout)({"event": event, **fields})


@contextlib.contextmanager
def _errors(verbose: bool, session: _Session | None = None) -> Iterator[None]:
    """Turn every way to fail into its message and its exit code."""
    from raykd.problems import StudyError

    try:
        yield
    except StudyError as error:
        for problem in error.problems:
            _complain(str(problem))
        if session is not None:
            session.problems(error)
        raise typer.Exit(session.unfit_code if session is not None else UNFIT) from None
    except KeyboardInterrupt:
        if session is not None:
            session.interrupted()
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is ours
        _bug(error, verbose, session)
        raise typer.Exit(FAILED) from None


def _bug(error: Exception, verbose: bool, session: _Session | None) -> None:
    """Own up to a mistake of ours, and put its traceback where it can be found."""
    import traceback

    text = "".join(traceback.format_exception(error))
    if verbose:
        _complain(text)
    first = (str(error).strip().splitlines() or [""])[0]
    said = f"a mistake of raykd's own: {type(error).__name__}: {first}"
    file = session.crash_file() if session is not None else _crash_file()
    with contextlib.suppress(OSError):
        file.write_text(text, encoding="utf-8")
        said += f"\n    -> please report it with {file}"
    _complain(said)


def _crash_file() -> Path:
    import os
    import tempfile

    handle, name = tempfile.mkstemp(prefix="raykd-crash-", suffix=".txt")
    os.close(handle)
    return Path(name)


def _show(result: StudyResult, console: Console, as_json: bool) -> None:
    """Print a result."""
    if as_json:
        from raykd.report.machine import JsonLines
        from raykd.report.summary import facts

        found = facts(result)
        JsonLines(typer.echo)({"event": "result", **found})
        return
    from raykd.report.summary import summary

    console.print(summary(result), crop=False)


def _epoch_lines(console: Console) -> Display:
    from raykd.report import print_line
    from raykd.report.epochs import EpochLines

    return EpochLines(lambda line: print_line(console, line))


def _console() -> Console:
    """Standard output, its size and colours found out anew."""
    from rich.console import Console

    return Console()


def _as_typed(overrides: Sequence[str] | None) -> str:
    import shlex

    return "".join(f" --set {shlex.quote(override)}" for override in overrides or ())


def _complain(text: str) -> None:
    typer.echo(text, err=True)


if __name__ == "__main__":
    main()
