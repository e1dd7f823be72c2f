"""Standard output and error that outlast their reader."""

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _LastingFile(io.FileIO):
    """A file descriptor that is turned to the null device once the reader of its pipe has exited."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            null_device = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null_device, self.fileno())
            os.close(null_device)
            return super().write(data)


def outlast_readers() -> None:
    """Let the process continue when the reader of its output exits, as in `pretrain | head`, or a `tee` that is killed.

    What it prints from then on is lost; a run's metrics.jsonl and status.json still have everything.
    """
    sys.stdout = _lasting(sys.stdout)
    sys.stderr = _lasting(sys.stderr)


def _lasting(stream: TextIO) -> TextIO:
    if stream is None:  # the process was started with the descriptor closed
        return stream
    file = io.BufferedWriter(_LastingFile(stream.fileno(), "wb", closefd=False))
    return io.TextIOWrapper(file, encoding=stream.encoding, errors=stream.errors, line_buffering=True)
