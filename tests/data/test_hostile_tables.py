"""Hostile tables are read exactly as Arrow, `csv` or `json` read them, or refused with file and column.

`RECSYS_HOSTILE_TABLES=2000` sets their number; `RECSYS_HOSTILE_TABLES=17:18` is the range of seeds of one case.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from folders import SMALL
from hostile_tables import Case, Writer, equal

from recsys.core.errors import UserError
from recsys.data.preparation.engines import rows
from recsys.data.preparation.pipeline import open_events, read_entities
from recsys.data.preparation.prepare import plan_preparation, prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import LeaveLastOutSplit
from recsys.data.sources import ParquetFolder, Source, TextFolder, TextFormat

FIRST, _, END = os.environ.get("RECSYS_HOSTILE_TABLES", "42").rpartition(":")
SEEDS = range(int(FIRST or 0), int(END))
OWN_NAMES = {"user_id": "user_id", "item_id": "item_id", "timestamp": "time"}


def source_of(case: Case) -> Source:
    if case.format == "parquet":
        return ParquetFolder(str(case.root))
    text = TextFormat(delimiter=case.delimiter)
    return TextFolder(str(case.root), case.format, columns=case.columns, text=text)  # type: ignore[arg-type]


def settings_of(case: Case) -> DataSettings:
    """Return settings that read every column of interactions that could be a feature."""
    tables = [[name.casefold() for name in names] for names, _ in case.truth["interactions"].values()]
    names, _ = next(iter(case.truth["interactions"].values()))
    keys = {name for name in case.columns.values() if isinstance(name, str)} | {"split", ""}
    common = [name for name in names if name not in keys and all(one.count(name.casefold()) == 1 for one in tables)]
    features = {name: {"role": "event"} for name in common if not name.startswith("__index_level_")}
    return DataSettings(columns=case.columns, features={"interactions": features})


def check_read(case: Case, cache: Path, settings: DataSettings) -> None:
    """Compare what preparation reads with what the files hold."""
    job = plan_preparation(source_of(case), LeaveLastOutSplit(), settings=settings, cache=cache)
    (cache / "scratch").mkdir(parents=True)
    with SMALL.open(cache / "scratch") as session:
        events = open_events(job, session).events
        found = {"interactions": rows(session, events.order_by("shard", "row"))}
        if "items" in job.tables:
            found["items"] = rows(session, read_entities(job, session, owner="items").order_by("shard", "row"))
    for owner, read in found.items():
        held = [dict(zip(names, row, strict=True)) for names, table in case.truth[owner].values() for row in table]
        columns = {plan.name: name for name, plan in job.features_of(owner).items()}
        columns |= {file_name: OWN_NAMES[key] for key, file_name in job.tables[owner].names.items() if key in OWN_NAMES}
        assert len(held) == len(read)
        for row, one in zip(held, read, strict=True):
            for name, own in columns.items():
                value = one[own]
                if own == "time":
                    # Seconds stay seconds, also those in text; dates become microseconds.
                    value = str(value // 10**6 if value > 10**12 else value)
                    assert value == str(row[name])
                else:
                    assert equal(value, row[name], case.format), (owner, name, row[name], value)


@pytest.mark.parametrize("seed", SEEDS)
def test_hostile_tables(tmp_path: Path, seed: int) -> None:
    case = Writer(tmp_path, seed).write()
    outcome = outcome_of(case, tmp_path / "cache", full=seed % 4 == 0)
    RESULTS[case.format, outcome[:40] if outcome == "read" else "refused"] += 1


RESULTS: Counter[tuple[str, str]] = Counter()


def outcome_of(case: Case, cache: Path, *, full: bool) -> str:
    settings = settings_of(case)
    try:
        check_read(case, cache, settings)
        if full:
            split: Any = LeaveLastOutSplit()
            prepare(source_of(case), split, settings=settings, cache=cache, engine=SMALL)
    except UserError as error:
        message = str(error)
        assert not case.must_be_read, message
        names = {name for table in case.truth.values() for names, _ in table.values() for name in names}
        assert str(case.root) in message, message
        assert str(cache) not in message, message
        assert "line " in message or any(f"'{name}'" in message for name in names), message
        return message
    return "read"


def test_some_tables_are_read_and_some_refused() -> None:
    if len(SEEDS) >= 42:
        print(dict(RESULTS))
        assert {outcome for _, outcome in RESULTS} == {"read", "refused"}
