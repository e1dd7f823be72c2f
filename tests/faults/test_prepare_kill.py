"""A preparation that is killed at a random moment of each stage, again and again, ends with the same bytes."""

import json
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TEXT_WORDS = [f"{left}{right}" for left in ("al", "be", "cu", "do", "er") for right in ("na", "to", "ri", "sel")]
STAGES = (
    "reading and cleaning",
    "finding duplicates",
    "holding out",
    "training the tokenizer",
    "encoding",
    "writing",
)
COMMAND = """
import sys
from pathlib import Path
from chinchilla_ds.data.preparing import read_stage as stages
from chinchilla_ds.data.preparing.recipe import Recipe, SourceRecipe
from chinchilla_ds.data.preparing.pipeline import prepare_recipe
if __name__ == "__main__":
    stages._MIN_PART_BYTES = 50_000
    recipe = Recipe(sources=(SourceRecipe(paths=(sys.argv[1],)),), vocab_size=400)
    def progress(stage, share):
        print(stage.partition(":")[0], flush=True)
    prepare_recipe(recipe, folder=Path(sys.argv[2]), num_workers=2, progress=progress)
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    generator, path = random.Random(0), tmp_path / "text.jsonl"
    texts = [" ".join(generator.choices(TEXT_WORDS, k=100)) for _ in range(4000)]
    texts += texts[:300]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@dataclass(kw_only=True)
class Preparation:
    """A preparation in a process of its own, which tells its stages."""

    process: subprocess.Popen[bytes]
    began: dict[str, float] = field(default_factory=dict)
    """When each stage began."""

    @classmethod
    def start(cls, corpus: Path, out: Path) -> "Preparation":
        script = corpus.with_name("command.py")
        script.write_text(COMMAND)
        command = [sys.executable, "-u", str(script), str(corpus), str(out)]
        process = subprocess.Popen(  # not buffered: what is read here, `select` has seen
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        return cls(process=process)

    def follow(self, *, until: Callable[[], float] = lambda: float("inf")) -> bool:
        """Note the stages until that moment; return whether the process is still there then."""
        assert self.process.stdout is not None
        while (left := until() - time.monotonic()) > 0:
            ready, _, _ = select.select([self.process.stdout], [], [], min(left, 250))
            if ready and not (line := self.process.stdout.readline()):
                return False
            if ready:
                self.began.setdefault(line.decode().strip(), time.monotonic())
        return True

    def kill_in(self, stage: str, *, after: float) -> str | None:
        """Kill it so long after that stage began; return the stage that it was in, None if it was done before."""
        if not self.follow(until=lambda: self.began.get(stage, float("inf")) + after):
            self.finish()
            return None
        self.process.kill()
        self.follow()
        self.process.communicate()
        return list(self.began)[-1] if self.process.returncode == -signal.SIGKILL else None

    def finish(self) -> dict[str, float]:
        """Wait for the end; return how long each stage took."""
        self.follow()
        _, errors = self.process.communicate(timeout=250)
        assert self.process.returncode == 0, errors.decode()
        ends = [*list(self.began.values())[1:], time.monotonic()]
        return {stage: end - begin for (stage, begin), end in zip(self.began.items(), ends, strict=True)}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_and_finish(corpus: Path, tmp_path: Path, *, kills_per_stage: int, seed: int) -> dict[str, int]:
    """Kill `kills_per_stage` preparations within each stage, each gone on with; return how many kills hit which."""
    durations = Preparation.start(corpus, tmp_path / "whole").finish()
    assert tuple(durations) == STAGES
    whole = bytes_of(tmp_path / "whole")
    generator, out, hits = random.Random(seed), tmp_path / "killed", dict.fromkeys(STAGES, 0)
    attempts = 0
    while min(hits.values()) < kills_per_stage:
        victim = min(STAGES, key=hits.__getitem__)
        hit = Preparation.start(corpus, out).kill_in(victim, after=generator.uniform(0, durations[victim]))
        if hit is not None:
            hits[hit] += 1
        if out.exists():
            assert bytes_of(out) == whole
            for path in out.iterdir():  # begin anew
                path.unlink()
            out.rmdir()
        attempts += 1
        assert attempts < 20 * kills_per_stage * len(STAGES), hits
    Preparation.start(corpus, out).finish()
    assert bytes_of(out) == whole
    assert not list(tmp_path.glob(".killed*"))
    return hits


@pytest.mark.slow
def test_a_kill_in_each_stage(corpus: Path, tmp_path: Path) -> None:
    kill_and_finish(corpus, tmp_path, kills_per_stage=1, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_in_each_stage(corpus: Path, tmp_path: Path) -> None:
    kill_and_finish(corpus, tmp_path, kills_per_stage=20, seed=2)
