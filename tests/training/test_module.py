"""One training step: what it compares, what it draws, what it clips."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batch_checks import own_items
from handmade import training_only
from omegaconf import DictConfig
from torch import nn
from worlds import FEATURES, compose, write_world

from recsys.core.errors import UserError
from recsys.data.batches import builder
from recsys.data.batches.batch import Batch, RaggedTensor, Windows
from recsys.data.batches.builder import BatchBuilder
from recsys.experiments.assembly import build_data, build_module, build_towers, corpus_of, open_data
from recsys.training.candidates import describe_candidates
from recsys.training.frequency import CountMinFrequency, ExactFrequency, target_probabilities
from recsys.training.losses import FullSoftmax, SampledCandidates, SampledSoftmax
from recsys.training.module import RetrievalModule
from recsys.training.negatives import InBatchNegatives, MixedNegatives, SamplerInputs
from recsys.training.optimizers import AdamW


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "data")


def settings(world: Path, *overrides: str) -> DictConfig:
    return compose(
        "train",
        [
            "data=parquet",
            f"data.root={world}",
            f"data.cache={world.parent}/cache",
            "split=leave_last_out",
            "model.dim=8",
            "history.max_events=6",
            "batch_size=16",
            "logger=csv",
            *FEATURES,
            *overrides,
        ],
    )


def build(config: DictConfig) -> RetrievalModule:
    dataset = open_data(config)
    module = build_module(config, dataset, model=build_towers(config, dataset))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module


def still(module: RetrievalModule) -> RetrievalModule:
    """No dropout, nothing hidden."""
    return module.eval()


def for_targets(users: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of several embeddings of a user, the one that scores the target best; an absent one scores nothing."""
    if users.ndim == 2:
        return users
    chosen = []
    for embeddings, target in zip(users, targets, strict=True):
        there = [embedding for embedding in embeddings if bool(embedding.any())]
        chosen.append(max(there, key=lambda embedding: float((embedding @ target).detach())))
    return torch.stack(chosen)


