"""MB/s and peak memory of deduplication, beside datasketch, text-dedup and datatrove on the same text.

    python benchmarks/dedup.py [--text FILE ...] [--megabytes 8] [--rounds 3] [--peers FOLDER] [--json FILE]

Ours: signing (FineWeb's preset and SlimPajama's), then everything that find_duplicates does on disk, with one worker.
datasketch: MinHash and MinHashLSH over the same shingles as SlimPajama's code makes them. datatrove: its four MinHash
steps with its defaults, FineWeb's. text-dedup: its command, 5-grams of words, 14 x 8. Each runs in a process of its
own that gets the same documents; the time is the CPU time of that process and its children, less that of the same
process on ten documents (imports, start). MB are 10^6 bytes of UTF-8. Order changes from round to round, the median
counts. With ours, peak memory is measured at 1x and 10x the documents: keys of random documents on disk, no text.

--peers is a folder into which `pip install --target FOLDER datasketch datatrove spacy text-dedup` has put the others;
one that cannot be imported is named and left out. The text is the standard library's source, cut into documents of
4 KB, a fifth of them again with an edit, unless files are given.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from chinchilla_ds.data.dedup.bands import PRESETS
from chinchilla_ds.data.dedup.components import BAND_KEYS_NAME, CONTENT_HASH_NAME, SOURCE_NAME, find_duplicates
from chinchilla_ds.data.dedup.minhash import band_keys
from chinchilla_ds.data.dedup.shingles import normalise

DOCUMENT_CHARACTERS = 4000
SHARD_DOCUMENTS = 2000
MEMORY_SHARD_DOCUMENTS = 20_000


def make_documents(files: list[Path], *, megabytes: float) -> list[str]:
    """Return pieces of the files, one in five a second time with words changed."""
    texts: list[str] = []
    size = 0
    for path in files:
        content = path.read_text(encoding="utf-8", errors="ignore")
        for start in range(0, len(content), DOCUMENT_CHARACTERS):
            texts.append(content[start : start + DOCUMENT_CHARACTERS])
            size += len(texts[-1].encode())
            if len(texts) % 5 == 0:
                texts.append(texts[-1][:-60] + " with another end")
                size += len(texts[-1].encode())
        if size >= megabytes * 1e6:
            break
    random.Random(0).shuffle(texts)
    return texts


def write_shard(folder: Path, *, hashes: "np.ndarray", keys: "np.ndarray") -> Path:
    """Write what find_duplicates reads of one shard."""
    folder.mkdir(parents=True)
    np.save(folder / CONTENT_HASH_NAME, hashes)
    np.save(folder / SOURCE_NAME, np.zeros(len(hashes), dtype=np.uint16))
    np.save(folder / BAND_KEYS_NAME, keys)
    return folder


def run_ours(texts: list[str], folder: Path, *, preset: str) -> int:
    """Sign and find; return how many documents are kept."""
    config = PRESETS[preset]
    shards = []
    for start in range(0, len(texts), SHARD_DOCUMENTS):
        part = texts[start : start + SHARD_DOCUMENTS]
        hashes = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) for text in part]
        keys = band_keys(part, config=config)
        shards.append(write_shard(folder / f"{start}", hashes=np.array(hashes, dtype=np.uint64), keys=keys))
    return find_duplicates(shards, config=config, work_folder=folder / "work", num_workers=1).num_kept


def run_datasketch(texts: list[str], folder: Path) -> int:
    """SlimPajama's signing and an LSH index; kept is what finds nothing like it before."""
    from datasketch import MinHash, MinHashLSH

    config = PRESETS["slimpajama"]
    index = MinHashLSH(num_perm=config.num_permutations, params=(config.bands, config.rows))
    kept = 0
    for number, text in enumerate(texts):
        bare = normalise(text, unit=config.unit)
        signature = MinHash(num_perm=config.num_permutations)
        size = config.shingle_size
        signature.update_batch([bare[i : i + size].encode() for i in range(len(bare) - size + 1)])
        kept += not index.query(signature)
        index.insert(str(number), signature)
    return kept


