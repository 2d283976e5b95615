"""A blend's scores are the weighted sum of its members' logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import write_blend, write_run, write_world

from recsys.data.batches.builder import BatchBuilder
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.models.blend import Blend, Member, item_vectors, keep_latest_events
from recsys.training.frequency import prior_shift

SHORT = 3


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("blend")
    root = write_world(base / "data")
    first = write_run(base / "sequences", root, f"history.max_events={SHORT}", "model.temperature=0.1")
    tower = ("user_tower=mean", "model.dim=8", "model.similarity=dot", "model.temperature=0.5")
    return first, write_run(base / "tastes", root, *tower, seed=1)


@pytest.fixture(scope="module")
def blend(members: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    path = tmp_path_factory.mktemp("run") / "blend"
    return load_run(
        write_blend(path, {"sequences": (members[0], 0.25), "tastes": (members[1], 0.75)}, shift_weight=0.5)
    )


def test_scores_are_the_weighted_sum_of_the_members_logits(members: tuple[Path, Path], blend: TrainedRun) -> None:
    requests = blend.dataset.requests("test")
    item_idx = torch.from_numpy(blend.corpus)
    expected = 0.5 * prior_shift(blend.dataset, 1.0)[item_idx].float()
    with torch.inference_mode():
        for folder, weight, temperature in ((members[0], 0.25, 0.1), (members[1], 0.75, 0.5)):
            member = load_run(folder)
            users = member.model.encode_users(member.builder.requests(requests))
            expected = expected + weight / temperature * users @ member.model.encode_items(item_idx).T
        assert blend.builder.max_history > SHORT
        found = blend.model.encode_users(blend.builder.requests(requests)) @ blend.model.encode_items(item_idx).T
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert blend.model.dim == 16 + 8 + 1
    assert (blend.model.metric, blend.model.num_embeddings, blend.model.temperature) == ("dot", 1, 1.0)
    assert item_vectors(blend.model, item_idx).shape == (len(item_idx), 24)


def test_the_latest_events_are_those_of_a_builder_that_keeps_no_more(blend: TrainedRun) -> None:
    requests = blend.dataset.requests("test")
    short = BatchBuilder(blend.dataset, SHORT).requests(requests)
    cut = keep_latest_events(blend.builder.requests(requests), SHORT)
    for name in ("item_idx", "time", "query", "history"):
        assert torch.equal(getattr(cut, name), getattr(short, name)), name
    assert np.array_equal(cut.lengths, short.lengths)
    for name, column in short.events.items():
        for mine, other in zip(
            (cut.events[name],) if isinstance(column, torch.Tensor) else cut.events[name],
            (column,) if isinstance(column, torch.Tensor) else column,
            strict=True,
        ):
            torch.testing.assert_close(mine, other, equal_nan=True, msg=name)


def test_a_member_with_several_embeddings_is_refused(blend: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(blend.model, Blend)
    model = blend.model.members[0].model
    monkeypatch.setattr(type(model), "num_embeddings", 4)
    with pytest.raises(ValueError, match="a member has 4 embeddings a user, expected one"):
        Blend([Member(model, 1.0, 5)])
