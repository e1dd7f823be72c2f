"""Tokens per second of generation: ours with and without its cache, and transformers' on the same weights, in one run.

    python benchmarks/generate.py [--run RUN] [--new-tokens 128] [--prompt-tokens 32] [--batch 1 8] [--rounds 5]
                                  [--compile] [--draft] [--json FILE]

Greedy, fp32 on the CPU and bf16 on a GPU. Without --run the model is random, of 6 layers and 384 channels with
grouped queries and 8192 rows of vocabulary: speed does not depend on what was learnt. transformers loads what
`chinchilla-ds export` writes of the same checkpoint and generates with its own cache, in the same process and on as
many threads. Without a cache only the first batch size is timed. Each round times every contestant once, in another
order; the median counts. Tokens must be the same for all. The time is that of one call, the prompt's pass included.

--draft adds speculative decoding. Its speed does depend on what was learnt: the draft is the model's first half,
which says nothing of a real pair. Random, it shows what refused drafts cost; with --run, what this run's first half is
worth.
"""

import argparse
import dataclasses
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from chinchilla_ds.checkpoint.folder import checkpoint_name
from chinchilla_ds.checkpoint.writer import write_checkpoint
from chinchilla_ds.data.tokenizing.tokenizer import train_tokenizer
from chinchilla_ds.exporting.card import TrainingFacts
from chinchilla_ds.exporting.write import export_checkpoint
from chinchilla_ds.inference.generate import generate
from chinchilla_ds.inference.load import load_decoder
from chinchilla_ds.inference.model import TrainedModel, default_device
from chinchilla_ds.inference.ranks import ModelRanks
from chinchilla_ds.inference.sampling import Sampling
from chinchilla_ds.inference.source import CachedDecoder, LogitSource, uncached
from chinchilla_ds.inference.speculative import generate_speculatively
from chinchilla_ds.run_plan import ModelShape, Precision
from chinchilla_ds.testing import tiny_plan
from chinchilla_ds.weights import named_kinds

SHAPE = ModelShape(
    num_layers=6,
    hidden_size=384,
    ffn_hidden_size=1024,
    num_attention_heads=6,
    num_query_groups=2,
    kv_channels=64,
    vocab_size=8192,
    padded_vocab_size=8192,
    seq_length=1024,
)
OURS, UNCACHED, THEIRS = "ours", "ours, no cache", "transformers"
Contestant = Callable[[list[list[int]], int], list[list[int]]]
"""From prompts and how many tokens to draw to the new tokens of each."""


def write_random_run(folder: Path) -> Path:
    """Write a checkpoint of random weights and a small tokenizer."""
    words = [f"word{number} = {number % 7}\n" for number in range(3000)]
    tokenizer = train_tokenizer([word.encode() for word in words], vocab_size=600)
    tokenizer.save(folder / "tokenizer.model")
    shape = dataclasses.replace(SHAPE, vocab_size=tokenizer.vocab_size)
    plan = tiny_plan(shape=shape)
    generator = torch.Generator().manual_seed(0)
    sizes = ((name, kind.shape(shape)) for name, kind, _ in named_kinds(shape))
    weights = (
        (name, torch.ones(size) if len(size) == 1 else 0.05 * torch.randn(size, generator=generator))
        for name, size in sizes
    )
    checkpoint = folder / "run" / "checkpoints" / checkpoint_name(0)
    write_checkpoint(checkpoint, plan=plan, ds_config={}, weights=weights, tokenizer=folder / "tokenizer.model")
    return folder / "run"


class _NoEnd:
    """A tokenizer whose end of document never comes, so that everyone draws as many tokens as were asked for."""

    eod_id = -1

    def __init__(self, model: TrainedModel) -> None:
        self.vocab_size = model.tokenizer.vocab_size
        self.decode = model.tokenizer.decode


def ours(source: LogitSource, model: TrainedModel) -> Contestant:
    """Return generation by one of our sources."""

    def run(prompts: list[list[int]], number: int) -> list[list[int]]:
        found = generate(
            source,
            prompts=prompts,
            tokenizer=_NoEnd(model),  # type: ignore[arg-type]
            max_new_tokens=number,
            sampling=Sampling(temperature=0),
        )
        return [list(row.tokens) for row in found]

    return run


def speculative(target: CachedDecoder, draft: CachedDecoder, model: TrainedModel) -> Contestant:
    """Return speculative decoding."""

    def run(prompts: list[list[int]], number: int) -> list[list[int]]:
        found = generate_speculatively(
            target,
            draft=draft,
            prompts=prompts,
            tokenizer=_NoEnd(model),  # type: ignore[arg-type]
            max_new_tokens=number,
            sampling=Sampling(temperature=0),
        )
        return [list(row.tokens) for row in found]

    return run


