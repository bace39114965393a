"""Commands of `raykd cache`: list, verify and remove cached teacher outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from raykd.cli.parameters import AllowImport, Verbose
from raykd.cli.session import FAILED, INVALID, OK, create_console, error_messages, print_error

if TYPE_CHECKING:
    from raykd.training.teacher_cache.store import CacheStore

Keys = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ADDRESS]...", help="Addresses or their prefixes. Default: all."),
]
StorageRoot = Annotated[
    str, typer.Option("--storage", metavar="ROOT", help="Value of cluster.storage in the study.")
]


def cache_list(
    storage: StorageRoot = "studies",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list with one object per entry.")
    ] = False,
) -> None:
    """List cached teacher outputs, most recently used first."""
    with error_messages(), _cache_store(storage) as store:
        from raykd.report.cache import entries_json, entries_table

        entries = store.entries()
        if as_json:
            import json

            typer.echo(json.dumps(entries_json(entries)))
        else:
            create_console().print(entries_table(entries), crop=False)


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
    intact = True
    with error_messages(verbose), _cache_store(storage) as store:
        from raykd.report.cache import chosen_keys, comparison_line
        from raykd.training.teacher_cache.verify import compare

        for key in chosen_keys(store, keys or ()):
            if store.manifest(key) is None:
                typer.echo(f"{key[:12]}: still being computed")
                continue
            damaged = store.verify(key)
            verdict = f"damaged, removed: {', '.join(damaged)}" if damaged else "ok"
            typer.echo(f"{key[:12]}: {verdict}")
            intact = intact and not damaged
            if check and not damaged:
                for comparison in compare(store, key, samples=samples, allow_import=allow_import):
                    typer.echo(comparison_line(comparison))
                    intact = intact and comparison.agrees
    raise typer.Exit(OK if intact else FAILED)


def cache_remove(
    keys: Keys = None,
    storage: StorageRoot = "studies",
    everything: Annotated[bool, typer.Option("--all", help="Remove all cached outputs.")] = False,
) -> None:
    """Remove cached outputs. Studies that need them recompute them."""
    if bool(keys) == everything:
        raise typer.BadParameter("give either ADDRESS arguments or --all")
    with error_messages(), _cache_store(storage) as store:
        from raykd.report.cache import chosen_keys

        for key in chosen_keys(store, keys or ()):
            store.remove(key)
            typer.echo(f"{key[:12]}: removed")


@contextmanager
def _cache_store(root: str) -> Iterator[CacheStore]:
    """Open the cache; exit with INVALID if an address or an entry cannot be used."""
    from raykd.storage import Storage
    from raykd.training.teacher_cache.store import CacheStore

    try:
        yield CacheStore(Storage(root))
    except ValueError as error:
        print_error(str(error))
        raise typer.Exit(INVALID) from None
