"""Every kind of feature: what a value, an unknown and a missing one become."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.core.columns import Dense, Ragged
from recsys.core.schema import MISSING, UNKNOWN, Feature, Kind
from recsys.data.batches.batch import FeatureTensor, RaggedTensor
from recsys.models.features import (
    BagEmbedding,
    CategoricalEmbedding,
    FeatureEmbedding,
    FeatureRows,
    NumericInput,
    VectorInput,
    mask_codes,
    take,
)

NAN = math.nan


def feature(kind: Kind, size: int) -> Feature:
    return Feature(kind, "items", kind, "item", size)


# Rows: a value, an unknown one (an empty vector entry has none), a missing one.
VALUES: dict[Kind, FeatureTensor] = {
    "categorical": torch.tensor([3, UNKNOWN, MISSING]),
    "multi_categorical": RaggedTensor(torch.tensor([2, 3, UNKNOWN]), torch.tensor([0, 2, 3, 3])),
    "text": RaggedTensor(torch.tensor([2, 4, UNKNOWN]), torch.tensor([0, 2, 3, 3])),
    "numeric": torch.tensor([0.5, 0.0, NAN]),
    "vector": torch.tensor([[1.0, 2.0], [0.0, 0.0], [NAN, NAN]]),
}
SIZES: dict[Kind, int] = {"categorical": 5, "multi_categorical": 5, "text": 5, "numeric": 1, "vector": 2}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("row", [0, 1, 2])
def test_each_value_has_a_gradient(kind: Kind, row: int) -> None:
    embedding = FeatureEmbedding([feature(kind, SIZES[kind])], 4, unknown_rate=0.0)
    output = embedding({kind: VALUES[kind]})
    assert output.shape == (3, 4)
    assert bool(torch.isfinite(output).all())
    output[row].sum().backward()
    gradients = [p.grad for p in embedding.parameters() if p.grad is not None]
    assert sum(float(g.abs().sum()) for g in gradients) > 0
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.parametrize("kind", ["categorical", "multi_categorical"])
def test_value_unknown_and_missing_differ(kind: Kind) -> None:
    embedding = FeatureEmbedding([feature(kind, 5)], 4).eval()
    rows = embedding({kind: VALUES[kind]})
    assert all(not torch.equal(rows[a], rows[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_missing_learns_for_numbers_and_vectors() -> None:
    for module, values in ((NumericInput(3), VALUES["numeric"]), (VectorInput(2, 3), VALUES["vector"])):
        output = module(values)
        output[2].sum().backward()
        assert module.missing.grad is not None
        assert module.missing.grad.tolist() == [1.0, 1.0, 1.0]
        assert torch.equal(output[2], module.missing)


def test_numbers_lie_on_a_line_that_ends() -> None:
    module = NumericInput(2)
    output = module(torch.tensor([1.0, 5.0, 900.0, -900.0]))
    torch.testing.assert_close(output[0], module.line.weight[:, 0] + module.line.bias)
    assert torch.equal(output[1], output[2])
    torch.testing.assert_close(output[3], module.line.bias - 5.0 * module.line.weight[:, 0])


def test_vectors_count_by_direction() -> None:
    module = VectorInput(2, 3)
    output = module(torch.tensor([[3.0, 4.0], [0.6, 0.8]]))
    torch.testing.assert_close(output[0], output[1])


def test_bag_is_the_mean_and_padded_equals_packed() -> None:
    module = BagEmbedding(6, 4, unknown_rate=0.0).eval()
    packed = module(RaggedTensor(torch.tensor([2, 3, 5, 5]), torch.tensor([0, 2, 2, 4])))
    weight = module.table.weight
    torch.testing.assert_close(packed, torch.stack([(weight[2] + weight[3]) / 2, weight[MISSING], weight[5]]))
    padded = module(torch.tensor([[2, 3, 0], [0, 0, 0], [5, 5, 0]]))
    torch.testing.assert_close(padded, packed)


def test_features_lie_side_by_side_in_the_order_of_the_schema() -> None:
    embedding = FeatureEmbedding([feature("categorical", 5), feature("numeric", 1)], 4).eval()
    both = embedding({"numeric": VALUES["numeric"], "categorical": VALUES["categorical"]})
    assert embedding.out_dim == 8
    torch.testing.assert_close(both[:, :4], embedding.inputs[0](VALUES["categorical"]))
    torch.testing.assert_close(both[:, 4:], embedding.inputs[1](VALUES["numeric"]))


def test_mask_codes_reads_a_share_as_unknown_in_training_alone() -> None:
    codes = torch.full((20_000,), 7)
    codes[:100] = MISSING
    assert torch.equal(mask_codes(codes, 0.1, training=False), codes)
    assert torch.equal(mask_codes(codes, 0.0, training=True), codes)
    hidden = mask_codes(codes, 0.1, training=True)
    assert set(hidden.tolist()) == {MISSING, UNKNOWN, 7}
    assert bool((hidden[:100] == MISSING).all())
    assert float((hidden == UNKNOWN).float().mean()) == pytest.approx(0.1, abs=0.01)


def test_hiding_teaches_the_unknown_value() -> None:
    module = CategoricalEmbedding(5, 4, unknown_rate=0.5).train()
    module(torch.full((50,), 3)).sum().backward()
    assert module.table.weight.grad is not None
    assert float(module.table.weight.grad[UNKNOWN].abs().sum()) > 0


def test_rows_of_a_table() -> None:
    rows = FeatureRows(
        {
            "code": Dense(np.array([0, 5, 6], np.int32)),
            "bag": Ragged(np.array([2, 3, 4], np.int32), np.array([0, 0, 2, 3])),
        }
    )
    taken = rows(torch.tensor([2, 0, 1, 1]))
    code, bag = taken["code"], taken["bag"]
    assert isinstance(code, Tensor)
    assert isinstance(bag, RaggedTensor)
    assert code.tolist() == [6, 0, 5, 5]
    assert (bag.values.tolist(), bag.offsets.tolist()) == ([4, 2, 3, 2, 3], [0, 1, 1, 3, 5])
    # Checkpoints hold what is learned; the data has the rest.
    assert not list(rows.parameters())
    assert rows.state_dict() == {}


def test_take_nothing() -> None:
    column = RaggedTensor(torch.tensor([1, 2]), torch.tensor([0, 1, 2]))
    taken = take(column, torch.zeros(0, dtype=torch.int64))
    assert isinstance(taken, RaggedTensor)
    assert (taken.values.tolist(), taken.offsets.tolist()) == ([], [0])
