"""Byte streams: plain or unpacked, and lines of bounded length from a range of them.

The first bytes show how a file is packed: gzip, bzip2, xz and zstd are not UTF-8, so no text starts like them.
It is unpacked in small pieces, so that memory does not depend on the compression ratio. Archives may be concatenated,
as by `cat a.gz b.gz`; one that is truncated, damaged, or followed by other bytes is an error after the last complete
piece.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from chinchilla_ds.structured import open_regular

PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes of packed files."""

MAX_SKIPPED_BYTES = 2**30
"""Bytes searched for the end of an overlong line; if it is not found, the rest of the file is skipped."""

_CHUNK_BYTES = 2**17
_ZSTD_MAX_WINDOW_BYTES = 2**31
"""The largest window that the library supports: `zstd --ultra --long=31`."""
_XZ_MEMORY_BYTES = 2**31
"""Enough for the largest dictionary, 1.5 GiB."""


class ArchiveError(Exception):
    """A packed file cannot be unpacked, or only up to the current position; gives the reason."""


class EndlessLineError(Exception):
    """No line ends within `MAX_SKIPPED_BYTES`."""


def open_bytes(path: Path, /) -> io.BufferedReader:
    """Open for reading, unpacked.

    Raises:
        ArchiveError: it is packed by its name, but not by its first bytes. Reading raises it too.
        OSError: the file cannot be opened, or is not a regular file.
    """
    file = open_regular(path)
    head = file.read(_MAGIC_BYTES)
    file.seek(0)
    unpack = _unpacker(head)
    if unpack is not None:
        return io.BufferedReader(_Unpacked(file, unpack(file)), _CHUNK_BYTES)
    if head and path.suffix.lower() in PACKED_SUFFIXES:
        file.close()
        raise ArchiveError(f"it does not start like a {path.suffix.lower()} file")
    assert isinstance(file, io.BufferedReader)
    return file


def is_packed(path: Path, /) -> bool:
    """Return whether the file is packed, so that it cannot be read from the middle.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    with open_regular(path) as file:
        return _unpacker(file.read(_MAGIC_BYTES)) is not None


def lines(
    stream: io.BufferedReader, /, *, start: int = 0, stop: int | None = None, max_bytes: int
) -> Iterator[tuple[int, bytes | None]]:
    """Yield number (from 1) and content of the lines that start in the bytes [start, stop), with their line ends.

    Blank lines are counted and skipped. The content is None for a line of more than `max_bytes`.

    Args:
        stream: the file; lines are counted from its current position.
        start: first byte at which a line may start.
        stop: end of these bytes, exclusive; None: the end of the file.
        max_bytes: longest line whose content is returned.

    Raises:
        EndlessLineError: a line of more than `max_bytes` does not end.
    """
    position, number = start, 0
    if not start and stop is not None:
        position = stream.tell()  # after a byte-order mark
    elif start:
        stream.seek(start - 1)
        position = start - 1 + _skip_line(stream, most=None if stop is None else stop - start + 1)
    while (stop is None or position < stop) and (line := stream.readline(max_bytes + 1)):
        position += len(line)
        number += 1
        if len(line) > max_bytes:
            if not line.endswith(b"\n"):
                position += _skip_line(stream, most=None if stop is None else stop - position)
            yield number, None
        elif line.isspace():
            skipped, ends = skip_blank(stream)
            position, number = position + skipped, number + ends
        else:
            yield number, line


def skip_blank(stream: io.BufferedReader, /) -> tuple[int, int]:
    """Skip the line ends that come next in the buffer; return their bytes, and the number of lines that they end."""
    ahead = stream.peek()
    blank = ahead[: len(ahead) - len(ahead.lstrip(b"\r\n"))]
    stream.read(len(blank))
    return len(blank), blank.count(b"\n")


def skip_line(stream: io.BufferedReader, /) -> None:
    """Read to the end of the line.

    Raises:
        EndlessLineError: it does not end.
    """
    _skip_line(stream, most=None)


def _skip_line(stream: io.BufferedReader, *, most: int | None) -> int:
    """Read to the end of the line, or until `most` bytes are read, and return the number of bytes read."""
    skipped = 0
    while (most is None or skipped < most) and (chunk := stream.readline(_CHUNK_BYTES)):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
        if skipped > MAX_SKIPPED_BYTES and most is None:
            raise EndlessLineError
    return skipped


class _Unpacked(io.RawIOBase):
    """Pieces of a packed file as a stream."""

    def __init__(self, file: BinaryIO, pieces: Iterator[bytes]) -> None:
        self._file = file
        self._pieces = pieces
        self._piece, self._used = b"", 0
        self._error: ArchiveError | None = None
        """The error that ended it, so that no later read mistakes it for the end of the file."""

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer` from the current piece."""
        if self._error is not None:
            raise self._error
        if self._used == len(self._piece):
            try:
                self._piece, self._used = next(self._pieces, b""), 0
            except ArchiveError as error:
                self._error = error
                raise
        size = min(len(buffer), len(self._piece) - self._used)
        buffer[:size] = self._piece[self._used : self._used + size]
        self._used += size
        return size

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


