"""Which items a positive is compared with, and how probable each was as a negative."""

from recsys.training.negatives.bank import Bank
from recsys.training.negatives.hard import Hard, Mined
from recsys.training.negatives.masks import merged, positives_among, probability_of_positives, renormalisation, rows_of
from recsys.training.negatives.samplers import CrossBatch, InBatch, Mixed, Popularity, Uniform
from recsys.training.negatives.sampling import Catalogue, NegativeSampler

__all__ = [
    "Bank",
    "Catalogue",
    "CrossBatch",
    "Hard",
    "InBatch",
    "Mined",
    "Mixed",
    "NegativeSampler",
    "Popularity",
    "Uniform",
    "merged",
    "positives_among",
    "probability_of_positives",
    "renormalisation",
    "rows_of",
]
