"""Raw values in, ranked items out: the same embeddings as in training, the same items as exact search."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from publishing import Published
from worlds import MAX_HISTORY

from recsys.core.errors import UserError
from recsys.data.dataset import Requests
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.release.runtime import item_ids as items
from recsys.release.runtime.item_ids import IdMap
from recsys.release.runtime.retriever import Query, Retriever


@pytest.fixture(scope="module")
def retriever(published: Published) -> Retriever:
    return Retriever.load(published.store, "candidate")


@pytest.fixture(scope="module")
def run(published: Published) -> TrainedRun:
    return load_run(published.runs[0])


@pytest.fixture(scope="module")
def queries(published: Published) -> dict[str, Query]:
    """Each user's whole history and profile, as the tables hold them."""
    users = {row.pop("user_id"): row for row in pq.read_table(published.root / "users.parquet").to_pylist()}
    histories: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(published.root / "interactions.parquet").to_pylist():
        histories.setdefault(row.pop("user_id"), []).append(row)
    return {
        user: Query(
            history=sorted(events, key=lambda event: event["timestamp"]), user_id=user, user=users.get(user, {})
        )
        for user, events in sorted(histories.items())
    }


def test_serving_imports_no_torch() -> None:
    code = "import sys, recsys.release.runtime.retriever; assert not {'torch', 'lightning'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_raw_values_give_the_embeddings_of_training(
    retriever: Retriever, run: TrainedRun, queries: dict[str, Query]
) -> None:
    dataset = run.dataset
    assert dataset.user_ids.to_pylist() == list(queries)
    batch = run.builder.requests(Requests(np.arange(dataset.num_users), dataset.offsets[1:]))
    with torch.inference_mode():
        expected = run.model.encode_users(batch).numpy()
    np.testing.assert_allclose(retriever.embed(list(queries.values())), expected, atol=1e-5)
    for number, query in enumerate(list(queries.values())[:10]):
        np.testing.assert_allclose(retriever.embed([query])[0], expected[number], atol=1e-5)


def test_request_features_reach_the_query(retriever: Retriever, run: TrainedRun, queries: dict[str, Query]) -> None:
    """The event after a history, by its request features alone."""
    user = max(queries, key=lambda name: len(queries[name].history))
    idx = list(queries).index(user)
    history = queries[user].history
    next_event = next(e for e in history[MAX_HISTORY:] if e["surface"] and e["query"])
    at = list(history).index(next_event)
    request = {"surface": next_event["surface"], "query": next_event["query"]}
    query = Query(history[:at], user, queries[user].user, request)
    batch = run.builder.requests(Requests(np.array([idx]), run.dataset.offsets[[idx]] + at))
    with torch.inference_mode():
        expected = run.model.encode_users(batch).numpy()
    np.testing.assert_allclose(retriever.embed([query]), expected, atol=1e-5)
    assert np.abs(retriever.embed([Query(history[:at], user, queries[user].user)]) - expected).max() > 1e-3


def test_retrieves_the_best_unseen_items(retriever: Retriever, queries: dict[str, Query]) -> None:
    items = np.load(retriever.folder / "item_embeddings.npy")
    ids = retriever.items["item_id"].to_pylist()
    asked = list(queries.values())
    for query, user, answer in zip(asked, retriever.embed(asked), retriever.retrieve(asked, k=7), strict=True):
        seen = {event["item_id"] for event in query.history}
        order = [row for row in np.argsort(-(items @ user), kind="stable") if ids[row] not in seen][:7]
        assert answer.item_ids == [ids[row] for row in order]
        np.testing.assert_allclose(answer.scores, (items @ user)[order], atol=1e-6)
        assert answer.history_length == min(len(query.history), MAX_HISTORY)
        assert answer.unknown_items == []


def test_seen_items_stay_where_asked_for(retriever: Retriever, queries: dict[str, Query]) -> None:
    query = max(queries.values(), key=lambda q: len(q.history))
    seen = {event["item_id"] for event in query.history}
    (all_items,) = retriever.retrieve([query], k=1000, exclude_seen=False)
    (unseen,) = retriever.retrieve([query], k=1000)
    assert len(all_items.item_ids) == len(retriever.items)
    assert set(all_items.item_ids) - set(unseen.item_ids) == seen
    excluding = Query(query.history, query.user_id, query.user, exclude=unseen.item_ids[:3])
    (rest,) = retriever.retrieve([excluding], k=1000)
    assert rest.item_ids == unseen.item_ids[3:]


