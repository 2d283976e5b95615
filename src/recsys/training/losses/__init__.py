"""Losses: tensors in, mean-reduced scalar out."""

from recsys.training.losses.gbce import GBCE
from recsys.training.losses.sampled import SampledCandidates, SampledLoss
from recsys.training.losses.softmax import FullSoftmax, LogQ, SampledSoftmax

__all__ = ["GBCE", "FullSoftmax", "LogQ", "SampledCandidates", "SampledLoss", "SampledSoftmax"]
