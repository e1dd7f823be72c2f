"""Speed and memory of `chinchilla-ds prepare`: MB/s per core of each part, and peak memory at 1x and 10x of the data.

    python benchmarks/prepare.py [--megabytes 8]

The text is the standard library's source, and beyond it the same files with their words renumbered, so that they are
distinct. Each measurement is a process of its own; memory is the peak resident set of that process, one worker.
"""

import argparse
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

MEASURE = """
import json, resource, sys, time
from pathlib import Path
from chinchilla_ds.data.corpus import Recipe, SourceRecipe
from chinchilla_ds.data.pipeline import prepare_recipe

spans = {}
def progress(stage, share):
    spans.setdefault(stage, []).append(time.perf_counter())

recipe = Recipe(sources=(SourceRecipe(paths=(sys.argv[1],)),), vocab_size=8192)
prepare_recipe(recipe, folder=Path(sys.argv[2]), num_workers=1, progress=progress)
seconds = {stage: times[-1] - times[0] for stage, times in spans.items()}
print(json.dumps({"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def write_text(folder: Path, *, num_bytes: int) -> int:
    """Write JSONL of at least `num_bytes` of text, and return how much there is."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    files = [path for path in files if "site-packages" not in path.parts]
    written, copy = 0, 0
    with (folder / "text.jsonl").open("w", encoding="utf-8") as stream:
        while written < num_bytes:
            for path in files:
                text = path.read_text(encoding="utf-8", errors="ignore")
                text = re.sub(r"\b([a-z_]{4,})\b", rf"\g<1>{copy}", text) if copy else text
                stream.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
                if written >= num_bytes:
                    break
            copy += 1
    return written


def measure(num_bytes: int) -> dict[str, float]:
    """Prepare that much text with one worker."""
    with tempfile.TemporaryDirectory() as name:
        written = write_text(Path(name), num_bytes=num_bytes)
        started = time.perf_counter()
        command = [sys.executable, "-c", MEASURE, f"{name}/text.jsonl", f"{name}/out"]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        whole = time.perf_counter() - started
    seconds = done["seconds"]
    clean = sum(time for stage, time in seconds.items() if stage.startswith(("reading", "finding")))
    return {
        "megabytes": written / 1e6,
        "clean_and_dedup_mb_per_s": written / 1e6 / clean,
        "tokenise_mb_per_s": written / 1e6 / seconds["encoding"],
        "whole_mb_per_s": written / 1e6 / whole,
        "peak_mib": done["peak_bytes"] / 2**20,
    }


def main() -> None:
    """Measure at 1x and 10x and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=8.0)
    size = int(parser.parse_args().megabytes * 1e6)
    once, ten = measure(size), measure(10 * size)
    print(json.dumps({"1x": once, "10x": ten, "peak_ratio": ten["peak_mib"] / once["peak_mib"]}, indent=2))


if __name__ == "__main__":
    main()
