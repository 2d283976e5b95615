"""Losses: tensors in, mean-reduced scalar out."""

from recsys.losses.gbce import GBCE
from recsys.losses.sampled import Sampled, SampledLoss
from recsys.losses.softmax import FullSoftmax, LogQ, SampledSoftmax

__all__ = ["GBCE", "FullSoftmax", "LogQ", "Sampled", "SampledLoss", "SampledSoftmax"]