# One embedding, several, and histories that are read from a table of their own.
USER_TOWERS = (["user_tower=transformer"], ["user_tower=interests"], ["user_tower.own_items=true"])


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("user_tower", USER_TOWERS)
def test_full_softmax_step_by_hand(world: Path, similarity: str, user_tower: list[str]) -> None:
    more = [f"model.similarity={similarity}", *user_tower]
    config = settings(world, "negatives=none", "loss=full_softmax", *more)
    module, dataset = still(build(config)), open_data(config)
    batch = next(iter(build_data(config, dataset).train_dataloader()))
    corpus = torch.from_numpy(corpus_of(module.model, dataset))
    # What has no training events is no negative.
    corpus = corpus[corpus <= dataset.num_trained]
    users = for_targets(module.model.encode_users(batch), module.model.encode_items(batch.target_idx))
    logits = users @ module.model.encode_items(corpus).T / 0.05
    expected = F.cross_entropy(logits, torch.searchsorted(corpus, batch.target_idx))
    torch.testing.assert_close(module.training_step(batch, 0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logq", ["off", "classic", "corrected"])
@pytest.mark.parametrize("negatives", ["in_batch", "mixed"])
@pytest.mark.parametrize("user_tower", USER_TOWERS)
def test_sampled_step_by_hand(world: Path, logq: str, negatives: str, user_tower: list[str]) -> None:
    config = settings(world, f"negatives={negatives}", f"loss.logq={logq}", "item_tower=ids", *user_tower)
    module, dataset = still(build(config)), open_data(config)
    batch = next(iter(build_data(config, dataset).train_dataloader()))
    model, sampler = module.model, module.negatives
    assert sampler is not None
    drawn = sampler.draw(torch.Generator().manual_seed(hash((0, 0)) & 0xFFFFFFFF), batch.target_idx)
    candidates = torch.cat([batch.target_idx, drawn])
    num_targets = len(batch.target_idx)
    users = for_targets(model.encode_users(batch), model.encode_items(batch.target_idx)) / 0.05
    negatives_logits = users @ model.encode_items(candidates).T
    positive_logits = (users * model.encode_items(batch.target_idx)).sum(1)
    log_q = sampler.log_q(candidates, num_targets)
    losses = []
    for row in range(num_targets):
        history = int(batch.history[row])
        own = own_items(batch, history)
        allowed = ~torch.isin(candidates, own)
        assert not allowed[row]
        positive, logits = positive_logits[row], negatives_logits[row][allowed]
        if logq == "classic":
            positive = positive - sampler.log_q(batch.target_idx[row], num_targets)
            logits = logits - log_q[allowed]
        if logq == "corrected":
            q = log_q[allowed].exp() / (1.0 - sampler.log_q(own.unique(), num_targets).exp().sum())
            logits = logits - (int(allowed.sum()) * q).log()
        losses.append(torch.logsumexp(torch.cat([positive.unsqueeze(0), logits]), 0) - positive)
    torch.testing.assert_close(module.training_step(batch, 0), torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)


def next_batches(config: DictConfig, count: int) -> list[Batch]:
    return list(itertools.islice(build_data(config, open_data(config)).train_dataloader(), count))


def test_positives_of_users_equal_those_of_each_history(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks and probabilities of distinct items of users, against those of all events of each history."""
    config = settings(world, "negatives=mixed", "history.max_events=2", "batch_size=64")
    monkeypatch.setattr(builder, "LONG", 5)
    module, dataset = build(config), open_data(config)
    (batch,) = next_batches(config, 1)
    sampler = module.negatives
    assert sampler is not None
    # Users have several windows, and events of items that they have already.
    users, num_windows = batch.user_idx.unique(return_counts=True)
    assert int(num_windows.max()) > 1
    items = torch.cat([batch.target_idx, torch.arange(1, 40)])
    found = describe_candidates(
        sampler, items, embeddings=torch.zeros(len(items), 8), num_targets=len(batch.target_idx), batch=batch
    )
    for row, user in enumerate(batch.user_idx.tolist()):
        events = torch.from_numpy(dataset.item_idx[dataset.offsets[user] : dataset.train_end[user]].astype(np.int64))
        assert torch.equal(found.mask[row], torch.isin(items, events))
        sum_of_each = torch.zeros(())
        for q in sampler.log_q(events.unique(), len(batch.target_idx)).exp():
            sum_of_each += q
        # Equal to the last bit, because the order of the sum is the same.
        assert found.q_masked[row] == sum_of_each


def test_exposures_are_negatives_of_their_user_for_certain(world: Path) -> None:
    config = settings(world, "negatives=in_batch")
    module = still(build(config))
    (batch,) = next_batches(config, 1)
    # The first history was shown a positive of its own, the targets of others and another item; the second one thing.
    taken = int(own_items(batch, 0)[0])
    others = sorted({*batch.target_idx.tolist()} - {*own_items(batch, 0).tolist()})
    free = [item for item in range(1, 60) if item not in {*batch.positives.values.tolist()}][:2]
    shown = [[taken, *others[:2], free[0]], [free[1]], *([[]] * (len(batch.lengths) - 2))]
    flat, ends = [item for row in shown for item in row], np.cumsum([0, *map(len, shown)])
    batch = dataclasses.replace(batch, exposures=RaggedTensor(torch.tensor(flat), torch.from_numpy(ends)))
    users = module.model.encode_users(batch) / 0.05
    positives = (users * module.model.encode_items(batch.target_idx)).sum(1)
    q = target_probabilities(open_data(config), predict_first=True).float()
    losses = []
    for row, history in enumerate(batch.history.tolist()):
        own = own_items(batch, history)
        certain = torch.tensor([item for item in shown[history] if item not in {*own.tolist()}], dtype=torch.int64)
        known = torch.cat([own, certain]).unique()
        drawn = batch.target_idx[~torch.isin(batch.target_idx, known)]
        n_q = len(drawn) * q[drawn] / (1.0 - q[known].sum())
        logits = torch.cat(
            [
                positives[row].unsqueeze(0),
                module.model.encode_items(drawn) @ users[row] - n_q.log(),
                # Each stands for itself alone.
                module.model.encode_items(certain) @ users[row],
            ]
        )
        losses.append(torch.logsumexp(logits, 0) - positives[row])
    torch.testing.assert_close(module.training_step(batch, 0), torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)


def test_an_estimator_sees_the_targets_of_every_step(world: Path) -> None:
    config = settings(world, "negatives=in_batch", "negatives.max_targets=5", "frequency=count_min")
    module = build(config)
    batches = next_batches(config, 3)
    for batch in batches:
        module.training_step(batch, 0)
    assert module.negatives is not None
    frequency = module.negatives.frequency
    assert isinstance(frequency, CountMinFrequency)
    seen = torch.cat([batch.target_idx for batch in batches])
    counts = seen.bincount(minlength=90).float()
    torch.testing.assert_close(frequency.probability(torch.arange(90)), counts / len(seen))
    assert {name for name in module.state_dict() if name.startswith("negatives.")} == {
        "negatives.frequency.counts",
        "negatives.frequency.num_targets",
    }


def test_a_subset_of_the_targets_serves_as_candidates(world: Path) -> None:
    config = settings(world, "negatives=in_batch", "negatives.max_targets=5")
    module = build(config)
    seen: list[SampledCandidates] = []

    def look(users: torch.Tensor, _: torch.Tensor, *, sampled: SampledCandidates, **__: Any) -> torch.Tensor:
        seen.append(sampled)
        return users.sum()

    module.loss.forward = look  # type: ignore[method-assign,assignment]
    batch = next(iter(build_data(config, open_data(config)).train_dataloader()))
    module.training_step(batch, 0)
    assert len(batch.target_idx) > 5
    assert seen[0].embeddings.shape == (5, 8)
    assert seen[0].mask.shape == (len(batch.lengths), 5)


def test_a_step_depends_on_seed_and_step_alone(world: Path) -> None:
    config = settings(world)
    module = build(config).train()
    batch = next(iter(build_data(config, open_data(config)).train_dataloader()))
    first = module.training_step(batch, 0)
    torch.rand(7)
    assert torch.equal(module.training_step(batch, 0), first)
    other = build(settings(world, "seed=1")).train()
    other.load_state_dict(module.state_dict())
    assert not torch.equal(other.training_step(batch, 0), first)


def test_a_batch_without_targets_changes_no_estimate() -> None:
    # One basket: without first events there is nothing to predict.
    dataset = training_only([[(1, 0), (2, 0), (3, 0)], [(1, 0), (2, 1)]])
    config = compose("train", ["model.dim=8", "user_tower.encoder.num_blocks=1"])
    model = build_towers(config, dataset)
    probabilities = torch.full((4,), 0.25, dtype=torch.float64)
    inputs = SamplerInputs(probabilities, torch.tensor([1, 2, 3]), ExactFrequency(probabilities))
    for loss, sampler in ((SampledSoftmax(), InBatchNegatives(inputs)), (FullSoftmax(), None)):
        module = RetrievalModule(model, loss, negatives=sampler, optimizer=AdamW(), corpus=torch.tensor([1, 2, 3]))
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        windows = Windows(np.array([0]), np.array([0]), np.array([2]), np.array([True]))
        batch = BatchBuilder(dataset, 4, predict_first=False).training(windows)
        assert len(batch.target_idx) == 0
        value = module.training_step(batch, 0)
        value.backward()
        assert float(value.detach()) == 0.0
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert all(bool(torch.isfinite(g).all()) and float(g.abs().sum()) == 0.0 for g in gradients)


def test_items_without_training_events_are_recommended_but_no_negatives(world: Path) -> None:
    config = settings(world, "negatives=mixed")
    module, dataset = build(config), open_data(config)
    assert corpus_of(module.model, dataset).max() > dataset.num_trained
    assert isinstance(module.negatives, MixedNegatives)
    assert module.negatives.uniform.corpus.tolist() == list(range(1, dataset.num_trained + 1))


def test_items_that_cannot_be_recommended_are_no_labels(world: Path) -> None:
    config = settings(world, "negatives=none", "loss=full_softmax", "item_tower=features")
    module, dataset = still(build(config)), open_data(config)
    corpus = set(corpus_of(module.model, dataset).tolist())
    batches = list(build_data(config, dataset).train_dataloader())
    # Items without a row in the items table are in histories, and nothing places them in the corpus.
    assert any(item not in corpus for batch in batches for item in batch.target_idx.tolist())
    assert all(bool(torch.isfinite(module.training_step(batch, 0))) for batch in batches)


def test_clipping_leaves_sparse_gradients_alone(world: Path) -> None:
    module = build(settings(world, "item_tower.sparse=true", "clip_norm=0.001")).train()
    batch = next(iter(build_data(settings(world), open_data(settings(world))).train_dataloader()))
    module.training_step(batch, 0).backward()
    table = module.model.item_tower.table
    assert table is not None
    assert table.weight.grad is not None
    before = table.weight.grad.to_dense()
    module.configure_gradient_clipping(None)
    assert torch.equal(table.weight.grad.to_dense(), before)
    dense = [p.grad for p in module.parameters() if p.grad is not None and not p.grad.is_sparse]
    assert float(torch.stack([g.norm() for g in dense]).norm()) == pytest.approx(0.001, rel=1e-3)


def test_every_parameter_that_matters_learns(world: Path) -> None:
    module = build(settings(world, "user_tower.use_user_id=true", "model.learn_temperature=true")).train()
    data = build_data(settings(world), open_data(settings(world)))
    for batch in data.train_dataloader():
        module.training_step(batch, 0).backward()
    idle = [name for name, p in module.named_parameters() if p.grad is None or not float(p.grad.abs().sum())]
    assert idle == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=full_softmax"], "add negatives=none"),
        (["negatives=none"], "needs sampled negatives"),
        (["negatives=uniform", "frequency=streaming"], "expected frequency=exact"),
        (["negatives=none", "loss=full_softmax", "frequency=count_min"], "expected frequency=exact"),
        (["frequency=streaming", "frequency.rate=2.0"], "rate: found 2.0"),
    ],
)
def test_incompatible_settings_are_refused(world: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(settings(world, *overrides))


def test_loss_and_negatives_go_together() -> None:
    rest: Any = {"optimizer": AdamW(), "corpus": torch.tensor([1])}
    model: Any = nn.Identity()
    sampler: Any = InBatchNegatives
    with pytest.raises(UserError, match="full_softmax ranges over the whole corpus"):
        RetrievalModule(model, FullSoftmax(), negatives=sampler, **rest)
    with pytest.raises(UserError, match="negatives=none is valid only with loss=full_softmax"):
        RetrievalModule(model, SampledSoftmax(), negatives=None, **rest)


def test_a_loss_of_another_package_decides_which_negatives_it_takes() -> None:
    class Uneasy(nn.Module):
        reads_corpus = False

        def check_negatives(self, negatives: Any) -> None:
            if negatives.max_targets is None:
                raise UserError("loss=uneasy: found negatives without max_targets")

    inputs = SamplerInputs(torch.full((2,), 0.5), torch.tensor([1]), ExactFrequency(torch.full((2,), 0.5)))
    model = build_towers(compose("train", ["model.dim=8"]), training_only([[(1, 0)], [(1, 0), (2, 1)]]))
    rest: Any = {"optimizer": AdamW(), "corpus": torch.tensor([1])}
    loss: Any = Uneasy()
    RetrievalModule(model, loss, negatives=InBatchNegatives(inputs, max_targets=5), **rest)
    with pytest.raises(UserError, match="loss=uneasy: found negatives without max_targets"):
        RetrievalModule(model, loss, negatives=InBatchNegatives(inputs, max_targets=None), **rest)


@pytest.mark.parametrize("loss", [["negatives=none", "loss=full_softmax"], ["negatives=in_batch"]])
@pytest.mark.parametrize("item_tower", ["ids", "ids_and_features"])
def test_items_without_a_row_of_their_own(world: Path, item_tower: str, loss: list[str]) -> None:
    capacity = "item_tower.admission.capacity=7"
    config = settings(world, f"item_tower={item_tower}", "user_tower.own_items=true", capacity, *loss)
    module, dataset = still(build(config)), open_data(config)
    tower = module.model.item_tower
    assert isinstance(tower.table, nn.Embedding)
    assert tower.id_rows is not None
    assert len(tower.table.weight) == 8
    admitted = tower.id_rows.nonzero()[:, 0]
    # They come first, because items are ordered by frequency.
    assert admitted.tolist() == [*range(1, 8)]
    batch = next(iter(build_data(config, dataset).train_dataloader()))
    kept = batch.target_idx <= 7
    assert 0 < int(kept.sum()) < len(kept)
    module.training_step(batch, 0).backward()
    assert tower.table.weight.grad is not None
    if item_tower == "ids":
        # Nothing places the others, so they are neither recommended nor learned.
        assert corpus_of(module.model, dataset).tolist() == admitted.tolist()
        alone = module._without_evicted(batch)
        assert alone.weight is not None
        assert torch.equal(alone.weight > 0, kept)
        assert torch.equal(tower(torch.tensor([8, 9])), tower(torch.tensor([0, 0])))
    else:
        assert len(corpus_of(module.model, dataset)) > dataset.num_trained
        assert module._without_evicted(batch) is batch
        assert not torch.equal(tower(torch.tensor([8])), tower(torch.tensor([9])))
