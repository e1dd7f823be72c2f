"""What ranks tell each other outside collectives: that they live, and why one leaves.

A collective waits for a rank that will never come; a launcher ends the ranks of its own machine alone, and srun none.
So every rank looks at the store that they met at, on a connection of its own:

- A rank that leaves says so there, with its reason and exit code, and the others follow.
- Each also leaves a sign of life there. Until the first step rank 0 looks for one that has stopped: up to then ranks
  wait for each other without a limit, for rank 0 may prepare text for days.
"""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from chinchilla_ds.distributed.launch import Place
from chinchilla_ds.distributed.rendezvous import Store, connect
from chinchilla_ds.errors import EXIT_CODE_HUNG
from chinchilla_ds.structured import build, parse_json

POLL_S = 1.0
SILENT_S = 120.0
"""A rank that has given no sign of life for so long is dead, or its machine is; imports and kernels take seconds."""
SEEN_S = 2 * POLL_S
"""For the others to see why this rank leaves: the store may end with it."""
_LEFT = "peers/left"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Departure:
    """Why a rank leaves."""

    rank: int
    local_rank: int
    """On its machine; -1 where it cannot have said why itself."""
    exit_code: int
    reason: str


class Peers:
    """The other ranks of a run; `leave` is called once, in a thread, when this rank has to go because of one."""

    def __init__(self, store: Store, *, place: Place, leave: Callable[[Departure], object]) -> None:
        """Begin to listen; with one rank there is nobody to listen to."""
        self._place, self._leave = place, leave
        self._store = connect(store)
        self._lock = threading.Lock()  # what is asked of one connection must be answered before the next
        self._starting, self._over = True, threading.Event()
        self._answered_s = time.monotonic()
        self._gone = False
        threads = (self._listen, self._await_answers) if place.world_size > 1 else ()
        self._threads = [threading.Thread(target=one, name=f"peers{one.__name__}", daemon=True) for one in threads]
        for thread in self._threads:
            thread.start()

    def begun(self) -> None:
        """Stop looking for signs of life: from the first step on a watchdog knows how long things may take."""
        self._starting = False

    def close(self) -> None:
        """Stop listening; every rank does so before any of them ends."""
        self._over.set()
        if threading.current_thread() not in self._threads:
            for thread in self._threads:
                thread.join(SEEN_S)

    def announce(self, *, exit_code: int, reason: str) -> None:
        """Tell the others why this rank leaves; the first reason of any rank counts."""
        if self._place.world_size == 1 or self._over.is_set():
            return
        self._over.set()
        departure = Departure(
            rank=self._place.rank, local_rank=self._place.local_rank, exit_code=exit_code, reason=reason
        )
        telling = threading.Thread(target=self._tell, args=(departure,), daemon=True)
        telling.start()
        telling.join(SEEN_S)
        if self._place.rank == 0:
            time.sleep(SEEN_S)

    def _tell(self, departure: Departure) -> None:
        with suppress(RuntimeError):  # the store is gone: nobody is left to be told
            connect(self._store).compare_set(_LEFT, "", json.dumps(dataclasses.asdict(departure)))

    def _listen(self) -> None:
        """Look for a rank that has left, and leave a sign of life."""
        heard = _Heard(self._place)
        count = 0
        while not self._over.wait(POLL_S):
            try:
                if self._store.check([_LEFT]):
                    self._go(build(Departure, parse_json(self._store.get(_LEFT), where=_LEFT), where=_LEFT))
                    return
                count += 1
                self._store.set(f"peers/alive/{self._place.rank}", str(count))
                if self._starting and (silent := heard.silent(self._store)):
                    self._store.compare_set(_LEFT, "", json.dumps(dataclasses.asdict(silent)))
            except RuntimeError as error:
                if self._starting and not self._over.is_set():
                    self._go(_lost_store(str(error)))
                return
            self._answered_s = time.monotonic()

    def _await_answers(self) -> None:
        """Notice that the store's machine no longer answers: a question then waits, in C, without an end."""
        last_s = time.monotonic()
        while not self._over.wait(POLL_S) and self._starting:
            now_s = time.monotonic()
            if now_s - last_s > 2 * POLL_S:
                self._answered_s = now_s  # this process itself stood still
            last_s = now_s
            if now_s - self._answered_s > SILENT_S:
                self._go(_lost_store(f"no answer in {SILENT_S:.0f} s"))
                return

    def _go(self, departure: Departure) -> None:
        with self._lock:
            if self._gone or self._over.is_set():
                return
            self._gone = True
        self._over.set()
        self._leave(departure)


class _Heard:
    """When rank 0 last heard from each of the others."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._signs: dict[int, tuple[bytes, float]] = {}
        self._looked_s = time.monotonic()

    def silent(self, store: Store) -> Departure | None:
        """Return the departure of a rank that has been silent for too long, on rank 0."""
        if self._place.rank != 0:
            return None
        now_s = time.monotonic()
        if now_s - self._looked_s > SILENT_S / 4:
            self._signs.clear()  # this process stood still, and perhaps the others
        self._looked_s = now_s
        for rank in range(1, self._place.world_size):
            name = f"peers/alive/{rank}"
            sign = store.get(name) if store.check([name]) else b""
            before, since_s = self._signs.setdefault(rank, (sign, now_s))
            if sign != before:
                self._signs[rank] = sign, now_s
            elif now_s - since_s > SILENT_S:
                why = f"rank {rank} has given no sign of life for {SILENT_S:.0f} s: it, or its machine, stands still"
                return Departure(rank=rank, local_rank=-1, exit_code=EXIT_CODE_HUNG, reason=why)
        return None


def _lost_store(said: str) -> Departure:
    why = f"rank 0, which holds what the ranks tell each other, is gone ({said.splitlines()[0]})"
    return Departure(rank=0, local_rank=-1, exit_code=EXIT_CODE_HUNG, reason=why)
