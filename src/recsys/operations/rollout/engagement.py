"""Engagement of a canary and of the version that it is compared with, from recorded impressions. Imports no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recsys.operations.rollout.sequential import Sums
from recsys.serving.impressions import ImpressionStore
from recsys.serving.impressions.records import SIMILAR, Batch, ItemId

# Seconds by which a batch may reach the store later than its time says.
_LATE_SECONDS = 120


class GeneratorEngagement(NamedTuple):
    """Answers of one generator of one version.

    Attributes:
        answers: number of answers.
        rates: action -> share of the answers with at least one outcome of it.
        items: number of different items shown.
    """

    version: str
    generator: str
    answers: int
    rates: Mapping[str, float]
    items: int


class Engagement(NamedTuple):
    """Engagement until one moment: sums over the users of each version, and its generators."""

    sums: Mapping[str, Sums]
    generators: Sequence[GeneratorEngagement]

    @property
    def requests(self) -> int:
        """Number of answers of all versions."""
        return int(sum(sums.n for sums in self.sums.values()))


class _Rows(NamedTuple):
    """Impressions of a batch that count: place, version, user and generator, each int64 [R]."""

    place: npt.NDArray[np.int64]
    version: npt.NDArray[np.int64]
    user: npt.NDArray[np.int64]
    generator: npt.NDArray[np.int64]


@dataclass
class EngagementReader:
    """Reads a store again and again; each batch is decoded once.

    Answers of `/v1/similar` have no user and are not split between the versions, so they do not count.

    Attributes:
        store: store of impressions.
        versions: the canary, and the version that the other users get.
        since: UTC seconds; earlier impressions do not count.
        action: outcome that counts as engagement; None for any.
    """

    store: ImpressionStore
    versions: Sequence[str]
    since: int
    action: str | None = None
    _rows: dict[bytes, _Rows] = field(default_factory=dict)
    _users: dict[object, int] = field(default_factory=dict)
    _num_users: int = 0
    _generators: dict[tuple[str, str], int] = field(default_factory=dict)
    _items: dict[int, set[ItemId]] = field(default_factory=lambda: defaultdict(set))
    _read_until: int = 0

    def read(self) -> Engagement:
        """Return the engagement until now."""
        for name, batch in self.store.batches(max(self.since, self._read_until - _LATE_SECONDS)):
            if name not in self._rows:
                self._rows[name] = self._digest(batch)
                self._read_until = max([self._read_until, *(one.at for one in batch.impressions)])
        actions: dict[str, dict[bytes, set[int]]] = defaultdict(lambda: defaultdict(set))
        for one in self.store.outcomes():
            if one.batch in self._rows:
                actions[one.action][one.batch].add(one.place)
        return self._tally(actions)

    def _digest(self, batch: Batch) -> _Rows:
        rows = []
        for place, one in enumerate(batch.impressions):
            if one.at < self.since or one.version not in self.versions or one.generator == SIMILAR:
                continue
            # Every anonymous request is a user of its own, because the canary is drawn for it.
            user = self._num_users if one.user_id is None else self._users.setdefault(one.user_id, self._num_users)
            self._num_users += user == self._num_users
            generator = self._generators.setdefault((one.version, one.generator), len(self._generators))
            self._items[generator].update(one.item_ids)
            rows.append((place, self.versions.index(one.version), user, generator))
        return _Rows(*np.array(rows, np.int64).reshape(-1, 4).T)

    def _tally(self, actions: Mapping[str, Mapping[bytes, set[int]]]) -> Engagement:
        rows = list(self._rows.items())
        all_of = _Rows(*(np.concatenate([[], *(part[n] for _, part in rows)]).astype(np.int64) for n in range(4)))

        def engaged(places: Mapping[bytes, set[int]]) -> npt.NDArray[np.bool_]:
            none: set[int] = set()
            parts = [np.isin(part.place, list(places.get(name, none))) for name, part in rows]
            return np.concatenate([np.zeros(0, bool), *parts])

        by_action = {action: engaged(places) for action, places in sorted(actions.items())}
        counted = [found for action, found in by_action.items() if self.action in (None, action)]
        hit = np.any([np.zeros(len(all_of.user), bool), *counted], axis=0)
        sums = {}
        for number, version in enumerate(self.versions):
            own = all_of.version == number
            n = np.bincount(all_of.user[own], minlength=self._num_users).astype(np.float64)
            y = np.bincount(all_of.user[own], hit[own], minlength=self._num_users).astype(np.float64)
            sums[version] = Sums.of(n, y)
        counts = Counter(all_of.generator.tolist())
        generators = [
            GeneratorEngagement(
                version,
                generator,
                counts[number],
                {action: float(found[all_of.generator == number].mean()) for action, found in by_action.items()},
                len(self._items[number]),
            )
            for (version, generator), number in self._generators.items()
        ]
        return Engagement(sums, generators)
