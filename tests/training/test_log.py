"""Logs of trainings: printed text, tracebacks, crashes, size limits."""

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


def stored_logs(storage: Storage) -> str:
    content = storage.read(NAME)
    return "" if content is None else content.decode()


def test_printed_text_is_logged_and_still_printed(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    log = TrainingLog(storage, NAME)
    with log.recording():
        print("one", "two")
        print("three", file=sys.stderr)
        sys.stdout.writelines(["six\n"])
    print("after")
    log.close()
    text = stored_logs(storage)
    assert text.startswith("one two\nthree\n") and text.endswith("six\n")
    assert "after" not in text
    captured = capsys.readouterr()
    assert "one two\nsix\nafter\n" in captured.out and "three\n" in captured.err


def test_streams_are_restored_and_old_references_still_print(
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
    assert "late" in capsys.readouterr().out and stored_logs(storage) == ""


def test_output_of_raykds_threads_is_not_logged(storage: Storage) -> None:
    log = TrainingLog(storage, NAME)
    with log.recording():
        thread = threading.Thread(target=print, args=("MLflow says",), name="raykd-tracker")
        thread.start()
        thread.join()
        helper = threading.Thread(target=print, args=("a loader says",))
        helper.start()
        helper.join()
    log.close()
    assert stored_logs(storage) == "a loader says\n"


def test_empty_log_writes_no_file(storage: Storage) -> None:
    log = TrainingLog(storage, NAME)
    with log.recording():
        pass
    log.close()
    assert not storage.exists(NAME)
    log = TrainingLog(storage, NAME)
    log.write("of another rank\n")
    log.close(keep=False)
    assert not storage.exists(NAME)


def test_log_size_is_limited(storage: Storage) -> None:
    log = TrainingLog(storage, NAME)
    line = "x" * 99 + "\n"
    log.write("the first line\n")
    for number in range(3 * LIMIT // 100):
        log.write(f"{number:9}" + line[9:])
        assert (Path(storage.root) / NAME).stat().st_size <= LIMIT + 200
    log.write("the last line\n")
    log.close()
    text = stored_logs(storage)
    assert text.startswith("the first line\n") and text.endswith("the last line\n")
    assert "bytes left out" in text and HEAD + TAIL <= len(text) <= LIMIT + 200


def test_unwritable_log_does_not_stop_training(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("a file where the folder should be")
    log = TrainingLog(Storage(str(tmp_path)), NAME)
    with log.recording():
        print("still trains")
    log.failed(ValueError("x"))
    log.close()


def test_failure_uploads_log_to_remote_storage(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "local", lambda self, name: None)
    log = TrainingLog(storage, NAME)
    with log.recording():
        print("before")
    log.failed(ValueError("boom"))
    log.close()
    assert stored_logs(storage).splitlines() == ["before", "ValueError: boom"]


# Whose code raised


def write_module(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.py"
    file.write_text(text)
    return file


def test_users_line_is_named_if_library_raised(
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


def test_library_files_are_not_user_code() -> None:
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


def test_crash_leaves_python_stack_in_log(tmp_path: Path) -> None:
    file = write_module(tmp_path, "crashing", CRASHING)
    done = subprocess.run(
        [sys.executable, str(file), str(tmp_path), NAME], capture_output=True, check=False
    )
    assert done.returncode < 0
    text = stored_logs(Storage(str(tmp_path)))
    assert text.startswith("about to crash\n")
    assert "UserWarning: careful" in text and "beware\n" in text
    assert find_crash(text) == ("Segmentation fault", f"{file}:7")
    assert find_crash("RuntimeError: boom") == ("", "")


def test_environment_is_not_logged(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-secret-token")
    log = TrainingLog(storage, NAME)
    with log.recording():
        try:
            raise RuntimeError("boom")
        except RuntimeError as error:
            log.failed(error)
    log.close()
    assert "boom" in stored_logs(storage) and "a-secret-token" not in stored_logs(storage)
