"""The manifest of a release: its files with digests, and the pair name that both halves share. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recsys.core.errors import UserError
from recsys.core.strict_json import parse_json, read_bounded
from recsys.release.manifest_check import check_fields

FORMAT = 1
MANIFEST = "manifest.json"
USER_TOWER = "user_tower.onnx"
USER_TOWER_DATA = "user_tower.onnx.data"
USER_WEIGHTS, ITEM_WEIGHTS = "user_tower.safetensors", "item_tower.safetensors"
EMBEDDINGS = "item_embeddings.npy"
ITEMS = "items.parquet"
CONFIG = "config.yaml"
SCHEMA = "schema.json"
ITEM_VOCABULARY, USER_VOCABULARY = "vocabularies/items.parquet", "vocabularies/users.parquet"
INDEX_PAIR = "item_index.pair.json"
SELF_CHECK = "self_check.npz"
REQUIRED = (
    USER_TOWER, USER_WEIGHTS, ITEM_WEIGHTS, EMBEDDINGS, ITEMS, CONFIG, SCHEMA, ITEM_VOCABULARY, INDEX_PAIR,
    "item_index.json", SELF_CHECK,
)  # fmt: skip

# Keys of the metadata of the exported tower.
PAIR_KEY = "recsys.pair"
SIMILARITY_KEY = "recsys.similarity"
MAX_HISTORY_KEY = "recsys.max_history"
# Input of a tower that reads event times.
TIMESTAMP = "timestamp"

_CHUNK = 1 << 22


@dataclass(frozen=True)
class FileEntry:
    """Digest and size of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: element type (`int64` or `float32`) and shape (sizes, and names of dynamic axes)."""

    name: str
    type: str
    shape: tuple[str | int, ...]


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`.

    Attributes:
        version: hash over the digests of the files.
        model: name of the model.
        created: time in UTC, ISO 8601; not part of the version.
        run: folder of the run that was promoted.
        dataset_fingerprint: fingerprint of the prepared data that the model was trained on.
        pair: hash over all parts that user tower and index share; both files contain it.
        inputs, output: inputs and output of the exported user tower.
        temperature: divisor of similarities that makes them logits.
        num_items: number of items in the index.
        num_embeddings: number of embeddings of a user, M; absent ones are zeros.
        metrics: metrics of the run.
        index: class, recall against exact search, and tuning curve of the index.
        files: all other files of the release.
        data: times of the data in seconds, if it has times: `begin` and `until` (first and last event), `train_until`
            (last training event), `test_begin` (first test event).
        corpus: policy that chose the items of the index, number of items that it chose from, and cost in recall; empty
            in early manifests.
        num_trained: number of items with training events; None in early manifests.
        temperatures: temperature of each member of a blend, or of the only model; empty in early manifests.
        index_time: `now` and `horizon_days`, the time for which item biases were computed; empty if they have none.
        new_item_biases: bias of an item without events, apart from its age, for each member, and last that of the
            blend; None for a member without a bias. Empty in early manifests.
        refreshed: origin of a release whose index was built from newer data than its towers: `data` (folder), `known`
            (numbers of items and users that the towers knew before), and for a refresh `from` (version); empty for
            other releases.
    """

    version: str
    model: str
    created: str
    run: str
    git_commit: str | None
    dataset_fingerprint: str
    similarity: str
    temperature: float
    dim: int
    num_items: int
    num_embeddings: int
    max_history: int
    pair: str
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    metrics: Mapping[str, float]
    index: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    data: Mapping[str, int] = field(default_factory=dict)
    corpus: Mapping[str, Any] = field(default_factory=dict)
    num_trained: int | None = None
    temperatures: tuple[float, ...] = ()
    index_time: Mapping[str, float] = field(default_factory=dict)
    new_item_biases: tuple[float | None, ...] = ()
    refreshed: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def chosen_metrics(self) -> Mapping[str, float] | None:
        """Test metrics over the items that were chosen for the index; None if the index has all items of the run."""
        if not self.corpus or self.corpus["num_items"] == self.corpus["of"]:
            return None
        chosen: Mapping[str, float] = self.corpus.get("test", {}).get("chosen", {})
        return chosen

    def record(self, name: str) -> float | None:
        """Return a test metric, such as `recall@10`, over the items of the index; None if it is unknown."""
        chosen = self.chosen_metrics
        return self.metrics.get(f"test/{name}") if chosen is None else chosen.get(name)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain containers, the inverse of `from_json`."""
        return {"format": self.format, **{k: v for k, v in asdict(self).items() if k != "format"}}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Manifest:
        """Return the manifest of containers from `to_json`."""
        if "num_items" not in content:
            # In early manifests, `num_embeddings` was the number of items, because users had one embedding.
            content = {**content, "num_items": content["num_embeddings"], "num_embeddings": 1}
        return cls(
            **{
                **content,
                "inputs": tuple(_spec(entry) for entry in content["inputs"]),
                "output": _spec(content["output"]),
                "temperatures": tuple(content.get("temperatures", ())),
                "new_item_biases": tuple(content.get("new_item_biases", ())),
                "files": {name: FileEntry(**entry) for name, entry in content["files"].items()},
            }
        )

    def save(self, folder: Path) -> None:
        """Write `manifest.json`."""
        (folder / MANIFEST).write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of a release; raise `UserError` if it is missing, damaged or of another format."""
        path = folder / MANIFEST
        return cls.parse(read_bounded(path), path)

    @classmethod
    def parse(cls, text: bytes, path: Path) -> Manifest:
        """Return the manifest in a text; `path` is its place, for errors."""
        content = parse_json(text, path)
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise UserError(f"{path}: format {found!r:.60}, expected {FORMAT}; publish the run again")
        try:
            manifest = cls.from_json(content)
            check_fields(manifest)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{path}: not the manifest of a release ({type(error).__name__}: {error!s:.300})"
            ) from error
        return manifest


