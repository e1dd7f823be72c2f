"""Digests of prepared files: training reads exactly what was written; otherwise the changed block is named.

A file is hashed in blocks by XXH3, as fast as it can be read; its digest is BLAKE2b over the hashes of its blocks. So a
corpus of terabytes can be checked in parts: the hashes of the blocks are in a separate file, which the digests in
the manifest authenticate.

The digests find accidental changes and exchanged files. They do not protect against someone who can write a manifest.
"""

import hashlib
import random
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from chinchilla_ds.errors import DataError, reason
from chinchilla_ds.ranges import Ge
from chinchilla_ds.structured import open_regular, read_bytes, read_json

BLOCKS_NAME = "blocks.xxh3"
"""The hashes of all blocks, 8 bytes each, file by file in the order of their names."""
BLOCK_BYTES = 4 * 2**20

START_BYTES = 4 * 2**30
"""Bytes that a training run reads at its start: all of a corpus up to this size, otherwise a sample of this size."""

_HASH_BYTES = 8
_WHOLE_BYTES = 64 * 2**20
"""Files up to this size are always checked completely."""


@dataclass(frozen=True, kw_only=True)
class PreparedFile:
    """Size and digest of a file when it was written."""

    num_bytes: Annotated[int, Ge(0)]
    digest: str


def digest_files(folder: Path, names: Sequence[str], /) -> dict[str, PreparedFile]:
    """Return size and digest of the named files in `folder`, and write `BLOCKS_NAME` beside them."""
    files: dict[str, PreparedFile] = {}
    with (folder / BLOCKS_NAME).open("wb") as stream:
        for name in sorted(names):
            hashes = _hashes_of(folder / name)
            files[name] = PreparedFile(num_bytes=(folder / name).stat().st_size, digest=_digest(hashes))
            stream.write(hashes)
    return files


def changed_files(folder: Path, files: Mapping[str, PreparedFile], /) -> list[str]:
    """Return which small files differ from what `digest_files` saw, by their digests alone.

    Raises:
        DataError: one cannot be read.
    """
    try:
        return [name for name, file in files.items() if _digest(_hashes_of(folder / name)) != file.digest]
    except OSError as error:
        raise DataError(f"cannot read a file of {folder}: {reason(error)}") from None


def _hashes_of(path: Path) -> bytes:
    with open_regular(path) as file:
        return b"".join(_hash(block) for block in iter(lambda: file.read(BLOCK_BYTES), b""))


def _hash(block: bytes) -> bytes:
    import xxhash

    return xxhash.xxh3_64_digest(block)


def _digest(hashes: bytes) -> str:
    return hashlib.blake2b(hashes, digest_size=16).hexdigest()


def check_sizes(folder: Path, sizes: Mapping[str, int], /) -> None:
    """Check that the named files exist, are regular, and have their size in bytes.

    Raises:
        DataError: lists those that do not.
    """
    problems = []
    for name, wanted in sizes.items():
        try:
            status = (folder / name).stat()
        except OSError as error:
            problems.append(f"{folder / name}: {reason(error)}")
            continue
        if not stat.S_ISREG(status.st_mode):
            problems.append(f"{folder / name} is not a regular file")
        elif status.st_size != wanted:
            problems.append(f"{folder / name} has {status.st_size} bytes; it was written with {wanted}")
    if problems:
        raise DataError([f"{problem}; restore the folder, or prepare the text again" for problem in problems])


@dataclass(frozen=True, kw_only=True)
class _HashedBlock:
    name: str
    number: int
    hash: bytes


def check_content(
    folder: Path,
    files: Mapping[str, PreparedFile],
    /,
    *,
    max_bytes: int | None = START_BYTES,
    progress: Callable[[float], None] = lambda share: None,
) -> int:
    """Check the content of files whose sizes match, and return how many bytes have been read.

    Args:
        folder: Where they are.
        files: As returned by `digest_files`.
        max_bytes: In a larger corpus, small files are checked completely, and as many random blocks of the others,
            drawn afresh each time; None checks everything.
        progress: Receives the share that is done.

    Raises:
        DataError: names every file that has changed, with the first changed block.
    """
    blocks = _blocks(folder, files)
    if max_bytes is not None and sum(file.num_bytes for file in files.values()) > max_bytes:
        whole = [block for block in blocks if files[block.name].num_bytes <= _WHOLE_BYTES]
        large = [block for block in blocks if files[block.name].num_bytes > _WHOLE_BYTES]
        chosen = sorted(random.sample(range(len(large)), min(len(large), max_bytes // BLOCK_BYTES)))
        blocks = whole + [large[place] for place in chosen]
    num_bytes, problems = 0, dict[str, str]()
    for done, block in enumerate(blocks, start=1):
        if block.name not in problems:
            content = _read(folder / block.name, block.number)
            num_bytes += len(content)
            if _hash(content) != block.hash:
                first = block.number * BLOCK_BYTES
                problems[block.name] = (
                    f"{folder / block.name} has changed since it was prepared, first in the bytes from {first} to "
                    f"{first + len(content)} of those checked; restore the folder, or prepare the text again"
                )
        progress(done / len(blocks))
    if problems:
        raise DataError(list(problems.values()))
    return num_bytes


def _read(path: Path, number: int) -> bytes:
    try:
        with open_regular(path) as stream:
            stream.seek(number * BLOCK_BYTES)
            return stream.read(BLOCK_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from None


def _blocks(folder: Path, files: Mapping[str, PreparedFile]) -> list[_HashedBlock]:
    """Return the blocks of all files with their hashes, checked against the digests of the files."""
    path = folder / BLOCKS_NAME
    counts = {name: -(-file.num_bytes // BLOCK_BYTES) for name, file in sorted(files.items())}
    wanted = _HASH_BYTES * sum(counts.values())
    content = read_bytes(path, what="the block hashes", error=DataError, max_bytes=max(wanted, 1))
    blocks, start = [], 0
    for name, count in counts.items():
        hashes = content[start : start + _HASH_BYTES * count]
        start += len(hashes)
        if _digest(hashes) != files[name].digest:
            raise DataError(
                f"{path} and the manifest disagree about {name}: one of them has changed; restore the folder, or "
                "prepare the text again"
            )
        blocks += [
            _HashedBlock(name=name, number=number, hash=hashes[_HASH_BYTES * number : _HASH_BYTES * (number + 1)])
            for number in range(count)
        ]
    return blocks


def names_of(path: Path, /) -> Iterator[str]:
    """Yield the names of a file, or of the files of a folder, relative to the parent folder."""
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.is_file())
        yield from (file.relative_to(path.parent).as_posix() for file in files)
    else:
        yield path.name


def tokenizer_sha256(path: Path, /) -> str:
    """Return `Tokenizer.sha256` of a tokenizer saved by a version without digests, without loading it.

    Raises:
        DataError: it is missing or damaged.
    """
    if not path.is_dir():
        return hashlib.sha256(read_bytes(path, what="the tokenizer", error=DataError)).hexdigest()
    definition = read_bytes(path / "tokenizer.json", what="the tokenizer", error=DataError)
    config = read_json(path / "tokenizer_config.json", what="the tokenizer's config", error=DataError)
    eod_token = config.get("eos_token") if isinstance(config, dict) else None
    if not isinstance(eod_token, str):
        raise DataError(f"{path / 'tokenizer_config.json'} names no eos_token")
    return hashlib.sha256(definition + b"\0" + eod_token.encode()).hexdigest()
