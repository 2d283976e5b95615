"""Properties of every index."""

import numpy as np
import pytest
from user_queries import make_queries

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.index import HNSW, IVFSQ8, Auto, Effort, Exact, FaissFlat, IVFFlat, IVFPQFastScan, exact_search, tune

BACKENDS = {
    "exact": Exact,
    "flat": FaissFlat,
    "hnsw": HNSW,
    "ivf_flat": IVFFlat,
    "ivf_sq8": IVFSQ8,
    "ivf_pq_fastscan": IVFPQFastScan,
    "auto": lambda: Auto(IVFPQFastScan(), exact_below=2000),
}
APPROXIMATE = ["hnsw", "ivf_flat", "ivf_sq8", "ivf_pq_fastscan"]


@pytest.fixture(scope="module")
def built(items, queries):
    indexes = {name: make() for name, make in BACKENDS.items()}
    for index in indexes.values():
        index.build(items)
        tune(index, items, queries=queries)
    return indexes


@pytest.fixture(params=BACKENDS)
def index(request, built):
    return built[request.param]


def recall(found, expected):
    hits = [np.isin(e[e >= 0], f).mean() for f, e in zip(found, expected, strict=True) if (e >= 0).any()]
    return np.mean(hits)


def ragged(rows):
    offsets = np.cumsum([0, *(len(r) for r in rows)], dtype=np.int64)
    return Ragged(np.concatenate([np.asarray(r, np.int32) for r in rows]), offsets)


def check_answer(scores, rows, items, queries):
    """Scores are the exact inner products of their rows, sorted, without repetition."""
    expected = np.einsum("qd,qkd->qk", queries, items[rows])
    assert np.allclose(np.where(rows < 0, 0, scores), np.where(rows < 0, 0, expected), atol=1e-5)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert ((rows < 0) == (scores == -np.inf)).all()
    for row in rows:
        assert len(set(row[row >= 0])) == (row >= 0).sum()


def test_recall_of_queries_unlike_items(index, items):
    queries = make_queries(items, 100, seed=5)
    scores, rows = index.search(queries, 100)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64
    check_answer(scores, rows, items, queries)
    assert recall(rows, exact_search(items, queries, k=100)[1]) >= 0.97


@pytest.mark.parametrize("k", [1, 10, 500])
def test_other_numbers_of_results(index, items, k):
    queries = make_queries(items, 50, seed=6)
    _, rows = index.search(queries, k)
    assert rows.shape == (50, k)
    assert recall(rows, exact_search(items, queries, k=k)[1]) >= 0.95


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["random", "cluster", "far", "avoided"])
def test_filters_of_any_selectivity(index, items, share, kind, monkeypatch):
    monkeypatch.setattr("recsys.index.approximate.ALWAYS_EXACT", 100)  # or no filter would reach the structure
    rng = np.random.default_rng(7)
    queries = make_queries(items, 50, seed=8)
    if kind == "avoided":
        queries = queries[:1] + 0.02 * rng.standard_normal(queries.shape, np.float32)
    # Random items, those nearest to one item (a category), and those that the queries like least: they differ, or are
    # alike, so that nothing near them passes.
    order = {
        "random": rng.random(len(items)),
        "cluster": -(items @ items[0]),
        "far": items @ queries.mean(axis=0),
        "avoided": items @ queries.mean(axis=0),
    }[kind]
    allow = np.zeros(len(items), bool)
    allow[np.argsort(order)[: round(share * len(items))]] = True
    scores, rows = index.search(queries, 50, allow=allow)
    check_answer(scores, rows, items, queries)
    assert allow[rows[rows >= 0]].all()
    assert ((rows >= 0).sum(axis=1) == min(50, allow.sum())).all()
    assert recall(rows, exact_search(items, queries, k=50, rows=np.flatnonzero(allow))[1]) >= 0.95


def test_exclusions_are_exact_and_leave_full_answers(index, items):
    queries = make_queries(items, 40, seed=9)
    best = exact_search(items, queries, k=700)[1]
    # Nothing, the very best, many of the best, everything.
    seen = [[[], best[q, :30], best[q], np.arange(len(items))][q % 4] for q in range(40)]
    scores, rows = index.search(queries, 50, exclude=ragged(seen))
    check_answer(scores, rows, items, queries)
    for q in range(40):
        assert not np.isin(rows[q], seen[q]).any()
        assert (rows[q] >= 0).all() == (q % 4 != 3)
    assert (rows[3::4] == -1).all()
    assert recall(rows, exact_search(items, queries, k=50, exclude=ragged(seen))[1]) >= 0.95


def test_filter_and_exclusions_together(index, items):
    queries = make_queries(items, 30, seed=10)
    allow = np.random.default_rng(0).random(len(items)) < 0.6
    allowed = np.flatnonzero(allow)
    best = exact_search(items, queries, k=60, rows=allowed)[1]
    _, rows = index.search(queries, 20, allow=allow, exclude=ragged(list(best)))
    assert allow[rows].all()
    assert not any(np.isin(r, b).any() for r, b in zip(rows, best, strict=True))
    assert recall(rows, exact_search(items, queries, k=20, rows=allowed, exclude=ragged(list(best)))[1]) >= 0.95


def test_nothing_allowed(index, items, queries):
    scores, rows = index.search(queries[:3], 5, allow=np.zeros(len(items), bool))
    assert (rows == -1).all()
    assert (scores == -np.inf).all()


def test_no_queries(index, items):
    scores, rows = index.search(np.empty((0, items.shape[1]), np.float32), 5)
    assert scores.shape == rows.shape == (0, 5)