def _spec(entry: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(entry["name"], entry["type"], tuple(entry["shape"]))


def embedding_shape(num_embeddings: int, dim: int) -> tuple[str | int, ...]:
    """Return the shape of the exported tower's output: [B, D], or [B, M, D] for several embeddings per user."""
    return ("B", dim) if num_embeddings == 1 else ("B", num_embeddings, dim)


def describe_files(folder: Path, known: Mapping[str, FileEntry] | None = None) -> dict[str, FileEntry]:
    """Describe every file below `folder` except the manifest, by relative name, sorted; `known` ones are not read."""
    known = known or {}
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: known.get(name) or describe_file(folder / name) for name in names if name != MANIFEST}


def describe_file(path: Path) -> FileEntry:
    """Return digest and size of a file."""
    running = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            running.update(chunk)
    return FileEntry(running.hexdigest(), path.stat().st_size)


def version_of(files: Mapping[str, FileEntry]) -> str:
    """Return the version, a hash over names and digests of the files."""
    return _hash_of(files)[:16]


def pair_of(files: Mapping[str, FileEntry]) -> str:
    """Return the name that user tower and index share.

    It is a hash over the parts that both are made of: weights, embeddings, items, vocabularies, schema and
    configuration. The exported tower, the index and the self-check are left out, because they contain the name or
    depend on it.
    """
    common = {
        name: entry
        for name, entry in files.items()
        if not name.startswith(("item_index.", USER_TOWER)) and name != SELF_CHECK
    }
    return _hash_of(common)[:32]


def save_index_pair(folder: Path, pair: str, *, files: Mapping[str, FileEntry]) -> None:
    """Write `item_index.pair.json`: the pair name of the index, and the digests of its files."""
    content = {"pair": pair, "files": {name: entry.sha256 for name, entry in sorted(files.items())}}
    (folder / INDEX_PAIR).write_text(json.dumps(content, indent=2) + "\n")


def _hash_of(files: Mapping[str, FileEntry]) -> str:
    lines = "".join(f"{name}\0{files[name].sha256}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
