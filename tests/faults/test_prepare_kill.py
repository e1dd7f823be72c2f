"""A preparation that is killed at a random moment, again and again, ends with the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TEXT_WORDS = [f"{left}{right}" for left in ("al", "be", "cu", "do", "er") for right in ("na", "to", "ri", "sel")]
COMMAND = """
import sys
from pathlib import Path
from chinchilla_ds.cli.main import main
from chinchilla_ds.data import stages
if __name__ == "__main__":
    stages._MIN_PART_BYTES = 50_000
    sys.exit(main(["prepare", "--source", sys.argv[1], "--out", sys.argv[2], "--vocab-size", "400", "--workers", "2"]))
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    generator, path = random.Random(0), tmp_path / "text.jsonl"
    texts = [" ".join(generator.choices(TEXT_WORDS, k=100)) for _ in range(4000)]
    texts += texts[:300]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def start(corpus: Path, out: Path) -> subprocess.Popen[bytes]:
    script = corpus.with_name("command.py")
    script.write_text(COMMAND)
    command = [sys.executable, str(script), str(corpus), str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(corpus: Path, out: Path) -> float:
    started = time.monotonic()
    process = start(corpus, out)
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors.decode()
    return time.monotonic() - started


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_and_finish(corpus: Path, tmp_path: Path, *, kills: int, seed: int) -> int:
    """Return how many of the kills hit a running preparation."""
    duration = finish(corpus, tmp_path / "whole")
    generator, out, hits = random.Random(seed), tmp_path / "killed", 0
    for _ in range(kills):
        process = start(corpus, out)
        try:
            process.wait(timeout=generator.uniform(0.05, duration))
        except subprocess.TimeoutExpired:
            hits += 1
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert not out.exists() or bytes_of(out) == bytes_of(tmp_path / "whole")
        assert process.stderr is not None
        process.stderr.close()
        if out.exists() and generator.random() < 0.9:  # whole: begin anew
            assert bytes_of(out) == bytes_of(tmp_path / "whole")
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
    finish(corpus, out)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert not list(tmp_path.glob(".killed*"))
    return hits


def test_three_kills(corpus: Path, tmp_path: Path) -> None:
    assert kill_and_finish(corpus, tmp_path, kills=3, seed=1) >= 1


@pytest.mark.slow
def test_twenty_kills(corpus: Path, tmp_path: Path) -> None:
    assert kill_and_finish(corpus, tmp_path, kills=20, seed=2) >= 10
