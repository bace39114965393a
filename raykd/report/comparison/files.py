"""Writing of a comparison as a page or a table."""

from __future__ import annotations

from pathlib import Path

from raykd.errors import Problem, StudyError
from raykd.report.comparison.comparison import Comparison

SUFFIXES = (".html", ".csv", ".parquet")


def check_suffix(file: str | Path) -> Path:
    """Return the path of a file to write.

    Raises:
        StudyError: its suffix is not one of `SUFFIXES`.
    """
    path = Path(file).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        text = f"cannot write {file}: the suffix {path.suffix or '(none)'!r} is unknown"
        raise StudyError(Problem(text, fix=f"allowed suffixes: {', '.join(SUFFIXES)}"))
    return path


def write_comparison(comparison: Comparison, file: str | Path) -> Path:
    """Write a comparison; see `Comparison.write`."""
    path = check_suffix(file)
    kind = path.suffix.lower()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == ".html":
            path.write_text(comparison_html(comparison), encoding="utf-8")
        elif kind == ".csv":
            comparison.table.to_csv(path, index=False)
        else:
            comparison.table.to_parquet(path, index=False)
    except OSError as error:
        raise StudyError(Problem(f"cannot write to {path}: {error.strerror}")) from None
    return path


def comparison_html(comparison: Comparison) -> str:
    """Return the page of a comparison."""
    from raykd.report.page.comparison_page import comparison_page
    from raykd.report.page.write import render

    return render(comparison_page(comparison))
