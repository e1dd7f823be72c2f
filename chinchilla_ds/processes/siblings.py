"""The other ranks on this machine, seen through /proc: which of them have died, and why.

A rank that is killed (kill -9, the kernel out of memory) cannot report, and the others only lose a connection. Without
/proc, no rank is seen and none is missed.
"""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chinchilla_ds.distributed.launch import read_place
from chinchilla_ds.errors import ConfigError

_ZOMBIE = "Z"
_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A rank that has exited."""

    rank: int
    process_id: int
    signal_number: int | None
    """The signal that killed it; None if it exited itself or its parent has already reaped it."""
    left_by_itself: bool
    """Whether it is known to have exited by itself: it has then reported why."""

    def __str__(self) -> str:
        """Return `rank 1 (process 4242) was killed by SIGKILL`."""
        how = "is gone"
        if self.signal_number is not None:
            how = f"was killed by {signal.Signals(self.signal_number).name}"
        return f"rank {self.rank} (process {self.process_id}) {how}"


class Siblings:
    """The ranks started by the parent of this process."""

    def __init__(self) -> None:
        self._rank_of: dict[tuple[int, str], int] = {}
        """Ranks by process id and start time, since ids are reused."""
        self._others: set[int] = set()
        self._first_gone: list[Gone] = []

    def refresh(self) -> None:
        """Find ranks that are not known yet."""
        parent = os.getppid()
        if len(self._rank_of) + 1 >= _local_size():
            return
        with suppress(OSError):
            children = (_PROC / f"{parent}/task/{parent}/children").read_text().split()
            for child in map(int, children):
                if child != os.getpid() and child not in self._others:
                    self._add(child)

    def _add(self, child: int) -> None:
        with suppress(OSError, ConfigError):
            entries = os.fsdecode((_PROC / f"{child}/environ").read_bytes()).split("\0")
            place = read_place(dict(entry.split("=", 1) for entry in entries if "=" in entry))
            if place.world_size > 1:
                self._others.add(child)
                self._rank_of[child, _stat(child)[19]] = place.rank

    def gone(self) -> list[Gone]:
        """Return the ranks that died first, lowest first; later deaths by the launcher do not count."""
        if not self._first_gone:
            seen = (_look_at(process_id, started, rank) for (process_id, started), rank in self._rank_of.items())
            self._first_gone = sorted((gone for gone in seen if gone is not None), key=lambda gone: gone.rank)
        return self._first_gone

    def is_lowest_left(self, *, own_rank: int) -> bool:
        """Return whether no lower rank of this machine outlived the first death."""
        dead = {gone.rank for gone in self.gone()}
        return all(rank >= own_rank or rank in dead for rank in self._rank_of.values())


def _local_size() -> int:
    try:
        return read_place().local_size
    except ConfigError:
        return 1


def _look_at(process_id: int, started: str, rank: int) -> Gone | None:
    """Return how a rank's process died, as far as known; None if it is alive."""
    try:
        stat = _stat(process_id)
    except OSError:
        stat = []
    if not stat or stat[19] != started:
        return Gone(rank=rank, process_id=process_id, signal_number=None, left_by_itself=False)
    if stat[0] != _ZOMBIE:
        return None
    status = int(stat[-1])
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    return Gone(rank=rank, process_id=process_id, signal_number=number, left_by_itself=number is None)


def _stat(process_id: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third, the state, on; the 20th of these is the start time."""
    return (_PROC / f"{process_id}/stat").read_text().rpartition(")")[2].split()
