"""Files every node can reach: whole or not there, in a folder or behind a URI."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from raykd.storage import Storage, is_uri


@pytest.fixture(params=["folder", "file URI", "other file system"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    roots = {"folder": str(tmp_path), "file URI": f"file://{tmp_path}"}
    # Arrow's own file system for tests: it is in memory, and stands for any remote one.
    return Storage(roots.get(request.param, "mock:///studies"))


def test_written_data_are_read(storage: Storage) -> None:
    assert storage.read("small/states/a.pt") is None
    assert not storage.exists("small/states/a.pt")
    storage.write("small/states/a.pt", b"\x00one")
    assert storage.exists("small/states/a.pt")
    assert storage.read("small/states/a.pt") == b"\x00one"
    storage.write("small/states/a.pt", b"two")
    assert storage.read("small/states/a.pt") == b"two"
    storage.write("empty", b"")
    assert storage.read("empty") == b""


def test_folder_is_no_file(storage: Storage) -> None:
    storage.write("small/states/a.pt", b"one")
    assert not storage.exists("small")
    assert not storage.exists("small/states")


def test_removing_is_repeatable(storage: Storage) -> None:
    storage.write("a", b"one")
    storage.remove("a")
    storage.remove("a")
    storage.remove("never/there")
    assert storage.read("a") is None


def test_below_is_same_files(tmp_path: Path) -> None:
    for root in (str(tmp_path), f"file://{tmp_path}"):
        storage = Storage(root)
        storage.below("small").write("a", b"one")
        assert storage.read("small/a") == b"one"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_write_that_fails_leaves_file_as_it_was(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(f"{scheme}{tmp_path}")
    storage.write("states/a.pt", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            storage.write("states/a.pt", b"new")
        with pytest.raises(OSError, match="No space"):
            storage.write("states/b.pt", b"new")
    assert storage.read("states/a.pt") == b"old"
    assert os.listdir(tmp_path / "states") == ["a.pt"], "no draft is left"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_reader_never_sees_half_file(scheme: str, tmp_path: Path) -> None:
    storage = Storage(f"{scheme}{tmp_path}")
    contents = [bytes([i]) * 2_000_000 for i in range(4)]
    storage.write("a", contents[0])
    over = threading.Event()

    def write() -> None:
        for content in contents * 5:
            storage.write("a", content)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not over.is_set():
        seen.add(storage.read("a"))
    writer.join()
    assert seen <= set(contents)


def test_elsewhere_draft_is_moved_into_place(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage("mock:///studies")
    storage.write("a", b"old")
    filesystem = storage._filesystem
    assert filesystem is not None

    class Breaking:
        """Dies between writing and moving."""

        type_name = "mock"

        def __getattr__(self, name: str) -> object:
            return getattr(filesystem, name)

        def move(self, source: str, target: str) -> None:
            assert source.startswith("studies/a.") and target == "studies/a"
            raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "_filesystem", Breaking())
        with pytest.raises(OSError, match="killed"):
            storage.write("a", b"new")
    assert storage.read("a") == b"old"


def test_root_of_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Storage("studies").root == str(tmp_path / "studies")
    assert Storage("~/studies").root == str(tmp_path / "home" / "studies")
    assert is_uri("s3://bucket/kd") and is_uri("file:///kd") and not is_uri("/kd")
    Storage("studies").write("a", b"one")
    monkeypatch.chdir("/")
    assert Storage(str(tmp_path / "studies")).read("a") == b"one"


def test_unknown_uri_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        Storage("nonsense://bucket/kd")


def test_first_of_several_writers_wins(storage: Storage) -> None:
    assert storage.create("teachers/a.pt", b"one")
    assert not storage.create("teachers/a.pt", b"two")
    assert storage.read("teachers/a.pt") == b"one"
    assert list(storage.files("teachers")) == ["a.pt"], "no draft is left"


@pytest.mark.parametrize("links", [True, False])
def test_single_concurrent_writer_wins(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a file system without hard links, as far as that can be."""
    if not links:

        def refused(*args: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refused)
    storage, start = Storage(str(tmp_path)), threading.Barrier(8)
    won: list[int] = []

    def write(number: int) -> None:
        start.wait()
        if storage.create("shared/a", bytes([number]) * 100_000):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = storage.read("shared/a")
    assert content in [bytes([number]) * 100_000 for number in won]
    assert not links or len(won) == 1
    assert os.listdir(tmp_path / "shared") == ["a"], "no draft is left"
