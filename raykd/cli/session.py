"""The part that all commands share: exit codes, error messages, and the display of a run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from raykd.errors import StudyError
    from raykd.layer_study.result import LayerStudyResult
    from raykd.report import Display
    from raykd.tracking.events import Event
    from raykd.tracking.journal import Listener
    from raykd.tuning.result import StudyResult

OK, FAILED, INVALID, INTERRUPTED = 0, 1, 2, 130
OUTPUT_CLOSED = 141
"""Exit code that a shell reports for a program whose output nothing reads any more (SIGPIPE)."""

ResultT = TypeVar("ResultT")


def use_cluster(address: str | None) -> None:
    """Join the Ray cluster at an address; None: the one of RAY_ADDRESS, if it is set."""
    if address is not None:
        os.environ["RAY_ADDRESS"] = address


class Session:
    """One run of a command that trains: its display, its error messages and its exit.

    Args:
        as_json: print events and result as JSON lines on stdout, everything else on stderr.
        verbose: print full tracebacks, and lines instead of a live display.
        resumable: True for a search or layer study, which shows trials instead of epochs, and
            which `--resume` continues.
    """

    def __init__(self, as_json: bool, verbose: bool, *, resumable: bool = False) -> None:
        self.console = create_console()
        self._as_json = as_json
        self._verbose = verbose
        self._resumable = resumable
        self._folder: Path | None = None
        self._training_started = False
        self._undelivered = ""

    def run(self, work: Callable[[Sequence[Listener]], ResultT]) -> ResultT:
        """Run `work` with a display; exit with an error code if it fails.

        Args:
            work: runs the study; called with the listeners of its events.
        """
        from raykd.report import Shielded

        with error_messages(self._verbose, self), contextlib.ExitStack() as stack:
            display = stack.enter_context(self._display())
            if self._as_json:
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            return work([self._update, Shielded(display, self._report_display_error)])

    def end(self, result: StudyResult | LayerStudyResult, *, failed: bool) -> NoReturn:
        """Print the result and exit."""
        with error_messages(self._verbose, self), contextlib.suppress(BrokenPipeError):
            print_result(result, self.console, self._as_json)
        if self._undelivered:
            from raykd.compat.packages import launcher

            print_error(
                f"not everything was uploaded to MLflow: {self._undelivered}\n"
                f"    -> upload the rest later: {launcher()}raykd sync {result.folder}"
            )
        raise typer.Exit(FAILED if failed else OK)

    @property
    def error_code(self) -> int:
        """Exit code of a problem: FAILED once a training has started, else INVALID."""
        return FAILED if self._training_started else INVALID

    def print_problems(self, error: StudyError) -> None:
        """Print problems as JSON if JSON output is on."""
        if self._as_json:
            from raykd.tracking.events import ProblemFound, StudyRejected

            problems = [
                ProblemFound(p.message, p.path, p.fix, p.file, p.line) for p in error.problems
            ]
            _json_lines(sys.stdout)(StudyRejected(problems))

    def print_interruption(self) -> None:
        """Print that the run was interrupted, and the command to resume it."""
        if self._folder is None:
            print_error("interrupted before the study started")
        elif self._resumable:
            from raykd.report.commands import resume_command

            print_error(f"interrupted; to resume:\n    {resume_command(self._folder)}")
        else:
            print_error(f"interrupted; results so far are in {self._folder}")

    def crash_file(self) -> Path:
        """Return the file for the traceback of an internal error."""
        if self._folder is not None and self._folder.is_dir():
            return self._folder / "crash.txt"
        return _temporary_crash_file()

    def _display(self) -> Display:
        from raykd.report import epoch_display, search_display

        if self._as_json:
            return _json_lines(sys.stdout)
        if self._resumable:
            return search_display(self.console, lines=self._verbose)
        return epoch_display(self.console)

    def _update(self, event: Event) -> None:
        """Remember what the end of the session depends on."""
        from raykd.tracking.events import RunStarted, StudyStarted, TrackingEnded

        match event:
            case StudyStarted(file=str(file)):
                self._folder = Path(file).parent
            case RunStarted():
                self._training_started = True
            case TrackingEnded():
                self._undelivered = "" if event.delivered else event.status
            case _:
                pass

    def _report_display_error(self, message: str, trace: str) -> None:
        print_error(f"{message}\n{trace}" if self._verbose else message)


@contextlib.contextmanager
def error_messages(verbose: bool = False, session: Session | None = None) -> Iterator[None]:
    """Convert each kind of error to its message and exit code.

    Args:
        verbose: print full tracebacks.
        session: the run that may fail; None: a command that trains nothing.
    """
    from raykd.errors import RayLost, StudyError, Terminated

    try:
        yield
    except StudyError as error:
        for problem in error.problems:
            print_error(str(problem))
        if session is not None:
            session.print_problems(error)
        if session is not None and isinstance(error, RayLost):
            session.print_interruption()
        raise typer.Exit(session.error_code if session is not None else INVALID) from None
    except (KeyboardInterrupt, Terminated) as stop:
        if session is not None:
            session.print_interruption()
        code = 128 + stop.signal if isinstance(stop, Terminated) else INTERRUPTED
        raise typer.Exit(code) from None
    except BrokenPipeError:  # as in `raykd list | head`
        _discard_output()
        raise typer.Exit(OUTPUT_CLOSED) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001 - any other error is internal
        _report_internal_error(error, verbose, session)
        raise typer.Exit(FAILED) from None


def print_error(text: str) -> None:
    """Print on standard error, which may be closed."""
    with contextlib.suppress(OSError, ValueError):
        typer.echo(text, err=True)


def print_result(result: StudyResult | LayerStudyResult, console: Console, as_json: bool) -> None:
    """Print the summary of a result, or its facts as a line of JSON."""
    from raykd.report.summary import summarize

    if as_json:
        from raykd.report.lines import JsonLines
        from raykd.tracking.events import ResultPrinted

        JsonLines(typer.echo)(ResultPrinted(summarize(result).plain()))
        return
    from raykd.report.terminal import render_summary

    console.print(render_summary(summarize(result)), crop=False)


def create_console() -> Console:
    """Return a console on standard output with its current size and colors."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:  # rich would exit and end the search
            raise BrokenPipeError("output closed")

    return Output()


def _report_internal_error(error: Exception, verbose: bool, session: Session | None) -> None:
    """Print an internal error, and save its traceback to a file."""
    import traceback

    text = "".join(traceback.format_exception(error))
    if verbose:
        print_error(text)
    first = (str(error).strip().splitlines() or [""])[0]
    message = f"internal error (please report): {type(error).__name__}: {first}"
    file = session.crash_file() if session is not None else _temporary_crash_file()
    with contextlib.suppress(OSError):
        file.write_text(text, encoding="utf-8")
        message += f"\n    -> attach {file} to the report"
    print_error(message)


def _temporary_crash_file() -> Path:
    import os
    import tempfile

    handle, name = tempfile.mkstemp(prefix="raykd-crash-", suffix=".txt")
    os.close(handle)
    return Path(name)


def _json_lines(stream: TextIO) -> Display:
    from raykd.report.lines import JsonLines

    return JsonLines(lambda line: print(line, file=stream, flush=True))


def _discard_output() -> None:
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
