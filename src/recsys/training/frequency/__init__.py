"""How probable is an item as a target of a training batch: counted in the data, or estimated as training goes."""

from recsys.training.frequency.counts import SMOOTHING, prior_shift, target_counts, target_probabilities
from recsys.training.frequency.estimators import CountMin, Exact, Frequency, Streaming

__all__ = [
    "SMOOTHING",
    "CountMin",
    "Exact",
    "Frequency",
    "Streaming",
    "prior_shift",
    "target_counts",
    "target_probabilities",
]
