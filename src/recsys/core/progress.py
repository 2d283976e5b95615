"""Progress of long work: a bar in a terminal, and now and then a line of the log where there is none.

Imports no torch.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich import progress as bars
from rich.console import Console

log = logging.getLogger("recsys")

T = TypeVar("T")
# Seconds before the first line, and the longest time between two lines. The time between lines grows with the work, so
# that a job of hours leaves a readable log.
FIRST, LONGEST = 5.0, 60.0
_REFRESH_SECONDS = 0.25
# Variables in which torchrun, Lightning and SLURM number the processes of a job.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
# The bars on the screen. Work within work adds a bar to the same display.
_screen: list[bars.Progress] = []
now = time.monotonic


class Progress:
    """Shows how far a piece of work has come and how long it will take. Only the first process of a job shows it.

    As a context manager it also shows that work is under way while nothing is counted, such as the sort before the
    first row of a query.

    Args:
        what: name of the work.
        total: size of the work; None if it is not known.
        unit: what is counted, in the plural.
        first: seconds before the first line where there is no terminal. Shorter work leaves no line.
    """

    def __init__(self, what: str, total: float | None = None, *, unit: str = "", first: float = FIRST) -> None:
        self.what, self.total, self.unit, self.first = what, total, unit, first
        self.done = 0.0
        self._begin = self._said = self._drawn = now()
        self._over = threading.Event()
        self._bar = _add_bar(what, total) if is_first_process() else None

    def __enter__(self) -> Progress:
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ticker.join()
        self.close()

    @property
    def has_bar(self) -> bool:
        """True in a terminal."""
        return self._bar is not None

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return now() - self._begin

    @property
    def left(self) -> float | None:
        """Seconds that are left at the speed so far; None before the first count, or without a total."""
        if not self.done or self.total is None:
            return None
        return self.seconds / self.done * max(self.total - self.done, 0.0)

    def advance(self, count: float = 1) -> None:
        """Count finished work."""
        self.done += count
        self.show(self._text)

    def show(self, text: Callable[[], str]) -> None:
        """Draw the bar with a text, or write `WORK: TEXT` as a line if one is due."""
        if self._bar is not None:
            if now() - self._drawn >= _REFRESH_SECONDS:
                self._drawn = now()
                screen, task = self._bar
                screen.update(task, completed=self.done, total=self.total, text=text())
        elif now() - self._said >= max(self.first, min(LONGEST, self.seconds / 10)):
            self.say(f"{self.what}: {text()}")

    def say(self, line: str) -> None:
        """Write a line, above the bar if there is one."""
        self._said = now()
        say(line)

    def close(self) -> None:
        """Remove the bar, and write a last line about work that took long."""
        if self._bar is not None:
            screen, task = self._bar
            self._bar = None
            screen.remove_task(task)
            if not screen.tasks:
                screen.stop()
                _screen.remove(screen)
        if self.seconds >= self.first:
            count = f"{self.done:,.0f} {self.unit} in " if self.unit else ""
            say(f"{self.what}: {count}{duration(self.seconds)}")

    def _text(self) -> str:
        of = "" if self.total is None else f" of {self.total:,.0f}"
        count = f"{self.done:,.0f}{of} {self.unit}, " if self.unit else ""
        return count + (f"{duration(self.seconds)} so far" if self.left is None else f"{duration(self.left)} left")

    def _tick(self) -> None:
        while not self._over.wait(_REFRESH_SECONDS):
            self.show(self._text)


def track(
    items: Iterable[T], what: str, *, total: float | None = None, unit: str = "", size: Callable[[T], int] | None = None
) -> Iterator[T]:
    """Yield the items, and show how many are finished.

    Args:
        items: pieces of the work.
        what: name of the work.
        total: sum of the sizes; None if it is not known.
        unit: what is counted, in the plural.
        size: count of an item; 1 by default.
    """
    with Progress(what, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance(1 if size is None else size(item))


def say(line: str) -> None:
    """Write a line now: to the log, or to stderr if nobody has set up logging. Other processes stay silent."""
    if not is_first_process():
        return
    if _screen:
        _screen[0].console.print(line, markup=False, highlight=False, soft_wrap=True)
    elif log.hasHandlers():
        log.info("%s", line)
    else:
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a time in words, such as `45 s`, `3 min 20 s`, `2 h 5 min` or `3 days 4 h`."""
    whole = round(seconds)
    for size, unit, part, name in ((86400, "days", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= (2 * size if unit == "days" else size):
            return f"{whole // size} {unit} {whole % size // part} {name}"
    return f"{whole} s"


def is_first_process() -> bool:
    """Return whether this process reports for all processes of its job."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def _add_bar(what: str, total: float | None) -> tuple[bars.Progress, bars.TaskID] | None:
    if not _screen:
        console = Console(stderr=True)
        # Rich takes FORCE_COLOR for a terminal, which build servers set.
        if not (sys.stderr.isatty() and console.is_interactive):
            return None
        columns = (bars.TextColumn("{task.description}", markup=False), bars.BarColumn(16))
        texts = bars.TextColumn("{task.fields[text]}", markup=False)
        _screen.append(bars.Progress(*columns, texts, console=console, transient=True, refresh_per_second=4))
        _screen[0].start()
    return _screen[0], _screen[0].add_task(what, total=total, text="")
