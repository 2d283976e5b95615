"""Losses: functions of tensors that return a scalar, the mean over rows."""

from recsys.training.losses.sampled import CorpusLoss, SampledCandidates, SampledLoss
from recsys.training.losses.softmax import FullSoftmax, LogQ, SampledSoftmax

__all__ = ["CorpusLoss", "FullSoftmax", "LogQ", "SampledCandidates", "SampledLoss", "SampledSoftmax"]
