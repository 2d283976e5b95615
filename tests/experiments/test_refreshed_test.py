"""Daily refreshed indexes: each event against a model whose biases are set for its day."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from handmade import DAY, handmade
from omegaconf import DictConfig
from worlds import compose

from recsys.core.errors import UserError
from recsys.core.index_time import IndexTime
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.targets import TargetSampling
from recsys.data.dataset import NO_BIRTH, PreparedDataset, Requests
from recsys.evaluation.ranking import RequestCounter, encode_corpus
from recsys.experiments.assembly import build_towers, corpus_of, open_data
from recsys.experiments.refreshed_test import born_before, check_refresh, index_builds, refreshed_metrics
from recsys.experiments.risen_items import ascribed_shares, risen_items
from recsys.models.blend import Blend, Member, Model, write_bias
from recsys.models.two_tower import TwoTower
from recsys.training.frequency import RisenItems, prior_shift

SMALL = ["num_users=60", "num_items=80", "num_events=900", "num_categories=2", "topics_per_category=2", "days=60"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    cache = tmp_path_factory.mktemp("cache")
    settings = [f"data.{setting}" for setting in SMALL]
    towers = ["model.dim=8", "user_tower=mean", "model.priors.age=true", "model.priors.recency=true"]
    return compose("train", [*settings, *towers, f"data.cache={cache}", "evaluation.refresh_days=1"])


@pytest.fixture(scope="module")
def dataset(config: DictConfig) -> PreparedDataset:
    dataset = open_data(config)
    assert dataset.born is not None
    born = dataset.born.copy()
    born[20:25] = dataset.time.max() - DAY
    return dataclasses.replace(dataset, born=born)


def towers(config: DictConfig, dataset: PreparedDataset) -> TwoTower:
    model = build_towers(config, dataset).eval()
    assert model.priors is not None
    with torch.no_grad():
        for parameter in model.priors.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    return model


def test_each_event_meets_the_index_of_its_day(config: DictConfig, dataset: PreparedDataset) -> None:
    model, builder = towers(config, dataset), BatchBuilder(dataset, 50)
    before = model.item_bias
    found = refreshed_metrics(config, dataset, model=model, builder=builder)
    assert model.item_bias is before

    assert dataset.born is not None
    begin = int(dataset.time[dataset.val_end[dataset.offsets[1:] > dataset.val_end]].min())
    hits: list[bool] = []
    corpora = set()
    for user in range(dataset.num_users):
        for end in range(dataset.val_end[user], dataset.offsets[user + 1]):
            item, seen = dataset.item_idx[end], dataset.item_idx[dataset.offsets[user] : end]
            if item in seen:
                continue
            now = begin + (int(dataset.time[end]) - begin) // DAY * DAY
            model.set_item_bias(dataset, IndexTime(now, 1.0))
            corpus = [i for i in corpus_of(model, dataset) if dataset.born[i] < now + DAY and i not in seen]
            corpora.add(len(corpus) + len({*seen.tolist()}))
            with torch.inference_mode():
                query = model.encode_users(builder.requests(Requests(np.array([user]), np.array([end]))))
                scores = query @ model.encode_items(torch.tensor(corpus)).T
            hits.append(bool(item in np.array(corpus)[scores[0].topk(10).indices]))
    assert len(hits) > 40
    assert len(corpora) > 1
    assert found["test_refreshed/recall@10"] == pytest.approx(np.mean(hits))
    assert found["test_refreshed/num_users"] == len(hits)


@pytest.mark.parametrize("in_blend", [False, True])
def test_the_shift_to_popularity_is_that_of_each_day(
    config: DictConfig, dataset: PreparedDataset, in_blend: bool
) -> None:
    changed = config.copy()
    changed.model.priors.age = changed.model.priors.recency = False
    plain = changed.copy()
    changed.model.prior_shift = {"weight": 1.0, "half_life_days": 2.0, "power": 1.0}
    changed.model.new_items_scale = 1.6
    model: Model = build_towers(changed, dataset).eval()
    if in_blend:
        # The shift belongs to the blend, and its member has none.
        blend, bias = changed.copy(), model.item_bias
        blend.members = {"one": {"config": plain, "weight": 1.0}}
        member = Member(build_towers(plain, dataset).eval(), 1.0, None)
        model, changed = Blend([member], bias, new_items_scale=1.6), blend
    before = model.item_bias
    assert before is not None
    met = []

    def counted(_: RequestCounter, __: torch.Tensor, requests: Requests) -> None:
        assert model.item_bias is not None
        met.append((int(dataset.time[requests.end].min()), model.item_bias.clone()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RequestCounter, "count", counted)
        refreshed_metrics(changed, dataset, model=model, builder=BatchBuilder(dataset, 50))
    assert model.item_bias is before
    begin = met[0][0]
    assert len(met) > 3
    for moment, bias in met:
        now = begin + (moment - begin) // DAY * DAY
        end = [
            int(dataset.offsets[u] + (dataset.time[dataset.offsets[u] : dataset.offsets[u + 1]] < now).sum())
            for u in range(dataset.num_users)
        ]
        recent = dataclasses.replace(dataset, train_end=np.array(end))
        items = risen_items(dataset, recent, target_sampling=TargetSampling())
        risen = RisenItems(items, ascribed_shares(model, dataset, items, config=changed))
        expected = prior_shift(dataset, 2.0, recent=recent, risen=risen).float()
        # What is added to the logit of a new item is not multiplied by its scale.
        expected[items] /= 1.6
        torch.testing.assert_close(bias, expected)
    assert not torch.equal(met[0][1], met[-1][1])


def test_biases_are_written_as_items_are_encoded(config: DictConfig, dataset: PreparedDataset) -> None:
    one, other = towers(config, dataset), towers(config, dataset)
    plain = TwoTower(one.user_tower, one.item_tower, item_bias=torch.zeros(dataset.num_items + 1))
    shift = torch.randn(dataset.num_items + 1)
    members = [Member(one, 0.25, None), Member(other, 0.75, None)]
    items = torch.arange(1, dataset.meta.num_known + 1)
    scaled = towers(config, dataset)
    scaled.new_items_scale = 1.5
    blend = Blend([Member(scaled, 0.25, None), members[1]], shift, new_items_scale=0.7)
    for model in (one, plain, scaled, Blend(members), Blend(members, shift), blend):
        assert model.num_trained == dataset.num_trained or model is plain
        embeddings = encode_corpus(model, items)
        model.set_item_bias(dataset, IndexTime(int(dataset.time.max()), 3.0))
        assert not torch.equal(embeddings, encode_corpus(model, items))
        write_bias(model, embeddings, item_idx=items)
        torch.testing.assert_close(embeddings, encode_corpus(model, items))
        model.set_item_bias(dataset, IndexTime(int(dataset.time.min()), 3.0))


def test_builds_every_few_days() -> None:
    data = handmade([([1], [], [1, 2, 3]), ([2], [], [1]), ([3], [], [])])
    data = dataclasses.replace(data, time=np.array([0, 2 * DAY, 3 * DAY + 5, 9 * DAY, 0, 4 * DAY - 1, 0]))
    found = [(build, *(column.tolist() for column in requests)) for build, requests in index_builds(data, 1)]
    assert found == [
        (IndexTime(2 * DAY, 1.0), [0], [1]),
        (IndexTime(3 * DAY, 1.0), [0, 1], [2, 5]),
        (IndexTime(9 * DAY, 1.0), [0], [3]),
    ]
    assert [build.now for build, _ in index_builds(data, 2)] == [2 * DAY, 8 * DAY]
    assert not list(index_builds(handmade([([1], [], [])]), 1))
    assert born_before(data, 0).all()
    born = np.array([NO_BIRTH, 5, 6, NO_BIRTH])
    assert born_before(dataclasses.replace(data, born=born), 6).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("days", "time", "message"),
    [
        (0, "seconds", "refresh_days: found 0, expected a whole number from 1, or null"),
        (True, "seconds", "found True, expected a whole number"),
        (1.5, "day", "found 1.5, expected a whole number"),
        (1, "order", "refresh_days=1: data.time=order has no days; expected seconds or day"),
    ],
)
def test_refused_before_training(config: DictConfig, days: float, time: str, message: str) -> None:
    changed = config.copy()
    changed.evaluation.refresh_days = days
    with pytest.raises(UserError, match=message):
        check_refresh(changed, handmade([([1], [], [1])], time))
    changed.evaluation.refresh_days = None
    check_refresh(changed, handmade([([1], [], [1])], time))
