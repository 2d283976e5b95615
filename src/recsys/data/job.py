"""What one preparation has to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys.data.features import Plan
from recsys.data.splits import Split
from recsys.data.tables import Table


@dataclass(frozen=True)
class Build:
    """What to build, checked as far as footers tell.

    Attributes:
        engaged: column of interactions that tells events from exposures; None where all are events.
    """

    tables: Mapping[str, Table]
    plans: Sequence[Plan]
    split: Split
    time: str
    min_user_events: int
    min_item_events: int
    engaged: str | None = None

    @property
    def worth(self) -> str:
        """What times are worth; nothing where there are none."""
        return self.time if "timestamp" in self.tables["interactions"].names else "none"

    def plans_of(self, owner: str) -> dict[str, Plan]:
        """Features of one table by the names that they have within the engine, which clash with nothing."""
        return {f"feature_{i}": plan for i, plan in enumerate(self.plans) if plan.owner == owner}
