"""Where a cycle stands, in a file that survives whoever runs it, and the history of all that ended.

<folder>/<model>/state.json     what was read, and the cycle that is under way
                 cycles.jsonl   every cycle that ended, oldest first
                 cycles/<n>/    its run, its verdict, its rollout
                 .lock
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from recsys.core.errors import UserError
from recsys.operations.cycle.arrivals import Listing, Shard

Step = Literal["prepare", "train", "judge", "publish", "roll_out", "watch", "roll_back", "end"]
# kept: it is served. stopped: by gates, before it was published. rolled_back: it was served, and is not any more.
# failed: its data or settings are wrong. abandoned: they are others now than when it began.
Outcome = Literal["kept", "stopped", "rolled_back", "failed", "abandoned"]
# Up to the last of these nothing outside the cycle's folder has been changed.
INSIDE: tuple[Step, ...] = ("prepare", "train", "judge")


@dataclass
class Cycle:
    """One cycle, from what arrived to what became of it.

    Attributes:
        number: counts cycles of the model, from 1.
        began: UTC, ISO 8601.
        settings: digest of everything that decides what is trained and how it is judged.
        listing: the files that it reads.
        new_events: that had arrived.
        step: that is done next.
        served: version that was served when the candidate was judged; None: none was.
        warm_start: variant (empty without variants) -> run folder that training begins from; None: from scratch.
        fingerprint, newest: of the prepared data, and the time of its newest event in seconds.
        version: of the candidate's release.
        measured: as `recsys.operations.gates.verdict.Verdict.measured`.
        outcome, why: how it ended.
        seconds: that steps took, over all starts.
        ended: UTC, ISO 8601.
    """

    number: int
    began: str
    settings: str
    listing: Listing
    new_events: int
    step: Step = "prepare"
    served: str | None = None
    warm_start: dict[str, str | None] = field(default_factory=dict)
    fingerprint: str | None = None
    newest: int | None = None
    version: str | None = None
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    outcome: Outcome | None = None
    why: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    ended: str | None = None

    def end(self, outcome: Outcome, why: str) -> None:
        """Nothing is left to do but to tell."""
        self.step, self.outcome, self.why = "end", outcome, why
        self.ended = self.ended or now()

    def record(self) -> dict[str, Any]:
        """A line of the history."""
        content = {name: value for name, value in asdict(self).items() if name not in ("listing", "step", "settings")}
        return content | {"files": len(self.listing.interactions)}


@dataclass
class State:
    """Content of `state.json`.

    Attributes:
        cycles: that were begun.
        read: shards of interactions that the last finished cycle had read, whatever became of its candidate.
        newest: time of the newest event among them, in seconds.
        current: the cycle that is under way.
    """

    cycles: int = 0
    read: tuple[Shard, ...] = ()
    newest: int | None = None
    current: Cycle | None = None


class StateFile:
    """State and history of one model.

    Args:
        folder: of the model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.history_path = folder, folder / "state.json", folder / "cycles.jsonl"

    def read(self) -> State:
        """The state; a fresh one where there is none.

        Raises:
            UserError: the file is something else.
        """
        try:
            content = json.loads(self.path.read_text())
            current = content.pop("current")
            read = tuple(Shard(**shard) for shard in content.pop("read"))
            if current is not None:
                current = Cycle(**(current | {"listing": Listing.from_json(current["listing"])}))
                if current.step not in get_args(Step):
                    raise ValueError(f"step '{current.step}'")
            return State(**content, read=read, current=current)
        except FileNotFoundError:
            return State()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{self.path}: not the state of a retraining cycle ({error})") from error

    def write(self, state: State) -> None:
        """Replace the file by one that is on disk; a reader finds the old one or the new one."""
        for left in self.folder.glob(".state.json.*"):
            left.unlink(missing_ok=True)
        aside = self.folder / f".state.json.{uuid.uuid4().hex}"
        with aside.open("w") as file:
            file.write(json.dumps(asdict(state), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.path)

    def history(self) -> list[dict[str, Any]]:
        """Every cycle that ended, oldest first."""
        lines = self.history_path.read_text().splitlines() if self.history_path.exists() else []
        cycles = []
        for line in lines:
            try:
                cycles.append(json.loads(line))
            except ValueError:
                # Cut off by a crash; the cycle is told again.
                continue
        return cycles

    def tell(self, cycle: Cycle) -> None:
        """Append a cycle to the history, once however often it is told."""
        if any(told["number"] == cycle.number for told in self.history()):
            return
        with self.history_path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            torn = size > 0 and _byte_at(file, size - 1) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(cycle.record()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _byte_at(file: Any, place: int) -> bytes:
    file.seek(place)
    return bytes(file.read(1))
