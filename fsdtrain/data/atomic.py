"""Files that are either whole or not there, whatever goes wrong while they are written.

Knows nothing of what is in them. Everything is written under another name, forced to the disk and
renamed; disk and permission faults become UserError naming the path.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsdtrain.errors import UserError


class PartialFile:
    """The file under a tar that is being written, which `discard` turns into a sink.

    tarfile's stream flushes its buffer whenever it is closed, even by the garbage collector: after
    a fault those late writes must go nowhere.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Unbuffered: a full disk shows at once, and closing has nothing left to write.
        self._file: io.FileIO | None = path.open("wb", buffering=0)

    def write(self, data: bytes) -> None:
        """Append all of `data`; a raw file may take it in pieces."""
        rest = memoryview(data)
        while rest and self._file is not None:
            rest = rest[self._file.write(rest) :]

    def finish(self) -> int:
        """Force everything to the disk and close; returns the size in bytes."""
        assert self._file is not None
        with self._file as file:
            os.fsync(file.fileno())
            return file.tell()

    def discard(self) -> None:
        """Close and delete; later writes are swallowed."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
        self._path.unlink(missing_ok=True)


@contextmanager
def naming_path(path: Path) -> Iterator[None]:
    """Turn an OSError inside into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space, mend the "
            "permissions or choose another folder"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file; OSError as it comes. Renames in its folder before it are durable too."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes both renames durable
    finally:
        os.close(folder)
