"""Draw the README's picture from a real search: its display half-way, and its summary.

uv run python docs/images/picture.py studies/quickstart-DATE-TIME docs/images/quickstart.svg
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from raykd.report.live import picture
from raykd.report.run_state import RunState
from raykd.report.summary import summarize
from raykd.report.terminal import render_summary
from raykd.runtime.cluster import plan_slots, this_machine
from raykd.study.checks.load import load_study
from raykd.tracking.events import DataLoaded, RunEnded
from raykd.tracking.journal import events
from raykd.tuning.budget import slots_planned
from raykd.tuning.result import read_result
from raykd.tuning.study_dir import StudyFolder, open_folder

WIDTH = 118


def main(folder: Path, target: Path) -> None:
    """Replay the journal in `folder` until two thirds of its trials have ended, and draw."""
    found, overrides = open_folder(folder)
    study = load_study(found.study_file, overrides=overrides)
    told = events(found.journal)
    trials = study.settings.search.trials
    clock = told[0].at
    with tempfile.TemporaryDirectory() as empty:
        state = RunState(now=lambda: clock / 1000)
        plan = plan_slots(study.settings.cluster, this_machine())
        blank = StudyFolder(Path(empty), empty, "blank")
        ended = 0
        for event in told:
            clock = event.at
            state.apply(event)
            if isinstance(event, DataLoaded):
                blank.journal.write_text("")
                state.apply(slots_planned(study, blank, plan, None))
            ended += isinstance(event, RunEnded) and event.id.startswith("trial-")
            if ended >= trials * 2 // 3:
                break
        console = Console(record=True, width=WIDTH, height=20, file=io.StringIO())
        console.print(Text("$ uv run raykd search search_spaces/quickstart.yaml", style="bold"))
        console.print(picture(state, console.options))
    console.print(Text("\n... and at the end:\n", style="dim"))
    console.print(render_summary(summarize(read_result(folder))))
    drawn = console.export_svg(title="raykd")
    target.write_text(drawn.replace(f"{folder.absolute().parent.parent}/", ""))
    print(json.dumps({"picture": str(target), "bytes": target.stat().st_size}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
