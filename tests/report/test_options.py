"""`raykd list` and the page of options: what they say of each option, and that it is so."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError
from rich.console import Console
from typer.testing import CliRunner, Result

from raykd.cli import commands as cli
from raykd.cli.list_commands import PARTS as LISTED_PARTS
from raykd.data import AUGMENTATIONS, Augment
from raykd.losses import LOSSES, ResponseLoss, Term
from raykd.models import MODELS, Model
from raykd.registry import BUILT_IN, names_like, option
from raykd.report.options.catalogue import FAMILIES, PARTS, Entry, Part, find_entries, list_entries
from raykd.report.options.fields import Parameter
from raykd.report.options.render import COMMAND, entries_json, render_entries, render_page

FOUND: dict[Part, list[Entry]] = {
    part: [one for one in listed if one.package == BUILT_IN]
    for part, listed in find_entries().items()
}
ALL = [entry for listed in FOUND.values() for entry in listed]
PARAMETERS = [(entry, parameter) for entry in ALL for parameter in entry.parameters]

every_option = pytest.mark.parametrize(
    "entry", ALL, ids=[f"{entry.part}-{entry.name}" for entry in ALL]
)


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli.app, ["list", *words])


def rendered(*parts: str, in_detail: bool = False, name: str | None = None, width: int = 80) -> str:
    """Return the text of a terminal."""
    console = Console(width=width, file=io.StringIO())
    for part in parts:
        console.print(render_entries(find_entries(part, name), in_detail=in_detail))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def class_of(entry: Entry) -> type:
    return FAMILIES[entry.part][entry.name]


# What is said is so


@every_option
def test_every_option_has_description(entry: Entry) -> None:
    assert entry.summary.endswith(".")
    assert len(entry.summary) <= 120
    assert [one.name for one in entry.parameters if not one.description] == []


@every_option
def test_documented_defaults_are_correct(entry: Entry) -> None:
    cls = class_of(entry)
    given = {"name": entry.name} | {
        one.name: one.default for one in entry.parameters if not one.required
    }
    if any(one.required for one in entry.parameters):
        with pytest.raises(ValidationError, match=r"missing"):
            TypeAdapter(cls).validate_json(json.dumps(given))
        return
    read = TypeAdapter(cls).validate_json(json.dumps(given), strict=True)
    assert read == cls(name=entry.name)
    assert TypeAdapter(cls).validate_json(json.dumps({"name": entry.name})) == read


def outside(one: Parameter) -> Iterator[Any]:
    """Values just outside what a parameter takes."""
    limits, kind = one.type.limits, one.type.type.removesuffix(" or null")
    if kind not in ("number", "integer"):
        limits = {}
    if "min" in limits:
        yield limits["min"] - (1 if kind == "integer" else 1e-6)
    if "exclusive_min" in limits:
        yield limits["exclusive_min"]
    if "max" in limits:
        yield limits["max"] + (1 if kind == "integer" else 1e-6)
    if "exclusive_max" in limits:
        yield limits["exclusive_max"]
    if one.type.choices:
        yield "nothing of the kind"
    if kind == "integer":
        yield 2.5
    if "null" not in one.type.type:
        yield None


@pytest.mark.parametrize(
    ("entry", "one"), PARAMETERS, ids=[f"{entry.name}-{one.name}" for entry, one in PARAMETERS]
)
def test_documented_ranges_are_enforced(entry: Entry, one: Parameter) -> None:
    adapter = TypeAdapter(class_of(entry))
    for value in outside(one):
        with pytest.raises(ValidationError) as caught:
            adapter.validate_json(json.dumps({"name": entry.name, one.name: value}), strict=True)
        assert one.name in [error["loc"][0] for error in caught.value.errors()]


TWO_NUMBERS = {"type": "list of numbers", "min_items": 2, "max_items": 2}
KNOWN: dict[tuple[str, str, str], dict[str, Any]] = {
    ("losses", "kd", "temperature"): {"type": "number", "exclusive_min": 0, "default": 4.0},
    ("losses", "hint", "similarity"): {"choices": ["l2", "l1", "cross_entropy", "mmd"]},
    ("losses", "logit_std", "loss"): {"default": {"name": "kd", "temperature": 2.0}},
    ("losses", "cc", "order"): {"type": "integer", "min": 1, "max": 10},
    ("schemes", "dml", "others"): {"type": "list of models", "default": []},
    ("data", "digits", "limit"): {"type": "integer or null", "min": 1, "default": None},
    ("data", "digits", "augment"): {"type": "list of augmentations"},
    ("augmentations", "random_erasing", "scale"): TWO_NUMBERS,
    ("schedulers", "asha", "reduction"): {"type": "number", "exclusive_min": 1},
}


@pytest.mark.parametrize("place", KNOWN, ids="-".join)
def test_known_parameters(place: tuple[str, str, str]) -> None:
    part, name, key = place
    (entry,) = find_entries(part, name).values()
    found = next(one for one in entry[0].plain()["parameters"] if one["name"] == key)
    assert KNOWN[place].items() <= found.items()
    assert found["required"] is False


@option
class Inner:
    """A mapping inside.

    With more to say.
    """

    width: Annotated[int, Field(ge=1, description="how wide")]
    kind: Literal["a", "b"] = "a"


@option
class Odd(ResponseLoss):
    """All that a field may be."""

    name: Literal["odd"] = "odd"
    slots: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    steps: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    mixed: tuple[int, str] = (1, "a")
    weights: dict[str, float] = field(default_factory=lambda: {"x": 1.0})
    term: Term = Term(loss=LOSSES["kd"](temperature=2.0))
    free: Any = None
    folder: Annotated[str, Field(min_length=1, max_length=9)]
    pictures: tuple[Annotated[Augment, AUGMENTATIONS], ...] = (
        AUGMENTATIONS["rotation"](degrees=9.5),
        AUGMENTATIONS["horizontal_flip"](),
    )
    inside: tuple[Inner, ...] = (Inner(width=3), Inner(width=4, kind="b"))


def test_all_kinds_of_fields_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        LOSSES.__dict__, "_entries", {**LOSSES._entries, "odd": (Odd, "odd-package 2")}
    )
    (entry,) = find_entries("losses", "odd")["losses"]
    read = {one.name: one for one in entry.parameters}
    assert {name: one.type.text for name, one in read.items()} == {
        "slots": "integer >= 1 or auto",
        "steps": "null or list of integers, each >= 1",
        "mixed": "list of 2 integers or strings",
        "weights": "mapping",
        "term": "term",
        "free": "any value",
        "folder": "string of at most 9 characters",
        "pictures": "list of augmentations",
        "inside": "list of inners",
    }
    assert {name: one.default_text for name, one in read.items()} == {
        "slots": "auto",
        "steps": "null",
        "mixed": "[1, a]",
        "weights": "{x: 1.0}",
        "term": "{loss: {name: kd, temperature: 2.0}}",
        "free": "null",
        "folder": "required",
        "pictures": "[{name: rotation, degrees: 9.5}, horizontal_flip]",
        "inside": "[{width: 3}, {width: 4, kind: b}]",
    }
    assert read["steps"].type.plain() == {"type": "list of integers or null", "min": 1}
    assert read["weights"].default == {"x": 1.0}
    (inner,) = entry.nested
    assert (inner.name, inner.summary) == ("inner", "A mapping inside.")
    (shown,) = read["inside"].plain()["of"]
    assert [one["name"] for one in shown["parameters"]] == ["width", "kind"]
    assert shown["parameters"][0]["required"] and shown["parameters"][0]["min"] == 1
    text = " ".join(rendered("losses", name="odd", in_detail=True).split())
    assert "inner: A mapping inside. width required integer >= 1; how wide kind a a, b" in text


# How it is shown


def test_eighty_columns_hold_it_all() -> None:
    text = rendered(*PARTS)
    assert max(map(len, text.splitlines())) <= 80
    words = set(text.split())
    for entry in ALL:
        assert entry.name in words
        assert {one.name for one in entry.parameters} <= words
    assert max(map(len, typed().stdout.splitlines())) <= 80


def test_loss_is_listed_with_weight_and_paper() -> None:
    text = " ".join(rendered("losses").partition("\nlogit_mse")[0].split())
    assert text.startswith("kd Match the softened class probabilities of the teacher.")
    assert "knowledge: response; kinds: softmax, sigmoid, dense; default weight: 0.9" in text
    assert "default pairs: none" in text
    assert "paper: Hinton 2015, arXiv:1503.02531" in text
    assert "temperature 4.0 number > 0; Softmax temperature of student and teacher" in text


@every_option
def test_single_option_is_shown_in_full(entry: Entry) -> None:
    text = " ".join(rendered(entry.part, name=entry.name, in_detail=True, width=500).split())
    assert text.startswith(f"{entry.name}, {entry.noun} {entry.summary}")
    assert " ".join(entry.details.split()) in text
    assert entry.paper in text
    for one in entry.parameters:
        assert one.description in text


def test_json_is_json_alone() -> None:
    done = typed("losses", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    listed = json.loads(done.stdout)
    assert [one["name"] for one in listed] == list(LOSSES.members)
    kd = listed[0]
    assert kd["summary"] == "Match the softened class probabilities of the teacher."
    assert (kd["knowledge"], kd["default_weight"], kd["default_pairs"]) == ("response", 0.9, "none")
    assert (kd["part"], kd["package"], kd["paper"]) == (
        "losses",
        "raykd",
        "Hinton 2015, arXiv:1503.02531",
    )
    assert isinstance(kd["weight_source"], str)
    assert [one["name"] for one in json.loads(typed("losses", "dkd", "--json").stdout)] == ["dkd"]
    everything = json.loads(typed("--json").stdout)
    assert {one["part"] for one in everything} == set(PARTS)
    assert entries_json(find_entries()) == typed("--json").stdout.rstrip("\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["losses", "kdd"], ["unknown loss 'kdd'", "did you mean 'kd'?", "rkd"]),
        (["data", "digit"], ["unknown data source 'digit'", "did you mean 'digits'?"]),
        (["samplers", "xyz"], ["unknown sampler 'xyz'", "tpe"]),
        (["loss"], ["unknown part 'loss'", "did you mean 'losses'?"]),
        (["sources"], ["unknown part 'sources'", "losses, schemes, models, data"]),
        (["hint"], ["unknown part 'hint'", "raykd list losses hint"]),
        (["losses", "--json", "--markdown"], ["give either --json or --markdown"]),
    ],
)
def test_unknown_option_is_reported(words: list[str], said: list[str]) -> None:
    done = typed(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for text in said:
        assert text in " ".join(done.stderr.split())


def test_help_names_parts() -> None:
    assert LISTED_PARTS == PARTS
    shown = " ".join(typed("--help").stdout.replace("│", " ").split())
    parts = "losses, schemes, models, data, optimizers, schedules, samplers, schedulers, proxies"
    assert f"{parts} or augmentations" in shown


def test_listing_imports_neither_ray_nor_mlflow() -> None:
    code = (
        "import sys, raykd.report.options.catalogue as c, raykd.report.options.render as p\n"
        "p.render_page(c.find_entries())\n"
        "print([m for m in ('ray', 'mlflow', 'optuna', 'torchvision', 'sklearn', 'scipy')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# The page


def test_page_equals_its_source(repository: Path) -> None:
    kept = (repository / "docs" / "options.md").read_text(encoding="utf-8")
    made = render_page(FOUND)
    assert kept == made, f"docs/options.md is not up to date; renew it: uv run {COMMAND}"


def test_pages_links_lead_to_its_headings() -> None:
    text = render_page(FOUND)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= set(anchors)
    assert len(set(anchors)) >= len(ALL)


def test_page_has_table_of_every_loss_and_its_weight() -> None:
    losses = render_page(FOUND).partition("\n## Losses\n")[2]
    rows = [line for line in losses.splitlines() if line.startswith("| [")]
    for entry in FOUND["losses"]:
        first, second = [row for row in rows if row.startswith(f"| [{entry.name}](")]
        assert entry.facts["knowledge"] in first
        assert str(entry.facts["default_weight"]) in second
        assert entry.facts["default_pairs"] in second
        for one in entry.parameters:
            assert f"`{one.name}` {one.default_text} (" in second
    cells = {row.replace(r"\|", "").count("|") for row in rows[: len(FOUND["losses"])]}
    assert len(cells) == 1, "a sign in a cell has cut it in two"


def test_signs_of_formulas_are_not_markdowns() -> None:
    entry = Entry("losses", "loss", "odd", "a * b <x> _y_ p_t `c * d`, arXiv:1503.02531", "", "")
    text = render_page({"losses": [entry]})
    assert r"a \* b \<x> \_y\_ p_t `c * d`, [arXiv:1503.02531]" in text


def test_option_of_many_names_is_listed_by_their_form(monkeypatch: pytest.MonkeyPatch) -> None:
    @option
    class Foreign(Model):
        """Any model of a library."""

        name: Annotated[str, names_like("library/NAME", r"^library/.+$")]
        width: Annotated[int, Field(ge=1, description="channels")] = 8

    found = {**MODELS._entries, "library/NAME": (Foreign, "odd-package 2.0")}
    monkeypatch.setitem(MODELS.__dict__, "_entries", found)
    foreign = list_entries("models")[-1]
    assert (foreign.name, foreign.summary) == ("library/NAME", "Any model of a library.")
    assert [one.name for one in foreign.parameters] == ["width"]
    (dml,) = find_entries("schemes", "dml")["schemes"]
    others = next(one for one in dml.parameters if one.name == "others")
    assert (others.type.text, others.type.nested) == ("list of models", ())
    assert "| [library/NAME](#libraryname-model) |" in render_page({"models": [foreign]})


def test_option_without_documentation_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    @option
    class Mute(ResponseLoss):
        name: Literal["mute"] = "mute"

    monkeypatch.setitem(LOSSES.__dict__, "_entries", {"mute": (Mute, "odd-package 2.0")})
    (mute,) = list_entries("losses")
    assert (mute.summary, mute.details, mute.paper) == ("", "", "")
    assert "package: odd-package 2.0" in " ".join(rendered("losses").split())
    assert mute.plain()["package"] == "odd-package 2.0"
