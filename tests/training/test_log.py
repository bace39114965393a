"""The logs of trainings: what is printed, tracebacks, crashes, bounds."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raykd.storage import Storage
from raykd.training.log_file import HEAD, LIMIT, TAIL, TrainingLog, find_crash, is_own, raised_at

NAME = "study/logs/trial-0000.log"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def kept(storage: Storage) -> str:
    content = storage.read(NAME)
    return "" if content is None else content.decode()


def test_what_is_printed_is_kept_and_still_printed(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    log = TrainingLog(storage, NAME)
    with log.recording():
        print("one", "two")
        print("three", file=sys.stderr)
        sys.stdout.writelines(["six\n"])
    print("after")
    log.close()
    text = kept(storage)
    assert text.startswith("one two\nthree\n") and text.endswith("six\n")
    assert "after" not in text
    shown = capsys.readouterr()
    assert "one two\nsix\nafter\n" in shown.out and "three\n" in shown.err


def test_streams_are_put_back_and_a_copy_that_is_kept_still_prints(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sys.stdout
    log = TrainingLog(storage, NAME)
    with log.recording():
        copy = sys.stdout
        assert copy.encoding == before.encoding and not copy.isatty()
    log.close()
    assert sys.stdout is before
    copy.write("late\n")
    assert "late" in capsys.readouterr().out and kept(storage) == ""


def test_raykds_own_threads_are_left_out(storage: Storage) -> None:
    log = TrainingLog(storage, NAME)
    with log.recording():
        thread = threading.Thread(target=print, args=("MLflow says",), name="raykd-tracker")
        thread.start()
        thread.join()
        helper = threading.Thread(target=print, args=("a loader says",))
        helper.start()
        helper.join()
    log.close()
    assert kept(storage) == "a loader says\n"


def test_an_empty_log_leaves_no_file(storage: Storage) -> None:
    log = TrainingLog(storage, NAME)
    with log.recording():
        pass
    log.close()
    assert not storage.exists(NAME)
    log = TrainingLog(storage, NAME)
    log.write("of another rank\n")
    log.close(keep=False)
    assert not storage.exists(NAME)


def test_a_log_does_not_grow_without_bound(storage: Storage) -> None:
    log = TrainingLog(storage, NAME)
    line = "x" * 99 + "\n"
    log.write("the first line\n")
    for number in range(3 * LIMIT // 100):
        log.write(f"{number:9}" + line[9:])
        assert (Path(storage.root) / NAME).stat().st_size <= LIMIT + 200
    log.write("the last line\n")
    log.close()
    text = kept(storage)
    assert text.startswith("the first line\n") and text.endswith("the last line\n")
    assert "bytes left out" in text and HEAD + TAIL <= len(text) <= LIMIT + 200


def test_a_log_that_cannot_be_written_does_not_stop_the_training(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("a file where the folder should be")
    log = TrainingLog(Storage(str(tmp_path)), NAME)
    with log.recording():
        print("still trains")
    log.failed(ValueError("x"))
    log.close()


def test_where_the_storage_is_no_folder_a_failure_puts_the_log_there(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "local", lambda self, name: None)
    log = TrainingLog(storage, NAME)
    with log.recording():
        print("before")
    log.failed(ValueError("boom"))
    log.close()
    assert kept(storage).splitlines() == ["before", "ValueError: boom"]


# Whose code raised


def write_module(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.py"
    file.write_text(text)
    return file


def test_the_users_own_line_is_named_even_where_a_library_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_module(
        tmp_path,
        "own_log_model",
        "import torch\n\ndef build():\n    return torch.zeros(2, 3) @ torch.zeros(2, 3)\n\n"
        "def wrapped():\n    try:\n        build()\n    except RuntimeError as error:\n"
        "        raise ValueError('no model') from error\n",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_log_model  # pyright: ignore[reportMissingImports]

    for function in (own_log_model.build, own_log_model.wrapped):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            function()
        assert raised_at(caught.value) == f"{file}:4"


def test_libraries_are_not_the_users_own() -> None:
    import torch

    assert not is_own(torch.__file__) and not is_own(threading.__file__)
    assert not is_own(sys.modules["raykd.training.log_file"].__file__ or "")
    assert not is_own("<frozen importlib._bootstrap>")
    assert is_own("/projects/mine/models.py") and is_own(__file__)
    packages = Path(torch.__file__).parents[1]
    assert is_own(str(packages / "my_plugin" / "losses.py"))


# Crashes

CRASHING = """
import ctypes, logging, sys, warnings
from raykd.training.log_file import TrainingLog
from raykd.storage import Storage
log = TrainingLog(Storage(sys.argv[1]), sys.argv[2])
def forward():
    ctypes.string_at(0)
with log.recording():
    print("about to crash")
    warnings.warn("careful")
    logging.getLogger("own").warning("beware")
    forward()
"""


def test_a_crash_leaves_pythons_stack_in_the_log(tmp_path: Path) -> None:
    file = write_module(tmp_path, "crashing", CRASHING)
    done = subprocess.run(
        [sys.executable, str(file), str(tmp_path), NAME], capture_output=True, check=False
    )
    assert done.returncode < 0
    text = kept(Storage(str(tmp_path)))
    assert text.startswith("about to crash\n")
    assert "UserWarning: careful" in text and "beware\n" in text
    assert find_crash(text) == ("Segmentation fault", f"{file}:7")
    assert find_crash("RuntimeError: boom") == ("", "")


def test_nothing_of_the_environment_is_written(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-secret-token")
    log = TrainingLog(storage, NAME)
    with log.recording():
        try:
            raise RuntimeError("boom")
        except RuntimeError as error:
            log.failed(error)
    log.close()
    assert "boom" in kept(storage) and "a-secret-token" not in kept(storage)
