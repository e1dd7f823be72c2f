"""Rendezvous of the ranks: the key-value store behind a process group, exposed as little as possible.

torch's TCPStore listens on all interfaces, without a password. With a single rank, a store in
memory is enough; with all ranks on one machine it listens only on the loopback interface, as does gloo.
Between machines it listens on all interfaces: keep its port, and those of gloo and NCCL, inside the cluster.
"""

import os
import socket
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store, TCPStore  # torch.distributed has them without exporting them

from chinchilla_ds.distributed.launch import LOOPBACK, Place
from chinchilla_ds.errors import LayoutError

__all__ = ["MEET_S", "Store", "connect", "open_store"]

MEET_S = 600.0
"""How long the first rank waits for the last: node images load, file systems mount."""
_BACKLOG = 4096
_LOOPBACK_INTERFACE = "lo"


def open_store(place: Place, /, *, timeout_s: float = MEET_S) -> Store:
    """Return the store of this run's ranks, once all have arrived; reads MASTER_ADDR and MASTER_PORT.

    Raises:
        LayoutError: the port is in use, the address cannot be reached, or not every rank arrived in time.
    """
    if place.world_size == 1:
        _keep_gloo_local()
        return HashStore()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)  # torchrun's own process holds the store
    listening = None
    if place.on_one_machine and not agent:
        _keep_gloo_local()
        address = LOOPBACK
        listening = _listen(port) if place.rank == 0 else None
    try:
        return TCPStore(
            address,
            port,
            None if agent else place.world_size,
            is_master=place.rank == 0 and not agent,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listening,
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise _cannot_meet(port, place=place, address=address, message=str(error)) from None


def connect(store: Store, /) -> Store:
    """Return a separate connection to the same store, for a thread: calls on one connection wait for each other."""
    return store if isinstance(store, HashStore) else store.clone()  # type: ignore[attr-defined]


def _listen(port: int) -> int:
    """Return the descriptor of a socket listening on the loopback interface; the store owns and closes it."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:
            raise _cannot_meet(port, place=None, address=LOOPBACK, message=str(error)) from None
        listener.listen(_BACKLOG)
        return listener.detach()


def _cannot_meet(port: int, *, place: Place | None, address: str, message: str) -> LayoutError:
    who = "" if place is None or place.rank == 0 else f"rank {place.rank} does not reach rank 0; "
    return LayoutError(
        f"the ranks cannot meet at MASTER_ADDR:MASTER_PORT {address}:{port} ({who}{message.splitlines()[0]}); "
        "if another run uses the port, choose a free one: deepspeed --master_port 29501 ...; if ranks are missing, "
        "check their messages"
    )


def _keep_gloo_local() -> None:
    """Have gloo listen on the loopback interface, unless the user has named another."""
    if any(name == _LOOPBACK_INTERFACE for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK_INTERFACE)
