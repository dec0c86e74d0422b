"""Walk the headers of a tar that may be damaged, accounting for every byte outside the members.

Python's tarfile is lenient (it skips damaged ends, and negative sizes have made it loop); this
walker takes only what a WebDataset shard needs, plain files and PAX names, and stops at the first
thing that is not exactly right.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from fsdtrain.data import store
from fsdtrain.errors import DataError

BLOCK_BYTES = tarfile.BLOCKSIZE
MAX_PAX_BYTES = 2**16
CHUNK_BYTES = 2**20
_CHECKSUM = slice(148, 156)
_PAX_RECORD = re.compile(rb"(\d{1,5}) ([^=]+)=")


@dataclass(frozen=True, kw_only=True)
class TarMember:
    """One plain file in a tar: where its body lies."""

    name: str
    offset: int
    size_bytes: int


def walk_tar(path: str) -> Iterator[TarMember]:
    """The members in order; all bytes between and behind them are checked on the way.

    Raises:
        DataError: at the first byte that is not as it must be; members before it have been yielded.
        UserError: the store refuses.
    """
    size_bytes = store.size_bytes(path)
    position = 0
    long_name: str | None = None
    while True:
        where = f"byte {position}"
        block = _read(path, position, BLOCK_BYTES, size_bytes)
        if not any(block):
            break
        header = _parse_header(block, where)
        body = position + BLOCK_BYTES
        end = body + header.size
        if end > size_bytes:
            raise DataError(f"{where}: {header.name!r} reaches beyond the end: the tar is cut off")
        position = body + -(-header.size // BLOCK_BYTES) * BLOCK_BYTES
        if any(_read(path, end, position - end, size_bytes)):
            raise DataError(f"{where}: the padding behind {header.name!r} is not zero")
        if header.type == tarfile.XHDTYPE:
            if long_name is not None or header.size > MAX_PAX_BYTES:
                raise DataError(f"{where}: a PAX header is repeated or too long")
            long_name = _pax_path(_read(path, body, header.size, size_bytes), where)
            continue
        if header.type != tarfile.REGTYPE:
            raise DataError(f"{where}: {header.name!r} is not a plain file")
        yield TarMember(name=long_name or header.name, offset=body, size_bytes=header.size)
        long_name = None
    if long_name is not None:
        raise DataError(f"byte {position}: a PAX header has no member")
    if size_bytes - position < 2 * BLOCK_BYTES:
        raise DataError(f"byte {position}: the end mark is cut off")
    for start in range(position, size_bytes, CHUNK_BYTES):
        if any(_read(path, start, min(CHUNK_BYTES, size_bytes - start), size_bytes)):
            raise DataError(f"byte {start}: there is data behind the end mark")


def _read(path: str, start: int, num_bytes: int, size_bytes: int) -> bytes:
    if num_bytes == 0:
        return b""
    if start + num_bytes > size_bytes:
        raise DataError(f"byte {start}: the tar is cut off")
    return store.read_range(path, start, start + num_bytes, where=f"byte {start}")


def _parse_header(block: bytes, where: str) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, encoding="utf-8", errors="strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: bad tar header: {error}") from error
    # The field itself is not part of its sum: only one spelling of it is taken.
    total = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    if block[_CHECKSUM] != b"%06o\0 " % total:
        raise DataError(f"{where}: bad tar header: the checksum is misspelt")
    if header.size < 0:
        raise DataError(f"{where}: bad tar header: the size is {header.size}")
    return header


def _pax_path(data: bytes, where: str) -> str:
    """The one record that shards use; others could give a member another size."""
    match = _PAX_RECORD.match(data)
    if match is None or int(match[1]) != len(data) or match[2] != b"path" or data[-1:] != b"\n":
        raise DataError(f"{where}: a PAX header holds something else than a path")
    try:
        return data[match.end() : -1].decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: a PAX path is not UTF-8") from error
