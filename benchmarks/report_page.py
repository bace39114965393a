"""The report page of a search of 1,000 trials: size of the file, and time to draw it.

    python benchmarks/report_page.py [--trials 1000] [--repeats 3] [--json FILE]

The trials are those of `driver.py`: everything but their training is real.  `raykd report` writes
the page in a new process, and Chromium opens it from the file.  A figure is drawn when it comes
near the window: `page drawn` is the time until the figures near the first window have their lines,
`all figures` the time to draw the others as well, as for printing, and `main thread` the processor
time of the page's main thread for all of it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from driver import starts  # pyright: ignore[reportAttributeAccessIssue]
from measuring import Demand, Findings, arguments, spread

OBJECTIVES = "{val_accuracy: max, params: min}"

DRAWN = "() => document.documentElement.dataset.drawn === 'true'"
"""True if every figure near the window is drawn."""

ALL = """() => [...document.querySelectorAll(".plot")].every(
    (figure) => figure.querySelector(".svg-container"))"""
"""True if every figure of the page is drawn."""


def write_page(folder: Path, trials: int) -> tuple[Path, float]:
    """Search without training, and write the page; return its file and the seconds of writing."""
    starts(trials, 8, folder, tune=False, tracking=False, sampler="random", objectives=OBJECTIVES)
    [journal] = folder.glob("studies/*/journal.jsonl")
    began = time.perf_counter()
    command = [sys.executable, "-m", "raykd", "report", str(journal.parent), "-o", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "report.html", time.perf_counter() - began


def draw(file: Path) -> dict[str, float]:
    """Open the page in Chromium; return wall and main-thread seconds of drawing."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        began = time.perf_counter()
        page.goto(file.as_uri())
        page.wait_for_function(DRAWN, timeout=120_000)
        first = time.perf_counter() - began
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        page.wait_for_function(ALL, timeout=120_000)
        wall = time.perf_counter() - began
        metrics = session.send("Performance.getMetrics")["metrics"]
        busy = next(each["value"] for each in metrics if each["name"] == "TaskDuration")
        browser.close()
    return {"page drawn": first, "all figures": wall, "main thread": busy}


def measured(trials: int, repeats: int, folder: Path) -> Findings:
    """Measure one page several times."""
    findings = Findings("report_page", {"trials": trials, "repeats": repeats})
    file, seconds = write_page(folder, trials)
    size = file.stat().st_size / 1e6
    draws = [draw(file) for _ in range(repeats)]
    times = {name: [each[name] for each in draws] for name in draws[0]}
    for name, values in times.items():
        findings.rows.append({"": name, **spread(values)})
    findings.raw = {"MB": size, "seconds to write": seconds, **times}
    findings.demands = [
        Demand("size of the page", 10, size, unit="MB"),
        Demand("page drawn", 3, sorted(times["page drawn"])[repeats // 2], unit="s"),
    ]
    findings.notes.append(f"`raykd report` took {seconds:.1f} s to write {size:.1f} MB")
    return findings


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--trials", type=int, default=1000)
    args: Any = parser.parse_args()
    if args.quick:
        args.trials, args.repeats = 40, 1
    with tempfile.TemporaryDirectory() as folder:
        measured(args.trials, args.repeats, Path(folder)).tell(args.json)


if __name__ == "__main__":
    main()
