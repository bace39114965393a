"""The package as a whole: its layers, its licence, and that what its documents say is so."""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

import raykd
from raykd.cli import commands as cli
from raykd.data import SOURCES
from raykd.losses import Loss, LossContext, ModelOutputs, Pair, Progress
from raykd.registry import Registry
from raykd.study.config import study_adapter
from raykd.study.objectives import objectives_of
from raykd.study.samplers import SAMPLERS
from raykd.study.space.domains import DOMAINS

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docker/README.md"]
DOCUMENTS += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def sources() -> list[Path]:
    """The files that make up the repository, as git knows them."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git repository")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


class TestLayers:
    def test_imports_go_downwards(self) -> None:
        linter = Path(sys.executable).with_name("lint-imports")
        found = run(str(linter), "--no-cache")
        assert found.returncode == 0, found.stdout + found.stderr
        assert "0 broken" in found.stdout

    @pytest.mark.parametrize(
        ("module", "heavy"),
        [
            ("raykd", ("torch", "ray", "mlflow", "optuna")),
            ("raykd.cli.commands", ("torch", "ray", "mlflow", "optuna")),
            ("raykd.study.yaml_file", ("torch", "ray", "mlflow", "optuna")),
            ("raykd.study.checks.load, raykd.training.trainer", ("ray", "mlflow", "optuna")),
        ],
    )
    def test_imports_no_more_than_it_needs(self, module: str, heavy: tuple[str, ...]) -> None:
        code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
        found = run(sys.executable, "-c", code)
        assert found.stdout.strip() == "[]", found.stderr


class TestProject:
    def test_licence_is_apache_2_in_full(self) -> None:
        assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
        assert project()["project"]["license"] == "Apache-2.0"

    def test_version_is_defined_in_single_place(self) -> None:
        assert "version" in project()["project"]["dynamic"]
        assert version("raykd") == raykd.__version__
        headings = re.findall(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)
        assert headings[0] == raykd.__version__

    def test_imports_and_declared_dependencies_agree(self) -> None:
        declared = {_distribution(line) for line in project()["project"]["dependencies"]}
        providers = packages_distributions()
        used: set[str] = set()
        for module in _third_party_imports():
            names = {name.lower() for name in providers.get(module, [module])}
            used |= names & declared or names  # several distributions may hold parts of a module
        extras = project()["project"]["optional-dependencies"].values()
        optional = {_distribution(line) for lines in extras for line in lines}
        assert declared <= used <= declared | optional

    def test_no_host_of_registry_and_no_path_of_developer(self) -> None:
        # Written in pieces, or this file would be the first to be found.
        hosts = ["py" + "pi.", "python" + "hosted", "npm" + "js", "deb." + "debian"]
        hosts += ["docker" + ".io", "ghcr" + ".io", "quay" + ".io", "download." + "pytorch"]
        paths = r"(?<![\w.$}~-])/(?:work|root|Users|home/(?!raykd/))[\w.-]*/"
        forbidden = re.compile("|".join([*map(re.escape, hosts), paths]))
        found = [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
            for path in sources()
            for number, line in enumerate(_lines(path), 1)
            if forbidden.search(line)
        ]
        assert found == []

    def test_check_script_runs_commands_of_readme(self) -> None:
        script = ROOT / ".ci" / "run"
        assert run("bash", "-n", str(script)).returncode == 0
        assert script.stat().st_mode & 0o111
        assert "pip install uv && uv run pytest\n" in read("README.md")
        for command in ("uv sync", "uv run pytest", "uv run pyright", "uv run lint-imports"):
            assert re.search(rf"^step .* {command}\b", read(".ci/run"), re.MULTILINE)

    @pytest.mark.slow
    def test_wheel_holds_package_alone(self, tmp_path: Path) -> None:
        if shutil.which("uv") is None:
            pytest.skip("uv is not installed")
        built = run("uv", "build", "--wheel", "--out-dir", str(tmp_path))
        assert built.returncode == 0, built.stderr
        (wheel,) = tmp_path.glob("*.whl")
        held = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
        names = set(zipfile.ZipFile(wheel).namelist())
        assert held == {"raykd", f"raykd-{raykd.__version__}.dist-info"}
        assert {"raykd/py.typed", "raykd/cli/commands.py"} <= names


class TestDocuments:
    @pytest.mark.parametrize("name", DOCUMENTS)
    def test_no_placeholder_is_left(self, name: str) -> None:
        assert re.findall(r"<!--(?! not run: ).*?-->|TODO|TBD|FIXME", read(name), re.DOTALL) == []

    @pytest.mark.parametrize("name", DOCUMENTS)
    def test_links_lead_somewhere(self, name: str) -> None:
        targets = re.findall(r"\]\((?!https?:)([^)#\s]*)", read(name))
        missing = [t for t in targets if t and not ((ROOT / name).parent / t).exists()]
        assert missing == []

    @pytest.mark.parametrize("name", DOCUMENTS)
    def test_commands_it_names_exist(self, name: str) -> None:
        wrong = [line for line in _raykd_commands(read(name)) if not _exists(line)]
        assert wrong == []

    def test_readme_names_every_verb_and_every_study_file(self) -> None:
        readme = read("README.md")
        assert [verb for verb in _verbs() if f"`raykd {verb}" not in readme] == []
        assert [path.name for path in SPACES if f"search_spaces/{path.name}" not in readme] == []

    def test_readme_shows_quickstart_as_it_is(self) -> None:
        shown = next(text for text in _blocks("README.md", "yaml") if "name: quickstart" in text)
        assert yaml.safe_load(shown) == yaml.safe_load(read("search_spaces/quickstart.yaml"))

    def test_names_that_python_examples_use_exist(self) -> None:
        names = {
            n for text in _blocks("README.md", "python") for n in re.findall(r"raykd\.(\w+)", text)
        }
        assert names
        assert [name for name in names if name not in raykd.__all__] == []

    def test_reference_names_every_key_of_study(self) -> None:
        reference = read("docs/study-file.md")
        named = set(re.findall(r"`\{?(\w+)", reference))
        missing = sorted(_study_words() - named)
        assert missing == []

    def test_example_of_new_loss_works(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (example,) = _blocks("CONTRIBUTING.md", "python")
        (tmp_path / "example_of_a_loss.py").write_text(example)
        monkeypatch.syspath_prepend(tmp_path)
        cosine = importlib.import_module("example_of_a_loss").Cosine
        losses = Registry("loss", base=Loss, entry_points="raykd.none")
        losses.add(cosine)
        loss = losses["cosine"]()
        context = LossContext(
            pairs=(Pair(hint="embedding", guided="embedding"),),
            guided_shapes=((4,),),
            hint_shapes=((6,),),
            classes=3,
            train_size=8,
            data_size=8,
        )
        student = ModelOutputs(logits=torch.zeros(8, 3), layers={"embedding": torch.randn(8, 4)})
        teacher = ModelOutputs(logits=torch.zeros(8, 3), layers={"embedding": torch.randn(8, 6)})
        progress = Progress(epoch=0, epochs=1, step=0, steps_per_epoch=1)
        value = loss.build(context)(
            student, teacher, torch.zeros(8, dtype=torch.long), torch.arange(8), progress
        )
        assert 0 <= float(value.detach()) <= 2
        value.backward()


def _distribution(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return found[0].lower()


def _third_party_imports() -> set[str]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "raykd").rglob("*.py")]
    names = {name.partition(".")[0] for tree in trees for name in _imports(tree)}
    return names - set(sys.stdlib_module_names) - {"raykd"}


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []


def _blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read(name), re.DOTALL | re.MULTILINE)


def _verbs() -> dict[str, Any]:
    return typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


def _raykd_commands(text: str) -> list[str]:
    """`raykd ...` in code, up to the end of the code or of the command; no other names."""
    spans = re.findall(r"`+([^`]+)`+", text, re.DOTALL)
    lines = [line for span in spans for line in span.splitlines()]
    return [
        found[0]
        for line in lines
        if (found := re.search(r"(?<!\")(?<!--target )\braykd (?=[a-z-])[^&|>]*", line))
    ]


def _exists(command: str) -> bool:
    words = command.split()
    verb = words[1]
    if verb.startswith("-"):
        return verb in ("--help", "-h", "--install-completion", "--show-completion")
    if verb not in _verbs():
        return False
    known = {option for param in _verbs()[verb].params for option in param.opts}
    return all(word.partition("=")[0] in known for word in words[2:] if re.match(r"--?[a-z]", word))


def _study_words() -> set[str]:
    """Keys of the parts of a study, and the names of what is not listed by `raykd list` alone."""
    definitions = study_adapter().json_schema()["$defs"]
    parts = ["Teacher", "Student", "Term", "Train", "Search", "Cluster", "Tracking"]
    parts += ["Asha", "Median", "SGD", "AdamW", "Cosine", "Step", "Bounds"]
    words = {key for part in parts for key in definitions[part]["properties"]}
    words |= {key for source in SOURCES for key in definitions[source.__name__]["properties"]}
    words |= set(study_adapter().json_schema()["properties"])
    words |= set(SOURCES.members)
    return (
        words
        | set(DOMAINS)
        | set(objectives_of(["accuracy"], ["accuracy"]))
        | set(SAMPLERS.members)
    ) - {"min", "max"}
