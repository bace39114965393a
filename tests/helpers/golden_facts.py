"""Facts that a change of names or structure must not change, as the command line shows them.

    python tests/golden_facts.py [NAME...]    # writes tests/goldens/NAME.json

Everything is read through the commands of raykd, so the same script describes any version of the
tree. Texts (descriptions, titles, summaries) are left out: rewriting a text changes no behavior.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from raykd.cli.commands import app

ROOT = Path(__file__).resolve().parent
while not (ROOT / "pyproject.toml").exists():
    ROOT = ROOT.parent
GOLDENS = ROOT / "tests" / "goldens"
TEXTS = {"description", "title", "summary", "details", "markdownDescription", "weight_source"}
CLOCKS = {"epoch_seconds", "images_per_second", "seconds"}

STUDY = """\
name: goldens
data: {name: digits, limit: 400, val_limit: 100}
teacher:
  model: {name: resnet, depth: 8, width: 8}
  train: {epochs: 1, schedule: {name: constant}}
student:
  model:
    name: resnet
    depth: {choice: [8, 14]}
    width: {int: [4, 16], step: 4}
scheme: {name: offline}
knowledge:
  - loss: {name: kd, temperature: {loguniform: [1, 16]}}
    weight: {uniform: [0.1, 2.0]}
  - loss: {choice: [null, {name: hint}, {name: at}]}
    pairs: {pairing: {hint: auto, guided: auto, max: 2, order: monotone}}
    weight: {loguniform: [0.1, 100]}
train: {epochs: 1, batch_size: 64, schedule: {name: constant}, optimizer: {name: sgd, lr: 0.05}}
search:
  objectives: {macs: min, params: min}
  sampler: tpe
  scheduler: none
  trials: 16
  replicates: 1
