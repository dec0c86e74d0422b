"""Bytes out of local folders and remote stores, through fsspec; knows nothing of what they mean.

Every function raises UserError naming the path when the store refuses. Nothing here starts a shell
(as WebDataset's own `pipe:` and curl readers would).
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import aiohttp
import braceexpand
import fsspec

from fsdtrain.errors import DataError, UserError

READ_ATTEMPTS = 3  # stores drop connections; a fault that stays is reported
RETRY_DELAY_S = 0.2

_STORE_ERRORS = (OSError, aiohttp.ClientError, asyncio.TimeoutError)
_Result = TypeVar("_Result")


def find_files(source: str, suffix: str) -> list[str]:
    """The files a folder, one path or a brace pattern (`name-{0000..0007}.tar`) stands for, sorted.

    Local results are absolute paths, remote ones URLs. Every path a pattern spells must exist.
    """
    if not source.endswith(suffix):
        with _naming(source):
            filesystem, folder = _resolve(source)
            names = filesystem.glob(folder.rstrip("/") + "/*" + suffix)
            return sorted(_spell(filesystem, name) for name in names)
    found = []
    for pattern in sorted(braceexpand.braceexpand(source)):
        with _naming(pattern):
            filesystem, path = _resolve(pattern)
            if not filesystem.exists(path):
                raise UserError(f"{pattern}: there is no such file")
            found.append(_spell(filesystem, path))
    return found


def exists(path: str) -> bool:
    """Whether there is a file of this name."""
    with _naming(path):
        filesystem, name = _resolve(path)
        return bool(filesystem.exists(name))


def size_bytes(path: str) -> int:
    """The size of a file."""

    def size() -> int:
        filesystem, name = _resolve(path)
        return int(filesystem.size(name))

    return _retrying(size, path)


def read_range(path: str, start: int, end: int, *, where: str) -> bytes:
    """Bytes start..end-1 in one request.

    Raises:
        DataError: the store keeps sending another length: a short body is an error, never an end.
    """

    def read() -> bytes:
        # Resolved on each attempt: fsspec's instances must not cross a fork.
        filesystem, name = _resolve(path)
        data = bytes(filesystem.cat_file(name, start=start, end=end))
        if len(data) != end - start:
            raise OSError(f"{len(data)} bytes came for {start}..{end}, {end - start} were asked")
        return data

    try:
        return _retrying(read, path)
    except UserError as error:
        raise DataError(f"{where}: {error}") from error


def _retrying(action: Callable[[], _Result], path: str) -> _Result:
    # A local fault does not pass by waiting.
    num_attempts = READ_ATTEMPTS if "://" in path else 1
    for attempt in range(num_attempts - 1):
        try:
            return action()
        except FileNotFoundError:
            break
        except _STORE_ERRORS:
            time.sleep(RETRY_DELAY_S * 2**attempt)
    with _naming(path):
        return action()


@contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except _STORE_ERRORS as error:
        raise UserError(f"cannot read {path}: {error or type(error).__name__}") from error
    except (ImportError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        # fsspec: an unknown protocol, or one whose package is not installed
        raise UserError(f"cannot read {path}: {error}") from error


def _resolve(path: str) -> tuple[Any, str]:  # Any: fsspec has no types
    filesystem, name = fsspec.core.url_to_fs(path)
    return filesystem, name


def _spell(filesystem: Any, name: str) -> str:  # Any: fsspec has no types
    return (
        name
        if isinstance(filesystem, fsspec.implementations.local.LocalFileSystem)
        else str(filesystem.unstrip_protocol(name))
    )
