"""The exported user tower, run by ONNX Runtime on padded arrays. Imports no torch."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from recsys.core.columns import Column, Dense, ragged_positions
from recsys.core.types import Float32Array
from recsys.release.files import private_copy, read_file
from recsys.release.manifest import TIMESTAMP, USER_TOWER, USER_TOWER_DATA, Manifest, TensorSpec


@dataclass(frozen=True)
class Histories:
    """Encoded histories of B users with T events in total, before padding.

    Attributes:
        item_idx: int64 [T]; 0 for an item that the tower does not know.
        lengths: int64 [B], at most the tower's maximum history.
        user_idx: int64 [B], -1 for an unknown user.
        time: int64 [T], seconds; read by towers that have the input `timestamp`.
        events: features of the T events.
        users: profile features of the B users.
        requests: request features of the B users.
    """

    item_idx: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    user_idx: npt.NDArray[np.int64]
    time: npt.NDArray[np.int64]
    events: Mapping[str, Column] = field(default_factory=dict)
    users: Mapping[str, Column] = field(default_factory=dict)
    requests: Mapping[str, Column] = field(default_factory=dict)

    def with_requests(self, replacements: Mapping[str, Column]) -> Histories:
        """Return the same histories with some request features replaced."""
        return dataclasses.replace(self, requests={**self.requests, **replacements})


class UserTowerSession:
    """Runs `user_tower.onnx` of a verified release. `threads` are those of one call; 0 for one per core."""

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if USER_TOWER_DATA in manifest.files:
            with private_copy(folder, (USER_TOWER, USER_TOWER_DATA), manifest) as own:
                self._session = _session(str(own / USER_TOWER), options)
        else:
            self._session = _session(read_file(folder, USER_TOWER, manifest), options)
        self.inputs, self.max_history = manifest.inputs, manifest.max_history
        self.shape = tuple(int(size) for size in manifest.output.shape[1:])
        self.reads_time = any(spec.name == TIMESTAMP for spec in manifest.inputs)

    def __call__(self, histories: Histories) -> Float32Array:
        """Return user embeddings float32 [B, D], or [B, M, D] if the tower returns several per user."""
        return self.run(pad(histories, self.inputs))

    def run(self, inputs: Mapping[str, npt.NDArray[np.generic]], *, seconds: float | None = None) -> Float32Array:
        """Return user embeddings for padded inputs; beyond a time limit in seconds, ONNX Runtime raises its error."""
        if not len(inputs["lengths"]):
            return np.zeros((0, *self.shape), np.float32)
        if seconds is None:
            (embeddings,) = self._session.run(None, dict(inputs))
            return np.asarray(embeddings)
        options = onnxruntime.RunOptions()
        timer = threading.Timer(seconds, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            (embeddings,) = self._session.run(None, dict(inputs), options)
        finally:
            timer.cancel()
        return np.asarray(embeddings)


def _session(model: str | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def pad(histories: Histories, specs: Sequence[TensorSpec]) -> dict[str, npt.NDArray[np.generic]]:
    """Return the tower's inputs: histories padded to the longest one (at least 1 event), bags to the largest bag."""
    num_users = len(histories.lengths)
    longest = max(1, int(histories.lengths.max(initial=0)))
    places = ragged_positions(np.arange(num_users) * longest, histories.lengths)
    inputs: dict[str, npt.NDArray[np.generic]] = {}
    for spec in specs:
        owner, _, name = spec.name.partition(".")
        if spec.name in ("item_idx", TIMESTAMP):
            row = np.zeros(num_users * longest, np.int64)
            row[places] = histories.item_idx if spec.name == "item_idx" else histories.time
            inputs[spec.name] = row.reshape(num_users, longest)
        elif spec.name in ("lengths", "user_idx"):
            inputs[spec.name] = np.asarray(getattr(histories, spec.name), np.int64)
        elif owner == "event":
            rows = _rows(histories.events[name])
            padded = np.zeros((num_users * longest, *rows.shape[1:]), rows.dtype)
            padded[places] = rows
            inputs[spec.name] = padded.reshape(num_users, longest, *rows.shape[1:])
        else:
            inputs[spec.name] = _rows((histories.users if owner == "user" else histories.requests)[name])
    return inputs


def _rows(column: Column) -> npt.NDArray[np.generic]:
    if isinstance(column, Dense):
        return column.values.astype(np.float32 if column.values.dtype.kind == "f" else np.int64)
    lengths = np.diff(column.offsets)
    width = max(1, int(lengths.max(initial=0)))
    bags = np.zeros(len(lengths) * width, np.int64)
    bags[ragged_positions(np.arange(len(lengths)) * width, lengths)] = column.values
    return bags.reshape(len(lengths), width)
