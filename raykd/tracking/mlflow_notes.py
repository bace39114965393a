"""Note of an experiment: one section for each of its studies.

Studies with a result come before those without one, and the newest first.

The sections are marked by comments of Markdown, which MLflow's pages do not show.  Text outside of
them belongs to the user and stays first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NOTE = "mlflow.note.content"
"""Tag of experiments and runs that MLflow's pages show as a description."""

MAX_NOTE = 16_000
"""Maximum length of an experiment's note: MLflow refuses tags above 20,000 characters."""

SECTION = re.compile(r"\s*<!-- raykd (\S+) (\d+)( open)? -->\n(.*?)\n<!-- /raykd -->\s*", re.DOTALL)


@dataclass(frozen=True)
class Section:
    """Part of a note on one study.

    Attributes:
        study_id: ID of the study.
        at: time of its first start in milliseconds since 1970.
        text: Markdown.
        has_result: False for a study of which nothing can be named as best yet.
    """

    study_id: str
    at: int
    text: str
    has_result: bool = True

    def __str__(self) -> str:
        text = self.text.replace("<!--", "").strip()
        state = "" if self.has_result else " open"
        return f"<!-- raykd {self.study_id} {self.at}{state} -->\n{text}\n<!-- /raykd -->"


def with_section(note: str, section: Section) -> str:
    """Return the note with the study's section added or replaced.

    The last sections are left out of a note that would be too long.
    """
    sections = {
        id: Section(id, int(at), text, not is_open)
        for id, at, is_open, text in SECTION.findall(note)
    }
    sections[section.study_id] = section
    order = sorted(
        sections.values(), key=lambda each: (each.has_result, each.at, each.study_id), reverse=True
    )
    written = SECTION.sub("\n\n", note).strip()
    parts = [written] if written else []
    length = len(written)
    for each in map(str, order):
        length += len(each) + 2
        if length > MAX_NOTE:
            break
        parts.append(each)
    return "\n\n".join(parts)