def test_unknown_items_and_users_are_served_and_reported(retriever: Retriever) -> None:
    history = [{"item_id": "new"}, {"item_id": "i001"}, {"item_id": 7}, {"item_id": "new"}]
    answers = retriever.retrieve([Query(history, "nobody"), Query()], k=5)
    assert answers[0].unknown_items == ["new", 7]
    assert answers[0].history_length == 4
    assert answers[1].history_length == 0
    assert [len(answer.item_ids) for answer in answers] == [5, 5]
    assert "i001" not in answers[0].item_ids


def test_filters_over_columns_of_the_items(retriever: Retriever) -> None:
    table = {row["item_id"]: row for row in retriever.items.to_pylist()}
    everything = set(retriever.retrieve([Query()], k=1000)[0].item_ids)
    for wanted, passes in (
        ({"category": "x"}, lambda row: row["category"] == "x"),
        ({"category": ["x", "y"]}, lambda row: row["category"] in ("x", "y")),
        ({"tags": "a"}, lambda row: "a" in (row["tags"] or [])),
        ({"tags": ["a", "b"], "category": "z"}, lambda r: {"a", "b"} & set(r["tags"] or []) and r["category"] == "z"),
        ({"item_id": ["i001", "i002", "none"]}, lambda row: row["item_id"] in ("i001", "i002")),
        ({"category": []}, lambda row: False),  # noqa: ARG005
    ):
        found = set(retriever.retrieve([Query()], k=1000, filter=wanted)[0].item_ids)
        assert found == {item for item in everything if passes(table[item])}


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (Query(user={"contry": "de"}), {}, "user.contry: no such feature; did you mean 'country'"),
        (Query(request={"surfaces": "home"}), {}, "request.surfaces: .*'surface'"),
        (Query([{"item_id": "i001", "actoin": "save"}]), {}, "history.actoin: .*'action'"),
        (Query([{"timestamp": 3}]), {}, "event 0 has no item_id"),
        (Query(user={"taste": [1.0]}), {}, "users.taste: found a vector of length 1, expected 3"),
        (Query(user={"taste": [1.0, "x", 2.0]}), {}, "user.taste: found values of no one type"),
        (Query(), {"filter": {"categry": "x"}}, "filter.categry: .*'category'"),
        (Query(), {"filter": {"category": 3}}, "filter.category: found \\[3\\], expected string"),
        (Query(), {"filter": {"price": "cheap"}}, "filter.price"),
        (Query(), {"k": 0}, "k: found 0"),
    ],
)
def test_invalid_options_are_refused(retriever: Retriever, query: Query, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        retriever.retrieve([query], **options)


def test_values_never_seen_are_unknown_not_errors(retriever: Retriever) -> None:
    query = Query([{"item_id": "i001", "action": 5, "dwell": "long"}], user={"country": "xx", "age": None, "likes": []})
    assert np.isfinite(retriever.embed([query])).all()


def test_no_queries_no_answers(retriever: Retriever) -> None:
    assert retriever.retrieve([]) == []


def test_integer_ids() -> None:
    ids = IdMap(pa.array([30, 10, 20]))
    assert ids.rows([10, 20, 30, 11, "10", True, None, 2**70, 10.0]).tolist() == [1, 2, 0, -1, -1, -1, -1, -1, -1]
    assert ids.rows_of(pa.array([20, 5])).tolist() == [2, -1]
    assert ids.rows([]).tolist() == []
    assert ids.outside(np.array([2, 0])) == [20, 30]


@pytest.mark.parametrize("num_hashes", [None, 3, 1], ids=["all differ", "some are equal", "all are equal"])
def test_string_ids(monkeypatch: pytest.MonkeyPatch, num_hashes: int | None) -> None:
    if num_hashes is not None:
        monkeypatch.setattr(items, "_hashes", lambda texts: np.array([len(text) % num_hashes for text in texts], int))
    names = ["b", "a", "", "é", "longer", "10", "0"]
    ids = IdMap(pa.array(names))
    assert ids.rows(names).tolist() == list(range(7))
    assert ids.rows(["a", "c", 10, None, "10", "B", "e\u0301", ["a"]]).tolist() == [1, -1, -1, -1, 5, -1, -1, -1]
    assert ids.rows([1, None]).tolist() == [-1, -1]
    assert ids.rows([]).tolist() == []
    assert ids.rows_of(pa.array(["0", "x"])).tolist() == [6, -1]
    assert ids.outside(np.array([4, 1])) == ["longer", "a"]
    assert IdMap(pa.array([], pa.string())).rows(["a", 1]).tolist() == [-1, -1]
