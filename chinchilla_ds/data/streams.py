"""Byte streams: plain, gzip or zstd by the name of the file, and lines of bounded length out of a range of them."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

COMPRESSED = frozenset({".gz", ".zst"})
"""Suffixes of streams that cannot be entered in the middle."""

_CHUNK_BYTES = 2**17


def open_bytes(path: Path, /) -> BinaryIO:
    """Open for reading, decompressed.

    Reading raises EOFError where the archive ends too early, zlib.error or OSError where it is broken.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".zst":
        return io.BufferedReader(_Zstd(path.open("rb")), _CHUNK_BYTES)
    return path.open("rb")


def lines(stream: BinaryIO, /, *, start: int = 0, stop: int | None = None, max_bytes: int) -> Iterator[bytes | None]:
    """Yield the lines that begin in the bytes [start, stop), each with its end; None for one of over `max_bytes`."""
    position = start
    if start:
        stream.seek(start - 1)
        position = start - 1 + _skip_line(stream)
    while (stop is None or position < stop) and (line := stream.readline(max_bytes + 1)):
        position += len(line)
        if len(line) > max_bytes:
            position += 0 if line.endswith(b"\n") else _skip_line(stream)
            yield None
        else:
            yield line


def _skip_line(stream: BinaryIO) -> int:
    """Read to the end of the line and return how many bytes that took."""
    skipped = 0
    while chunk := stream.readline(_CHUNK_BYTES):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


class _Zstd(io.RawIOBase):
    """Frames of zstd, one after the other; zstandard's own reader takes a cut-off archive for a whole one."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._file = file
        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._started = False
        self._left, self._ready = b"", b""

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: "memoryview", /) -> int:  # type: ignore[override]
        """Fill `buffer` as far as the next piece goes."""
        while not self._ready and self._decompress():
            pass
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _decompress(self) -> bool:
        """Decompress one more piece into `_ready`; False at the end."""
        piece, self._left = self._left or self._file.read(_CHUNK_BYTES), b""
        if not piece:
            if self._started:
                raise EOFError("the archive ends in the middle of a zstd frame")
            return False
        try:
            self._ready, self._started = self._frame.decompress(piece), True
        except self._error as error:
            raise zlib.error(f"broken zstd archive: {error}") from None
        if self._frame.eof:
            self._left, self._frame, self._started = self._frame.unused_data, self._new(), False
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
