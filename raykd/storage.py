"""Storage: files that every node of a cluster can reach, in a folder or behind a URI."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem


OBJECT_STORES = ("s3", "gcs", "abfs")
"""Arrow's names of the file systems in which a file appears when it is closed."""


class Storage:
    """Folder whose files are written atomically.

    Args:
        root: a local (or network) folder, or a URI that Arrow supports, such as
            `s3://bucket/path`.
    """

    def __init__(self, root: str) -> None:
        self.root = root if is_uri(root) else str(Path(root).expanduser().absolute())
        self._filesystem: FileSystem | None = None
        self._prefix = ""
        if is_uri(root):
            from pyarrow.fs import FileSystem

            filesystem, self._prefix = FileSystem.from_uri(root)
            if filesystem.type_name == "local":  # file:///folder
                self.root = self._prefix
            else:
                self._filesystem = filesystem

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file, or None if there is no such file."""
        if self._filesystem is None:
            try:
                return Path(self.root, name).read_bytes()
            except FileNotFoundError:
                return None
        try:
            with self._filesystem.open_input_stream(f"{self._prefix}/{name}") as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes | Sequence[bytes | memoryview]) -> None:
        """Write a file atomically: no reader sees a part of it.

        Args:
            name: of the file.
            content: of the file, or its parts in order.
        """
        parts = (content,) if isinstance(content, bytes) else content
        if self._filesystem is not None:
            self._write_remote(self._filesystem, f"{self._prefix}/{name}", parts)
            return
        target = Path(self.root, name)
        with _draft_of(target, parts) as draft:
            os.replace(draft, target)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file atomically unless it exists; return whether it was written.

        In a folder the first of several concurrent writers wins, and its file is not replaced.
        Behind a URI two writers at the same instant can both write.
        """
        if self._filesystem is not None:
            if self.exists(name):
                return False
            self.write(name, content)
            return True
        target = Path(self.root, name)
        if target.exists():
            return False
        with _draft_of(target, (content,)) as draft:
            return _link(draft, target)

    def _write_remote(
        self, filesystem: FileSystem, target: str, parts: Sequence[bytes | memoryview]
    ) -> None:
        filesystem.create_dir(target.rsplit("/", 1)[0])
        # An object appears in an object store when it is complete; others need a draft.
        is_atomic = filesystem.type_name in OBJECT_STORES
        draft = target if is_atomic else f"{target}.{uuid.uuid4().hex[:8]}"
        with filesystem.open_output_stream(draft) as stream:
            for part in parts:
                stream.write(part)
        if not is_atomic:
            filesystem.move(draft, target)

    def exists(self, name: str) -> bool:
        if self._filesystem is None:
            return Path(self.root, name).is_file()
        from pyarrow.fs import FileType

        return self._filesystem.get_file_info(f"{self._prefix}/{name}").type == FileType.File

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        if self._filesystem is None:
            Path(self.root, name).unlink(missing_ok=True)
            return
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._prefix}/{name}")

    def files(self, folder: str) -> dict[str, int]:
        """Return the names and sizes of the files directly in a folder; empty if there is none."""
        if self._filesystem is None:
            try:
                with os.scandir(Path(self.root, folder)) as entries:
                    return {file.name: file.stat().st_size for file in entries if file.is_file()}
            except (FileNotFoundError, NotADirectoryError):
                return {}
        from pyarrow.fs import FileType

        infos = self._list(folder)
        return {info.base_name: info.size or 0 for info in infos if info.type == FileType.File}

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in a folder, sorted."""
        if self._filesystem is None:
            try:
                with os.scandir(Path(self.root, folder)) as entries:
                    return sorted(entry.name for entry in entries if entry.is_dir())
            except (FileNotFoundError, NotADirectoryError):
                return []
        from pyarrow.fs import FileType

        infos = self._list(folder)
        return sorted(info.base_name for info in infos if info.type == FileType.Directory)

    def _list(self, folder: str) -> list[FileInfo]:
        from pyarrow.fs import FileSelector

        assert self._filesystem is not None
        selector = FileSelector(f"{self._prefix}/{folder}", allow_not_found=True)
        return list(self._filesystem.get_file_info(selector))

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and its contents if it exists."""
        if self._filesystem is None:
            shutil.rmtree(Path(self.root, folder), ignore_errors=True)
            return
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_dir(f"{self._prefix}/{folder}")

    def local(self, name: str) -> Path | None:
        """Return the path of a file in the local file system; None behind a URI."""
        return Path(self.root, name) if self._filesystem is None else None

    def below(self, name: str) -> Storage:
        """Return the storage of the folder `name` inside this one."""
        return Storage(f"{self.root.rstrip('/')}/{name}")


@contextlib.contextmanager
def _draft_of(target: Path, parts: Sequence[bytes | memoryview]) -> Iterator[Path]:
    """Write a hidden file beside `target` to rename or link; it is removed if it is left over."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(draft, "wb") as stream:
            stream.writelines(parts)
            stream.flush()
            os.fsync(stream.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _link(draft: Path, target: Path) -> bool:
    """Rename a finished draft unless the name is taken; return whether it was free."""
    try:
        os.link(draft, target)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, or the draft was removed
        if target.exists():
            return False
        os.replace(draft, target)
        return True


def is_uri(root: str) -> bool:
    return "://" in root