cluster: {slots: 1}
tracking: {uri: sqlite:///mlflow.db}
"""

TRAINED = """\
name: trained
data: {name: digits, limit: 400, val_limit: 100}
teacher:
  model: {name: resnet, depth: 8, width: 8}
  train: {epochs: 1, schedule: {name: constant}}
student: {model: {name: resnet, depth: 8, width: 4}}
scheme: {name: offline}
knowledge: KNOWLEDGE
train: {epochs: 2, batch_size: 64, schedule: {name: constant}, optimizer: {name: sgd, lr: 0.05}}
search: {objectives: {val_accuracy: max}}
cluster: {slots: 1}
tracking: {uri: sqlite:///mlflow.db}
"""

KNOWLEDGE = {
    "kd": "[{loss: {name: kd, temperature: 4}, weight: 0.9}]",
    "hint": "[{loss: {name: hint}, pairs: [{hint: stage2, guided: stage2}], weight: 10}]",
}


def run(*words: str, folder: Path = ROOT) -> str:
    """Return the standard output of a `raykd` command."""
    command = [str(Path(sys.executable).with_name("raykd")), *words]
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # sums in one order
    done = subprocess.run(
        command, cwd=folder, env=os.environ | alone, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def without_texts(value: Any) -> Any:
    """Return plain data without the texts that explain it, keys sorted."""
    if isinstance(value, Mapping):
        items = {key: item for key, item in value.items() if not _is_text(key, item)}
        return {key: without_texts(items[key]) for key in sorted(items)}
    if isinstance(value, list):
        return [without_texts(item) for item in value]
    return value


def _is_text(key: str, value: object) -> bool:
    return key in TEXTS and isinstance(value, str)


def schema() -> Any:
    """Return the JSON Schema; definitions are called by their fields, not by names of classes."""
    document = without_texts(json.loads(run("schema")))
    definitions = document.pop("$defs")
    labels = {name: _label(definition) for name, definition in definitions.items()}
    whole = [_relabeled(definition, labels) for definition in definitions.values()]
    return {
        "study": _relabeled(document, labels),
        "digests of definitions": sorted(
            f"{label}: {_digest(definition)}"
            for label, definition in zip(labels.values(), whole, strict=True)
        ),
    }


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _label(definition: Mapping[str, Any]) -> str:
    fields = definition.get("properties", {})
    return f"{fields.get('name', {}).get('const', '')}({', '.join(sorted(fields))})"


def _relabeled(value: Any, labels: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_relabeled(item, labels) for item in value]
    if isinstance(value, Mapping):
        return {key: _relabeled(item, labels) for key, item in value.items()}
    if isinstance(value, str) and value.startswith("#/$defs/"):
        return labels[value.removeprefix("#/$defs/")]
    return value


def options() -> Any:
    """Return the options of every part: names, types, ranges, defaults."""
    return without_texts(json.loads(run("list", "--json")))


def studies() -> Any:
    """Return the figures that `validate` prints of each shipped study."""
    names = sorted(path.name for path in (ROOT / "search_spaces").glob("*.yaml"))
    with contextlib.chdir(ROOT):
        return {name: _figures(name) for name in names}


def _figures(name: str) -> list[str]:
    words = ["validate", f"search_spaces/{name}", "--set", "cluster.slots=1"]
    done = CliRunner().invoke(app, words)  # in this process: a dozen starts take half a minute
    if done.exit_code:
        return [f"{' '.join(words)}: exit code {done.exit_code}"]  # its data are not here
    page = done.stdout
    # The name of the processor decides where the line on measured latency is wrapped.
    rows = [
        line for line in page.splitlines() if not re.match(r"(cache|slots|measured) |  +", line)
    ]
    return [number for line in rows for number in re.findall(r"\d[\d,.]*\d|\d", line)]


def search() -> Any:
    """Return the journal of a search in one slot: what was drawn, trained and kept, in order."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.yaml").write_text(STUDY)
        run("search", "study.yaml", folder=folder)
        [journal] = folder.glob("studies/*/journal.jsonl")
        events = [json.loads(line) for line in journal.read_text().splitlines()]
        return {
            "events": [_event(event) for event in events],
            "teachers": sorted(path.name for path in folder.glob("studies/teachers/*.safetensors")),
            "outputs": _description(folder),
        }


def _description(folder: Path) -> Any:
    """Return the facts that the address of a cache entry hashes, except for the weights."""
    [manifest] = folder.glob("studies/outputs/*/manifest.json")
    return json.loads(manifest.read_text())["description"] | {"weights": "-"}


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
    facts = {key: event[key] for key in ("event", "id", "role", "status", "epoch") if key in event}
    if event["event"] == "study":
        facts.pop("id")
        facts["resolved"] = {**event["resolved"], "tracking": None}
    if "params" in event:
        facts["params"] = event["params"]
    if "metrics" in event:
        facts["metrics"] = sorted(set(event["metrics"]) - CLOCKS)
    facts["keys"] = sorted(event)
    return facts


def trained() -> Any:
    """Return the metrics of a response loss and a feature loss, each trained for two epochs."""
    return {name: _trained(knowledge) for name, knowledge in KNOWLEDGE.items()}


def _trained(knowledge: str) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.yaml").write_text(TRAINED.replace("KNOWLEDGE", knowledge))
        run("distill", "study.yaml", folder=folder)
        [journal] = folder.glob("studies/*/journal.jsonl")
        events = [json.loads(line) for line in journal.read_text().splitlines()]
    return [
        {key: value for key, value in event["metrics"].items() if key not in CLOCKS}
        for event in events
        if event["event"] == "epoch"
    ]


FACTS: dict[str, Callable[[], Any]] = {
    "schema": schema,
    "options": options,
    "studies": studies,
    "search": search,
    "trained": trained,
}


def main(names: list[str]) -> None:
    GOLDENS.mkdir(exist_ok=True)
    for name in names or FACTS:
        text = json.dumps(FACTS[name](), indent=1, sort_keys=True)
        (GOLDENS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
