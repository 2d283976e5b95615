"""Embeddings of features of every kind, with missing and unknown values. Shapes: R rows, W values of a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.core.columns import Column
from recsys.core.schema import MISSING, UNKNOWN, Feature
from recsys.data.batches.batch import FeatureTensor, FeatureTensors, RaggedTensor, to_tensor


class CategoricalEmbedding(nn.Module):
    """Embedding of one code a row, int64 [R] -> [R, width]. Codes 0 (missing) and 1 (unknown) have their own.

    Training replaces a share of the codes by the unknown one, so that its embedding is learned.
    """

    def __init__(self, size: int, width: int, *, unknown_rate: float) -> None:
        super().__init__()
        self.table = nn.Embedding(size, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.unknown_rate = unknown_rate

    def forward(self, codes: FeatureTensor) -> Tensor:
        """Return the embeddings [R, width]."""
        assert isinstance(codes, Tensor)
        return self.table(mask_codes(codes, self.unknown_rate, training=self.training))  # type: ignore[no-any-return]


class BagEmbedding(nn.Module):
    """Mean of the embeddings of a row's codes. An empty bag has its own embedding.

    Codes are a packed bag, or padded codes int64 [R, W] in which 0 is no entry (the form of the exported tower).
    """

    def __init__(self, size: int, width: int, *, unknown_rate: float) -> None:
        super().__init__()
        self.table = nn.Embedding(size, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.unknown_rate = unknown_rate

    def forward(self, codes: FeatureTensor) -> Tensor:
        """Return the embeddings [R, width]."""
        missing = self.table.weight[MISSING]
        if isinstance(codes, RaggedTensor):
            values = mask_codes(codes.values, self.unknown_rate, training=self.training)
            mean = F.embedding_bag(values, self.table.weight, codes.offsets, mode="mean", include_last_offset=True)
            empty = (codes.offsets[1:] == codes.offsets[:-1]).unsqueeze(1)
            return torch.where(empty, missing, mean)
        present = (codes != MISSING).unsqueeze(-1).to(self.table.weight.dtype)
        count = present.sum(1)
        mean = (self.table(codes) * present).sum(1) / count.clamp(min=1)
        return torch.where(count == 0, missing, mean)


class NumericInput(nn.Module):
    """A linear map of a standardised number, float32 [R] -> [R, width]. Missing numbers (nan) have an embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(1, width)
        self.missing = nn.Parameter(torch.zeros(width))

    def forward(self, values: FeatureTensor) -> Tensor:
        """Return the embeddings [R, width]."""
        assert isinstance(values, Tensor)
        missing = torch.isnan(values).unsqueeze(1)
        # Values are clipped, because outliers would outweigh the other features.
        value = torch.nan_to_num(values, nan=0.0).clamp(-5.0, 5.0).unsqueeze(1)
        return torch.where(missing, self.missing, self.line(value))


class VectorInput(nn.Module):
    """A projection of a unit vector, float32 [R, W] -> [R, width]. Missing vectors (nan) have an embedding."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(size, width)
        self.missing = nn.Parameter(torch.zeros(width))

    def forward(self, values: FeatureTensor) -> Tensor:
        """Return the embeddings [R, width]."""
        assert isinstance(values, Tensor)
        missing = torch.isnan(values).any(1, keepdim=True)
        vector = F.normalize(torch.nan_to_num(values, nan=0.0), dim=1)
        return torch.where(missing, self.missing, self.projection(vector))


class FeatureEmbedding(nn.Module):
    """Embeddings of the features of one table side by side, [R, out_dim].

    Args:
        features: features in the order of the schema.
        width: width of each feature's embedding.
        unknown_rate: share of the codes that training replaces by the unknown one.
    """

    def __init__(self, features: Sequence[Feature], width: int, *, unknown_rate: float = 0.01) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"feature_width: found {width}, expected at least 1")
        if not 0.0 <= unknown_rate <= 1.0:
            raise ValueError(f"unknown_rate: found {unknown_rate}, expected a share between 0 and 1")
        self.names = [feature.name for feature in features]
        self.inputs = nn.ModuleList(_input(feature, width, unknown_rate=unknown_rate) for feature in features)
        self.widths = [width] * len(self.names)
        self.out_dim = sum(self.widths)

    def forward(self, values: FeatureTensors) -> Tensor:
        """Return the embeddings [R, out_dim]."""
        return torch.cat([module(values[name]) for name, module in zip(self.names, self.inputs, strict=True)], dim=1)


class FeatureRows(nn.Module):
    """Features of all items as tensors. They are not part of checkpoints, because the data set holds them."""

    def __init__(self, columns: dict[str, Column]) -> None:
        super().__init__()
        self.columns: FeatureTensors = {name: to_tensor(column) for name, column in columns.items()}

    @property
    def num_rows(self) -> int:
        """Number of rows, that of the unknown item included."""
        return next(len(c) if isinstance(c, Tensor) else len(c.offsets) - 1 for c in self.columns.values())

    def forward(self, rows: Tensor) -> FeatureTensors:
        """Return the features of `rows` int64 [R], on the device of `rows`."""
        return {name: take(column, rows) for name, column in self.columns.items()}


def mask_codes(codes: Tensor, rate: float, *, training: bool, unknown: int = UNKNOWN) -> Tensor:
    """Return codes of which training replaces a share `rate` by `unknown`. Missing codes stay missing."""
    if not training or rate <= 0.0:
        return codes
    hidden = (torch.rand(codes.shape, device=codes.device) < rate) & (codes != MISSING)
    return torch.where(hidden, unknown, codes)


def _input(feature: Feature, width: int, *, unknown_rate: float) -> nn.Module:
    if feature.kind == "numeric":
        return NumericInput(width)
    if feature.kind == "vector":
        return VectorInput(feature.size, width)
    if feature.is_ragged:
        return BagEmbedding(feature.size, width, unknown_rate=unknown_rate)
    return CategoricalEmbedding(feature.size, width, unknown_rate=unknown_rate)


def take(column: FeatureTensor, rows: Tensor) -> FeatureTensor:
    """Return the rows int64 [R] of a column, which may be on another device, on the device of `rows`."""
    if isinstance(column, Tensor):
        return column[rows.to(column.device)].to(rows.device)
    at = rows.to(column.offsets.device)
    starts = column.offsets[at]
    lengths = column.offsets[at + 1] - starts
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    positions = torch.arange(int(offsets[-1])) + (starts - offsets[:-1]).repeat_interleave(lengths)
    return RaggedTensor(column.values[positions].to(rows.device), offsets.to(rows.device))
