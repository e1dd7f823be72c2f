"""What the data side costs when everything is there already: from the call of prepare() to the first batch.

    python benchmarks/warm_start.py [--files 1000 10000]

For each number of files a folder of that many small texts is prepared once, with the index of a run. Then a new process
imports what it needs, and only then the clock starts: looking for the files, their key, the manifest, the index, and
one batch. The files are in the operating system's cache. `prepared` is the same with a folder that `chinchilla-ds
prepare` made, where no text is looked for. Imports are reported separately; they are not part of it.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VOCAB_SIZE, SEQ_LENGTH = 512, 128


def write_files(folder: Path, *, number: int) -> None:
    """Write distinct texts of about 400 bytes, a thousand to a folder."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnop", k=6)) for _ in range(5000)]
    for index in range(number):
        path = folder / f"{index // 1000:04d}" / f"{index:07d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(generator.choices(words, k=60)), encoding="utf-8")


def start(text: Path, folder: Path) -> dict[str, float]:
    """Do what a run does before its first step; return seconds by part."""
    began = time.perf_counter()
    from megatron.core.datasets.gpt_dataset import GPTDataset  # noqa: F401  (what the loader imports when it is used)

    from chinchilla_ds.config import DataConfig
    from chinchilla_ds.data.feeding.loader import TokenLoader
    from chinchilla_ds.data.prepare import prepare
    from chinchilla_ds.data.preparing import pipeline  # noqa: F401
    from chinchilla_ds.testing.configs import tiny_plan, tiny_shape

    shape = tiny_shape(seq_length=SEQ_LENGTH, vocab_size=VOCAB_SIZE, padded_vocab_size=VOCAB_SIZE)
    plan = tiny_plan(shape=shape, train_iters=200)
    imported = time.perf_counter()
    prepared = prepare(
        DataConfig(paths=(text,), max_epochs=1000),
        vocab_size=VOCAB_SIZE,
        seq_length=SEQ_LENGTH,
        num_tokens=plan.num_tokens,
        seed=1,
        folder=folder,
    )
    is_prepared = time.perf_counter()
    loader = TokenLoader(prepared=prepared, plan=plan)
    next(loader.micro_batches(0, 0))
    ended = time.perf_counter()
    return {
        "imports_s": imported - began,
        "prepare_s": is_prepared - imported,
        "loader_and_batch_s": ended - is_prepared,
        "data_side_s": ended - imported,
    }


def measure(number: int) -> dict[str, object]:
    """Prepare once, start warm three times, and return the median."""
    with tempfile.TemporaryDirectory() as name:
        text, out = Path(name, "text"), Path(name, "out")
        write_files(text, number=number)
        cold = _child(text, out)
        warm = sorted((_child(text, out) for _ in range(3)), key=lambda one: one["data_side_s"])[1]
        (folder,) = (path for path in out.iterdir() if path.is_dir())
        prepared = sorted((_child(folder, out) for _ in range(3)), key=lambda one: one["data_side_s"])[1]
    return {"files": number, "cold_data_side_s": cold["data_side_s"], "warm": warm, "prepared": prepared}


def _child(text: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(text), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: round(value, 3) for name, value in result.items()}


def main() -> None:
    """Measure, and print one JSON object per number of files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(start(*arguments.child)))
        return
    for number in arguments.files:
        print(json.dumps(measure(number)), flush=True)


if __name__ == "__main__":
    main()