# ---- gzip, bzip2, xz -------------------------------------------------------------------------------------------------


class _Gzip:
    """One gzip member, with the methods of Python's other decompressors."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)


def _members(file: BinaryIO, *, new: Callable[[], Any]) -> Iterator[bytes]:
    """Yield the content of one member after another; each may be followed by zeros, as padding."""
    waiting, number = file.read(_CHUNK_BYTES), 0
    while waiting:
        number += 1
        yield from _member(file, member := new(), waiting)
        waiting = member.unused_data.lstrip(b"\0")
        while not waiting and (read := file.read(_CHUNK_BYTES)):
            waiting = read.lstrip(b"\0")
        waiting += file.read(_MAGIC_BYTES) if len(waiting) < _MAGIC_BYTES else b""
        if waiting and _unpacker(waiting) is None:
            raise ArchiveError(f"other bytes follow the end of the archive ({number} complete in it)")


def _member(file: BinaryIO, member: Any, waiting: bytes) -> Iterator[bytes]:
    while not member.eof:
        data = b""
        if member.needs_input:
            data, waiting = waiting or file.read(_CHUNK_BYTES), b""
        try:
            piece = member.decompress(data, _CHUNK_BYTES)
        except (zlib.error, lzma.LZMAError, OSError) as error:
            raise ArchiveError(f"it is damaged: {error}") from None
        if piece:
            yield piece
        elif not data and member.needs_input and not member.eof:
            raise ArchiveError("it is truncated: the file ends before the archive does")


# ---- zstd ------------------------------------------------------------------------------------------------------------

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_BLOCK_BYTES = 2**17


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of zstd frames block by block.

    zstandard's own reader accepts a truncated file as complete, and its `decompressobj` unpacks all of its input at
    once. A block expands to at most 128 KiB, so the blocks are separated here, by RFC 8878.
    """
    import zstandard

    number = 0
    while magic := file.read(4):
        if magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5:  # a skippable frame
            _skip(file, int.from_bytes(_exactly(file, 4), "little"))
            continue
        if magic != _ZSTD_MAGIC:
            raise ArchiveError(f"other bytes follow the end of the archive ({number} complete in it)")
        number += 1
        frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW_BYTES).decompressobj()
        try:
            for part in _frame_parts(file):
                if piece := frame.decompress(part):
                    yield piece
        except zstandard.ZstdError as error:
            raise ArchiveError(f"it is damaged: {error}") from None
        if not frame.eof:
            raise ArchiveError("it is damaged: a frame does not end with its last block")


def _frame_parts(file: BinaryIO) -> Iterator[bytes]:
    """Yield the header of a frame, whose magic number has been read, then its blocks, then its checksum."""
    descriptor = _exactly(file, 1)
    flags = descriptor[0]
    size_flag, is_single, has_checksum, dictionary_flag = flags >> 6, flags >> 5 & 1, flags >> 2 & 1, flags & 3
    size_bytes = (is_single, 2, 4, 8)[size_flag]
    fields = _exactly(file, (1 - is_single) + (0, 1, 2, 4)[dictionary_flag] + size_bytes)
    if dictionary_flag:
        raise ArchiveError("it was packed with a zstd dictionary, which is not in the file; pack it without one")
    yield _ZSTD_MAGIC + descriptor + fields
    is_last = False
    while not is_last:
        header = _exactly(file, 3)
        value = int.from_bytes(header, "little")
        is_last, kind, size = bool(value & 1), value >> 1 & 3, value >> 3
        if kind == 3 or size > _MAX_BLOCK_BYTES:
            raise ArchiveError("it is damaged: a block of an invalid kind or size")
        yield header + _exactly(file, 1 if kind == 1 else size)
    if has_checksum:
        yield _exactly(file, 4)


def _exactly(file: BinaryIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise ArchiveError("it is truncated: the file ends in the middle of a zstd frame")
    return content


def _skip(file: BinaryIO, size: int) -> None:
    while size:
        size -= len(_exactly(file, min(size, _CHUNK_BYTES)))


# ---- by their first bytes --------------------------------------------------------------------------------------------

_MAGIC_BYTES = 10


def _unpacker(head: bytes) -> Callable[[BinaryIO], Iterator[bytes]] | None:
    """Return the unpacker for a file with this beginning; None for one that is not packed."""
    if head.startswith(b"\x1f\x8b\x08"):
        return lambda file: _members(file, new=_Gzip)
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return lambda file: _members(file, new=bz2.BZ2Decompressor)
    if head.startswith(b"\xfd7zXZ\0"):
        return lambda file: _members(file, new=_xz)
    if head[:4] == _ZSTD_MAGIC or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return _zstd
    return None
