"""Groups of users by the length and the age of their histories."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.slices import has_profile

_DAY = 86_400
# Smaller groups are left out.
MIN_USERS = 20
NO_HISTORY = "new: no history"


def segments(dataset: PreparedDataset, requests: Requests) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the rows of requests in each group, bool [R] by name.

    Groups by length of the history: none, up to the median of the non-empty ones, more. Users without history by
    whether they have a profile, if they differ. Groups by the time between the last event of the history and the next
    event, if the data has times: up to a day, up to a week, more.
    """
    lengths = requests.end - dataset.offsets[requests.user_idx]
    present = lengths > 0
    median = int(np.median(lengths[present])) if present.any() else 0
    found = {
        NO_HISTORY: ~present,
        f"light: 1 to {median} events": present & (lengths <= median),
        f"heavy: over {median} events": lengths > median,
    }
    knows = has_profile(dataset)[requests.user_idx]
    if (knows & ~present).any() and (~knows & ~present).any():
        found |= {"new: with a profile": knows & ~present, "new: without a profile": ~knows & ~present}
    if dataset.meta.time_resolution.has_clock:
        last = np.asarray(dataset.time[np.maximum(requests.end - 1, 0)])
        gap = np.asarray(dataset.time[requests.end]) - last
        found |= {
            "back within a day": present & (gap <= _DAY),
            "back within a week": present & (gap > _DAY) & (gap <= 7 * _DAY),
            "back after a week": present & (gap > 7 * _DAY),
        }
    return {name: rows for name, rows in found.items() if rows.sum() >= MIN_USERS}
