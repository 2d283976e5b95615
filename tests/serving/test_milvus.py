"""A gateway searches collections of a real Milvus server as a host searches its index."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from asking import call, living, settings
from milvus_server import MilvusProcess, why_not
from publishing import Published

from recsys.experiments.trained_run import load_run
from recsys.index import Exact, InDatabase
from recsys.index.milvus import Milvus
from recsys.publishing.collections import fill_collection
from recsys.publishing.promote import promote
from recsys.release.manifest import MANIFEST, Manifest
from recsys.release.runtime.item_ids import ItemFilter
from recsys.release.runtime.retriever import Query, Retriever
from recsys.release.runtime.self_check import stored_check
from recsys.release.store import ReleaseStore
from recsys.serving.http.app import App

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no Milvus: {REASON}")
ADMIN = {"authorization": "Bearer secret-of-the-tests"}


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusProcess]:
    process = MilvusProcess(tmp_path_factory.mktemp("milvus"))
    yield process
    process.stop()


@dataclass(frozen=True)
class Promoted:
    store: Path
    versions: tuple[str, str]


@pytest.fixture(scope="module")
def promoted(published: Published, milvus: MilvusProcess, tmp_path_factory: pytest.TempPathFactory) -> Promoted:
    """Two releases with a collection each: one that was promoted so, and one that got it later."""
    store = ReleaseStore(tmp_path_factory.mktemp("store"))
    index = InDatabase(Exact(), Milvus(milvus.address))
    first, second = (
        promote(load_run(published.runs[0]), index, store=store, model="test").version,
        published.versions[1],
    )
    folder = shutil.copytree(published.store / second, store.root / second)
    manifest = Manifest.load(folder)
    users = stored_check(folder, manifest)["embeddings"]
    filled = fill_collection(
        folder, manifest, store=store, database=index.database, halves=(users, users), recall_target=0.98
    )
    (folder / MANIFEST).chmod(0o644)
    filled.save(folder)
    store.set_alias("candidate", first, why="test")
    return Promoted(store.root, (first, second))


def test_answers_are_those_of_the_release(
    promoted: Promoted, milvus: MilvusProcess, stored: Path, queries: dict[str, Query]
) -> None:
    release = Retriever.load(promoted.store, "candidate")
    cases: list[dict[str, Any]] = [{"k": 10}, {"k": 1000}, {"k": 5, "filter": {"category": ["x", "y"]}}]
    cases += [{"k": 30, "filter": {"category": {"not": "x"}, "price": {"gte": 5.5, "lt": 40}}}]
    cases += [{"k": 9, "filter": {"tags": "a"}, "exclude_seen": False}]

    async def use(app: App) -> None:
        for case in cases:
            for user, query in list(queries.items())[:12]:
                answer = await call(app, "POST", "/v1/retrieve", {"user_id": user, **case})
                (want,) = release.retrieve(
                    [query], case["k"], filter=case.get("filter"), exclude_seen=case.get("exclude_seen", True)
                )
                assert answer.status == 200, answer.body
                assert [item["item_id"] for item in answer.body["items"]] == want.item_ids
                np.testing.assert_allclose(
                    [item["score"] for item in answer.body["items"]], want.scores, rtol=1e-5, atol=1e-5
                )
                assert answer.body["host"] == milvus.address

    living(settings(promoted, stored, role="gateway", hosts=[milvus.address]), use)


def test_takedowns_additions_and_exclusions(
    promoted: Promoted, milvus: MilvusProcess, stored: Path, queries: dict[str, Query]
) -> None:
    version = promoted.versions[0]

    async def use(app: App) -> None:
        async def ask(**body: Any) -> list[Any]:
            answer = await call(app, "POST", "/v1/retrieve", {"k": 8, "exclude_seen": False, **body})
            assert answer.status == 200, answer.body
            assert answer.body["version"] == version
            return [item["item_id"] for item in answer.body["items"]]

        user = next(iter(queries))
        best = await ask(user_id=user)
        answer = await call(app, "POST", "/v1/admin/takedown", {"item_ids": best[:3]}, ADMIN)
        assert answer.body == {"changed": 3}
        after = await ask(user_id=user, k=11)
        assert after[:5] == best[3:8]
        assert len(after) == 11
        assert not {*after} & {*best[:3]}
        assert (await ask(user_id=user, exclude=after[:2], k=9)) == after[2:]
        vector = np.zeros(Retriever.load(promoted.store, version).manifest.dim)
        vector[0] = 100.0
        new = {"version": version, "items": [{"item_id": "new", "category": "q"}], "embeddings": [vector.tolist()]}
        assert (await call(app, "POST", "/v1/admin/items", new, ADMIN)).status == 200
        assert await ask(user_id=user, filter={"category": "q"}) == ["new"]
        within = await ask(user_id=user, k=12, filter={"category": ["x", "y"]}, quotas={"category": 2})
        assert len(within) == 4

        refused = await call(app, "POST", "/v1/retrieve", {"user_id": user, "filter": {"categori": "x"}})
        assert refused.status == 400
        assert "did you mean 'category'" in refused.body["error"]["message"]

    living(settings(promoted, stored, role="gateway", hosts=[milvus.address]), use)


def test_versions_never_mix_and_a_crash_loses_nothing(
    promoted: Promoted, milvus: MilvusProcess, stored: Path, queries: dict[str, Query]
) -> None:
    old, new = promoted.versions
    store = ReleaseStore(promoted.store)
    asked = list(queries.items())[:4]
    expected = {
        version: [answer.item_ids for answer in Retriever.load(store.root, version).retrieve([q for _, q in asked], 5)]
        for version in (old, new)
    }

    async def ask(app: App) -> set[str]:
        bodies = [{"user_id": user, "k": 5} for user, _ in asked]
        answers = await asyncio.gather(*(call(app, "POST", "/v1/retrieve", body) for body in bodies))
        assert {answer.status for answer in answers} == {200}, [answer.body for answer in answers]
        for number, answer in enumerate(answers):
            found = answer.body
            assert found["user_tower_version"] == found["index_version"] == found["version"]
            assert [item["item_id"] for item in found["items"]] == expected[found["version"]][number]
        return {answer.body["version"] for answer in answers}

    async def until(app: App, version: str) -> None:
        async with asyncio.timeout(60):
            while await ask(app) != {version}:
                await asyncio.sleep(0.01)

    async def use(app: App) -> None:
        for version in (new, old, new, old):
            store.set_alias("moving", version, why="test")
            await until(app, version)
        # A rollout treats such a gateway as a host and a gateway.
        for action in ("load", "serve"):
            assert (await call(app, "POST", f"/v1/admin/{action}", {"version": new}, ADMIN)).status == 200
        await until(app, new)
        assert (await call(app, "POST", "/v1/admin/serve", {"version": old}, ADMIN)).status == 200
        milvus.kill()
        down = await call(app, "POST", "/v1/retrieve", {"user_id": asked[0][0]})
        assert down.status == 503
        milvus.start()
        async with asyncio.timeout(60):
            while (await call(app, "GET", "/readyz")).status != 200:
                await asyncio.sleep(0.05)
        await until(app, old)
        # A collection that is dropped is a version that is not held.
        Milvus(milvus.address).drop(new)
        answer = await call(app, "POST", "/v1/search", {"version": new, "embeddings": [[0.0] * dim], "k": 1})
        assert answer.status == 409
        answer = await call(app, "POST", "/v1/retrieve", {"user_id": asked[0][0], "version": new})
        assert (answer.status, answer.body["loaded"]) == (409, [old])
        await until(app, old)

    dim = Retriever.load(store.root, old).manifest.dim
    store.set_alias("moving", old, why="test")
    living(settings(promoted, stored, role="gateway", hosts=[milvus.address], release="moving"), use)
    record = json.loads((store.root / new / "manifest.json").read_text())["index"]["collection"]
    assert record["recall"] >= 0.98
    # The release and its collection go together.
    assert (store.root / "collections" / old).read_text() == milvus.address + "\n"
    store.set_alias("moving", new, why="test")
    store.delete(old, force=True)
    assert not {old, new} & {*Milvus(milvus.address).versions()}


TEXTS = ["", "a", "q'\"\\x", "tab\tnl\n\r", "\x01\x7f", "é漢😀", "\\", "%_", "a\\n"]
WHOLE = [-(2**63), -(2**63) + 1, -5, 0, 1, 7, 2**63 - 1]
REAL = [0.1, -2.5, 1e-300, 1e22, float("inf"), float("nan"), 0.0]
DAYS = [datetime.date(1969, 12, 31), datetime.date(2024, 2, 29), datetime.date(2026, 1, 1)]


def table(rng: random.Random, num_rows: int) -> pa.Table:
    def some(values: list[Any], share: float = 0.2) -> list[Any]:
        return [None if rng.random() < share else rng.choice(values) for _ in range(num_rows)]

    def lists(values: list[Any]) -> list[Any]:
        return some([[], *([rng.choice([*values, None]) for _ in range(rng.randint(1, 3))] for _ in range(20))])

    times = [datetime.datetime(2024, 2, 29, 12, 0, second) for second in range(3)]
    columns = {
        "item_id": pa.array(range(100, 100 + num_rows)),
        "text": pa.array(some(TEXTS)),
        "a strange name é": pa.array(some(TEXTS, 0.0)).dictionary_encode(),
        "whole": pa.array(some(WHOLE), pa.int64()),
        "small": pa.array(some([1, 2, 3], 0.0), pa.int8()),
        "real": pa.array(some(REAL), pa.float64()),
        "single": pa.array(some([0.1, 0.5, -3.0]), pa.float32()),
        "flag": pa.array(some([True, False])),
        "day": pa.array(some(DAYS)),
        "time": pa.array(some(times), pa.timestamp("ms")),
        "words": pa.array(lists(TEXTS), pa.list_(pa.string())),
        "numbers": pa.array(lists(WHOLE), pa.list_(pa.int64())),
    }
    return pa.table(columns)


def some_filter(rng: random.Random) -> dict[str, Any]:
    of: dict[str, list[Any]] = {
        "item_id": [100, 105, 7], "text": TEXTS, "a strange name é": TEXTS, "whole": WHOLE, "small": [0, 1, 3],
        "real": [one for one in REAL if np.isfinite(one)], "single": [0.1, 0.5, -3.0], "flag": [True, False],
        "day": ["2024-02-29", "2025-01-01"], "time": ["2024-02-29T12:00:01", "2024-03-01"], "words": TEXTS,
        "numbers": WHOLE,
    }  # fmt: skip

    def condition(name: str) -> Any:
        values = of[name]
        several = rng.choices(values, k=rng.randint(0 if isinstance(values[0], str) else 1, 3))
        kind = rng.choice(["value", "values", "not", "bounds"])
        if kind == "bounds" and name not in ("text", "a strange name é", "flag", "words"):
            halves = [0.5, 1.5, -5.5] if name in ("whole", "small", "numbers") else []
            bounds = rng.sample(["gt", "gte", "lt", "lte"], rng.randint(1, 2))
            return {bound: rng.choice([*values, *halves]) for bound in bounds}
        return rng.choice(values) if kind == "value" else several if kind == "values" else {"not": several}

    return {name: condition(name) for name in rng.sample(sorted(of), rng.randint(1, 3))}


def test_filters_select_the_rows_that_a_host_selects(milvus: MilvusProcess) -> None:
    rng = random.Random(0)
    items, version = table(rng, 120), "f" * 16
    embeddings = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    database = Milvus(milvus.address)
    database.fill(version, items, embeddings)
    masks, of_schema = ItemFilter(items), ItemFilter(items.slice(0, 0))
    query = np.ones((1, 4), np.float32)
    for _ in range(int(os.environ.get("RECSYS_TEST_FILTERS", 60))):
        wanted = some_filter(rng)
        allowed = masks(wanted)
        assert allowed is not None
        conditions = of_schema.conditions(wanted)
        most = database.max_breadth(120)
        _, rows = database.search(version, query, 120, breadth=most, conditions=conditions)
        assert sorted(rows[rows >= 0].tolist()) == allowed.rows.tolist(), wanted
        assert database.count(version, conditions) == allowed.num_allowed
    assert database.columns(version) != []
    database.drop(version)
    assert version not in database.versions()
