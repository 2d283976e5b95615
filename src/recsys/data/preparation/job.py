"""What one preparation has to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from recsys.core.schema import TimeResolution
from recsys.data.preparation.feature_plans import Plan
from recsys.data.preparation.splits import Continuing, Split
from recsys.data.sources.tables import Table


@dataclass(frozen=True)
class Build:
    """What to build, checked as far as footers tell.

    Attributes:
        engaged: column of interactions that tells events from exposures; None where all are events.
    """

    tables: Mapping[str, Table]
    plans: Sequence[Plan]
    split: Split
    declared_time_resolution: TimeResolution
    min_user_events: int
    min_item_events: int
    engaged: str | None = None

    @property
    def can_grow(self) -> bool:
        """Whether what was prepared earlier can be of use: events do not change by others that come later."""
        is_whole = self.engaged is None and max(self.min_user_events, self.min_item_events) <= 1
        return is_whole and isinstance(self.split, Continuing)

    @property
    def keeps_times(self) -> bool:
        """Whether the times that are written are those that were read."""
        table, resolution = self.tables["interactions"], self.time_resolution
        if "timestamp" not in table.names or resolution is TimeResolution.ORDER:
            return True
        return resolution is TimeResolution.SECONDS and pa.types.is_integer(table.types[table.names["timestamp"]])

    @property
    def time_resolution(self) -> TimeResolution:
        """The declared time resolution, or `NONE` if the interactions have no timestamps."""
        has_times = "timestamp" in self.tables["interactions"].names
        return self.declared_time_resolution if has_times else TimeResolution.NONE

    def plans_of(self, owner: str) -> dict[str, Plan]:
        """Features of one table by the names that they have within the engine, which clash with nothing."""
        return {f"feature_{i}": plan for i, plan in enumerate(self.plans) if plan.owner == owner}
