"""Speed and memory of `chinchilla-ds prepare`, beside datasketch, datatrove and text-dedup on the same text.

    python benchmarks/prepare.py [--megabytes 8] [--rounds 3] [--memory-megabytes 32] [--peers FOLDER] [--json FILE]

Speed: the text is the standard library's source, cut into documents of 4,000 characters, a fifth of them again with
another end. Each measurement is a process of its own with one worker, which gets the same documents. MB are 10^6 bytes
of UTF-8, per second of CPU time of the process and its children, so that other load on the machine counts little. Of
ours the stages of one preparation count, from JSONL: all that stands before the tokenizer for cleaning and
deduplication, and `encoding`. The others only deduplicate; of their time that of ten documents (imports, start) is
taken off. Order changes from round to round, the median counts.

Memory: the peak resident set of one preparation, at 1x and 10x the data. 1x must fill what has a fixed size: the
tokenizer's sample (8 MiB), the tokens merged at a time (4 million), the words remembered (100,000), a part of the
input (4 MiB). Beyond the standard library's own text its words are numbered, so that the text is distinct.

--peers is a folder that ends in site-packages (datasets pickles modules from elsewhere by value, and fails) with
`pip install --target FOLDER/site-packages datasketch datatrove spacy text-dedup "xxhash<4" "pyarrow<26"`; what cannot
be imported is named and left out. Ours does not see it.
"""

import argparse
import itertools
import json
import math
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from other_dedup import OTHERS
from rich.console import Console
from rich.table import Table

from chinchilla_ds.data.prepared import LEDGER_NAME
from chinchilla_ds.data.preparing.ledger import Ledger
from chinchilla_ds.data.preparing.pipeline import prepare_recipe
from chinchilla_ds.data.preparing.recipe import Recipe, SourceRecipe, dedup_of

DOCUMENT_CHARACTERS = 4000
VOCAB_SIZE = 32_000
OURS = {f"ours, {preset}": preset for preset in ("slimpajama", "fineweb")}
CLEAN, TOKENISE = "clean and deduplicate", "tokenise"


def standard_library(*, copies: bool) -> Iterator[str]:
    """Yield the text of each file; with `copies` again and again, its words numbered by the round."""
    paths = [
        path for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")) if "site-packages" not in path.parts
    ]
    for copy in itertools.count() if copies else (0,):
        for path in paths:
            text = path.read_text(encoding="utf-8", errors="ignore")
            yield re.sub(r"\b([a-z_]{4,})\b", rf"\g<1>{copy}", text) if copy else text


def make_documents(*, num_bytes: float) -> list[str]:
    """Return pieces of the standard library, one in five a second time with another end."""
    texts: list[str] = []
    size = 0
    for content in standard_library(copies=False):
        for start in range(0, len(content), DOCUMENT_CHARACTERS):
            piece = content[start : start + DOCUMENT_CHARACTERS]
            texts += [piece, piece[:-60] + " with another end"] if len(texts) % 6 == 4 else [piece]
            size += len(piece.encode())
        if size >= num_bytes:
            break
    random.Random(0).shuffle(texts)
    return texts


def write_jsonl(path: Path, texts: Iterable[str], *, num_bytes: float = math.inf) -> int:
    """Write texts until there are `num_bytes` of them; return how many bytes of text there are."""
    size = 0
    with path.open("w", encoding="utf-8") as stream:
        for text in texts:
            stream.write(json.dumps({"text": text}) + "\n")
            size += len(text.encode())
            if size >= num_bytes:
                break
    return size


def prepare(path: Path, folder: Path, *, preset: str) -> dict[str, Any]:
    """Prepare with one worker; return CPU seconds and what is kept."""
    spans: dict[str, list[float]] = {}
    dedup, minhash = dedup_of(preset)
    recipe = Recipe(sources=(SourceRecipe(paths=(str(path),)),), dedup=dedup, minhash=minhash, vocab_size=VOCAB_SIZE)
    prepared = prepare_recipe(
        recipe,
        folder=folder,
        num_workers=1,
        progress=lambda stage, share: spans.setdefault(stage, []).append(time.process_time()),
    )
    seconds = {stage: times[-1] - times[0] for stage, times in spans.items()}
    (source,) = Ledger.from_json((prepared.folder / LEDGER_NAME).read_text(encoding="utf-8")).sources
    return {
        CLEAN: sum(time for stage, time in seconds.items() if stage.startswith(("reading", "finding", "holding"))),
        TOKENISE: seconds["encoding"],
        "kept": source.train.documents + source.held_out.documents,
        "kept_bytes": source.train.bytes + source.held_out.bytes,
    }


