"""Samplers of negatives: the candidates that a positive is compared with, and the probability of each."""

from recsys.training.negatives.masks import (
    positives_among,
    probability_of_positives,
    renormalisation,
    rows_of,
)
from recsys.training.negatives.samplers import (
    InBatchNegatives,
    MixedNegatives,
    PopularityNegatives,
    UniformNegatives,
)
from recsys.training.negatives.sampling import NegativeSampler, SamplerInputs

__all__ = [
    "SamplerInputs",
    "InBatchNegatives",
    "MixedNegatives",
    "NegativeSampler",
    "PopularityNegatives",
    "UniformNegatives",
    "positives_among",
    "probability_of_positives",
    "renormalisation",
    "rows_of",
]
