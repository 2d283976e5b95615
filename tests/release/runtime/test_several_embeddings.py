"""A user tower that gives several embeddings: evaluation, recommendations of the run, its release and serving agree."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from asking import call, living, settings
from worlds import write_run, write_world

from recsys.core.errors import UserError
from recsys.data.batches.loaders import RequestLoader
from recsys.data.dataset import Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker, evaluate
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.index import Exact, IVFFlat
from recsys.index.merging import take_turns
from recsys.publishing.batch_recommend import choose_users, write_recommendations
from recsys.publishing.promote import promote
from recsys.publishing.recommenders import open_recommender
from recsys.release.manifest import Manifest
from recsys.release.runtime.retriever import Query, Retriever
from recsys.release.store import ReleaseStore
from recsys.release.verification import verify_release
from recsys.serving.http.app import App

M, D = 4, 16


@dataclass(frozen=True)
class Several:
    path: Path
    run: TrainedRun
    store: Path
    version: str

    @property
    def folder(self) -> Path:
        return self.store / self.version


@pytest.fixture(scope="module", params=["cosine", "dot with a bias"])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Several:
    base = tmp_path_factory.mktemp("several")
    root = write_world(base / "data")
    more = [] if request.param == "cosine" else ["model.similarity=dot", "model.prior_shift.weight=0.5"]
    path = write_run(base / "run", root, "user_tower=interests", "history.max_events=20", *more)
    run = load_run(path)
    store = ReleaseStore(base / "store")
    return Several(path, run, store.root, promote(run, Exact(), store=store, model="test", recall_target=1.0).version)


def rows_of(recommender_of: tuple[str | None, str | None], store: Path, users: str, out: Path) -> list[dict]:
    recommender = open_recommender(*recommender_of, store=str(store), root=None)
    write_recommendations(recommender, choose_users(users, recommender.dataset), k=20, exclude_seen=True, out=out)
    return pq.read_table(out).to_pylist()


@pytest.mark.parametrize("users", ["test", "all"])
def test_run_and_release_recommend_alike(several: Several, users: str, tmp_path: Path) -> None:
    by_run = rows_of((str(several.path), None), several.store, users, tmp_path / "run.parquet")
    by_release = rows_of((None, several.version), several.store, users, tmp_path / "release.parquet")
    assert [row["user_id"] for row in by_run] == [row["user_id"] for row in by_release]
    assert [row["item_ids"] for row in by_run] == [row["item_ids"] for row in by_release]
    for one, other in zip(by_run, by_release, strict=True):
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)
    # Interests take turns, so scores are not in order.
    assert any(np.diff(row["scores"]).max() > 0 for row in by_run)


def test_evaluation_measures_what_is_recommended(several: Several, tmp_path: Path) -> None:
    dataset, run = several.run.dataset, several.run
    metrics = RetrievalMetrics(dataset, len(run.corpus), cutoffs=(5, 20))
    requests = RequestLoader(run.builder, dataset.requests("test"))
    values = evaluate(ModelRanker(run.model, run.corpus), dataset, part="test", batches=requests, metrics=metrics)
    shown = {
        row["user_id"]: row["item_ids"]
        for row in rows_of((str(several.path), None), several.store, "test", tmp_path / "out.parquet")
    }
    recalls = []
    for user, user_id in enumerate(dataset.user_ids.to_pylist()):
        parts = np.split(
            dataset.item_ids.take(
                pa.array(dataset.item_idx[dataset.offsets[user] : dataset.offsets[user + 1]] - 1)
            ).to_numpy(zero_copy_only=False),
            [dataset.val_end[user] - dataset.offsets[user]],
        )
        if relevant := set(parts[1]) - set(parts[0]):
            recalls.append([len(relevant & set(shown[user_id][:k])) / len(relevant) for k in (5, 20)])
    assert len(recalls) > 20
    assert [values["recall@5"], values["recall@20"]] == pytest.approx(np.mean(recalls, axis=0).tolist())
    assert values["recall@20"] > 0


def test_several_embeddings_take_turns_in_an_answer(several: Several) -> None:
    retriever = Retriever.load(several.store, several.version)
    ids = retriever.items["item_id"].to_pylist()
    rng = np.random.default_rng(0)
    queries = [Query([{"item_id": ids[row]} for row in rng.permutation(len(ids))[:n]]) for n in (0, 3, 6, 12, 30)]
    users, items = retriever.embed(queries), np.load(several.folder / "item_embeddings.npy")
    assert users.shape == (5, M, retriever.manifest.dim)
    # Longer histories have more interests; the tower reads the last 20 events. Absent ones are zeros.
    assert users.any(axis=2).sum(axis=1).tolist() == [1, 1, 2, 3, 4]
    for query, user, answer in zip(queries, users, retriever.retrieve(queries, k=9), strict=True):
        scores = user[user.any(axis=1)] @ items.T
        scores[:, [ids.index(event["item_id"]) for event in query.history]] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[None, :, :9]
        expected_scores, rows = take_turns(np.take_along_axis(scores[None], order, 2), order, k=9)
        assert answer.item_ids == [ids[row] for row in rows[0]]
        np.testing.assert_allclose(answer.scores, expected_scores[0], atol=1e-5)
    excluding = Query(queries[3].history, exclude=retriever.retrieve([queries[3]], k=9)[0].item_ids[:2])
    assert not set(excluding.exclude) & set(retriever.retrieve([excluding], k=9)[0].item_ids)
    assert retriever.retrieve([]) == []


def test_over_http_as_in_the_process(several: Several, tmp_path: Path) -> None:
    retriever = Retriever.load(several.store, several.version)
    ids = retriever.items["item_id"].to_pylist()
    rng = np.random.default_rng(1)
    histories = [[{"item_id": ids[row]} for row in rng.permutation(len(ids))[:n]] for n in (0, 5, 30)]
    wanted = settings(several, tmp_path / "events.sqlite", release=several.version)

    async def use(app: App) -> None:
        answer = await call(app, "POST", "/v1/retrieve", [{"history": history, "k": 9} for history in histories])
        assert answer.status == 200
        for body, hits in zip(answer.body, retriever.retrieve(list(map(Query, histories)), k=9), strict=True):
            assert body["version"] == several.version
            assert [item["item_id"] for item in body["items"]] == hits.item_ids
            np.testing.assert_allclose([item["score"] for item in body["items"]], hits.scores, atol=1e-5)

    living(wanted, use)


def test_the_release_says_how_many(several: Several, tmp_path: Path) -> None:
    manifest = verify_release(several.folder)
    assert (manifest.num_embeddings, manifest.num_items) == (M, len(several.run.corpus))
    assert manifest.output.shape == ("B", M, manifest.dim)
    copy = tmp_path / several.version
    shutil.copytree(several.folder, copy)
    content = json.loads((copy / "manifest.json").read_text())
    for changes, message in (
        ({"num_embeddings": 1}, "gives \\['B', 4, "),
        ({"num_items": 3}, "item_embeddings.npy: found float32"),
    ):
        (copy / "manifest.json").write_text(json.dumps(content | changes))
        with pytest.raises(UserError, match=message):
            verify_release(copy)


def test_an_approximate_index_is_tuned_with_single_embeddings(several: Several, tmp_path: Path) -> None:
    promotion = promote(several.run, IVFFlat(), store=ReleaseStore(tmp_path), model="test", recall_target=1.0)
    tuning = promotion.tuning
    requests = several.run.dataset.requests("val")
    with torch.inference_mode():
        users = several.run.model.encode_users(several.run.builder.requests(requests)).numpy()
    # Half of the embeddings that there are tune the index, the other half check it.
    assert tuning.num_queries == -(-int(users.any(axis=2).sum()) // 2) > len(requests.user_idx) // 2
    assert promotion.recall == 1.0
    Retriever.load(tmp_path, promotion.version)


def test_users_without_history_have_one_embedding(several: Several) -> None:
    run = several.run
    with torch.inference_mode():
        users = run.model.encode_users(run.builder.requests(Requests(np.array([-1]), np.array([0]))))
    assert users.any(2).tolist() == [[True, False, False, False]]


def test_an_early_manifest_has_one_embedding_per_user(several: Several) -> None:
    content = json.loads((several.folder / "manifest.json").read_text())
    earlier = content | {"num_embeddings": content["num_items"]}
    del earlier["num_items"]
    manifest = Manifest.from_json(earlier)
    assert (manifest.num_items, manifest.num_embeddings) == (content["num_items"], 1)
