"""The page of options in Markdown: `raykd list --markdown` writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from raykd.report.catalogue import PARTS, Entry, Part
from raykd.report.parameters import Parameter

COMMAND = "raykd list --markdown > docs/options.md"

INTRODUCTION = f"""\
# Options

What a study file may name. raykd itself writes this page: `{COMMAND}`.
`raykd list PART` prints a part of it in the terminal, with what installed packages add;
`raykd list PART NAME` prints one option, and `--json` gives either to machines.

An option is written by its name with those of its parameters that are not to have their defaults:
`loss: {{name: kd, temperature: 2}}`. Any parameter may be left open
([domains](study-file.md#domains))."""

INTRODUCTIONS: Mapping[Part, str] = {
    "losses": """\
What a student learns from its teacher. A term of `knowledge` names a loss, its weight and, for
losses on layers, its pairs; a term that names no weight has the default one. Weights belong to
raykd's own scale of each loss, which its section states.

Default pairs: `stages` pairs the stages one to one, counted from the deepest; `last` the deepest
stages; `embedding` the inputs of the two classifiers; `none` stands for losses on logits.""",
    "schemes": "Who teaches whom, and when: the study's `scheme`.",
    "models": "Networks, for `teacher.model`, `student.model` and wherever a scheme takes others.",
    "data": "Data sources: the study's `data`.",
    "samplers": """\
How the next point of the space is drawn: `search.sampler`. All are Optuna's. A trial that ended
early counts with its last results.""",
    "schedulers": "Which trials end early: `search.scheduler`.",
    "screens": """\
Which architectures are tried first: `search.screen`. A screen ranks students before one of
them is trained; `none` is the default. On the tables measured so far (benchmarks/RESULTS.md) none
ranks students of all sizes better than `params` does.""",
    "augmentations": "What is done to training pictures, in order: `data.augment`.",
}


_IN_SUMMARIES = (
    "knowledge",
    "needs teacher",
    "takes knowledge",
    "takes text",
    "stops early",
    "when",
    "paper",
)
_OF_WEIGHTS = ("default weight", "weight source", "default pairs")


def page(found: Mapping[Part, Sequence[Entry]]) -> str:
    """The page of those parts; the whole page where they are all there."""
    sections = [_section(part, listed) for part, listed in found.items()]
    if list(found) == list(PARTS):
        contents = " | ".join(f"[{part.capitalize()}](#{part})" for part in found)
        sections = [INTRODUCTION, contents, *sections]
    return "\n\n".join(sections) + "\n"


def _section(part: Part, listed: Sequence[Entry]) -> str:
    blocks = [f"## {part.capitalize()}", INTRODUCTIONS[part], _summaries(listed)]
    if part == "losses":
        blocks += ["### Weights of losses", _weights(listed)]
    return "\n\n".join([*blocks, *(_entry(entry) for entry in listed)])


def _summaries(listed: Sequence[Entry]) -> str:
    """The table at the head of a part: each option with what it is."""
    labels = [label for label in _IN_SUMMARIES if any(label in entry.labelled for entry in listed)]
    rows = [
        [_link(entry), entry.summary, *(entry.labelled.get(label, "") for label in labels)]
        for entry in listed
    ]
    return _table([listed[0].noun, "what it does", *labels], rows)


def _weights(listed: Sequence[Entry]) -> str:
    rows = [
        [_link(entry), *(entry.labelled.get(label, "") for label in _OF_WEIGHTS), _ranges(entry)]
        for entry in listed
    ]
    return _table(["loss", *_OF_WEIGHTS, "parameters"], rows)


def _ranges(entry: Entry) -> str:
    return "; ".join(
        f"`{parameter.name}` {parameter.default_text} ({parameter.type.text})"
        for parameter in entry.parameters
    )


def _entry(entry: Entry) -> str:
    blocks = [f"### {entry.name} ({entry.noun})"]
    blocks += [_prose(block) for block in (entry.summary, *entry.paragraphs) if block]
    told = [f"- {label}: {_prose(text)}" for label, text in entry.labelled.items()]
    blocks += ["\n".join(told)] if told else []
    blocks += [_parameters(entry.parameters)] if entry.parameters else []
    for one in entry.held:
        blocks.append(f"`{one.name}`: {_prose(one.summary)}")
        blocks += [_parameters(one.parameters)] if one.parameters else []
    return "\n\n".join(blocks)


def _parameters(parameters: Sequence[Parameter]) -> str:
    rows = [
        [
            f"`{parameter.name}`",
            "required" if parameter.required else f"`{parameter.default_text}`",
            parameter.type.text,
            parameter.description,
        ]
        for parameter in parameters
    ]
    return _table(["parameter", "default", "takes", "meaning"], rows)


def _link(entry: Entry) -> str:
    heading = re.sub(r"[^\w -]", "", f"{entry.name} {entry.noun}".lower())
    return f"[{entry.name}](#{heading.replace(' ', '-')})"


def _prose(text: str) -> str:
    """Text whose signs Markdown must not take for its own, code and what is indented left alone."""
    if text.startswith("    "):
        return text
    pieces = re.split(r"(`+[^`]*`+)", text)
    pieces[::2] = [_ARXIV.sub(_ARXIV_LINK, _SIGNS.sub(r"\\\g<0>", piece)) for piece in pieces[::2]]
    return "".join(pieces)


_SIGNS = re.compile(r"[*<]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_ARXIV_LINK = r"[arXiv:\1](https://arxiv.org/abs/\1)"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    lines = [head, rule, *([_prose(cell).replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
