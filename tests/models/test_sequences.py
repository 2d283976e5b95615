from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from handmade import History, training_only
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recsys.core.schema import Schema
from recsys.data.batches.batch import Batch, RaggedTensor, Windows
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.targets import TargetSampling
from recsys.models.encoders import Transformer
from recsys.models.hstu import HSTU
from recsys.models.interests import Capsules
from recsys.models.layout import Layout
from recsys.models.modern import ModernTransformer
from recsys.models.sequences import Sequences
from recsys.models.towers import UserTower

TIMES = [10, 20, 50, 60, 90]


def batch(query: list[int]) -> Batch:
    """Histories of 2, 0 and 3 events, asked for at some of their places."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(
        item_idx=torch.arange(1, 6),
        time=torch.tensor(TIMES),
        lengths=np.array([2, 0, 3]),
        user_idx=torch.arange(3),
        events={},
        users={},
        query=torch.tensor(query),
        history=nothing,
        requests={},
        target_idx=nothing,
        target_time=nothing,
        positives=RaggedTensor(nothing, torch.zeros(1, dtype=torch.int64)),
        owner=nothing,
    )


def time_of(sequences: Sequences) -> list[int]:
    time = sequences.layout.time
    assert isinstance(time, Tensor)
    return time.tolist()


def test_a_sequence_for_each_history() -> None:
    sequences = Sequences.from_batch(batch([1, 3, 7, 7]), is_causal=True, reads_time=True)
    # Start, events 1 and 2; start; start, events 3 to 5.
    assert sequences.source.tolist() == [0, 1, 2, 0, 0, 3, 4, 5]
    assert sequences.layout.position.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert sequences.layout.from_end.tolist() == [2, 1, 0, 0, 3, 2, 1, 0]
    assert sequences.answer.tolist() == [1, 3, 7, 7]
    # A start token has the time of the event after it; the empty history's sees nothing but itself.
    assert time_of(sequences) == [10, 10, 20, 50, 50, 50, 60, 90]
    assert Sequences.from_batch(batch([0]), is_causal=True, reads_time=False).layout.time is None


def test_a_sequence_for_each_query_once() -> None:
    # After one event of the first history, none of the second, two and three and none of the third.
    sequences = Sequences.from_batch(batch([6, 1, 3, 7, 6, 4]), is_causal=False, reads_time=True)
    assert sequences.source.tolist() == [0, 1, 0, 0, 0, 3, 4, 0, 3, 4, 5]
    assert sequences.layout.from_end.tolist() == [1, 0, 0, 0, 2, 1, 0, 3, 2, 1, 0]
    assert time_of(sequences) == [10, 10, 50, 50, 50, 50, 60, 50, 50, 60, 90]
    assert sequences.answer.tolist() == [6, 1, 2, 10, 6, 3]


def test_an_empty_history_at_the_end() -> None:
    empty = batch([0])
    last = dataclasses.replace(empty, lengths=np.array([5, 0]), query=torch.tensor([6]))
    for is_causal in (True, False):
        sequences = Sequences.from_batch(last, is_causal=is_causal, reads_time=True)
        assert sequences.source[-1] == 0
        assert sequences.layout.position[sequences.answer].tolist() == [0]


MAX_HISTORY, DIM = 8, 8


class WholeHistory(nn.Module):
    """An encoder whose states read later tokens too."""

    is_causal, reads_time = False, False

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        return tokens / (1 + layout.from_end).unsqueeze(-1) + layout.total(tokens)


TOWERS = {
    "transformer": lambda: Transformer(DIM, MAX_HISTORY),
    "running mean": lambda: Transformer(DIM, MAX_HISTORY, norm="after", running_mean=0.7),
    "modern": lambda: ModernTransformer(DIM, MAX_HISTORY),
    "hstu": lambda: HSTU(DIM, MAX_HISTORY),
    "windows": lambda: ModernTransformer(DIM, MAX_HISTORY, window=2),
    "not causal": WholeHistory,
}
histories = st.lists(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3) | st.integers(0, 10**9)), min_size=1, max_size=12),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=15)
@given(histories, st.data())
@pytest.mark.parametrize("interests", [False, True])
@pytest.mark.parametrize("name", TOWERS)
def test_every_query_of_a_batch_is_answered_from_the_events_before_it(
    name: str, interests: bool, users: list[History], data: st.DataObject
) -> None:
    """As if they alone had been sent to the exported tower: no event changes a query before it."""
    users = [sorted(user, key=lambda event: event[1]) for user in users]
    dataset = dataclasses.replace(training_only(users, num_items=9), schema=Schema(()))
    begin = dataset.offsets[:-1]
    lengths = np.array([data.draw(st.integers(0, min(MAX_HISTORY, len(user) - 1))) for user in users])
    windows = Windows(np.arange(len(users)), begin, begin + lengths, np.ones(len(users), bool))
    packed = BatchBuilder(dataset, MAX_HISTORY, target_sampling=TargetSampling(horizon=3)).training(
        windows, np.random.default_rng(0)
    )
    torch.manual_seed(0)
    tower = UserTower(
        TOWERS[name](), DIM, sizes=dataset.sizes, interests=Capsules(DIM, 3) if interests else None
    ).eval()
    table = torch.randn(10, DIM)
    answers = tower(packed, table[packed.item_idx])
    assert answers.shape == (len(packed.query), *([3] if interests else []), DIM)
    places = lengths.cumsum() - lengths + np.arange(len(users))
    for answer, query, history in zip(answers, packed.query.tolist(), packed.history.tolist(), strict=True):
        before = users[history][: query - places[history]]
        # A served history has a place for one event at least.
        items = torch.tensor([[item for item, _ in before] or [0]])
        time = torch.tensor([[second for _, second in before] or [0]])
        length, nobody = torch.tensor([len(before)]), torch.tensor([-1])
        alone = tower.forward_padded(table[items], length, events={}, users={}, requests={}, user_idx=nobody, time=time)
        torch.testing.assert_close(answer, alone[0], atol=1e-5, rtol=1e-4)
