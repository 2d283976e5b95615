"""Requests wait for a bounded time, and only those whose clients still wait are computed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from recsys.serving.gateway.microbatch import Microbatcher
from recsys.serving.http.admission import Admission, deadline, is_late, set_deadline
from recsys.serving.http.problems import Problem


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_limit_falls_while_requests_wait_and_grows_while_it_is_used() -> None:
    clock = Clock()
    admission = Admission(0.2, most=100, least=50, clock=clock)
    assert not admission.was_full_within(1.0)
    for _ in range(75):
        assert not admission.is_full
        admission.enter()
    assert admission.is_full
    admission.refuse()
    assert (admission.in_progress, admission.refused) == (75, 1)
    admission.waited(0.11)
    # Once in half of the longest wait, whatever the number of microbatches.
    clock.now += 0.2
    admission.waited(0.11)
    admission.waited(0.11)
    assert admission.limit == 60
    for _ in range(20):
        clock.now += 0.2
        admission.waited(0.5)
    low = admission.limit
    assert low == 50
    while admission.in_progress > 0.5 * low:
        admission.leave()
    admission.waited(0.0)
    assert admission.limit == low
    while not admission.is_full:
        admission.enter()
    admission.waited(0.0, is_crowded=True)
    clock.now += 0.05
    admission.waited(0.0)
    # It grows when the queue has been short for a while.
    assert admission.limit == low
    clock.now += 0.1
    admission.waited(0.0)
    assert admission.limit == low + 4
    assert admission.was_full_within(1.0)
    clock.now += 1.1
    assert not admission.was_full_within(1.0)


def test_a_standing_queue_lowers_the_limit_although_no_request_waits_long() -> None:
    clock = Clock()
    admission = Admission(0.2, most=100, least=10, clock=clock)
    while not admission.is_full:
        admission.enter()
    begin = admission.limit
    for is_crowded in (True, True, False, True, True):
        clock.now += 0.06
        admission.waited(0.05, is_crowded=is_crowded)
    # A queue that empties now and then is no standing one.
    assert admission.limit >= begin - 8
    for _ in range(20):
        clock.now += 0.06
        admission.waited(0.05, is_crowded=True)
    assert admission.limit == 10


def test_requests_that_waited_too_long_or_whose_client_left_are_not_answered() -> None:
    clock = Clock()
    computed: list[str] = []

    async def scenario() -> list[object]:
        first = asyncio.Event()

        async def answer(_: str, requests: Sequence[str]) -> list[str]:
            computed.extend(requests)
            if requests[0] == "first":
                await first.wait()
            return [request.upper() for request in requests]

        batches: Microbatcher[str, str, str] = Microbatcher(answer, 8, admission=Admission(0.2, clock=clock))

        async def ask(request: str, until: float | None = None) -> str:
            deadline.set(until)
            return await batches.submit("key", request)

        tasks = [asyncio.create_task(ask("first"))]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(ask("old")), asyncio.create_task(ask("gone"))]
        await asyncio.sleep(0)
        clock.now += 0.3
        tasks += [asyncio.create_task(ask("new", 200.0)), asyncio.create_task(ask("late", 100.2))]
        await asyncio.sleep(0)
        tasks[2].cancel()
        first.set()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    one, old, gone, new, late = asyncio.run(scenario())
    assert (one, new) == ("FIRST", "NEW")
    assert computed == ["first", "new"]
    assert isinstance(gone, asyncio.CancelledError)
    for refused in (old, late):
        assert isinstance(refused, Problem)
        assert (refused.status, refused.code) == (503, "overloaded")


def test_microbatches_that_never_wait_let_others_run() -> None:
    order: list[str] = []

    async def scenario() -> None:
        async def answer(key: str, requests: Sequence[int]) -> list[int]:
            order.append(key)
            return list(requests)

        batches: Microbatcher[str, int, int] = Microbatcher(answer, 1)
        await asyncio.gather(*(batches.submit(key, number) for number in range(3) for key in "ab"))

    asyncio.run(scenario())
    assert order == ["a", "b"] * 3


@pytest.mark.parametrize(
    ("header", "late"), [(b"0", True), (b"60000", False), (None, False), (b"-5", False), (b"1e9", False)]
)
def test_deadlines_are_milliseconds_from_now(header: bytes | None, late: bool) -> None:
    async def scenario() -> bool:
        set_deadline(header)
        return is_late()

    assert asyncio.run(scenario()) is late
