"""Probability of an item as a target of a training batch, counted in the data or estimated during training."""

from recsys.training.frequency.counts import (
    EVIDENCE,
    SMOOTHING,
    RisenItems,
    prior_shift,
    target_counts,
    target_probabilities,
    training_positions,
)
from recsys.training.frequency.estimators import CountMinFrequency, ExactFrequency, Frequency, StreamingFrequency

__all__ = [
    "EVIDENCE",
    "SMOOTHING",
    "CountMinFrequency",
    "ExactFrequency",
    "Frequency",
    "RisenItems",
    "StreamingFrequency",
    "prior_shift",
    "target_counts",
    "target_probabilities",
    "training_positions",
]
