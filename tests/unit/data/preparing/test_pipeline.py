import gzip
import json
import multiprocessing
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from megatron.core.datasets.indexed_dataset import IndexedDataset

from chinchilla_ds.config import DataConfig
from chinchilla_ds.data.blend import blend_of
from chinchilla_ds.data.cleaning.rules import CleaningConfig
from chinchilla_ds.data.prepare import check_enough_tokens
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.data.preparing import read_stage as stages
from chinchilla_ds.data.preparing.encode import encode_segment
from chinchilla_ds.data.preparing.ledger import Ledger
from chinchilla_ds.data.preparing.pipeline import prepare_recipe
from chinchilla_ds.data.preparing.recipe import Recipe, SourceRecipe, load_recipe
from chinchilla_ds.data.preparing.segments import document_hash
from chinchilla_ds.data.reading import parts, readers
from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from chinchilla_ds.errors import DataError, OutputError, WorkerError
from chinchilla_ds.processes.pool import Workers

WORDS = [f"{left}{right}" for left in ("al", "be", "cu", "do", "er", "fi") for right in ("na", "to", "ri", "sel", "mu")]


def make_texts(number: int, *, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(60, 200))) for _ in range(number)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def recipe_of(*paths: Path, **settings: object) -> Recipe:
    values = {"vocab_size": 400, "held_out_fraction": 0.1} | settings
    return Recipe(sources=(SourceRecipe(paths=tuple(map(str, paths))),), **values)  # type: ignore[arg-type]


def ledger_of(prepared: PreparedData) -> Ledger:
    return Ledger.from_json((prepared.folder / "ledger.json").read_text())


def texts_of(prepared: PreparedData, prefix: Path) -> list[str]:
    tokenizer, dataset = Tokenizer.load(prepared.tokenizer_path), IndexedDataset(str(prefix))
    return [tokenizer.decode(dataset[index].tolist()) for index in range(len(dataset))]


def bytes_of(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in without}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_MIN_PART_BYTES", 20_000)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    distinct = make_texts(300)
    return distinct + distinct[:20] + ["too short"] * 3 + [""]


@pytest.mark.usefixtures("small_parts")
def test_any_number_of_workers_and_any_file_order_gives_the_same_bytes(tmp_path: Path, texts: list[str]) -> None:
    first = [write_jsonl(tmp_path / f"{index}.jsonl", texts[index::3]) for index in range(3)]
    reference = prepare_recipe(recipe_of(*first), folder=tmp_path / "one", num_workers=1)
    for workers in (2, 4):
        processes: set[int] = set()
        again = prepare_recipe(
            recipe_of(*reversed(first)),
            folder=tmp_path / f"{workers}",
            num_workers=workers,
            progress=lambda stage, share, seen=processes: seen.add(len(multiprocessing.active_children())),
        )
        assert bytes_of(again.folder) == bytes_of(reference.folder)
        assert 1 < max(processes) <= workers, "one pool for all stages"

    shuffled = random.Random(1).sample(texts, len(texts))  # other files, in another order, cut elsewhere
    other = [write_jsonl(tmp_path / f"x{index}.jsonl", shuffled[index::2]) for index in range(2)]
    again = prepare_recipe(recipe_of(*other), folder=tmp_path / "other", num_workers=2)
    named = ("inputs.json", "manifest.json")  # they name the files
    assert bytes_of(again.folder, without=named) == bytes_of(reference.folder, without=named)
    less = prepare_recipe(recipe_of(*first[:2]), folder=tmp_path / "less", num_workers=1)
    assert bytes_of(less.folder, without=named) != bytes_of(reference.folder, without=named)


