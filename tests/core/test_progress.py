"""Progress of long work, with a clock that the tests set."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from recsys.core import progress
from recsys.core.progress import Progress, duration, say, track


class Clock:
    time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "now", clock)
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    return clock


def work(clock: Clock, what: str = "ranking", *, seconds: int, total: int | None = None) -> None:
    shown = Progress(what, total, unit="users")
    for _ in range(seconds):
        clock.time += 1
        shown.advance(1000)
    shown.close()


def test_where_there_is_no_terminal_a_line_every_few_seconds(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "recsys")
    work(clock, seconds=12, total=12_000)
    assert caplog.messages == [
        "ranking: 5,000 of 12,000 users, 7 s left",
        "ranking: 10,000 of 12,000 users, 2 s left",
        "ranking: 12,000 users in 12 s",
    ]


def test_a_job_of_hours_leaves_a_readable_log(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "recsys")
    work(clock, seconds=7200)
    assert 100 < len(caplog.messages) < 150
    assert caplog.messages[0] == "ranking: 5,000 users, 5 s so far"
    assert caplog.messages[-1] == "ranking: 7,200,000 users in 2 h 0 min"


def test_short_work_and_other_processes_are_silent(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "recsys")
    work(clock, seconds=4, total=4000)
    monkeypatch.setenv("LOCAL_RANK", "1")
    work(clock, seconds=100)
    say("a line")
    assert not caplog.messages


def test_a_line_shows_that_work_is_under_way_before_the_first_count(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "recsys")
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0.001)
    with Progress("building the index") as shown:
        clock.time += 6
        while not caplog.messages:
            pass
    assert not shown._ticker.is_alive()
    assert caplog.messages == ["building the index: 6 s so far", "building the index: 6 s"]


def test_items_pass_through_and_are_counted_by_size(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "recsys")
    blocks = [[1, 2, 3], [4, 5]]
    for block in track(blocks, "writing", total=5, unit="rows", size=len):
        clock.time += 4 * len(block)
        assert block in blocks
    assert caplog.messages[-1] == "writing: 5 rows in 20 s"


def test_without_logging_lines_go_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.log, "hasHandlers", lambda: False)
    say("half [bold]done[/bold]")
    assert capsys.readouterr() == ("", "half [bold]done[/bold]\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal_bars_stand_below_the_lines(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "recsys")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("training", 100) as outer:
        outer.done = 50
        clock.time += 10
        outer.show(lambda: "epoch 1 of 2")
        with Progress("encoding items", 10, unit="items") as inner:
            clock.time += 1
            inner.advance(5)
            say("epoch 1 of 2: loss 0.5")
            progress._screen[0].refresh()
    drawn = terminal.getvalue()
    for text in ("training", "epoch 1 of 2", "encoding items", "5 of 10 items", "epoch 1 of 2: loss 0.5\n"):
        assert text in drawn
    assert not progress._screen
    # The log has only what a terminal cannot show later.
    assert caplog.messages == ["training: 11 s"]


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.6, 200, 7500, 100_000, 180_000)] == [
        "0 s", "1 min 0 s", "3 min 20 s", "2 h 5 min", "27 h 46 min", "2 days 2 h",
    ]  # fmt: skip
