"""Merged results of shards equal those of one index."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.core.errors import UserError
from recsys.index import Exact, search_users
from recsys.release.runtime.shard import CorpusShard
from recsys.serving.gateway.shard_merge import for_shards, merge
from recsys.serving.http.messages import SearchRequest, SearchResponse, SearchResult


def found(scores: np.ndarray, rows: np.ndarray) -> list[SearchResult]:
    return [SearchResult([f"i{row}" for row in r[r >= 0]], s[r >= 0]) for s, r in zip(scores, rows, strict=True)]


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 4)])
@pytest.mark.parametrize("k", [1, 6, 40])
def test_merged_shards_equal_the_whole(shape: tuple[int, ...], k: int) -> None:
    random = np.random.default_rng(0)
    corpus = random.normal(size=(31, 4)).astype(np.float32)
    users = random.normal(size=shape).astype(np.float32)
    if users.ndim == 3:
        # The second user has two embeddings, the third one.
        users[1, 1] = users[2, 1:] = 0
    index = Exact()
    index.build(corpus)
    request = SearchRequest("v", users, k)
    part = for_shards(request)
    assert part.embeddings.ndim == 2
    answers = []
    for number in range(3):
        mask = CorpusShard(number, 3).rows(31)
        answers.append(SearchResponse("v", found(*search_users(index, part.embeddings, k=k, allow=mask))))
    merged = merge(request, answers)
    expected = found(*search_users(index, users, k=k))
    assert [result.item_ids for result in merged.results] == [result.item_ids for result in expected]
    for result, wanted in zip(merged.results, expected, strict=True):
        np.testing.assert_array_equal(result.scores, wanted.scores)


def test_a_shard_gets_the_exclusions_of_the_user_with_each_embedding() -> None:
    users = np.array([[[1, 0], [0, 1]], [[1, 1], [0, 0]]], np.float32)
    part = for_shards(SearchRequest("v", users, 7, {"a": 1}, [["x"], ["y"]], "m"))
    assert part.embeddings.tolist() == [[1, 0], [0, 1], [1, 1]]
    assert part.exclude == [["x"], ["x"], ["y"]]
    assert (part.version, part.k, part.filter, part.model) == ("v", 7, {"a": 1}, "m")


def test_answers_of_two_versions_are_never_merged() -> None:
    request = SearchRequest("v1", np.ones((1, 2), np.float32), 1)
    answers = [SearchResponse(version, [SearchResult([version], np.ones(1))]) for version in ("v1", "v2")]
    with pytest.raises(ValueError, match="v2, expected 1 of v1"):
        merge(request, answers)


def test_an_item_of_two_shards_is_given_once() -> None:
    request = SearchRequest("v", np.ones((1, 2), np.float32), 2)
    scores = np.array([3, 2], np.float32)
    answers = [SearchResponse("v", [SearchResult([name, "both"], scores)]) for name in ("a", "b")]
    answers[1].results[0] = SearchResult(["both", "b"], scores - 0.5)
    (merged,) = merge(request, answers).results
    assert merged.item_ids == ["a", "both"]
    assert merged.scores.tolist() == [3, 2.5]


def test_an_item_of_two_shards_keeps_the_rank_of_its_best_score() -> None:
    request = SearchRequest("v", np.ones((1, 2), np.float32), 3)
    results = [SearchResult(["both", "a"], np.array([3, 2.5])), SearchResult(["b", "both"], np.array([2, 1]))]
    (merged,) = merge(request, [SearchResponse("v", [result]) for result in results]).results
    assert merged.item_ids == ["both", "a", "b"]
    assert merged.scores.tolist() == [3, 2.5, 2]


def test_shards_cover_the_corpus_once() -> None:
    masks = [CorpusShard.parse(f"{number}/4").rows(10) for number in range(4)]
    assert np.sum(masks, axis=0).tolist() == [1] * 10
    assert np.flatnonzero(masks[1]).tolist() == [1, 5, 9]


@pytest.mark.parametrize("text", ["2/2", "0/0", "1", "-1/2", "a/b", ""])
def test_invalid_shards_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected I/N"):
        CorpusShard.parse(text)
