"""Limits of requests, which are checked before anything is computed. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recsys.core.errors import UserError
from recsys.release.runtime.timestamps import to_seconds
from recsys.serving.http.codec import encode
from recsys.serving.http.messages import RetrieveRequest
from recsys.serving.http.problems import bad_request, too_large
from recsys.serving.quotas import cost_of


@dataclass(frozen=True)
class Limits:
    """Upper limits of one request.

    Attributes:
        k: number of items of a response.
        history: number of events of a history, and of excluded items.
        batch: number of requests, or of events, of one POST.
        cost: work of one POST (see `check_cost`).
        seconds: time limit of a request that no host can answer.
        store_seconds: time limit of the event store; beyond it answers lack the stored history.
    """

    k: int = 1000
    history: int = 10_000
    batch: int = 1000
    cost: int = 250_000
    seconds: float = 4.0
    store_seconds: float = 1.0

    def check(self, request: RetrieveRequest) -> None:
        """Refuse a request that is too large, or whose history has an id or a time of a wrong type."""
        if request.k > self.k:
            raise bad_request(f"k: found {request.k}, expected at most {self.k}", "k")
        for name, given in (("history", request.history), ("exclude", request.exclude)):
            if given is not None and len(given) > self.history:
                raise too_large(f"{name}: found {len(given)} entries, expected at most {self.history}", name)
        if not request.history or _is_plain(request.history):
            return
        for number, event in enumerate(request.history):
            item = event.get("item_id")
            if type(item) is not str and (type(item) is not int or not -(2**63) <= item < 2**63):
                place = f"history[{number}].item_id"
                raise bad_request(f"{place}: found {item!r}, expected an integer of 64 bits or a string", place)
            if event.get("timestamp") is not None:
                place = f"history[{number}].timestamp"
                try:
                    to_seconds(event["timestamp"], place)
                except UserError as error:
                    raise bad_request(str(error), place) from error

    def check_cost(self, requests: Sequence[RetrieveRequest], items: int) -> None:
        """Refuse a list of requests that is too much work together: users x k, filters x items of the release, quotas.

        `items` is the number of items of a release. An item that a filter reads costs a hundredth of one that is
        returned, one that is read for quotas an eighth.
        """
        filters = {encode((one.filter, one.quotas)) for one in requests if one.filter or one.quotas}
        quotas = cost_of(sum(bool(one.quotas) for one in requests), items)
        cost = sum(one.k for one in requests) + len(filters) * items // 100 + quotas
        if cost > self.cost:
            k = max(one.k for one in requests)
            raise too_large(
                f"cost: found {cost} ({len(requests)} users x up to k={k}, {len(filters)} filters x {items} items "
                f"/ 100, and {quotas} for quotas), expected at most {self.cost}: send fewer requests at once, "
                "or a smaller k"
            )


def _is_plain(history: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if each event has an id of an allowed type, and none has a time; this takes little time."""
    names = set[str]().union(*history)
    items: list[Any] = [event.get("item_id") for event in history]
    types = set(map(type, items))
    are_ids = types == {str} or (types == {int} and min(items) >= -(2**63) and max(items) < 2**63)
    return are_ids and "timestamp" not in names
