"""Deduplication by datasketch, datatrove and text-dedup, as `prepare.py` beside it measures them.

Each is given the documents in memory and a folder, and returns how many documents it keeps. The packages are not
dependencies of ours; `prepare.py` says how to install them.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from chinchilla_ds.data.dedup.bands import PRESETS
from chinchilla_ds.data.dedup.shingles import normalise


def run_datasketch(texts: list[str], folder: Path) -> int:
    """MinHash of SlimPajama's shingles and an LSH index; kept is what finds nothing like it before."""
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
    """The four steps of its MinHash pipeline with its defaults, FineWeb's, in this process."""
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
    """Its command, 5-grams of words and 14 x 8."""
    from datasets import Dataset, load_from_disk

    Dataset.from_dict({"text": texts}).save_to_disk(str(folder / "in"))
    flags = "--local --split train --column text --ngram 5 --num_perm 112 --b 14 --r 8 --batch_size 10000 --num_proc 1"
    paths = ["--path", str(folder / "in"), "--output", str(folder / "out"), "--cache_dir", str(folder / "cache")]
    command = [sys.executable, "-m", "text_dedup.minhash", *paths, *flags.split()]
    subprocess.run(command, check=True, capture_output=True)
    return len(load_from_disk(str(folder / "out")))


OTHERS: dict[str, Callable[[list[str], Path], int]] = {
    "datasketch": run_datasketch,
    "datatrove": run_datatrove,
    "text-dedup": run_text_dedup,
}