def child(request: dict[str, Any]) -> dict[str, Any]:
    """Do one measurement in this process and return it with the peak memory."""
    with tempfile.TemporaryDirectory() as name:
        folder, result = Path(name), {}
        if request["what"] == "memory":
            write_jsonl(folder / "in.jsonl", standard_library(copies=True), num_bytes=request["bytes"])
            prepare(folder / "in.jsonl", folder / "out", preset="slimpajama")
        else:
            texts = json.loads(Path(request["texts"]).read_text(encoding="utf-8"))
            if request["what"] in OURS:
                write_jsonl(folder / "in.jsonl", texts)
                result = prepare(folder / "in.jsonl", folder / "out", preset=OURS[request["what"]])
            else:
                result["kept"] = OTHERS[request["what"]](texts, folder)
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result["seconds"] = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    result["peak_mib"] = max(usage.ru_maxrss for usage in usages) / 1024
    return result


def measure(peers: Path | None, **request: Any) -> dict[str, Any]:
    """Run `child` in a fresh process.

    Raises:
        RuntimeError: it failed; carries the last line of what it said.
    """
    paths = [str(Path(__file__).parents[1]), *([str(peers)] if peers else []), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "HF_DATASETS_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, __file__, "--child", json.dumps(request)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise RuntimeError((ran.stderr.strip().splitlines() or ["no message"])[-1])
    return dict(json.loads(ran.stdout.strip().splitlines()[-1]))


def compare(texts: list[str], *, rounds: int, peers: Path | None, folder: Path) -> dict[str, dict[str, float]]:
    """Return MB/s and kept documents of each that runs here."""
    for name, part in (("all", texts), ("ten", 2 * texts[:5])):
        (folder / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    speeds: dict[str, list[dict[str, float]]] = {name: [] for name in (*OURS, *OTHERS)}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(speeds), k=len(speeds)):
            try:
                speeds[name].append(_speed(name, megabytes=megabytes, peers=peers, folder=folder))
            except RuntimeError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                del speeds[name]
    return {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]} for name, found in speeds.items()
    }


def _speed(name: str, *, megabytes: float, peers: Path | None, folder: Path) -> dict[str, float]:
    whole = measure(None if name in OURS else peers, what=name, texts=str(folder / "all.json"))
    if name in OURS:
        return {
            CLEAN: megabytes / whole[CLEAN],
            TOKENISE: whole["kept_bytes"] / 1e6 / whole[TOKENISE],
            "kept": whole["kept"],
        }
    start = measure(peers, what=name, texts=str(folder / "ten.json"))
    return {CLEAN: megabytes / (whole["seconds"] - start["seconds"]), "kept": whole["kept"]}


def main() -> None:
    """Measure, print, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-megabytes", type=float, default=32)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(json.loads(arguments.child))))
        return
    texts = make_documents(num_bytes=arguments.megabytes * 1e6)
    with tempfile.TemporaryDirectory() as scratch:
        speed = compare(texts, rounds=arguments.rounds, peers=arguments.peers, folder=Path(scratch))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    title = f"{len(texts)} documents, {megabytes:.1f} MB, {platform.machine()}; MB/s per core"
    table = Table("", CLEAN, TOKENISE, "kept", title=title)
    for name, row in speed.items():
        cells = [f"{row[key]:.2f}" if key in row else "" for key in (CLEAN, TOKENISE)]
        table.add_row(name, *cells, f"{row['kept']:.0f}")
    Console().print(table)
    sizes = [times * arguments.memory_megabytes for times in (1, 10)]
    once, ten = (measure(None, what="memory", bytes=size * 1e6)["peak_mib"] for size in sizes)
    print(f"peak memory: {once:.0f} MiB at {sizes[0]:g} MB, {ten:.0f} MiB at {sizes[1]:g} MB: {ten / once:.2f}x")
    if arguments.json:
        found = {"speed": speed, "peak_mib": {"1x": once, "10x": ten}}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
