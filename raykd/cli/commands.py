"""The command line `raykd`: all its commands, in the order of `raykd --help`.

A command imports what it needs when it is called, so that `--help` and completion are fast.
"""

from __future__ import annotations

import contextlib
import gc
import sys

import typer

from raykd.cli.cache_commands import cache_list, cache_remove, cache_verify
from raykd.cli.compare_command import compare
from raykd.cli.export_command import export
from raykd.cli.list_commands import layers, list_options, schema
from raykd.cli.registry_command import register
from raykd.cli.reproduce_command import reproduce
from raykd.cli.run_commands import distill, extend, pairs, search, teacher
from raykd.cli.status_commands import list_studies, status, stop
from raykd.cli.study_commands import doctor, init, report, sync, validate
from raykd.cli.ui_command import ui

EPILOG = (
    "Exit codes: 0 success; 1 a training failed, or `doctor` found a problem; "
    "2 invalid study, machine setup or arguments (nothing was started); "
    "130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP."
)


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


app = typer.Typer(
    name="raykd",
    help="Find the best way to distill a large neural network into a small one.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (search, pairs, extend, distill, teacher, reproduce, init, validate, layers, schema):
    app.command(epilog=EPILOG)(command)
app.command("list", epilog=EPILOG)(list_options)
for command in (status, stop):
    app.command(epilog=EPILOG)(command)
app.command("ls", epilog=EPILOG)(list_studies)
for command in (doctor, sync, report, compare, export, register, ui, version):
    app.command(epilog=EPILOG)(command)

cache = typer.Typer(
    help="List, verify or remove cached teacher outputs.",
    no_args_is_help=True,
)
cache.command("ls", epilog=EPILOG)(cache_list)
cache.command("verify", epilog=EPILOG)(cache_verify)
cache.command("rm", epilog=EPILOG)(cache_remove)
app.add_typer(cache, name="cache", epilog=EPILOG)


def main() -> None:
    """Run the command `raykd`."""
    # Imports create hundreds of thousands of permanent objects: collecting them frees nothing.
    gc.set_threshold(50_000, 20, 50)
    try:
        app()
    except SystemExit as exit_:
        if "torch" in sys.modules and isinstance(exit_.code, int):
            from raykd.compat.stdlib import exit_now

            exit_now(exit_.code)
        raise


if __name__ == "__main__":
    main()
