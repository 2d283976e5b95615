"""Search in a collection gives every query its k results, whatever is left out; what Milvus is asked in words."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.index import Effort, Exact, InDatabase, exact_search, load_index, save_index, search_users, tune
from recsys.index.milvus import Milvus
from recsys.index.milvus_columns import fields_of, to_expression
from recsys.index.vector_database import CollectionIndex, Condition, Selection, open_database

NUM_ITEMS, NUM_LISTS = 400, 20
NOTHING = np.zeros(0, np.int64)


class Lists:
    """An engine in memory: lists of 20 neighbouring rows, and a search of the first `breadth` of them."""

    address, most_results = "milvus://127.0.0.1:1", 50

    def __init__(self) -> None:
        self.embeddings = np.random.default_rng(0).normal(size=(NUM_ITEMS, 8)).astype(np.float32)
        self.searches: list[tuple[int, int]] = []
        self.counted: list[int] = []

    def allowed(self, conditions: Sequence[Condition]) -> Any:
        mask = np.ones(NUM_ITEMS, bool)
        for column, operator, _, values in conditions:
            found = np.isin(np.arange(NUM_ITEMS) % (NUM_ITEMS if column == "" else 10), values)
            mask &= ~found if operator == "not" else found
        return mask

    def count(self, version: str, conditions: Sequence[Condition]) -> int:  # noqa: ARG002
        self.counted.append(len(conditions[0].values))
        return int(self.allowed(conditions).sum())

    def search(
        self,
        version: str,  # noqa: ARG002
        queries: Any,
        k: int,
        *,
        breadth: int,
        conditions: Sequence[Condition],
    ) -> tuple[Any, Any]:
        assert k <= self.most_results
        self.searches.append((breadth, k))
        near = np.arange(NUM_ITEMS) < NUM_ITEMS * breadth // NUM_LISTS
        return exact_search(self.embeddings, queries, k=k, rows=np.flatnonzero(near & self.allowed(conditions)))


@pytest.fixture
def lists() -> Lists:
    return Lists()


@pytest.fixture
def collection(lists: Lists) -> CollectionIndex:
    index = CollectionIndex(lists, "v", num_items=NUM_ITEMS, max_breadth=NUM_LISTS)  # type: ignore[arg-type]
    index.effort = Effort(2, 1, 10)
    return index


@pytest.fixture
def queries() -> Any:
    return np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)


@pytest.mark.parametrize("removed", [0, 3, 380])
@pytest.mark.parametrize("excluded", [0, 4, 60])
@pytest.mark.parametrize("conditions", [(), (Condition("digit", "in", False, (9, 4)),)], ids=["all", "filtered"])
def test_every_query_gets_its_results(
    lists: Lists, collection: CollectionIndex, queries: Any, removed: int, excluded: int, conditions: Any
) -> None:
    collection.effort = Effort(NUM_LISTS, 1, 10)
    allowed = lists.allowed(conditions)
    # The best ones are left out, more of them than one search can return.
    best = exact_search(lists.embeddings, queries, k=NUM_ITEMS)[1]
    gone = np.sort(best[0, :removed])
    allowed[gone] = False
    lengths = [excluded, 0, excluded, 0, 1]
    exclude = Ragged(
        np.concatenate([best[q, :n] for q, n in enumerate(lengths)]).astype(np.int32), np.r_[0, np.cumsum(lengths)]
    )
    scores, rows = collection.search(queries, 12, allow=Selection(conditions, gone), exclude=exclude)
    want_scores, want = exact_search(lists.embeddings, queries, k=12, rows=np.flatnonzero(allowed), exclude=exclude)
    np.testing.assert_array_equal(rows, want)
    np.testing.assert_allclose(scores, want_scores, rtol=1e-6)


def test_several_embeddings_of_a_user_take_turns(lists: Lists, collection: CollectionIndex, queries: Any) -> None:
    collection.effort, users = Effort(NUM_LISTS, 1, 10), queries[:4].reshape(2, 2, 8).copy()
    users[1, 1] = 0
    exact = Exact()
    exact.build(lists.embeddings)
    exclude = Ragged(np.array([3, 5, 7], np.int32), np.array([0, 2, 3]))
    for found, want in zip(
        search_users(collection, users, k=9, exclude=exclude),
        search_users(exact, users, k=9, exclude=exclude),
        strict=True,
    ):
        np.testing.assert_allclose(found, want, rtol=1e-6)


def test_counts_of_long_filters_are_not_kept_in_memory(lists: Lists, collection: CollectionIndex, queries: Any) -> None:
    for number in (2, 5000):
        selection = Selection((Condition("digit", "in", False, tuple(range(number))),), NOTHING)
        for _ in range(2):
            collection.search(queries, 5, allow=selection)
    assert lists.counted == [2, 5000, 5000]


def test_a_filter_that_leaves_out_the_near_lists_is_searched_further(
    lists: Lists, collection: CollectionIndex, queries: Any
) -> None:
    far = Condition("", "in", False, tuple(range(390, 400)))
    _, rows = collection.search(queries, 10, allow=Selection((far,), NOTHING))
    assert {*rows.ravel().tolist()} == {*range(390, 400)}
    assert lists.searches == [(NUM_LISTS, 10)]
    half = Condition("", "in", False, tuple(range(200)))
    collection.search(queries, 10, allow=Selection((half,), NOTHING))
    # It is repeated until reading further adds nothing.
    assert lists.searches[1:] == [(8, 10), (20, 10)]
    empty = Condition("digit", "in", False, ())
    assert (collection.search(queries, 3, allow=Selection((empty,), NOTHING))[1] == -1).all()


def test_the_breadth_is_tuned_to_the_recall_target(
    lists: Lists, collection: CollectionIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fastest of the breadths that reach the target is chosen. A search takes as long as it is broad, on this clock.
    readings = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(readings) * collection.effort.breadth)
    monkeypatch.setattr("recsys.index.tuning.time", clock)
    tuning = tune(collection, lists.embeddings, queries=lists.embeddings[:50], recall_target=0.6, k=10)
    assert tuning.reached
    assert collection.effort == Effort(tuning.chosen.breadth, 1, 10)
    assert 11 <= tuning.chosen.breadth <= 15


def test_the_release_gets_the_local_index_and_names_the_engine(lists: Lists, tmp_path: Path) -> None:
    index = InDatabase(Exact(), Milvus("milvus://127.0.0.1:1", num_lists=7))
    index.build(lists.embeddings)
    assert "item_index.collection.json" in save_index(index, tmp_path)  # type: ignore[arg-type]
    opened = load_index(tmp_path, lists.embeddings)
    assert isinstance(opened, Exact)
    written = json.loads((tmp_path / "item_index.collection.json").read_text())
    assert written == {"engine": "milvus", "parameters": {"num_lists": 7, "columns": None}}


@pytest.mark.parametrize("address", ["milvus://a", "milvus://:1", "milvus://a:1/db", "milvus://a:x", "milvus://[a:1"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="expected milvus://HOST:PORT"):
        open_database(address)


def test_a_password_in_an_address_is_neither_accepted_nor_shown() -> None:
    with pytest.raises(UserError, match="RECSYS_MILVUS_TOKEN") as caught:
        open_database("milvus://root:secret@a:1")
    assert "secret" not in str(caught.value)


def test_a_complete_collection_that_is_not_loaded_yet_is_kept() -> None:
    pytest.importorskip("pymilvus")
    database = Milvus("milvus://127.0.0.1:1")
    database._opened = client = Mock()
    client.has_collection.side_effect = lambda name, **_: name == "items_v"
    database.fill("v", pa.table({"digit": [1]}), np.ones((1, 2), np.float32))
    client.load_collection.assert_called_once()
    client.drop_collection.assert_not_called()
    client.insert.assert_not_called()


@pytest.mark.parametrize(
    ("condition", "fields", "expected"),
    [
        (Condition("a", "in", False, (1, 2)), {"c_a"}, "(c_a in [1, 2])"),
        (Condition("a", "not", False, ("x",)), {"c_a", "n_a"}, '(not ((c_a in ["x"]) and n_a == false))'),
        (Condition("a", "in", False, ('"\\\n',)), {"c_a"}, '(c_a in ["\\"\\\\\\012"])'),
        (Condition("a", "gte", True, (3,)), {"c_a"}, "(hi_a >= 3)"),
        (Condition("a", "lt", False, (2.5,)), {"c_a"}, "(c_a < 2.5)"),
        (Condition("a", "gt", False, (2**63 - 1,)), {"c_a"}, "(row < 0)"),
        (Condition("a", "gte", False, (-(2**63),)), {"c_a"}, "(row >= 0)"),
        (Condition("a", "in", False, ()), {"c_a"}, "(row < 0)"),
        (Condition("a b", "in", False, (True,)), {"cx_612062"}, "(cx_612062 in [true])"),
        (Condition("", "not", False, (4,)), {"c_a"}, "(not (row in [4]))"),
    ],
)
def test_conditions_become_expressions(condition: Condition, fields: set[str], expected: str) -> None:
    assert to_expression([condition], fields) == expected


def test_expressions_of_many_conditions_are_not_nested_deeply() -> None:
    depth, deepest = 0, 0
    for letter in to_expression([Condition("a", "not", False, (1,))] * 200, {"c_a", "n_a"}):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        deepest = max(deepest, depth)
    # Of `a and b and c` Milvus nests one `and` in the other, and it refuses more than about 50 levels.
    assert (depth, deepest) == (0, 8 + 3)


def test_columns_that_milvus_cannot_hold_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    items = pa.table(
        {
            "good": [1, None],
            "long": ["x" * 70_000, ""],
            "many": [list(range(5000)), []],
            "nested": [{"a": 1}, {"a": 2}],
            "unsigned": pa.array([2**63, 1], pa.uint64()),
            "lists": [[3, 1, None], []],
        }
    )
    fields = {field.name: field.values.to_pylist() for field in fields_of(items)}
    assert fields.pop("c_lists") == [[3, 1, None], []]
    assert fields == {
        "n_good": [False, True],
        "c_good": [1, 0],
        "lo_lists": [1, 0],
        "hi_lists": [3, 0],
        "n_lists": [False, True],
    }
    assert [record.args[0] for record in caplog.records if record.args] == ["long", "many", "nested", "unsigned"]
    assert "a list has more than 4096 elements" in caplog.text
