"""Generators of a study: runs and releases as they are, heuristics with the settings that are best on validation."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from omegaconf import DictConfig, OmegaConf, open_dict

from recsys.baselines.interactions import Generator, Interactions, Until
from recsys.baselines.popularity import Popularity
from recsys.baselines.request_batches import request_batches
from recsys.baselines.tuning import Settings, axes_of, describe, search
from recsys.core.errors import UserError, nearest
from recsys.core.instantiate import class_of
from recsys.core.progress import say
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.relevance import seen_items
from recsys.experiments.assembly import instantiate, open_data
from recsys.experiments.trained_run import load_run
from recsys.publishing.batch_recommend import Recommender
from recsys.publishing.recommenders import ReleaseRecommender, RunRecommender
from recsys.release.files import read_config
from recsys.release.runtime.retriever import Retriever
from recsys.reports.generators.lists import Lister, answerable, collect

log = logging.getLogger("recsys")

# Number of requests that a recommender ranks at once.
_BATCH = 1024
_TWO_TOWER = "A learned two-tower model: items whose embeddings are nearest to the user's."


@dataclass(frozen=True)
class StudiedGenerator:
    """A generator of a study.

    Attributes:
        name: name in the report.
        is_learned: whether it is a model.
        method: its method, in a sentence.
        detail: its settings, or the origin of the model.
        knows_validation: whether it has learned from the validation part, which then cannot be used for choices.
        open: function that returns its lister, fitted up to the named part (models are fitted already).
        among_new: its lister of new items alone; None if it has none.
    """

    name: str
    is_learned: bool
    method: str
    detail: str
    knows_validation: bool
    open: Callable[[Until], Lister]
    among_new: Lister | None = None


class Heuristic:
    """Lister of a fitted heuristic, without the popular items that fill up its lists."""

    def __init__(self, generator: Generator, dataset: PreparedDataset, *, exclude_seen: bool) -> None:
        self._generator, self._dataset, self._exclude_seen = generator, dataset, exclude_seen

    def __call__(self, requests: Requests, k: int) -> npt.NDArray[np.int64]:
        """Return candidates; see `Lister`."""
        found = [np.zeros((0, k), np.int64)]
        for batch, chosen in request_batches(self._dataset, requests):
            exclude = seen_items(self._dataset, chosen) if self._exclude_seen else None
            found.append(self._generator.rank(batch, chosen, k=k, exclude=exclude)[1].numpy())
        return np.concatenate(found)


class Learned:
    """Lister of a run or a release."""

    def __init__(self, recommender: Recommender, dataset: PreparedDataset, *, exclude_seen: bool) -> None:
        self._recommender, self._exclude_seen = recommender, exclude_seen
        places = pc.index_in(recommender.item_ids, value_set=dataset.item_ids).fill_null(-1)
        # Items that the data set does not have cannot be hits, but they occupy positions in the list.
        self._item_idx = np.append(np.array(places, np.int64) + 1, 0)
        unknown = np.flatnonzero(self._item_idx[:-1] == 0)
        self._item_idx[unknown] = dataset.num_items + 1 + np.arange(len(unknown))

    def __call__(self, requests: Requests, k: int) -> npt.NDArray[np.int64]:
        """Return candidates; see `Lister`."""
        found = [np.zeros((0, k), np.int64)]
        for begin in range(0, len(requests.user_idx), _BATCH):
            some = Requests(*(column[begin : begin + _BATCH] for column in requests))
            found.append(
                self._item_idx[self._recommender.rank(some, k, exclude_seen=self._exclude_seen, request_features={})[1]]
            )
        return np.concatenate(found)


def no_new_items(requests: Requests, k: int) -> npt.NDArray[np.int64]:
    """Return empty lists. The corpus of a heuristic is the items with events, so it has no list of new items."""
    return np.zeros((len(requests.user_idx), k), np.int64)


def popular(dataset: PreparedDataset, until: Until, *, exclude_seen: bool) -> Lister:
    """Return the lister of popular items, for users without any other candidates."""
    generator = Popularity()
    generator.fit(Interactions(dataset, until))
    return Heuristic(generator, dataset, exclude_seen=exclude_seen)


def open_generators(config: DictConfig, dataset: PreparedDataset) -> tuple[list[StudiedGenerator], dict[str, str]]:
    """Open all generators of a configuration. Also return the reasons for those that are left out.

    Raises:
        UserError: If a run, release or generator cannot be used, or two have the same name.
    """
    sources = [_run(str(path), config, dataset=dataset) for path in config.runs]
    sources += [_release(str(name), config, dataset=dataset) for name in config.releases]
    known: Any = OmegaConf.to_container(config.generator, resolve=True)
    for name in config.generators:
        if name not in known:
            raise UserError(f"generators: no generator '{name}'{nearest(str(name), known)}")
    missing = {}
    for name in config.generators:
        try:
            sources.append(_heuristic(name, config, dataset=dataset))
        except UserError as error:
            missing[name] = str(error)
            say(f"{name}: left out: {error}")
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"generators: more than one is called '{twice[0]}'; expected different names")
    if len(sources) < 2:
        raise UserError(f"found {len(sources)} generator, expected at least two to compare")
    return sources, missing


def _heuristic(name: str, config: DictConfig, *, dataset: PreparedDataset) -> StudiedGenerator:
    grids: Any = OmegaConf.to_container(config.grids)
    node = config.generator[name]
    axes = axes_of(name, grids.get(name) or {}, start=OmegaConf.to_container(node, resolve=True), time=config.data.time)  # type: ignore[arg-type]
    requests = answerable(
        dataset, "val", exclude_seen=config.exclude_seen, max_users=config.choosing_users, seed=config.seed
    )
    tried: dict[str, npt.NDArray[np.int32]] = {}

    def fitted(settings: Settings, until: Until) -> Lister:
        generator: Generator = instantiate(node, **settings)
        generator.fit(Interactions(dataset, until, fill=False))
        return Heuristic(generator, dataset, exclude_seen=config.exclude_seen)

    def score(settings: Settings) -> float:
        lister = fitted(settings, "train")
        lists = collect(
            {name: lister},
            lister,
            dataset=dataset,
            part="val",
            requests=requests,
            k=config.k,
            exclude_seen=config.exclude_seen,
        )
        recall = float((lists.hits[:, 0].sum(1) / lists.num_relevant).mean())
        say(f"{name} {describe(settings)}: val/recall@{config.k} {recall:.4f}")
        tried[describe(settings)] = lists.items[:, 0]
        return recall

    settings = search({axis.name: node[axis.name] for axis in axes}, axes, score=score)

    def opened(until: Until) -> Lister:
        # Lists are cached instead of models, so that only one model is in memory at a time.
        return (lambda *_: tried[describe(settings)].astype(np.int64)) if until == "train" else fitted(settings, until)

    module = inspect.getmodule(class_of(node))
    what = (inspect.getdoc(module) or "").split("\n")[0].replace("`", "")
    return StudiedGenerator(name.replace("_", " "), False, what, describe(settings), False, opened, no_new_items)


def _run(path: str, config: DictConfig, *, dataset: PreparedDataset) -> StudiedGenerator:
    run = load_run(path)
    _check_same(f"run {path}", run.dataset, expected=dataset)
    lister = Learned(RunRecommender(run), dataset, exclude_seen=config.exclude_seen)
    new, among = run.corpus[run.corpus > dataset.meta.num_seen], None
    if len(new):
        recommender = RunRecommender(dataclasses.replace(run, corpus=new))
        among = Learned(recommender, dataset, exclude_seen=config.exclude_seen)
    refit = bool(run.config.refit)
    return StudiedGenerator(Path(path).name, True, _TWO_TOWER, f"run {path}", refit, lambda _: lister, among)


def _release(name: str, config: DictConfig, *, dataset: PreparedDataset) -> StudiedGenerator:
    retriever = Retriever.load(config.store, name)
    stored = read_config(retriever.folder, retriever.manifest)
    own = open_data(_with_features_of(stored, config))
    _check_same(f"release {name}", own, expected=dataset)
    is_other = retriever.manifest.dataset_fingerprint != own.meta.fingerprint
    if is_other:
        log.warning(
            "release %s was made from other data (%s): if that contains events of this test part, its figures are too "
            "good", name, retriever.manifest.dataset_fingerprint,
        )  # fmt: skip
    lister = Learned(ReleaseRecommender(retriever, own), dataset, exclude_seen=config.exclude_seen)
    detail = f"release {retriever.version}" + (", made from other data" if is_other else "")
    places = pc.index_in(retriever.items["item_id"], value_set=dataset.item_ids.slice(0, dataset.meta.num_seen))
    among, is_new = None, np.asarray(places.is_null())
    if is_new.any():
        among = Learned(ReleaseRecommender(retriever, own, allow=is_new), dataset, exclude_seen=config.exclude_seen)
    return StudiedGenerator(name, True, _TWO_TOWER, detail, is_other or bool(stored.refit), lambda _: lister, among)


def _with_features_of(stored: DictConfig, config: DictConfig) -> DictConfig:
    """Return the data and split of the report, with the features of a release."""
    changed = config.copy()
    with open_dict(changed):
        changed.data.features = stored.data.features
    return changed


def _check_same(who: str, found: PreparedDataset, *, expected: PreparedDataset) -> None:
    """Refuse data with other events, users, items or cuts."""
    same: Mapping[str, bool] = {
        "events": np.array_equal(found.offsets, expected.offsets) and np.array_equal(found.item_idx, expected.item_idx),
        "split": np.array_equal(found.val_end, expected.val_end),
        "users": found.user_ids.equals(expected.user_ids),
        "items": found.item_ids.equals(expected.item_ids),
    }
    if other := [what for what, is_same in same.items() if not is_same]:
        raise UserError(
            f"{who}: its data has other {', '.join(other)} than the report's; expected the same data and split "
            "(a release can be asked about other data: releases=[...])"
        )