def test_what_was_done_before_a_worker_was_killed_is_kept(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(write_jsonl(tmp_path / "a.jsonl", texts))
    whole = prepare_recipe(recipe, folder=tmp_path / "whole", num_workers=1)
    run = Workers.run

    def killed(workers: Workers, function: Callable[[Any], Any], tasks: Sequence[Any], /) -> Iterator[Any]:
        if function is encode_segment:
            raise WorkerError("a worker process was killed")
        return run(workers, function, tasks)

    with monkeypatch.context() as patch:
        patch.setattr(Workers, "run", killed)
        with pytest.raises(WorkerError):
            prepare_recipe(recipe, folder=tmp_path / "out", num_workers=1)
    shards = tmp_path / ".out.work" / "shards"
    times = {path: path.stat().st_mtime_ns for path in shards.rglob("*")}
    assert times
    told: list[str] = []

    def look(stage: str, share: float) -> None:
        told.append(stage)
        assert {path: path.stat().st_mtime_ns for path in shards.rglob("*")} == times

    again = prepare_recipe(recipe, folder=tmp_path / "out", num_workers=1, progress=look)
    assert "encoding" in told
    assert bytes_of(again.folder) == bytes_of(whole.folder)
    assert not shards.exists()


def test_a_kill_between_the_whole_result_and_its_name(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(write_jsonl(tmp_path / "a.jsonl", texts))
    whole = prepare_recipe(recipe, folder=tmp_path / "whole", num_workers=1)
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target == tmp_path / "out":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_recipe(recipe, folder=tmp_path / "out", num_workers=1)
    assert (tmp_path / ".out.work" / "result").is_dir(), "the control: it was whole"
    again = prepare_recipe(recipe, folder=tmp_path / "out", num_workers=1)
    assert bytes_of(again.folder) == bytes_of(whole.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out", "whole"]


@pytest.mark.usefixtures("small_parts")
def test_the_ledger_counts_what_the_texts_say_and_the_files_hold(tmp_path: Path, texts: list[str]) -> None:
    prepared = prepare_recipe(recipe_of(write_jsonl(tmp_path / "a.jsonl", texts)), folder=tmp_path / "out")
    (source,) = ledger_of(prepared).sources
    assert (source.read.documents, source.read.bytes) == (len(texts), sum(map(len, texts)))
    dropped = {rule: (amount.documents, amount.bytes) for rule, amount in source.dropped.items()}
    assert dropped == {"empty": (1, 0), "min_length": (3, 27)}
    assert source.exact_duplicates.documents == 20
    assert source.exact_duplicates.bytes == sum(map(len, texts[:20]))
    assert source.near_duplicates.documents == 0
    train, held_out = (texts_of(prepared, prefix) for prefix in (prepared.train_prefix, prepared.held_out_prefix))
    assert sorted(train + held_out) == sorted(texts[:300])
    assert source.train.documents == len(train)
    assert source.held_out.bytes == sum(map(len, held_out))
    assert source.tokens == IndexedDataset(str(prepared.train_prefix)).sequence_lengths.sum()
    order = [document_hash(text.encode()) for text in train]
    assert order == sorted(order)


def test_several_sources_have_a_dataset_each_and_one_held_out_part(tmp_path: Path, texts: list[str]) -> None:
    left, right = write_jsonl(tmp_path / "l.jsonl", texts[:200]), write_jsonl(tmp_path / "r.jsonl", texts[150:300])
    sources = (
        SourceRecipe(name="right", paths=(str(right),), weight=0.25),
        SourceRecipe(name="left", paths=(str(left),), weight=0.75),
    )
    recipe = Recipe(sources=sources, vocab_size=400, held_out_fraction=0.1)
    prepared = prepare_recipe(recipe, folder=tmp_path / "out", num_workers=1)
    assert [(source.name, source.weight) for source in prepared.sources] == [("left", 0.75), ("right", 0.25)]
    read = [texts_of(prepared, prefix) for prefix in (*prepared.train_prefixes, prepared.held_out_prefix)]
    assert sorted(text for part in read for text in part) == sorted(texts[:300])
    assert set(read[0]) <= set(texts[:200])
    assert set(read[1]) <= set(texts[150:300])
    assert sum(one.exact_duplicates.documents for one in ledger_of(prepared).sources) == 50
    with pytest.raises(DataError, match="holds 2 sources; read them as a blend"):
        _ = prepared.train_prefix


def test_caps_of_a_recipe_become_unimax_shares_of_a_run(tmp_path: Path, texts: list[str]) -> None:
    small, large = write_jsonl(tmp_path / "s.jsonl", texts[:40]), write_jsonl(tmp_path / "l.jsonl", texts[40:300])
    path = tmp_path / "corpus.yaml"
    path.write_text(
        "vocab_size: 400\nsources:\n"
        f"  - {{name: small, paths: {small}, max_epochs: 3}}\n  - {{name: large, paths: {large}, max_epochs: 2}}\n"
    )
    prepared = prepare_recipe(load_recipe(path).recipe, folder=tmp_path / "out", num_workers=1)
    assert PreparedData.load(tmp_path / "out") == prepared
    large_tokens, small_tokens = (source.num_tokens for source in prepared.sources)
    run = 8 * small_tokens  # half of it is more than 3 epochs of `small`, which is then full
    shares = blend_of(prepared, num_tokens=run)
    assert [(share.name, share.epochs) for share in shares] == [
        ("large", pytest.approx(5 * small_tokens / large_tokens)),
        ("small", pytest.approx(3)),
    ]
    data, most = DataConfig(paths=(prepared.folder,)), 3 * small_tokens + 2 * large_tokens  # beyond max_epochs 1
    check_enough_tokens(prepared, data=data, num_tokens=most, seq_length=8)
    with pytest.raises(DataError, match=r"the sources give at most .* within their max_epochs"):
        check_enough_tokens(prepared, data=data, num_tokens=most + 1, seq_length=8)


def test_every_format_gives_the_same_corpus(tmp_path: Path, texts: list[str]) -> None:
    import datasets

    kept = texts[:60]
    plain = write_jsonl(tmp_path / "a.jsonl", kept)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    frames = [zstandard.compress(part) for part in (plain.read_bytes()[:5000], plain.read_bytes()[5000:])]
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "d.csv").write_text("n,text\n" + "".join(f'1,"{text}"\n' for text in kept))
    pyarrow.parquet.write_table(pyarrow.table({"text": kept}), tmp_path / "e.parquet", row_group_size=7)
    datasets.Dataset.from_dict({"text": kept}).save_to_disk(str(tmp_path / "f"))
    names = ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.csv", "e.parquet", "f")
    named = ("inputs.json", "manifest.json")
    results = [
        bytes_of(
            prepare_recipe(recipe_of(tmp_path / name), folder=tmp_path / f"out{name}", num_workers=1).folder,
            without=named,
        )
        for name in names
    ]
    assert all(result == results[0] for result in results)


BAD = b'{"text": "%s"}\n' % (b"fine words " * 40)


@pytest.mark.parametrize(
    ("content", "message", "kind"),
    [
        (BAD * 3 + b'{"text": "\xff"}\n', r"bad\.jsonl:4 is not UTF-8: byte 0xff", "not UTF-8"),
        (BAD + b'{"txt": "a"}\n', r"bad\.jsonl:2 has no field 'text'; did you mean 'txt'", "no text field"),
        (BAD + b'{"text": "' + b"x" * 200_000 + b'"}\n' + BAD, r"bad\.jsonl:2 is a line of more than", "too long"),
    ],
)
@pytest.mark.usefixtures("small_parts")
def test_bad_records_name_file_and_line_or_are_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str, kind: str
) -> None:
    monkeypatch.setattr(parts, "MAX_RECORD_BYTES", 100_000)
    good = write_jsonl(tmp_path / "good.jsonl", make_texts(80))
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare_recipe(recipe_of(good, bad), folder=tmp_path / "out", num_workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "good.jsonl"]
    prepared = prepare_recipe(recipe_of(good, bad, skip_problems=True), folder=tmp_path / "out", num_workers=1)
    (source,) = ledger_of(prepared).sources
    assert source.skipped == {kind: 1}
    assert source.read.documents == 80 + content.count(b"\n")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv"])
def test_one_line_of_50_mb(tmp_path: Path, name: str) -> None:
    good = make_texts(60)
    line = "x" * 50_000_000
    if name.endswith("csv"):
        content = "\n".join(["text", *good[:30], line, *good[30:]]) + "\n"
    else:
        content = "".join(json.dumps({"text": text}) + "\n" for text in (*good[:30], line, *good[30:]))
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode(), 1) if name.endswith("gz") else content.encode())
    place = f"{path}:{32 if name.endswith('csv') else 31}"
    with pytest.raises(DataError, match=rf"{place} is a line of more than 32\.00 MiB; split it into documents"):
        prepare_recipe(recipe_of(path), folder=tmp_path / "out", num_workers=1)
    assert [left.name for left in tmp_path.iterdir()] == [name]
    prepared = prepare_recipe(recipe_of(path, skip_problems=True), folder=tmp_path / "out", num_workers=1)
    (source,) = ledger_of(prepared).sources
    assert (source.read.documents, source.skipped) == (61, {"too long": 1})
    assert source.train.documents + source.held_out.documents == 60