def test_zero_query_gets_a_full_answer(index, items):
    scores, rows = index.search(np.zeros((1, items.shape[1]), np.float32), 50)
    assert (scores == 0).all()
    assert len(set(rows[0])) == 50


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("num_items", "dim"), [(1, 3), (2, 7), (10, 5), (100, 8), (300, 7), (1500, 13)])
def test_small_corpora_and_odd_dimensions(name, num_items, dim):
    rng = np.random.default_rng(0)
    items = rng.standard_normal((num_items, dim), np.float32)
    queries = rng.standard_normal((20, dim), np.float32)
    index = BACKENDS[name]()
    index.build(items)
    assert (index.num_items, index.dim) == (num_items, dim)
    tuning = tune(index, items, queries=queries, k=20)
    assert tuning.reached
    scores, rows = index.search(queries, 3000)
    check_answer(scores, rows, items, queries)
    assert np.array_equal(np.sort(rows[:, :num_items], axis=1), np.tile(np.arange(num_items), (20, 1)))
    assert (rows[:, num_items:] == -1).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_equal_embeddings(name):
    items = np.repeat(np.eye(4, dtype=np.float32), 600, axis=0)
    index = BACKENDS[name]()
    index.build(items)
    tuning = tune(index, items, queries=items[::100])
    assert tuning.reached
    scores, rows = index.search(items[::100], 700)
    assert (scores[:, :600] == 1).all()
    assert (scores[:, 600:] == 0).all()
    assert all(len(set(row)) == 700 for row in rows)


def test_lengths_of_all_sizes_with_inner_product():
    """Long vectors must not draw everything: `dot` similarity."""
    rng = np.random.default_rng(0)
    items = rng.standard_normal((8000, 16), np.float32) * rng.lognormal(0, 0.7, (8000, 1)).astype(np.float32)
    queries = make_queries(items, 200)
    for index in (IVFFlat(), IVFSQ8(), IVFPQFastScan()):
        index.build(items)
        tuning = tune(index, items, queries=queries[:100], k=50)
        assert tuning.reached
        assert recall(index.search(queries[100:], 50)[1], exact_search(items, queries[100:], k=50)[1]) >= 0.97


@pytest.mark.parametrize("name", APPROXIMATE)
def test_builds_are_equal(name, items, queries):
    first, second = BACKENDS[name](), BACKENDS[name]()
    for index in (first, second):
        index.build(items[:3000])
        index.effort = Effort(8, index.refine_factors[-1])
    for a, b in zip(first.search(queries, 20), second.search(queries, 20), strict=True):
        assert np.array_equal(a, b)


def test_fewer_items_than_lists_are_logged(caplog):
    items = np.random.default_rng(0).standard_normal((30, 4), np.float32)
    index = IVFFlat(num_lists=64)
    index.build(items)
    assert "num_lists=64, but there are only 30 items" in caplog.text


def test_a_number_of_codes_that_does_not_divide_the_dimension_is_logged(caplog):
    items = np.random.default_rng(0).standard_normal((2000, 10), np.float32)
    IVFPQFastScan(num_codes=4).build(items)
    assert "num_codes=4 does not divide dimension 10; using 2" in caplog.text


def test_too_few_items_for_codes_are_searched_exactly(caplog):
    items = np.random.default_rng(0).standard_normal((200, 4), np.float32)
    index = IVFPQFastScan()
    index.build(items)
    assert index.is_exact
    assert "200 items are too few" in caplog.text


def test_auto_chooses_by_size():
    items = np.random.default_rng(0).standard_normal((100, 4), np.float32)
    for exact_below, is_exact in ((101, True), (100, False)):
        auto = Auto(IVFFlat(), exact_below)
        auto.build(items)
        assert auto.is_exact is is_exact
    with pytest.raises(UserError, match="before build"):
        Auto(IVFFlat()).search(items, 1)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.zeros((0, 4), np.float32), "at least one item"),
        (np.zeros((4, 4)), r"found float64 \[4, 4\], expected float32"),
        (np.zeros(4, np.float32), r"found float32 \[4\]"),
        (np.array([[0, 1], [np.nan, 0]], np.float32), "row 1 holds nan or inf"),
        (np.array([[np.inf, 1]], np.float32), "row 0 holds nan or inf"),
    ],
)
@pytest.mark.parametrize("name", BACKENDS)
def test_bad_embeddings(name, embeddings, message):
    with pytest.raises(UserError, match=message):
        BACKENDS[name]().build(embeddings)


def test_bad_searches(index, items, queries):
    bad = np.full((1, items.shape[1]), np.nan, np.float32)
    for asked, k, limits, message in [
        (queries[:, :5], 10, {}, r"found shape \[200, 5\], expected \[num_queries, 32\]"),
        (queries, 0, {}, "k: found 0"),
        (bad, 10, {}, "row 0 holds nan or inf"),
        (queries, 10, {"allow": np.ones(5, bool)}, r"allow: found bool \[5\]"),
        (queries, 10, {"allow": np.ones(len(items), int)}, "allow: found int64"),
        (queries, 10, {"exclude": ragged([[1]])}, "exclude: found 1 rows"),
        (queries[:1], 10, {"exclude": ragged([[len(items)]])}, "exclude: found rows outside"),
        (queries[:1], 10, {"exclude": ragged([[-1]])}, "exclude: found rows outside"),
    ]:
        with pytest.raises(UserError, match=message):
            index.search(asked, k, **limits)


@pytest.mark.parametrize(
    "make",
    [
        lambda: IVFFlat(num_lists=0),
        lambda: HNSW(m=1),
        lambda: HNSW(build_threads=0),
        lambda: IVFPQFastScan(num_codes=0),
    ],
)
def test_bad_structure(make):
    with pytest.raises(UserError, match=r"index\.\w+: found \d, expected at least"):
        make()
