"""Commands that list what a study file can contain: `list`, `layers` and `schema`."""

from __future__ import annotations

from typing import Annotated

import typer

from raykd.cli import completion
from raykd.cli.parameters import AllowImport, Verbose
from raykd.cli.session import create_console, error_messages

PARTS = tuple(completion.GROUPS)
"""Parts of a study file whose options `raykd list` prints."""

ModelOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="a=VALUE",
        help="Override a field of the model (depth=20) or a value in the study file.",
    ),
]
InputShape = Annotated[
    str, typer.Option("--input", metavar="C,H,W", help="Shape of one sample. Default: 3,32,32.")
]
TextInputs = Annotated[
    str, typer.Option(metavar="LENGTH,VOCABULARY", help="Use text inputs instead of images.")
]


def layers(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model name, model as a YAML mapping, or study file.",
            autocompletion=completion.models,
        ),
    ],
    overrides: ModelOverrides = None,
    data: Annotated[
        str, typer.Option(metavar="NAME", help="Data source: its name or a YAML mapping.")
    ] = "",
    shape: InputShape = "",
    classes: Annotated[
        int | None, typer.Option(min=2, help="Number of classes. Default: 10.")
    ] = None,
    text: TextInputs = "",
    stages: Annotated[bool, typer.Option(help="Show only layers with an alias.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    allow_import: AllowImport = False,
    verbose: Verbose = False,
) -> None:
    """List the layers usable as hint or guided layers: name, type, shape, depth, stage, cost."""
    with error_messages(verbose):
        from raykd.report import print_line
        from raykd.report.layers import ModelInputs, list_layers
        from raykd.report.terminal.layers import layer_lines, layer_tables

        inputs = ModelInputs(data, shape, classes, text)
        layer_list = list_layers(model, overrides or (), inputs, allow_import=allow_import)
        console = create_console()
        if as_json:
            typer.echo(layer_list.json(stages=stages))
        elif console.is_terminal:
            console.print(layer_tables(layer_list, stages=stages), crop=False)
        else:
            for line in layer_lines(layer_list, stages=stages):
                print_line(console, line)


def schema() -> None:
    """Print the JSON Schema of study files, for completion and validation in editors."""
    import json

    from raykd.study.json_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


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
    with error_messages():
        from raykd.report.options.catalogue import find_entries
        from raykd.report.options.render import entries_json, render_entries, render_page

        entries = find_entries(part, name)
        if as_json:
            typer.echo(entries_json(entries))
        elif markdown:
            typer.echo(render_page(entries), nl=False)
        else:
            create_console().print(render_entries(entries, in_detail=name is not None), crop=False)
