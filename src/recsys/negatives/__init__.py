"""Which items a positive is compared with, and how probable each was as a negative."""

from recsys.negatives.bank import Bank
from recsys.negatives.hard import Hard, Mined
from recsys.negatives.masks import merged, positives_among, probability_of_positives, renormalisation, rows_of
from recsys.negatives.protocol import Catalogue, NegativeSampler
from recsys.negatives.samplers import CrossBatch, InBatch, Mixed, Popularity, Uniform

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
