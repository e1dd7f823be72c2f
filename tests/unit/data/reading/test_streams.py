"""Packed files: what is whole is read whole in bounded memory, what is not is told where it breaks."""

import bz2
import gzip
import lzma
import os
import random
import resource
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from chinchilla_ds.data.reading import streams
from chinchilla_ds.data.reading.streams import ArchiveError, EndlessLineError, is_packed, lines, open_bytes

Pack = Callable[[bytes], bytes]
PACKS: dict[str, Pack] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
SKIPPABLE = b"\x50\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"comment"


@pytest.fixture(scope="module")
def content() -> bytes:
    generator = random.Random(0)
    words = ["loss", "token", "weight", "δέλτα", "gradient", "batch"]
    return "".join(" ".join(generator.choices(words, k=20)) + "\n" for _ in range(6000)).encode()


def unpacked(path: Path, packed: bytes) -> bytes:
    path.write_bytes(packed)
    with open_bytes(path) as stream:
        return stream.read()


@pytest.mark.parametrize("suffix", PACKS)
@pytest.mark.parametrize("stem", ["a.jsonl", "wiki_00"])
def test_members_one_after_another_are_all_read(tmp_path: Path, content: bytes, suffix: str, stem: str) -> None:
    pack = PACKS[suffix]
    packed = pack(content[:100_001]) + pack(b"") + pack(content[100_001:])
    named = tmp_path / (stem + suffix if stem.endswith("l") else stem)
    assert unpacked(named, packed) == content
    assert is_packed(named)


@pytest.mark.parametrize("suffix", PACKS)
def test_what_comes_before_a_break_is_read_and_the_break_is_told(tmp_path: Path, content: bytes, suffix: str) -> None:
    pack, path = PACKS[suffix], tmp_path / f"a{suffix}"
    whole, rest = pack(content[:100_000]), pack(content[100_000:])
    for ending, message in (
        (rest[:-3], "it is truncated"),
        (rest[: len(rest) // 2], "it is truncated"),
        (b"trailing bytes", "other bytes follow the end of the archive"),
    ):
        path.write_bytes(whole + ending)
        read, stream = bytearray(), open_bytes(path)
        with pytest.raises(ArchiveError, match=message):
            deque(map(read.extend, iter(stream.readline, b"")))
        assert content.startswith(read)
        assert len(read) > 99_000
        with pytest.raises(ArchiveError, match=message):
            stream.raw.readinto(bytearray(10))  # a second read does not take the break for the end
        stream.close()
    middle = len(whole) // 2
    with pytest.raises(ArchiveError, match="it is damaged"):
        unpacked(
            path, whole[:middle] + bytes(byte ^ 0x5A for byte in whole[middle : middle + 60]) + whole[middle + 60 :]
        )
    with pytest.raises(ArchiveError, match=f"does not start like a {suffix} file"):
        unpacked(path, b"plain text")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_padding_with_zeros_is_no_content(tmp_path: Path, content: bytes, suffix: str) -> None:
    packed = PACKS[suffix](content) + b"\0" * 4096
    assert unpacked(tmp_path / f"a{suffix}", packed + packed) == content + content


def test_skippable_frames_and_frames_of_unknown_size(tmp_path: Path, content: bytes) -> None:
    compressor = zstandard.ZstdCompressor().compressobj()
    unknown_size = compressor.compress(content[:70_000]) + compressor.flush()
    packed = SKIPPABLE + unknown_size + SKIPPABLE + zstandard.compress(content[70_000:]) + SKIPPABLE
    assert unpacked(tmp_path / "a.zst", packed) == content
    with pytest.raises(ArchiveError, match="truncated"):
        unpacked(tmp_path / "a.zst", packed[:-3])


def test_a_window_of_2_gib_is_read(tmp_path: Path, content: bytes) -> None:
    header = b"\x28\xb5\x2f\xfd" + bytes([0, (31 - 10) << 3])  # no size, a window of 2^31 bytes
    packed = header + (1000 << 3 | 1).to_bytes(3, "little") + content[:1000]  # one raw block, the last
    assert unpacked(tmp_path / "a.zst", packed) == content[:1000]


def test_a_dictionary_is_told(tmp_path: Path) -> None:
    dictionary = zstandard.train_dictionary(2000, [os.urandom(50) + b"the same words" * 20 for _ in range(200)])
    packed = zstandard.ZstdCompressor(dict_data=dictionary).compress(b"the same words" * 20)
    with pytest.raises(ArchiveError, match="packed with a zstd dictionary"):
        unpacked(tmp_path / "a.zst", packed)


@pytest.mark.parametrize(
    "suffix", [pytest.param(pack, marks=[pytest.mark.slow] if pack in (".xz", ".bz2") else []) for pack in PACKS]
)
def test_one_line_that_expands_a_thousandfold_costs_no_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bomb{suffix}"
    size = 2**27
    path.write_bytes(PACKS[suffix](b"x" * size + b"\nnext\n"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    with open_bytes(path) as stream:
        assert list(lines(stream, max_bytes=2**20)) == [(1, None), (2, b"next\n")]
    assert time.perf_counter() - began < 10
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 2**16, "half of what the line takes"


def test_blank_lines_are_counted_in_bulk(tmp_path: Path) -> None:
    path = tmp_path / "blank.zst"
    path.write_bytes(zstandard.compress(b"\n" * 2**25 + b"end\n"))
    began = time.perf_counter()
    with open_bytes(path) as stream:
        assert list(lines(stream, max_bytes=2**20)) == [(2**25 + 1, b"end\n")]
    assert time.perf_counter() - began < 2


def test_a_line_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_SKIPPED_BYTES", 2**20)
    path = tmp_path / "endless.gz"
    path.write_bytes(gzip.compress(b"first\n" + b"x" * 2**22))
    with open_bytes(path) as stream:
        found = lines(stream, max_bytes=1000)
        assert next(found) == (1, b"first\n")
        with pytest.raises(EndlessLineError):
            next(found)


@pytest.mark.parametrize("part_bytes", [7, 64, 1000])
def test_ranges_share_a_file_also_behind_a_byte_order_mark_and_across_long_lines(
    tmp_path: Path, part_bytes: int
) -> None:
    from chinchilla_ds.data.reading.encodings import open_text

    path = tmp_path / "a.jsonl"
    wanted = [b"a\n", b"bb\n", None, b"c" * 30 + b"\n", None, b"d\n", b"e"]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\n".join(b"x" * 500 + b"\n" if line is None else line for line in wanted))
    found = []
    for start in range(0, path.stat().st_size, part_bytes):
        with open_bytes(path) if start else open_text(path) as stream:
            found += [line for _, line in lines(stream, start=start, stop=start + part_bytes, max_bytes=40)]
    assert found == wanted


def test_a_pipe_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(OSError, match="not a regular file"):
        open_bytes(tmp_path / "pipe.jsonl")
