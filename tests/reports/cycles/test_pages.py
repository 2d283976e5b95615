"""Pages of verdicts and of all cycles: what they say, and that nothing from data becomes markup."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from recsys.operations.cycle.arrivals import FolderListing
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.state import Cycle, CycleState, CycleStateFile
from recsys.operations.gates.verdict import Acceptance, Verdict, at_least, at_most, failed, untested
from recsys.release.store import ReleaseStore
from recsys.reports.cycles import write
from recsys.reports.cycles.cycles_page import cycles_page
from recsys.reports.cycles.tables import checks_table, result_table
from recsys.reports.cycles.verdict_page import gate_purposes, verdict_page
from recsys.reports.cycles.write import write_pages

BAD = "<script>alert('x')</script>&"
LARGEST = at_most(
    "largest day",
    3.2,
    threshold=1.67,
    reason="2026-11-20, relative to the usual 100 events",
    fits={"max_ratio": 3.2, "known_days": ["2026-11-20"]},
).of("volume")


def verdict(*outcomes: Any, **more: Any) -> Verdict:
    days = {f"2026-11-{day:02d}": 100 for day in range(1, 20)} | {"2026-11-20": 320}
    given = {"run": "runs/a", "candidate": "c" * 16, "against": "5" * 16, "dataset_fingerprint": "data"}
    given |= {"created": "2026-11-21T00:00:00+00:00", "days": days, "new_from": "2026-11-20"}
    measured = {"candidate": {"recall@10": 0.125}, "served": {"recall@10": 0.25}}
    return Verdict(**{**given, "outcomes": outcomes, "measured": measured, **more})


def plain(html: str) -> str:
    """The text of a page as a reader sees it."""
    import html as escapes

    return " ".join(escapes.unescape(re.sub(r"<[^>]+>", " ", html.partition("</style>")[2])).split())


def check_markup(html: str) -> None:
    assert "<script" not in html
    assert "onclick" not in html
    assert not re.search(r'(href|src)="(https?:|//)', html)
    assert html.startswith("<!doctype html>")


def test_a_stop_is_explained_with_its_commands_and_pictures() -> None:
    found = verdict(LARGEST, at_least("recall@10", 0.3, threshold=0.2, reason="").of("absolute"), untested("x", "few"))
    advice: Any = SimpleNamespace(
        fits="recsys retrain gates.volume.max_ratio=3.21",
        fits_days="recsys retrain 'gates.volume.known_days=[2026-11-20]'",
        accept="recsys retrain accept=2 why=REASON",
    )
    html = verdict_page("Cycle 2", found, purposes={"volume": "Stop a candidate if a day is odd."}, advice=advice)
    check_markup(html)
    text = plain(html)
    for words in (
        "Cycle 2: stopped by volume",
        "Stopped: 1 passed, 1 failed, 1 untested.",
        "volume stopped it: largest day is 3.2, expected at most 1.67 (2026-11-20, relative to the usual 100 events).",
        f"The candidate is release {'c' * 16}. It was compared with release {'5' * 16}, which was served",
        "Stop a candidate if a day is odd.",
        "gates.volume.max_ratio=3.21 fits what was measured:",
        *vars(advice).values(),
        "recall@10 0.1250 0.2500",
        "volume largest day 3.2 at most 1.67 failed",
    ):
        assert words in text
    pictures = re.findall(r'<img src="data:image/svg\+xml;base64,[^"]+" alt="([^"]+)"', html)
    assert len(pictures) == 2
    assert pictures[0].startswith("One check misses its limit. volume, largest day: 3.2, expected at most 1.67")
    assert pictures[1].startswith("2026-11-20 differs from the days before. Usual 100 events a day.")
    assert "2026-11-20: 320" in pictures[1]


def test_words_of_data_and_people_never_become_markup() -> None:
    row = failed(BAD, None, threshold=None, reason=BAD).of(BAD)
    accepted = Acceptance.of([row], who=BAD, when="now", why=BAD)
    found = verdict(row, run=BAD, accepted=accepted, former=(verdict(row),))
    html = verdict_page(BAD, found, purposes={BAD: BAD})
    check_markup(html)
    text = plain(html)
    assert f"Accepted by {BAD} at now: {BAD}" in text
    assert "Earlier verdicts on this candidate" in text


def test_warnings_and_verdicts_without_days_or_times() -> None:
    warned = dataclasses.replace(LARGEST, status="warn")
    text = plain(verdict_page("Cycle 1", verdict(warned, against=None), purposes={}))
    assert "Cycle 1: passed with warnings" in text
    assert "It was compared with nothing, because none was served" in text
    assert "volume warns largest day is 3.2" in text
    bare = verdict(days={}, new_from=None, measured={}, candidate=None)
    html = verdict_page("Cycle 1", bare, purposes={})
    assert "<img" not in html
    assert "Cycle 1: passed" in plain(html)


def test_purposes_of_gates_are_their_documentation() -> None:
    name = "recsys.operations.gates.event_volume.Volume"
    purposes = gate_purposes(OmegaConf.create({"volume": {"_target_": name}, "left_out": None}))
    assert purposes["volume"].startswith("Stop a candidate if a new day has far fewer or far more events")
    assert purposes["left_out"] == ""


@pytest.fixture
def plan(tmp_path: Path) -> CyclePlan:
    settings = {"model": "m", "folder": str(tmp_path / "loop"), "store": str(tmp_path / "store"), "keep": None}
    source = {"source": {"_target_": "recsys.data.sources.ParquetFolder"}}
    training = {"data": source, "trainer": {"devices": 1}, "test": True, "warm_start": None}
    config = OmegaConf.create({**settings, "gates": {}})
    return CyclePlan(config, OmegaConf.create(training), variants={})


def ended(plan: CyclePlan, number: int, outcome: Any, **values: Any) -> Cycle:
    cycle = Cycle(number, "2026-11-20T01:02:03+00:00", settings="", listing=FolderListing(), new_events=1234, **values)
    cycle.end(outcome, values.get("verdict", "") or "why")
    plan.run_folder(cycle).mkdir(parents=True)
    verdict(LARGEST).save(plan.run_folder(cycle))
    return cycle


def test_all_cycles_on_a_page(plan: CyclePlan) -> None:
    store, file = plan.store, CycleStateFile(plan.folder)
    for version in ("a" * 16, "b" * 16):
        (store.root / version).mkdir(parents=True)
        store.set_alias("production", version, why="test")
    accepted = Acceptance.of([LARGEST], who=BAD, when="now", why="the sale")
    cycles = [
        ended(plan, 1, "kept", version="a" * 16, newest=1_763_683_200, measured={"candidate": {"recall@10": 0.125}}),
        ended(plan, 2, "kept", version="b" * 16, verdict="stopped by volume: 1 failed", accepted=accepted, attempt=2),
        ended(plan, 3, "stopped", verdict="stopped by labels: 1 failed"),
        ended(plan, 4, "failed"),
    ]
    for cycle in cycles:
        write_pages(plan, cycle)
        file.append(cycle)
    # The run of the first cycle was pruned with its page, that of the second without.
    (plan.run_folder(cycles[0]) / "verdict.html").rename(plan.cycle_folder(cycles[0]) / "verdict.html")
    (plan.run_folder(cycles[1]) / "verdict.html").unlink()
    current = Cycle(5, "2026-11-21T00:00:00+00:00", settings="", listing=FolderListing(), new_events=1, step="train")
    file.write(CycleState(5, (), 1_763_683_200, current))
    html = cycles_page(plan.folder, store, model="m")
    check_markup(html)
    text = plain(html)
    for words in (
        f"{'b' * 16} is served.",
        "Cycle 3 is stopped by labels: 1 failed. No release went out since.",
        "The newest event that was read is of 2025-11-21 00:00.",
        "5 2026-11-21 00:00 unfinished, at step train",
        f"2, attempt 2 2026-11-20 01:02 kept stopped by volume {BAD}: the sale {'b' * 16} (production)",
        f"{'a' * 16} (previous) until 2025-11-21 00:00, 1,234 new events, files: 0 0.1250",
    ):
        assert words in text
    links = re.findall(r'<a href="([^"]+)"', html)
    assert links == ["cycles/4/run/verdict.html", "cycles/3/run/verdict.html", "cycles/1/verdict.html"]
    assert all((plan.folder / link).exists() for link in links)


def test_records_of_earlier_versions_are_shown(plan: CyclePlan) -> None:
    plan.folder.mkdir(parents=True)
    (plan.folder / "cycles.jsonl").write_text(json.dumps({"number": 1, "outcome": "kept", "why": "it is good"}) + "\n")
    text = plain(cycles_page(plan.folder, ReleaseStore(plan.folder / "none"), model="m"))
    assert "No release is served yet." in text
    assert "1 kept it is good none 0 new events, files: 0" in text


def test_a_page_that_cannot_be_written_fails_nothing(
    plan: CyclePlan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(write, "atomic_write", full)
    with caplog.at_level(logging.WARNING, "recsys"):
        write_pages(plan, ended(plan, 1, "stopped"))
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "not written (OSError: no space left)"
    ] * 2


def test_tables_in_a_terminal_show_words_as_they_are() -> None:
    console = Console(width=200, record=True)
    words = "[/b] [red]x[/red]"
    checks_table([dataclasses.replace(LARGEST, reason=words), untested("x", "few").of("y")]).print(console)
    cycle = Cycle(3, "then", version="c" * 16, measured={"candidate": {"recall@10": 0.5}}, seconds={"roll_out": 1.0})
    cycle.accepted = Acceptance.of([LARGEST], who="ann", when="now", why=words)
    cycle.end("kept", words)
    result_table(cycle).print(console)
    text = " ".join(console.export_text().split())
    for expected in (
        f"volume │ largest day │ 3.2 │ at most 1.67 │ failed │ {words}",
        f"accepted │ by ann: {words}",
        f"reason │ {words}",
        "recall@10 │ candidate 0.5000",
        "time │ roll out 1.0 s",
    ):
        assert expected in text
