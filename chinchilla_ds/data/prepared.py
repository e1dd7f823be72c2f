"""PreparedData: a tokenised corpus on disk, and its counts."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from chinchilla_ds.data.digests import (
    START_BYTES,
    PreparedFile,
    changed_files,
    check_content,
    check_sizes,
    names_of,
    tokenizer_sha256,
)
from chinchilla_ds.data.reading.sources import name_problem
from chinchilla_ds.errors import DataError
from chinchilla_ds.ranges import Ge, Gt
from chinchilla_ds.structured import build, read_json

PREPARED_FORMAT_VERSION = 3
_WITHOUT_DIGESTS = 2
"""The previous version, whose manifests do not list the files."""
MANIFEST_NAME = "manifest.json"
LEDGER_NAME = "ledger.json"
INPUTS_NAME = "inputs.json"
HELD_OUT_ORIGINS_NAME = "held_out_origins.npy"
"""Source and bytes of every held-out document; absent in older corpora."""

UINT16_VOCAB_SIZE = 65500
"""Below this vocabulary Megatron-core stores tokens as uint16, otherwise as int32 (`DType.optimal_dtype`)."""
_INDEX_HEADER_BYTES = 34
_INDEX_DOCUMENT_BYTES = 4 + 8 + 8
"""Bytes per document in an index: its length, its offset, its number; one extra number ends the list."""

Count = Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class PreparedSource:
    """The training documents of one named source."""

    name: str
    weight: Annotated[float, Gt(0)] | None
    """Share of the training samples; None: by tokens, so that every document is read equally often."""
    num_documents: Annotated[int, Ge(1)]
    num_bytes: Count
    """UTF-8 bytes of the documents."""
    num_tokens: Annotated[int, Ge(1)]
    """Tokens, end-of-document tokens included."""
    max_epochs: Annotated[float, Gt(0)] | None = None
    """Largest number of passes of a run over it; None: as many as its share requires."""

    def __post_init__(self) -> None:
        if (problem := name_problem(self.name)) is not None:
            raise ValueError(problem)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of a tokenised corpus. Every document is followed by one end-of-document token."""

    source: str
    """The origin of the text, in one line."""
    sources: tuple[PreparedSource, ...]
    """The sources by name; either all have a weight, and the weights sum to 1, or none has."""
    tokenizer_sha256: str
    vocab_size: Annotated[int, Ge(1)]
    """Pieces of the tokenizer, at most the requested number."""
    eod_id: Count
    """The end-of-document token."""
    train_tokens: Annotated[int, Ge(1)]
    """Training tokens of all sources."""
    held_out_tokens: Annotated[int, Ge(1)]
    train_bytes: Count
    """UTF-8 bytes of the training documents."""
    held_out_bytes: Count
    num_documents: Annotated[int, Ge(1)]
    """Training documents."""
    held_out_documents: Annotated[int, Ge(1)]
    skipped_files: Count
    """Standard-library files left out because they are not UTF-8."""
    unigram_loss: Annotated[float, Ge(0)]
    """Held-out loss of a unigram model counted on train with add-one smoothing, nats per token."""
    files: dict[str, PreparedFile] | None = None
    """Size and digest of the files, by name; None for a corpus prepared before they were recorded."""
    held_out_hash: str | None = None
    """A hash of the held-out text, whatever its tokens; None for a corpus prepared before it was recorded."""

    def __post_init__(self) -> None:
        problems = []
        names = [source.name for source in self.sources]
        if not names or names != sorted(set(names)):
            problems.append(f"sources are {names}; at least one is needed, each named once, sorted by name")
        if self.eod_id >= self.vocab_size:
            problems.append(f"eod_id is {self.eod_id}; it must be below vocab_size ({self.vocab_size})")
        for name, of_sources in (("train_tokens", "num_tokens"), ("num_documents", "num_documents")):
            total = sum(getattr(source, of_sources) for source in self.sources)
            if getattr(self, name) != total:
                problems.append(f"{name} is {getattr(self, name)}; those of the sources sum to {total}")
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class PreparedData(Manifest):
    """A tokenised corpus on disk, with train and held-out separate."""

    folder: Path
    index_folder: Path | None = None
    """Where the order of the sequences is kept; None: `index` in `folder`."""

    @property
    def content_key(self) -> str:
        """A hash of the training data, wherever it is stored: counts, weights, tokenizer, digests of the tokens."""
        values = {**self._manifest(), "folder": "", "source": ""}
        del values["held_out_hash"]  # corpora without it keep their keys
        files = values.pop("files")
        if files is not None:
            values["tokens"] = {name: file["digest"] for name, file in files.items() if name.endswith((".bin", ".idx"))}
        return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=10).hexdigest()

    def key_of(self, prefix: Path, /) -> str:
        """Return a hash of the tokens of one dataset; empty if the manifest has no digests."""
        if self.files is None:
            return ""
        digests = [self.files[f"{prefix.name}{suffix}"].digest for suffix in (".bin", ".idx")]
        return hashlib.blake2b("".join(digests).encode(), digest_size=5).hexdigest()

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer: a SentencePiece model, or the folder of a Hugging Face tokenizer."""
        folder = self.folder / "tokenizer"
        return folder if folder.is_dir() else self.folder / "tokenizer.model"

    @property
    def train_prefixes(self) -> tuple[Path, ...]:
        """Megatron-core datasets of the training documents, one per source, without `.bin` and `.idx`."""
        return tuple(train_prefix(self.folder, name=source.name) for source in self.sources)

    @property
    def train_prefix(self) -> Path:
        """The only element of `train_prefixes`.

        Raises:
            DataError: there are several sources, to be blended.
        """
        if len(self.sources) != 1:
            raise DataError(f"{self.folder} holds {len(self.sources)} sources; read them as a blend")
        return self.train_prefixes[0]

    @property
    def held_out_prefix(self) -> Path:
        """Megatron-core dataset of the held-out documents of all sources, without `.bin` and `.idx`."""
        return self.folder / "held_out"

    @property
    def bytes_per_token(self) -> float:
        """Held-out text bytes per held-out token, end-of-document tokens counted as tokens."""
        return self.held_out_bytes / self.held_out_tokens

    @property
    def train_bytes_per_token(self) -> float:
        """Training text bytes per training token."""
        return self.train_bytes / self.train_tokens

    @property
    def held_out_identity(self) -> str:
        """A hash of the held-out text; of a corpus prepared before it was recorded, of its tokens."""
        return self.held_out_hash or f"tokens:{self.key_of(self.held_out_prefix) or self.content_key}"

    def _manifest(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        del values["folder"], values["index_folder"]
        return values

    def to_json(self) -> str:
        """Return the manifest as indented JSON."""
        values = self._manifest()
        for name in ("files", "held_out_hash"):
            if values[name] is None:
                del values[name]
        version = PREPARED_FORMAT_VERSION if self.files is not None else _WITHOUT_DIGESTS
        return json.dumps({"format_version": version, **values}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, folder: Path, /) -> "PreparedData":
        """Read the manifest in `folder`, even if that folder has moved since, and check that it fits.

        Every file must have its recorded size, and the tokenizer its hash; see `check_content` for the rest.

        Raises:
            DataError: there is no manifest, it has another format, or the files differ from it.
        """
        path = folder / MANIFEST_NAME
        try:
            prepared = _of_tree(read_json(path, what="the manifest", error=DataError), folder=folder)
        except DataError as error:
            *others, last = (f"{folder} holds no usable prepared data: {problem}" for problem in error.problems)
            raise DataError([*others, f"{last}; restore the folder, or remove it to prepare the text again"]) from None
        prepared.check_files()
        return prepared

    def check_files(self) -> None:
        """Check that every file has its size, and the tokenizer its hash.

        Raises:
            DataError: lists those that do not.
        """
        sizes = {} if self.files is None else {name: file.num_bytes for name, file in self.files.items()}
        check_sizes(self.folder, {**sizes, **self.dataset_sizes()})
        if self._tokenizer_has_changed():
            raise DataError(
                f"{self.tokenizer_path} is not the tokenizer that the text was prepared with: its hash "
                "differs from the manifest's; restore it, or prepare the text again"
            )

    def _tokenizer_has_changed(self) -> bool:
        if self.files is None:
            return tokenizer_sha256(self.tokenizer_path) != self.tokenizer_sha256
        name = self.tokenizer_path.name
        present = set(names_of(self.tokenizer_path))
        known = {path: file for path, file in self.files.items() if path == name or path.startswith(f"{name}/")}
        return present != known.keys() or bool(changed_files(self.folder, known))

    def check_content(self, *, max_bytes: int | None = START_BYTES) -> int:
        """Check the content of the files against their digests, and return the bytes read; see `digests`.

        Without digests in the manifest nothing is read.

        Raises:
            DataError: names what has changed.
        """
        return 0 if self.files is None else check_content(self.folder, self.files, max_bytes=max_bytes)

    def dataset_sizes(self) -> dict[str, int]:
        """Return the bytes of the datasets, which follow from the numbers of tokens and documents."""
        token_bytes = 2 if self.vocab_size < UINT16_VOCAB_SIZE else 4
        datasets = {
            train_prefix(self.folder, name=source.name).name: (source.num_tokens, source.num_documents)
            for source in self.sources
        }
        datasets[self.held_out_prefix.name] = (self.held_out_tokens, self.held_out_documents)
        sizes: dict[str, int] = {}
        for name, (num_tokens, num_documents) in datasets.items():
            sizes[f"{name}.bin"] = token_bytes * num_tokens
            sizes[f"{name}.idx"] = _INDEX_HEADER_BYTES + _INDEX_DOCUMENT_BYTES * num_documents + 8
        return sizes


def _of_tree(tree: Any, *, folder: Path) -> PreparedData:
    if not isinstance(tree, dict):
        raise DataError("the manifest is not an object of named fields")
    version = tree.pop("format_version", None)
    if version not in (PREPARED_FORMAT_VERSION, _WITHOUT_DIGESTS):
        raise DataError(
            f"the manifest's format_version is {version!r}; {PREPARED_FORMAT_VERSION} and {_WITHOUT_DIGESTS} can be "
            "read"
        )
    tree.pop("folder", None)  # older manifests say "."
    manifest: Manifest = build(Manifest, tree, where="manifest", error=DataError)
    prepared = PreparedData(folder=folder, **vars(manifest))
    if (version == PREPARED_FORMAT_VERSION) != (manifest.files is not None):
        raise DataError("manifest.files is missing" if manifest.files is None else "manifest.files is not a field")
    if manifest.files is not None:
        wanted = {*prepared.dataset_sizes()}
        problems = [f"manifest.files lacks {name}" for name in sorted(wanted - manifest.files.keys())]
        problems += [f"manifest.files names {name!r}" for name in manifest.files if not _is_inside(name)]
        if problems:
            raise DataError(problems)
    return prepared


def _is_inside(name: str) -> bool:
    """Return whether a name belongs to a file of a prepared folder."""
    first, *others = name.split("/")
    return (not others or first == "tokenizer") and "\0" not in name and not {"", ".", ".."} & {first, *others}


def train_prefix(folder: Path, *, name: str) -> Path:
    """Return the prefix of a source's training documents."""
    return folder / f"train-{name}"


def is_prepared(path: Path) -> bool:
    """Return whether `path` is a folder of prepared data."""
    return (path / MANIFEST_NAME).is_file()
