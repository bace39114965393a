"""Files that every node of the cluster can reach: a folder, or a URI that Arrow understands."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem


OBJECT_STORES = ("s3", "gcs", "abfs")
"""Arrow's names of the file systems on which a file appears when it is closed."""


class Storage:
    """A folder of whole files, written atomically.

    Args:
        root: a local (or network) folder, or a URI such as `s3://bucket/path`.
    """

    def __init__(self, root: str) -> None:
        self.root = root if is_uri(root) else str(Path(root).expanduser().absolute())
        self._filesystem: FileSystem | None = None
        self._prefix = ""
        if is_uri(root):
            from pyarrow.fs import FileSystem

            found, self._prefix = FileSystem.from_uri(root)
            if found.type_name == "local":  # file:///folder
                self.root = self._prefix
            else:
                self._filesystem = found

    def read(self, name: str) -> bytes | None:
        """The file's bytes, or None where there is no such file."""
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

    def write(self, name: str, content: bytes) -> None:
        """Put the whole file there, or nothing: a reader never sees half of it."""
        if self._filesystem is not None:
            self._write_remote(self._filesystem, f"{self._prefix}/{name}", content)
            return
        target = Path(self.root, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            with open(draft, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)

    def create(self, name: str, content: bytes) -> bool:
        """Write the whole file unless it exists; return whether it was written.

        In a folder, the first of several writers wins, and nobody replaces its file.  Behind a URI
        two writers at the same instant can both write.
        """
        if self._filesystem is not None:
            if self.exists(name):
                return False
            self.write(name, content)
            return True
        target = Path(self.root, name)
        if target.exists():
            return False
        draft = f"{target.parent.relative_to(self.root)}/.{target.name}.{uuid.uuid4().hex[:8]}"
        self.write(draft, content)
        return _linked(Path(self.root, draft), target)

    def _write_remote(self, filesystem: FileSystem, target: str, content: bytes) -> None:
        filesystem.create_dir(target.rsplit("/", 1)[0])
        # An object store shows an object when it is whole; other file systems need a draft.
        whole = filesystem.type_name in OBJECT_STORES
        draft = target if whole else f"{target}.{uuid.uuid4().hex[:8]}"
        with filesystem.open_output_stream(draft) as stream:
            stream.write(content)
        if not whole:
            filesystem.move(draft, target)

    def exists(self, name: str) -> bool:
        if self._filesystem is None:
            return Path(self.root, name).is_file()
        from pyarrow.fs import FileType

        return self._filesystem.get_file_info(f"{self._prefix}/{name}").type == FileType.File

    def remove(self, name: str) -> None:
        """Remove the file; no matter if it is not there."""
        if self._filesystem is None:
            Path(self.root, name).unlink(missing_ok=True)
            return
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._prefix}/{name}")

    def files(self, folder: str) -> dict[str, int]:
        """The names and sizes of the files that lie right in a folder; none where it is not."""
        if self._filesystem is None:
            try:
                with os.scandir(Path(self.root, folder)) as found:
                    return {one.name: one.stat().st_size for one in found if one.is_file()}
            except (FileNotFoundError, NotADirectoryError):
                return {}
        from pyarrow.fs import FileType

        found = self._listed(folder)
        return {one.base_name: one.size or 0 for one in found if one.type == FileType.File}

    def folders(self, folder: str) -> list[str]:
        """The names of the folders that lie right in a folder, in order."""
        if self._filesystem is None:
            try:
                with os.scandir(Path(self.root, folder)) as found:
                    return sorted(one.name for one in found if one.is_dir())
            except (FileNotFoundError, NotADirectoryError):
                return []
        from pyarrow.fs import FileType

        found = self._listed(folder)
        return sorted(one.base_name for one in found if one.type == FileType.Directory)

    def _listed(self, folder: str) -> list[FileInfo]:
        from pyarrow.fs import FileSelector

        assert self._filesystem is not None
        where = FileSelector(f"{self._prefix}/{folder}", allow_not_found=True)
        return list(self._filesystem.get_file_info(where))

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and all in it; no matter if it is not there."""
        if self._filesystem is None:
            shutil.rmtree(Path(self.root, folder), ignore_errors=True)
            return
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_dir(f"{self._prefix}/{folder}")

    def local(self, name: str) -> Path | None:
        """Where a file lies for this machine's own file system; None where it lies elsewhere."""
        return Path(self.root, name) if self._filesystem is None else None

    def below(self, name: str) -> Storage:
        """The folder `name` inside this one."""
        return Storage(f"{self.root.rstrip('/')}/{name}")


def _linked(draft: Path, target: Path) -> bool:
    """Give a finished draft its name unless that is taken; return whether it was free."""
    try:
        os.link(draft, target)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, or the draft was cleared away
        if target.exists():
            return False
        os.replace(draft, target)
        return True
    finally:
        draft.unlink(missing_ok=True)


def is_uri(root: str) -> bool:
    return "://" in root