def test_an_empty_file_is_named_or_skipped_and_counted(tmp_path: Path) -> None:
    good, empty = write_jsonl(tmp_path / "good.jsonl", make_texts(60)), tmp_path / "empty.jsonl"
    empty.touch()
    for names in ((good, empty), (tmp_path / "*.jsonl",)):
        with pytest.raises(DataError, match=r"empty\.jsonl is empty"):
            prepare_recipe(recipe_of(*names), folder=tmp_path / "out", num_workers=1)
    prepared = prepare_recipe(recipe_of(good, empty, skip_problems=True), folder=tmp_path / "out", num_workers=1)
    (source,) = ledger_of(prepared).sources
    assert (source.read.documents, source.skipped) == (61, {"empty file": 1})


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.zst"])
def test_a_truncated_archive_names_file_and_line(tmp_path: Path, name: str) -> None:
    generator = random.Random(3)
    rows = ["".join(generator.choices("abcdefghij ", k=400)) for _ in range(200)]
    content = write_jsonl(tmp_path / "plain.jsonl", rows).read_bytes()
    if ".csv" in name:
        content = ("text\n" + "\n".join(rows)).encode()
    pack = gzip.compress if name.endswith(".gz") else zstandard.compress
    (tmp_path / name).write_bytes(pack(content)[:-2000])
    with pytest.raises(DataError, match=rf"{name}:\d+ cannot be read: "):
        prepare_recipe(recipe_of(tmp_path / name), folder=tmp_path / "out", num_workers=1)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    good = write_jsonl(tmp_path / "good.jsonl", make_texts(60))
    recipe = recipe_of(tmp_path / name, good, skip_problems=True)
    (source,) = ledger_of(prepare_recipe(recipe, folder=tmp_path / "out", num_workers=1)).sources
    assert source.skipped == {"truncated or broken archive": 1}
    assert 60 < source.read.documents <= 60 + len(rows)


