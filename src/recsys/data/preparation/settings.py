"""Settings of a preparation: how the tables of a source are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recsys.core.errors import UserError, nearest
from recsys.core.schema import TimeResolution, short_feature
from recsys.core.time_units import PER_SECOND, TimeUnit
from recsys.data.preparation.date_formats import named_format
from recsys.data.preparation.engagement import Engagement
from recsys.data.sources.keys import NAMES


def _same_names() -> dict[str, str]:
    return {name: name for name in NAMES}


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Settings under the configuration key `data` that decide how the tables are read.

    Attributes:
        time_resolution: precision of the timestamps, the configuration key `data.time`; `DAY` rounds them down.
        time_unit: unit of timestamps that are numbers: s, ms, us or ns. None refuses numbers too large for seconds.
        time_format: format of timestamps that are text, in the words of `strptime`. None recognises it.
        columns: our names (user_id, item_id, timestamp, split) -> names in the files; table -> our names -> names in
            the files of that table.
        features: owner -> column -> {kind, role, ignore, buckets, encoder}.
        engaged: which rows are events, and what the others are; a column alone is true (or not 0) for events, and the
            others are exposures. If it is None, every row is an event.
        weight: numeric column of interactions: the weight of an event as a target. None for equal weights.
        min_user_events: users with fewer events are left out, together with items that have fewer than
            `min_item_events`, until every user and item that is left has enough.
        min_item_events: see `min_user_events`; the events of such items are left out.
        suppressed: hashes of users that are left out (`recsys.core.suppression`).
    """

    time_resolution: TimeResolution = TimeResolution.SECONDS
    time_unit: TimeUnit | None = None
    time_format: str | None = None
    columns: Mapping[str, Any] = field(default_factory=_same_names)
    features: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    engaged: Engagement | None = None
    weight: str | None = None
    min_user_events: int = 0
    min_item_events: int = 0
    suppressed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "time_resolution", TimeResolution.parse(self.time_resolution))
        object.__setattr__(self, "engaged", Engagement.parse(self.engaged))
        if self.time_unit is not None and self.time_unit not in PER_SECOND:
            raise UserError(f"data.time_unit={self.time_unit}: no such unit{nearest(str(self.time_unit), PER_SECOND)}")
        if self.time_format is not None:
            named_format(str(self.time_format))
        for owner, columns in self.features.items():
            if columns is not None and not isinstance(columns, Mapping):
                raise UserError(
                    f"data.features.{owner}={columns}: expected {{column: {{kind, role, ignore, buckets, encoder}}}}"
                )
            for column, options in (columns or {}).items():
                if options is not None and not isinstance(options, Mapping):
                    raise UserError(short_feature(f"data.features.{owner}.{column}", options))
