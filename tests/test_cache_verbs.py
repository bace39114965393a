"""`raykd cache` and what else says of kept outputs, as it is typed and read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from raykd.cli.commands import app
from raykd.report.format import in_bytes, outputs_line
from raykd.report.lines import EpochLines, PlainLines
from raykd.report.run_state import RunState
from raykd.tracking.events import TeacherCacheChanged

STUDY = """\
name: small
data: {name: digits, limit: 100, augment: [{name: random_crop, padding: 1}]}
teacher: {model: {name: mlp, depth: 2, width: 16}, train: {epochs: 1}}
student: {model: {name: mlp, depth: 2, width: 8}}
knowledge:
  - loss: kd
  - loss: hint
train: {epochs: 2}
cache: {use: always}
search: {trials: 2, replicates: 0}
"""


def typed(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder in which a student was distilled, and what was printed."""
    folder = tmp_path_factory.mktemp("distilled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("small.yaml").write_text(STUDY)
        done = typed("distill", "small.yaml")
    assert done.exit_code == 0, done.output
    return folder, done


@pytest.fixture
def folder(distilled: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; the working folder."""
    shutil.copytree(distilled[0] / "studies", tmp_path / "studies")
    shutil.copy(distilled[0] / "small.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def key_of(folder: Path) -> str:
    [entry] = (folder / "studies" / "outputs").iterdir()
    return entry.name


def test_distillation_reports_its_cached_outputs(distilled: tuple[Path, Result]) -> None:
    said = distilled[1].stdout
    assert "computing teacher outputs for all trials (2 views, 10.4 kB)" in said
    assert said.index("cached teacher outputs") > said.index("teacher-0 finished")
    assert said.index("cached teacher outputs") < said.index("trial-0000")


def test_cached_outputs_are_listed(folder: Path) -> None:
    done = typed("cache", "ls")
    assert done.exit_code == 0
    for text in (key_of(folder)[:12], "mlp", "digits, 100", "logits", "fp16", "0.0 h ago"):
        assert text in done.stdout
    [entry] = json.loads(typed("cache", "ls", "--json").stdout)
    assert entry["key"] == key_of(folder) and entry["complete"]
    assert entry["description"]["views"] == 2
    nothing = typed("cache", "ls", "--storage", "elsewhere")
    assert (nothing.exit_code, nothing.stdout.strip()) == (0, "the cache is empty")


def test_cached_outputs_equal_teachers(folder: Path) -> None:
    done = typed("cache", "verify", "--check", "--samples", "40")
    assert done.exit_code == 0, done.output
    assert f"{key_of(folder)[:12]}: ok" in done.stdout
    assert done.stdout.count("agrees") == 2 and "40 samples" in done.stdout


def test_outputs_of_another_teacher_are_detected(folder: Path) -> None:
    """The files are whole; what they hold is not what this teacher says."""
    [weights] = (folder / "studies" / "teachers").glob("*.safetensors")
    import safetensors.torch

    tensors = safetensors.torch.load_file(weights)
    changed = {name: tensor.flip(0) for name, tensor in tensors.items()}
    safetensors.torch.save_file(changed, weights)
    done = typed("cache", "verify", "--check")
    assert done.exit_code == 1
    assert ": ok" in done.stdout and "DIFFERS" in done.stdout


def test_damaged_outputs_are_removed_and_computed_again(folder: Path) -> None:
    shard = folder / "studies" / "outputs" / key_of(folder) / "000001.safetensors"
    content = bytearray(shard.read_bytes())
    whole = bytes(content)
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    done = typed("cache", "verify", key_of(folder)[:6])
    assert done.exit_code == 1
    assert "damaged, removed: 000001.safetensors" in done.stdout
    assert not shard.exists()
    assert "still being computed" in typed("cache", "verify").stdout
    again = typed("distill", "small.yaml")
    assert again.exit_code == 0, again.output
    assert shard.read_bytes() == whole
    assert typed("cache", "verify").exit_code == 0


def test_missing_weights_file_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "studies" / "teachers")
    done = typed("cache", "verify", "--check")
    assert done.exit_code == 2
    assert "the teacher's weights teachers/" in done.stderr and "are not below" in done.stderr


def test_cached_outputs_are_removed(folder: Path) -> None:
    assert typed("cache", "rm").exit_code == 2
    assert typed("cache", "rm", "--all", "abc").exit_code == 2
    wrong = typed("cache", "rm", "xyz")
    assert wrong.exit_code == 2 and "no cached outputs with address xyz" in wrong.stderr
    done = typed("cache", "rm", key_of(folder)[:5])
    assert done.exit_code == 0 and done.stdout.endswith(": removed\n")
    assert typed("cache", "ls").stdout.strip() == "the cache is empty"


def test_validate_foretells(folder: Path) -> None:
    done = typed("validate", "small.yaml")
    said = " ".join(done.stdout.split())
    assert done.exit_code == 0, done.output
    assert "logits + stage2 of teacher {name: mlp, width: 16}, 2 views: 10.4 kB" in said
    assert (
        "faster than running the teacher from 2.5 epochs on, about 2 are planned in all trainings"
        in said
    )
    never = " ".join(typed("validate", "small.yaml", "--set", "cache.use=never").stdout.split())
    assert "cache " not in never
    auto = " ".join(typed("validate", "small.yaml", "--set", "cache.use=auto").stdout.split())
    assert (
        "runs in every training step: about 2 epochs would use them, and they break even after 2"
        in auto
    )


def test_numbers_of_bytes_are_readable() -> None:
    assert [in_bytes(count) for count in (0, 999, 1000, 12_345_678, 5e12, 5e16)] == [
        "0 B",
        "999 B",
        "1 kB",
        "12.3 MB",
        "5 TB",
        "5e+04 TB",
    ]


def test_displays_show_why_teacher_runs_live() -> None:
    event = TeacherCacheChanged(key="0" * 32, status="live", reason="no room")
    for display in (PlainLines, EpochLines):
        lines: list[str] = []
        display(lines.append)(event)
        assert len(lines) == 1 and lines[0].endswith(
            "the teacher runs in every training step: no room"
        )
    removed = TeacherCacheChanged(key="0" * 32, status="removed")
    assert outputs_line(removed) == (
        "removed teacher outputs 000000000000 from the cache (least recently used)"
    )


def test_view_shows_computed_outputs() -> None:
    state = RunState()
    begun = TeacherCacheChanged(key="a", status="begun", views=1, bytes=1)
    state.apply(begun)
    assert state._building == {"a"}
    state.apply(replace(begun, status="kept"))
    assert not state._building
