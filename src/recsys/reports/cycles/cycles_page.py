"""All cycles of a model as a page: when, on what data, with what verdict, and what is served."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recsys.operations.cycle.state import CycleStateFile, now
from recsys.release.store import ReleaseStore
from recsys.reports.presentation.page import Section, page
from recsys.reports.presentation.report_table import Link, ReportTable

_HEADS = ("cycle", "began", "outcome", "verdict", "accepted by", "release", "data", "recall@10")


def cycles_page(folder: Path, store: ReleaseStore, *, model: str) -> str:
    """Return a complete HTML document.

    Args:
        folder: folder of the model's cycles. The page is to be written there, because its links are relative.
        store: store of the releases.
        model: name of the model.
    """
    file = CycleStateFile(folder)
    state, history, stops = file.read(), file.history(), file.stops()
    aliases = store.aliases()
    serving = aliases.get("production")
    rows = [_row(record, folder, aliases) for record in reversed(history)]
    current = state.current
    ended = {(record["number"], record.get("attempt", 1)) for record in history}
    if current is not None and (current.number, current.attempt) not in ended:
        record = current.record() | {"outcome": f"unfinished, at step {current.step}", "why": current.error}
        rows.insert(0, _row(record, folder, aliases))
    sentences = [f"{serving} is served." if serving else "No release is served yet."]
    sentences += [f"Cycle {stop.number} is {stop.why}. No release went out since." for stop in stops]
    if state.newest is not None:
        sentences.append(f"The newest event that was read is of {_moment(state.newest)}.")
    table = ReportTable("Newest first", _HEADS, tuple(rows))
    sections = [Section("Cycles", tables=(table,))] if rows else []
    foot = f"Releases in {store.root.absolute()}. Written {now()}. The same is in cycles.jsonl."
    return page(f"Retraining of {model}", sentences, sections=sections, foot=foot)


def _row(record: Mapping[str, Any], folder: Path, aliases: Mapping[str, str]) -> tuple[str, ...]:
    place, version = Path("cycles") / str(record["number"]), record.get("version")
    names = [alias for alias, target in aliases.items() if version is not None and target == version]
    accepted, attempt = record.get("accepted") or {}, record.get("attempt", 1)
    until = f"until {_moment(record['newest'])}, " if record.get("newest") is not None else ""
    recall = record.get("measured", {}).get("candidate", {}).get("recall@10")
    return (
        f"{record['number']}" + (f", attempt {attempt}" if attempt > 1 else ""),
        str(record.get("began", ""))[:16].replace("T", " "),
        str(record.get("outcome")).replace("_", " "),
        _verdict(folder, place, record),
        f"{accepted['who']}: {accepted['why']}" if accepted else "",
        " ".join([version or "none", *(f"({name})" for name in names)]),
        f"{until}{record.get('new_events', 0):,} new events, files: {record.get('files', 0)}",
        "" if recall is None else f"{recall:.4f}",
    )


def _verdict(folder: Path, place: Path, record: Mapping[str, Any]) -> str:
    """Return the verdict in a few words, or the reason of a failure, with a link to the verdict's page if it exists."""
    summary = str(record.get("verdict") or record.get("why", ""))
    text = summary.partition(":")[0] if record.get("verdict") else summary
    text += f", {summary.rpartition(', ')[2]}" if summary.endswith("warned") else ""
    # Pruning moves the page out of the run that it removes.
    for path in (place / "run/verdict.html", place / "verdict.html"):
        if (folder / path).exists():
            return Link(text or "verdict", path.as_posix())
    return text


def _moment(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(" ", timespec="minutes")[:16]
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s, which is not a date"