def test_the_line_of_a_problem_is_right_in_the_middle_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(BAD * 300 + b"{}\n" + BAD * 300)
    (file,) = readers_files(path)
    pieces = list(readers.parts_of(file, text_field="text", part_bytes=10_000))
    found = [one for piece in pieces for one in readers.read_part(piece)]
    assert len(pieces) > 20
    assert sum(isinstance(one, bytes) for one in found) == 600
    (problem,) = [one for one in found if isinstance(one, parts.Problem)]
    assert problem.message.startswith(f"{path}:301 has no field")


def readers_files(path: Path) -> Iterator[readers.SourceFile]:
    from chinchilla_ds.data.reading.sources import find_source

    yield from find_source([str(path)], text_field="text").files


def test_a_benchmark_is_kept_out(tmp_path: Path) -> None:
    texts = make_texts(50)
    benchmark = tmp_path / "benchmark.txt"
    benchmark.write_text(texts[7])
    recipe = recipe_of(write_jsonl(tmp_path / "a.jsonl", texts), decontaminate=(benchmark,))
    prepared = prepare_recipe(recipe, folder=tmp_path / "out", num_workers=1)
    (source,) = ledger_of(prepared).sources
    assert source.dropped["benchmark_overlap"].documents == 1
    train, held_out = (texts_of(prepared, prefix) for prefix in (prepared.train_prefix, prepared.held_out_prefix))
    assert sorted(train + held_out) == sorted(texts[:7] + texts[8:])


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(30))
    out = tmp_path / "out"
    prepare_recipe(recipe_of(path), folder=out, num_workers=1)
    before = bytes_of(out)
    with pytest.raises(OutputError, match="prepared from other text or with other settings"):
        prepare_recipe(recipe_of(path, seed=5), folder=out, num_workers=1)
    assert bytes_of(out) == before
    shutil.rmtree(out)
    out.mkdir()
    (out / "notes.txt").touch()
    with pytest.raises(OutputError, match="holds other files"):
        prepare_recipe(recipe_of(path), folder=out, num_workers=1)


def test_a_source_of_which_nothing_is_left_says_where_it_went(tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "a.jsonl", make_texts(30))
    short = write_jsonl(tmp_path / "b.jsonl", ["short", "small"])
    sources = (SourceRecipe(name="a", paths=(str(good),)), SourceRecipe(name="b", paths=(str(short),)))
    with pytest.raises(
        DataError,
        match=r"source b .*: of 2 documents read, 2 dropped by min_length \(fewer than 200 .*`prepare.min_characters`",
    ):
        prepare_recipe(Recipe(sources=sources, vocab_size=400), folder=tmp_path / "out", num_workers=1)


def test_without_cleaning_and_deduplication_everything_is_kept(tmp_path: Path) -> None:
    texts = ["a", "a", "b", "c" * 10]
    recipe = recipe_of(
        write_jsonl(tmp_path / "a.jsonl", texts),
        cleaning=CleaningConfig(rules=frozenset()),
        dedup=False,
        held_out_fraction=0.01,
    )
    prepared = prepare_recipe(recipe, folder=tmp_path / "out", num_workers=1)
    train, held_out = (texts_of(prepared, prefix) for prefix in (prepared.train_prefix, prepared.held_out_prefix))
    assert sorted(train + held_out) == sorted(texts)
    assert not set(train) & set(held_out)
    assert np.isfinite(prepared.unigram_loss)
