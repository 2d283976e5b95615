"""Description of one preparation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recsys.core.schema import TimeResolution
from recsys.data.codes import Codes
from recsys.data.preparation.feature_plans import FeaturePlan
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import Split
from recsys.data.sources.files import fingerprint
from recsys.data.sources.tables import Table


@dataclass(frozen=True)
class PreparationJob:
    """Inputs of one preparation, checked as far as the footers of the files allow.

    Attributes:
        tables: tables of the source by owner.
        features: columns that become features.
        split: assigns events to training, validation and test.
        settings: how the tables are read.
        description: everything that the prepared data set depends on, as plain containers.
        codes: ids and features of trained towers that the data set keeps; None to number them by the data.
    """

    tables: Mapping[str, Table]
    features: Sequence[FeaturePlan]
    split: Split
    settings: DataSettings
    description: dict[str, Any]
    codes: Codes | None = None

    @property
    def fingerprint(self) -> str:
        """Name of the prepared data set. Equal descriptions give equal names."""
        return fingerprint([json.dumps(self.description, sort_keys=True, default=repr)])

    @property
    def interactions(self) -> Table:
        """The table of interactions."""
        return self.tables["interactions"]

    @property
    def time_resolution(self) -> TimeResolution:
        """The resolution of the settings; without timestamps only `ORDER`, the order of the rows, or `NONE`."""
        if "timestamp" in self.interactions.names or self.takes_row_order:
            return self.settings.time_resolution
        return TimeResolution.NONE

    @property
    def takes_row_order(self) -> bool:
        """True if the order of the rows is the order of events: there are no timestamps, and `data.time=order`."""
        return self.settings.time_resolution is TimeResolution.ORDER and "timestamp" not in self.interactions.names

    @property
    def drops_rare(self) -> bool:
        """True if users or items with few events are left out."""
        return max(self.settings.min_user_events, self.settings.min_item_events) > 1

    def features_of(self, owner: str) -> dict[str, FeaturePlan]:
        """Return the features of one table by their names within the engine, which cannot clash with other columns."""
        return {f"feature_{i}": plan for i, plan in enumerate(self.features) if plan.owner == owner}
