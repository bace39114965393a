"""Writing of the page of a run: one HTML file, and its figures as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from raykd.compat.packages import is_installed
from raykd.errors import Problem, StudyError
from raykd.report.page.content import Cells, Commands, Page, Picture

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from raykd.layer_study.result import LayerStudyResult
    from raykd.tracking.events import Event
    from raykd.tuning.result import StudyResult

PAGE = "report.html"
WIDTH = 900
"""Width of the figures as files, in pixels."""


def write_page(result: StudyResult | LayerStudyResult, history: Sequence[Event]) -> Path:
    """Write the page of a run whose journal was read before into its folder.

    Args:
        result: result of the run.
        history: events of its journal.

    Raises:
        StudyError: see `write_report`.
    """
    return write_report(result, history=history)


def write_report(
    result: StudyResult | LayerStudyResult,
    folder: str | Path | None = None,
    *,
    history: Sequence[Event] | None = None,
    images: bool = False,
    evaluate: bool = True,
) -> Path:
    """Write the page of a run, finished or not.

    Args:
        result: result of the run.
        folder: created if missing; None: `report` in the study's folder.
        history: events of its journal; None: they are read from its folder.
        images: also write each figure as PNG and SVG; needs kaleido and Chrome or Chromium.
        evaluate: load the best student and its teacher, and compare their predictions.

    Returns:
        Path of the page.

    Raises:
        StudyError: the folder cannot be written, or `images` lacks a package.
    """
    if images and not is_installed("kaleido"):
        raise StudyError(
            Problem("figures as files need the package kaleido", fix="install raykd[images]")
        )
    page = _page(result, history, evaluate)
    out = Path(folder).expanduser() if folder is not None else result.folder / "report"
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / PAGE).write_text(render(page), encoding="utf-8")
    except OSError as error:
        raise StudyError(Problem(f"cannot write to {out}: {error.strerror}")) from None
    if images:
        write_images(page, out)
    return out / PAGE


def _page(
    result: StudyResult | LayerStudyResult, history: Sequence[Event] | None, evaluate: bool
) -> Page:
    from raykd.layer_study.result import LayerStudyResult
    from raykd.report.page.layer_study_page import layer_study_page
    from raykd.report.page.search_page import search_page
    from raykd.report.summary import summarize
    from raykd.tracking.journal import events

    history = events(result.folder / "journal.jsonl") if history is None else history
    if isinstance(result, LayerStudyResult):
        return layer_study_page(summarize(result, history), history)
    return search_page(summarize(result, history), history, evaluate=evaluate)


def render(page: Page) -> str:
    """Return a page as HTML that loads nothing from the network."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raykd.report.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    environment.tests["cells"] = lambda block: isinstance(block, Cells)
    environment.tests["commands"] = lambda block: isinstance(block, Commands)
    environment.filters["figure_json"] = figure_json
    here = files("raykd.report.page")
    return environment.get_template("page.html.j2").render(
        page=page,
        plotly=Markup(_plotly_code()),
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        script=Markup((here / "page.js").read_text(encoding="utf-8")),
    )


def figure_json(figure: Figure) -> Markup:
    """Return a figure as JSON that is safe inside a `script` element."""
    figure.update_layout(template="none")
    text = figure.to_json(validate=False)
    return Markup(str(text).replace("</", "<\\/").replace("<!--", "<\\!--"))


def write_images(page: Page, folder: Path) -> None:
    """Write each figure as `FIGURE.png` and `FIGURE.svg`.

    Raises:
        StudyError: there is no Chrome or Chromium, which kaleido needs.
    """
    for picture in page.pictures:
        picture.figure.update_layout(template="plotly_white", title=picture.title, margin={"t": 60})
        for kind in ("png", "svg"):
            try:
                picture.figure.write_image(
                    folder / f"{picture.id}.{kind}", width=WIDTH, height=picture.height, scale=2
                )
            except Exception as error:
                raise StudyError(
                    Problem(
                        f"figures as files: {str(error).strip().splitlines()[0]}",
                        fix="install Chromium or Chrome, or set BROWSER_PATH to it",
                    )
                ) from error


def _plotly_code() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