def run_datatrove(texts: list[str], folder: Path) -> int:
    """Its pipeline's steps in this process."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

    config = MinhashConfig()
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
    names = [str(folder / name) for name in ("signatures", "buckets", "remove")]
    MinhashDedupSignature(output_folder=names[0], config=config).run(iter(documents))
    for bucket in range(config.num_buckets):
        MinhashDedupBuckets(input_folder=names[0], output_folder=names[1], config=config).run(
            rank=bucket, world_size=config.num_buckets
        )
    MinhashDedupCluster(input_folder=names[1], output_folder=names[2], config=config).run()
    return sum(1 for _ in MinhashDedupFilter(input_folder=names[2]).run(iter(documents)))


def run_text_dedup(texts: list[str], folder: Path) -> int:
    """Its command, whose own process start is part of what is subtracted."""
    from datasets import Dataset, load_from_disk

    Dataset.from_dict({"text": texts}).save_to_disk(str(folder / "in"))
    flags = "--local --split train --column text --ngram 5 --num_perm 112 --b 14 --r 8 --batch_size 10000 --num_proc 1"
    paths = ["--path", str(folder / "in"), "--output", str(folder / "out"), "--cache_dir", str(folder / "cache")]
    command = [sys.executable, "-m", "text_dedup.minhash", *paths, *flags.split()]
    subprocess.run(command, check=True, capture_output=True)
    return len(load_from_disk(str(folder / "out")))


CONTENDERS: dict[str, Callable[[list[str], Path], int]] = {
    "ours, fineweb": lambda texts, folder: run_ours(texts, folder, preset="fineweb"),
    "ours, slimpajama": lambda texts, folder: run_ours(texts, folder, preset="slimpajama"),
    "datasketch": run_datasketch,
    "datatrove": run_datatrove,
    "text-dedup": run_text_dedup,
}


def child(request: dict[str, object]) -> dict[str, float]:
    """Do one measurement in this process and return its CPU seconds, kept documents and peak memory."""
    with tempfile.TemporaryDirectory() as scratch:
        if request["what"] == "memory":
            kept = memory_run(int(str(request["documents"])), Path(scratch))
        else:
            texts = json.loads(Path(str(request["texts"])).read_text(encoding="utf-8"))
            kept = CONTENDERS[str(request["what"])](texts, Path(scratch))
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return {"seconds": seconds, "kept": kept, "peak_mib": usages[0].ru_maxrss / 1024}


def memory_run(number: int, folder: Path) -> int:
    """Find duplicates among documents that are only keys: a third of them share the keys of another one."""
    config = PRESETS["fineweb"]
    shards = []
    for index, start in enumerate(range(0, number, MEMORY_SHARD_DOCUMENTS)):
        generator = np.random.default_rng(index)
        keys = generator.integers(0, 2**64, (MEMORY_SHARD_DOCUMENTS, config.num_columns), dtype=np.uint64)
        keys[: MEMORY_SHARD_DOCUMENTS // 3] = keys[-(MEMORY_SHARD_DOCUMENTS // 3) :]
        hashes = generator.integers(0, 2**64, MEMORY_SHARD_DOCUMENTS, dtype=np.uint64)
        shards.append(write_shard(folder / f"{start}", hashes=hashes, keys=keys))
    return find_duplicates(shards, config=config, work_folder=folder / "work", num_workers=1).num_kept


def measure(peers: Path | None, **request: object) -> dict[str, float]:
    """Run `child` in a fresh process.

    Raises:
        RuntimeError: it failed; carries the last line of what it said.
    """
    paths = [str(Path(__file__).parents[1]), *([str(peers)] if peers else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "HF_DATASETS_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--child", json.dumps(request)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise RuntimeError((ran.stderr.strip().splitlines() or ["no message"])[-1])
    return dict(json.loads(ran.stdout.strip().splitlines()[-1]))


def compare(texts: list[str], *, rounds: int, peers: Path | None, folder: Path) -> dict[str, dict[str, float]]:
    """Return MB/s and kept documents of each contender that runs here."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    for name, part in (("all", texts), ("ten", 2 * texts[:5])):
        (folder / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    kept: dict[str, float] = {}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(seconds), k=len(seconds)):
            try:
                start, whole = (
                    measure(peers, what=name, texts=str(folder / f"{part}.json")) for part in ("ten", "all")
                )
            except RuntimeError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                del seconds[name]
                continue
            seconds[name].append(whole["seconds"] - start["seconds"])
            kept[name] = whole["kept"]
    return {
        name: {"mb_per_s": megabytes / statistics.median(times), "kept": kept[name]} for name, times in seconds.items()
    }


def main() -> None:
    """Measure, print, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-documents", type=int, default=200_000)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(json.loads(arguments.child))))
        return
    sources = arguments.text or sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = make_documents(sources, megabytes=arguments.megabytes)
    with tempfile.TemporaryDirectory() as scratch:
        speed = compare(texts, rounds=arguments.rounds, peers=arguments.peers, folder=Path(scratch))
    memory = {
        str(times): measure(None, what="memory", documents=times * arguments.memory_documents)["peak_mib"]
        for times in (1, 10)
    }
    table = Table(
        "", "MB/s per core", "kept", title=f"{len(texts)} documents, {platform.processor() or platform.machine()}"
    )
    for name, row in speed.items():
        table.add_row(name, f"{row['mb_per_s']:.2f}", f"{row['kept']:.0f}")
    Console().print(table)
    small, large = memory.values()
    print(f"peak memory of find_duplicates: {small:.0f} MiB at {arguments.memory_documents} documents,", end=" ")
    print(f"{large:.0f} MiB at 10x: {large / small:.2f}x")
    if arguments.json:
        arguments.json.write_text(json.dumps({"speed": speed, "peak_mib": memory}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
