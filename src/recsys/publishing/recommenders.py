"""Rankers of batch retrieval: a run (trained towers, exact search) or a release (exported tower, index)."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import torch
from omegaconf import DictConfig

from recsys.core.columns import Column, Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.data.batches.builder import BatchBuilder
from recsys.data.dataset import PreparedDataset, Requests
from recsys.data.encoding import FeatureEncoder
from recsys.data.preparation.from_config import with_root
from recsys.evaluation.ranking import ModelRanker
from recsys.evaluation.relevance import seen_items
from recsys.experiments.assembly import open_data
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.index import Index, search_users
from recsys.index.topk import Mask
from recsys.publishing.batch_recommend import Recommender, Rows
from recsys.publishing.id_translation import Translation
from recsys.publishing.release_writer import to_histories
from recsys.publishing.towers import Towers, prepare_for
from recsys.release.bounds import damaged
from recsys.release.files import read_config
from recsys.release.manifest import CONFIG, describe_file
from recsys.release.runtime.retriever import Retriever
from recsys.release.runtime.user_tower import Histories


class RunRecommender:
    """Ranks with the towers of a run and exact search over its corpus.

    Args:
        run: finished run.
    """

    def __init__(self, run: TrainedRun) -> None:
        weights = describe_file(run.path / "checkpoints/best.ckpt").sha256
        self.identity = f"run {weights} {describe_file(run.path / 'config.yaml').sha256} {run.dataset.meta.fingerprint}"
        self.dataset, self.item_ids = run.dataset, run.dataset.item_ids
        self.data = run.config.data
        self._model, self._builder = run.model, run.builder
        self._ranker = ModelRanker(run.model, run.corpus)
        self._encoders = {
            f.name: FeatureEncoder(f, run.dataset.vocabulary(f)) for f in run.dataset.schema.with_role("request")
        }

    def rank(
        self, requests: Requests, k: int, *, exclude_seen: bool, request_features: Mapping[str, pa.Array]
    ) -> tuple[Float32Array, Rows]:
        """Return scores and rows of `item_ids`; see `Recommender.rank`."""
        columns = {name: self._encoders[name].encode(values) for name, values in request_features.items()}
        batch = self._builder.requests(requests, columns)
        exclude = seen_items(self.dataset, requests) if exclude_seen else None
        scores, item_idx = self._ranker.rank(batch, requests, k=k, exclude=exclude)
        return scores.numpy(), item_idx.numpy() - 1

    def embed(self, requests: Requests, request_features: Mapping[str, pa.Array]) -> Float32Array:
        """Return user embeddings float32 [R, D], or [R, M, D] of towers that give several."""
        columns = {name: self._encoders[name].encode(values) for name, values in request_features.items()}
        with torch.inference_mode():
            users: Float32Array = self._model.encode_users(self._builder.requests(requests, columns)).numpy()
        return users


class ReleaseRecommender:
    """Ranks with the exported tower and the index of a release.

    Args:
        retriever: opened release.
        dataset: histories and profiles; ids and codes are translated if it is not the data set of the release.
        data: configuration of the data, for the names of columns in a file of users.
        index: index of the same items that is searched instead of that of the release.
        allow: rows of the index that may be returned, a mask bool [N]; None for all.
    """

    def __init__(
        self,
        retriever: Retriever,
        dataset: PreparedDataset,
        *,
        data: DictConfig | None = None,
        index: Index | None = None,
        allow: Mask | None = None,
    ) -> None:
        self.identity = f"release {retriever.version} {dataset.meta.fingerprint}"
        self.dataset, self.item_ids = dataset, retriever.items["item_id"].combine_chunks()
        self.data, self._allow = data, allow
        self._retriever, self._index = retriever, index or retriever.index
        self._builder = BatchBuilder(dataset, retriever.manifest.max_history)
        self._num_items = len(retriever.known_items)
        self._translation = None
        if dataset.meta.fingerprint != retriever.manifest.dataset_fingerprint:
            self._translation = Translation(dataset, retriever)

    def rank(
        self, requests: Requests, k: int, *, exclude_seen: bool, request_features: Mapping[str, pa.Array]
    ) -> tuple[Float32Array, Rows]:
        """Return scores and rows of `item_ids`; see `Recommender.rank`."""
        histories, seen = self._read(requests)
        exclude = self._retriever.item_search.index_rows(seen) if exclude_seen else None
        users = self._embed(histories, request_features)
        return search_users(self._index, users, k=k, allow=self._allow, exclude=exclude)

    def embed(self, requests: Requests, request_features: Mapping[str, pa.Array]) -> Float32Array:
        """Return user embeddings float32 [R, D], or [R, M, D] of towers that give several."""
        return self._embed(self._read(requests)[0], request_features)

    def _embed(self, histories: Histories, request_features: Mapping[str, pa.Array]) -> Float32Array:
        encoders = self._retriever.query_encoder.request_encoders
        columns: dict[str, Column] = {n: encoders[n].encode(v) for n, v in request_features.items() if n in encoders}
        return self._retriever.tower(histories.with_requests(columns))

    def histories(self, requests: Requests) -> Histories:
        """Return the requests as the exported tower reads them."""
        return self._read(requests)[0]

    def _read(self, requests: Requests) -> tuple[Histories, Ragged]:
        """Return the histories, and the items of the whole histories, in the codes of the release."""
        histories = to_histories(self._builder.requests(requests), self._num_items)
        seen = seen_items(self.dataset, requests)
        if self._translation is None:
            return histories, seen
        return self._translation.histories(histories), self._translation.items(seen)


def open_recommender(run: str | None, release: str | None, *, store: str, root: str | None) -> Recommender:
    """Return the recommender of a run or a release.

    Args:
        run: folder of a run; its histories are those that it was trained on.
        release: version or alias of a release; its histories are those of its own data, or of the folder `root`.
        store: folder of releases.
        root: folder of Parquet files; None for the data of the release.

    Raises:
        UserError: If not exactly one of run and release is given, or it cannot be opened.
    """
    if (run is None) == (release is None):
        raise UserError("expected one of run=RUN (a run folder) and release=VERSION|ALIAS")
    if release is not None:
        return _open_release(store, release, root)
    if root is not None:
        raise UserError("data.root: valid only with release=; a run ranks from the data that it was trained on")
    assert run is not None
    return RunRecommender(load_run(run))


def _open_release(store: str, name: str, root: str | None) -> ReleaseRecommender:
    return with_data(Retriever.load(store, name), root)


def with_data(retriever: Retriever, root: str | None) -> ReleaseRecommender:
    """Give a release the histories and profiles of a data set.

    Args:
        retriever: opened release.
        root: folder of Parquet files; None for the data that the release was trained on.

    Raises:
        UserError: If the data does not fit the release.
    """
    with damaged(retriever.folder / CONFIG):
        config = read_config(retriever.folder, retriever.manifest)
        if root is not None:
            config = with_root(config, root)
        if root is None and retriever.manifest.refreshed:
            codes = Towers.of_release(retriever.folder, retriever.manifest).codes
            known = retriever.manifest.refreshed["known"]
            dataset = prepare_for(config, codes.first(known["items"], known["users"]))
        else:
            dataset = open_data(config)
    expected = retriever.manifest.dataset_fingerprint
    if root is None and dataset.meta.fingerprint != expected:
        raise UserError(
            f"release {retriever.version}: was made from data {expected}, but its source now gives "
            f"{dataset.meta.fingerprint}; data.root= names the data to use"
        )
    return ReleaseRecommender(retriever, dataset, data=config.data)
