"""Test requests that candidate and served release both answer, and the items that they should find. R requests."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Ragged, ragged_positions
from recsys.core.schema import FIRST_CODE, Feature
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.relevance import relevant_items

# A column with more values than this does not hold types of action.
_MAX_ACTIONS = 12


@dataclass(frozen=True)
class JudgedRequests:
    """The test requests that both releases answer, and the items that they should find.

    Attributes:
        dataset: data set of the histories and of the relevant items.
        requests: R requests, one for each test user.
        exclude_seen: if true, items of the history are neither shown nor relevant.
    """

    dataset: PreparedDataset
    requests: Requests
    _: KW_ONLY
    exclude_seen: bool

    @cached_property
    def relevant(self) -> Ragged:
        """item_idx of the relevant items of each request."""
        return relevant_items(self.dataset, "test", requests=self.requests, exclude_seen=self.exclude_seen)

    def relevant_among(self, items: npt.NDArray[np.bool_]) -> Ragged:
        """Return the relevant items for which `items`, bool [N + 1], is true."""
        return _keep(self.relevant, items[self.relevant.values])

    @cached_property
    def relevant_of_actions(self) -> dict[str, Ragged]:
        """`<column>=<value>` -> relevant items with an event of this value, for columns with few values."""
        return {
            f"{feature.name}={value}": self._with_code(feature, code)
            for feature in action_columns(self.dataset)
            for code, value in enumerate(_vocabulary(self.dataset, feature), FIRST_CODE)
        }

    def _with_code(self, feature: Feature, code: int) -> Ragged:
        return self._relevant_at(np.asarray(self.dataset.columns[feature.key].values[self._places]) == code)

    def relevant_since(self, moment: int) -> tuple[Ragged, Ragged]:
        """Return the relevant items with an event at or after a moment, in seconds, and those with one before it."""
        late = np.asarray(self.dataset.time[self._places]) >= moment
        return self._relevant_at(late), self._relevant_at(~late)

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        """Positions of the events after the histories, request by request."""
        end = self.dataset.offsets[1:][self.requests.user_idx]
        return ragged_positions(self.requests.end, end - self.requests.end)

    def _relevant_at(self, chosen: npt.NDArray[np.bool_]) -> Ragged:
        data, width = self.dataset, self.dataset.num_items + 1
        lengths = data.offsets[1:][self.requests.user_idx] - self.requests.end
        row = np.repeat(np.arange(len(lengths)), lengths)[chosen]
        keys = np.unique(row * width + data.item_idx[self._places[chosen]])
        owner = np.repeat(np.arange(len(self.relevant)), np.diff(self.relevant.offsets))
        return _keep(self.relevant, np.isin(owner * width + self.relevant.values, keys))


def action_columns(dataset: PreparedDataset) -> list[Feature]:
    """Return the event features that hold types of action: categories with few values."""
    return [
        feature
        for feature in dataset.schema.with_role("event")
        if feature.kind == "categorical" and feature.size - FIRST_CODE <= _MAX_ACTIONS
    ]


def choose_requests(dataset: PreparedDataset, exclude_seen: bool, *, most: int | None) -> JudgedRequests:
    """Return the test requests of a data set, or a fixed sample of `most` of them."""
    requests = dataset.requests("test")
    if most is not None and len(requests.user_idx) > most:
        chosen = np.sort(np.random.default_rng(0).choice(len(requests.user_idx), most, replace=False))
        requests = Requests(*(column[chosen] for column in requests))
    return JudgedRequests(dataset, requests, exclude_seen=exclude_seen)


def _keep(rows: Ragged, kept: npt.NDArray[np.bool_]) -> Ragged:
    owner = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
    counts = np.bincount(owner[kept], minlength=len(rows))
    return Ragged(rows.values[kept], np.concatenate([[0], np.cumsum(counts)]))


def _vocabulary(dataset: PreparedDataset, feature: Feature) -> list[str]:
    values = dataset.vocabulary(feature)
    return [] if values is None else [str(value) for value in values.to_pylist()]
