import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from chinchilla_ds.distributed import peers as peers_module
from chinchilla_ds.distributed import rank_zero
from chinchilla_ds.distributed.launch import Place
from chinchilla_ds.distributed.peers import Departure, Peers
from chinchilla_ds.distributed.rank_zero import run_on_rank_zero
from chinchilla_ds.distributed.rendezvous import Store, open_store
from chinchilla_ds.errors import DataError, LayoutError
from chinchilla_ds.testing import run_on_ranks

RANKS = [Place(rank=rank, world_size=2, local_rank=rank, local_size=2) for rank in (0, 1)]


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(found))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    return found


def _meet() -> list[Store]:
    stores: dict[int, Store] = {}
    threads = [threading.Thread(target=lambda p=place: stores.__setitem__(p.rank, open_store(p))) for place in RANKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [stores[0], stores[1]]


def _listeners(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as lines:
            for line in list(lines)[1:]:
                local, state = line.split()[1], line.split()[3]
                if state == "0A" and int(local.rsplit(":", 1)[1], 16) == port:
                    found.add(local.rsplit(":", 1)[0])
    return found


def test_ranks_of_one_machine_meet_on_the_loopback_interface_alone(port: int) -> None:
    first, second = _meet()
    first.set("a", "1")
    assert second.get("a") == b"1"
    assert _listeners(port) == {"0100007F"}


def test_one_rank_opens_no_port(port: int) -> None:
    store = open_store(Place())
    store.set("a", "1")
    assert _listeners(port) == set()


def test_a_port_that_is_taken(port: int) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        with pytest.raises(LayoutError, match=f"cannot meet at MASTER_ADDR:MASTER_PORT 127.0.0.1:{port} .*in use"):
            open_store(RANKS[0])


@pytest.mark.slow
def test_a_rank_that_does_not_come(port: int) -> None:
    with pytest.raises(LayoutError, match="1/2 clients joined"):
        open_store(RANKS[0], timeout_s=1.0)


@pytest.fixture
def family(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[Peers], list[list[Departure]]]]:
    monkeypatch.setattr(peers_module, "POLL_S", 0.05)
    monkeypatch.setattr(peers_module, "SEEN_S", 0.2)
    monkeypatch.setattr(peers_module, "SILENT_S", 1.0)
    left: list[list[Departure]] = [[], []]
    stores = _meet()
    both = [Peers(stores[place.rank], place=place, leave=left[place.rank].append) for place in RANKS]
    yield both, left
    for one in both:
        with contextlib.suppress(RuntimeError):
            one.close()


def test_a_rank_that_leaves_before_the_first_step_takes_the_others_with_it(family) -> None:
    (_, second), left = family
    second.announce(exit_code=2, reason="this folder is not there")
    time.sleep(0.5)
    assert left == [[Departure(rank=1, local_rank=1, exit_code=2, reason="this folder is not there")], []]


@pytest.mark.slow
def test_a_rank_that_gives_no_sign_of_life_ends_all(family) -> None:
    (_, second), left = family
    time.sleep(1.5)
    assert left == [[], []], "both live"
    second.close()
    time.sleep(1.8)
    (departure,) = left[0]
    assert departure.exit_code == 86
    assert "rank 1 has sent no heartbeat" in departure.reason


@pytest.mark.slow
def test_from_the_first_step_on_silence_is_the_watchdogs(family) -> None:
    (first, second), left = family
    first.begun()
    second.close()
    time.sleep(1.8)
    assert left == [[], []]


def _slow_preparation() -> float:
    """Rank 0 works for longer than any collective may take."""
    from datetime import timedelta

    import torch.distributed as dist

    from chinchilla_ds.distributed.launch import read_place

    place = read_place()
    store = open_store(place)
    dist.init_process_group("gloo", store=store, rank=place.rank, world_size=2, timeout=timedelta(seconds=1))
    started_s = time.monotonic()
    result = run_on_rank_zero(lambda: time.sleep(2.5), store=store)
    assert result is None
    return time.monotonic() - started_s


def test_the_others_wait_for_rank_zero_in_no_collective() -> None:
    assert min(run_on_ranks(_slow_preparation, 2)) >= 2.4


def test_control_a_collective_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    real = run_on_rank_zero
    monkeypatch.setattr("tests.unit.distributed.test_rendezvous.run_on_rank_zero", lambda work, store: real(work))
    monkeypatch.setattr(rank_zero, "_POLL_S", 0.1)
    from chinchilla_ds.testing.run_on_ranks import RankError

    with pytest.raises(RankError):
        run_on_ranks(_slow_preparation, 2)


def _refused_on_rank_zero() -> str:
    import torch.distributed as dist

    from chinchilla_ds.distributed.launch import read_place

    place = read_place()
    store = open_store(place)
    dist.init_process_group("gloo", store=store, rank=place.rank, world_size=2)

    def refuse() -> None:
        raise DataError("no text")

    with pytest.raises(DataError, match="no text"):
        run_on_rank_zero(refuse, store=store)
    return "refused"


def test_what_rank_zero_refuses_every_rank_refuses() -> None:
    assert run_on_ranks(_refused_on_rank_zero, 2) == ["refused"] * 2
