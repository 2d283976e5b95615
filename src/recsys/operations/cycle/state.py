"""State of the retraining cycles of a model, in a file that survives a crash, and the history of cycles that ended.

<folder>/<model>/state.json     files that were read, and the current cycle
                 cycles.jsonl   a line for every end of a cycle, oldest first; a stopped cycle may end again
                 cycles.html    page of all cycles
                 cycles/<n>/    run, verdict and rollout of one cycle
                 .lock
"""

from __future__ import annotations

import json
import os
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from recsys.core.errors import UserError
from recsys.core.io import atomic_write
from recsys.operations.cycle.arrivals import DataFile, FolderListing
from recsys.operations.gates.verdict import Acceptance, to_plain

CycleStep = Literal["prepare", "train", "judge", "accept", "publish", "roll_out", "watch", "roll_back", "end"]
# kept: the candidate is served. stopped: gates stopped it before it was published. rolled_back: it was served, and the
# previous release was restored. failed: its data or settings are wrong. abandoned: its data or settings changed after
# it began.
CycleOutcome = Literal["kept", "stopped", "rolled_back", "failed", "abandoned"]
# Steps that change nothing outside the folder of the cycle.
PRIVATE_STEPS: tuple[CycleStep, ...] = ("prepare", "train", "judge")


@dataclass
class Cycle:
    """One retraining cycle.

    Attributes:
        number: number of the cycle of this model, from 1.
        began: time in UTC, ISO 8601.
        settings: digests of the settings of training, and of packing and gates.
        listing: files that the cycle reads.
        suppressed: list of forgotten users as it was when the cycle began; None if there was none.
        new_events: number of events that had arrived.
        files: number of files of interactions.
        store: folder of releases.
        step: next step.
        served: version that was served when the candidate was judged; None if none was.
        warm_start: variant (empty without variants) -> run folder whose weights training starts from; None: random
            weights.
        fingerprint: fingerprint of the prepared data.
        newest: time of its newest event in seconds.
        version: version of the candidate's release.
        measured: metrics, as in `recsys.operations.gates.verdict.Verdict.measured`.
        verdict: summary of the verdict; empty before there is one.
        outcome: result; None while the cycle runs.
        why: reason for the result.
        error: error that interrupted the step; empty once the step has succeeded.
        attempt: 1, and one more each time that the stopped cycle is judged again or accepted.
        accepted: decision to release the candidate although gates stopped it.
        seconds: duration of each step, over all starts.
        ended: time in UTC, ISO 8601.
    """

    number: int
    began: str
    _: KW_ONLY
    settings: str = ""
    listing: FolderListing = FolderListing()
    suppressed: str | None = None
    new_events: int = 0
    files: int = 0
    store: str = ""
    step: CycleStep = "prepare"
    served: str | None = None
    warm_start: dict[str, str | None] = field(default_factory=dict)
    fingerprint: str | None = None
    newest: int | None = None
    version: str | None = None
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    verdict: str = ""
    outcome: CycleOutcome | None = None
    why: str = ""
    error: str = ""
    attempt: int = 1
    accepted: Acceptance | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    ended: str | None = None

    def end(self, outcome: CycleOutcome, why: str) -> None:
        """Mark the cycle as finished; only reporting remains."""
        self.step, self.outcome, self.why = "end", outcome, why
        self.ended = self.ended or now()

    def reopened(self, step: CycleStep, settings: str, *, accepted: Acceptance | None = None) -> Cycle:
        """Return the next attempt of this stopped cycle, at a step."""
        fresh: dict[str, Any] = {"outcome": None, "why": "", "ended": None, "attempt": self.attempt + 1}
        return replace(self, step=step, settings=settings, accepted=accepted, **fresh)

    def record(self) -> dict[str, Any]:
        """Return the cycle's line of the history."""
        content: dict[str, Any] = to_plain(self)
        return {name: value for name, value in content.items() if name not in _UNRECORDED}


_UNRECORDED = ("listing", "suppressed", "step", "error")


@dataclass
class CycleState:
    """Content of `state.json`.

    Attributes:
        cycles: number of cycles that began.
        read: files of interactions that the last finished cycle read, whatever its result.
        newest: time of the newest event in them, in seconds.
        current: cycle that is not finished; None if there is none.
    """

    cycles: int = 0
    read: tuple[DataFile, ...] = ()
    newest: int | None = None
    current: Cycle | None = None


class CycleStateFile:
    """State and history of one model on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.history_path = folder, folder / "state.json", folder / "cycles.jsonl"

    def read(self) -> CycleState:
        """Return the state, or a new one if there is no file.

        Raises:
            UserError: If the file is not the state of a retraining cycle.
        """
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=CycleState)
        except FileNotFoundError:
            return CycleState()
        except (OSError, msgspec.DecodeError) as error:
            raise UserError(f"{self.path}: not the state of a retraining cycle ({error})") from error

    def write(self, state: CycleState) -> None:
        """Replace the file."""
        atomic_write(self.path, msgspec.json.format(msgspec.json.encode(to_plain(state)), indent=2) + b"\n")

    def history(self) -> list[dict[str, Any]]:
        """Return every end of a cycle, oldest first."""
        lines = self.history_path.read_text().splitlines() if self.history_path.exists() else []
        cycles = []
        for line in lines:
            try:
                cycles.append(json.loads(line))
            except ValueError:
                # A crash truncated this line. The cycle is appended again.
                continue
        return cycles

    def stops(self) -> list[Cycle]:
        """Return the stopped cycles after which no release went out, oldest first, each as it ended last."""
        last = {record["number"]: record for record in self.history()}
        went_out = max((n for n, record in last.items() if record["outcome"] in ("kept", "rolled_back")), default=0)
        stopped = (last[n] for n in sorted(last) if n > went_out and last[n]["outcome"] == "stopped")
        return [msgspec.convert(record, Cycle) for record in stopped]

    def append(self, cycle: Cycle) -> None:
        """Append the end of a cycle to the history unless it is there already."""
        if any((end["number"], end.get("attempt", 1)) == (cycle.number, cycle.attempt) for end in self.history()):
            return
        with self.history_path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            is_cut_off = size > 0 and _byte_at(file, size - 1) != b"\n"
            file.write((b"\n" if is_cut_off else b"") + json.dumps(cycle.record()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _byte_at(file: Any, place: int) -> bytes:
    file.seek(place)
    return bytes(file.read(1))