def theirs(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Contestant:
    """Return generation by transformers, of an exported folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()

    def run(prompts: list[list[int]], number: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=device)
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=number,
                max_new_tokens=number,
                eos_token_id=None,
                pad_token_id=0,
            )
        return found[:, ids.size(1) :].tolist()

    return run


def half_of(model: TrainedModel, *, dtype: torch.dtype, device: torch.device) -> CachedDecoder:
    """Return the model's first half, its tables included."""
    plan = model.reader.plan
    shape = dataclasses.replace(plan.shape, num_layers=max(1, plan.shape.num_layers // 2))

    class Half:
        def __init__(self) -> None:
            self.plan = dataclasses.replace(plan, shape=shape)
            self.shape, self.read, self.read_rows = model.reader.shape, model.reader.read, model.reader.read_rows

    eod_id = model.tokenizer.eod_id
    return CachedDecoder(load_decoder(Half(), ranks=ModelRanks(), eod_id=eod_id, dtype=dtype, device=device))


def time_rounds(
    contestants: dict[str, Contestant], prompts: list[list[int]], *, number: int, rounds: int
) -> dict[str, float]:
    """Return the median seconds of each, after a round that is not counted; all must give the same tokens."""
    found = {name: run(prompts, number) for name, run in contestants.items()}
    if others := [name for name, tokens in found.items() if tokens != found[OURS]]:
        print(f"note: {', '.join(others)} gave other tokens than {OURS}")
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(contestants), k=len(contestants)):
            started = time.perf_counter()
            contestants[name](prompts, number)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--draft", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, folder=Path(folder))
    print(format_result(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(arguments: argparse.Namespace, *, folder: Path) -> dict[str, object]:
    """Return what was measured and on what."""
    model = TrainedModel.open(arguments.run or write_random_run(folder))
    device = default_device()
    precision = Precision.BF16 if device.type == "cuda" else Precision.FP32
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    facts = TrainingFacts(consumed_tokens=0, flops_spent=0.0)
    export_checkpoint(model.reader, out=folder / "export", dtype=precision, facts=facts)
    decoder = model.load(ranks=ModelRanks(), precision=precision, device=device)
    cached = CachedDecoder(decoder)
    contestants = {
        OURS: ours(cached, model),
        UNCACHED: ours(uncached(decoder), model),
        THEIRS: theirs(folder / "export", dtype=dtype, device=device),
    }
    if arguments.compile:
        contestants["ours, compiled"] = ours(CachedDecoder(decoder, compiled=True), model)
    if arguments.draft:
        contestants["ours, drafted"] = speculative(cached, half_of(model, dtype=dtype, device=device), model)
    vocab_size, rows = model.tokenizer.vocab_size, []
    for batch in arguments.batch:
        generator = torch.Generator().manual_seed(batch)
        prompts = torch.randint(2, vocab_size, (batch, arguments.prompt_tokens), generator=generator).tolist()
        racing = {name: run for name, run in contestants.items() if name != UNCACHED or batch == arguments.batch[0]}
        seconds = time_rounds(racing, prompts, number=arguments.new_tokens, rounds=arguments.rounds)
        rows.append({"batch": batch, "seconds": seconds})
    return {
        "num_params": model.reader.plan.num_params,
        "dtype": precision.value,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": _version("transformers")},
        "new_tokens": arguments.new_tokens,
        "prompt_tokens": arguments.prompt_tokens,
        "rows": rows,
    }


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def format_result(result: dict[str, object]) -> str:
    """Return a table of tokens per second, and how many times as fast ours is."""
    lines = [
        f"{result['num_params']} parameters, {result['dtype']}, {result['device']}, {result['threads']} threads, "
        f"{result['prompt_tokens']} + {result['new_tokens']} tokens, {result['versions']}",
        f"{'batch':>6}  {'':<18}{'tokens/s':>10}{'ours is':>10}",
    ]
    rows: list[dict[str, object]] = result["rows"]  # type: ignore[assignment]
    for row in rows:
        seconds: dict[str, float] = row["seconds"]  # type: ignore[assignment]
        for name, value in seconds.items():
            rate = int(row["batch"]) * int(result["new_tokens"]) / value  # type: ignore[call-overload]
            lines.append(f"{row['batch']:>6}  {name:<18}{rate:>10.1f}{value / seconds[OURS]:>9.2f}x")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
