"""An encoder that breaks a condition of `docs/extending.md` is refused with the condition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worlds import compose, write_world

from recsys.core.errors import UserError
from recsys.experiments.assembly import build_towers, open_data
from recsys.experiments.train import train
from recsys.models.encoder_check import check_attributes, check_encoder
from recsys.models.encoders import MeanPooling

CONF = Path(__file__).parents[2] / "conf"
DIM = 8


class Encoder(nn.Module):
    is_causal, reads_time = True, False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(DIM, DIM)


class PackedGRU(Encoder):
    """Reads all users of the batch as one sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(DIM, DIM, batch_first=True)

    def forward(self, tokens: Tensor, layout: Any) -> Tensor:  # noqa: ARG002
        return self.gru(tokens)[0]  # type: ignore[no-any-return]


class LooksAhead(Encoder):
    def forward(self, tokens: Tensor, layout: Any) -> Tensor:
        return self.weight(tokens) + layout.total(tokens)


class ByShape(Encoder):
    def forward(self, tokens: Tensor, layout: Any) -> Tensor:  # noqa: ARG002
        return self.weight(tokens) * tokens.ndim


class NotFinite(Encoder):
    def forward(self, tokens: Tensor, layout: Any) -> Tensor:
        return self.weight(tokens) / layout.position.unsqueeze(-1)


class OtherWidth(Encoder):
    def forward(self, tokens: Tensor, layout: Any) -> Tensor:  # noqa: ARG002
        return self.weight(tokens)[..., :5]


class OtherType(Encoder):
    def forward(self, tokens: Tensor, layout: Any) -> Tensor:  # noqa: ARG002
        return self.weight(tokens).double()


class Pair(Encoder):
    def forward(self, tokens: Tensor, layout: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return tokens, tokens


class PackedOnly(Encoder):
    def forward(self, tokens: Tensor, layout: Any) -> Tensor:
        return self.weight(tokens) * layout.lengths.min().clip(1, 1)


def check(encoder: Any, max_history: int = 20) -> None:
    check_encoder(encoder, DIM, max_history=max_history, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (PackedGRU, "states of a history depend on the other histories of the batch .* go through the layout"),
        (LooksAhead, "a later event changes the states of earlier places"),
        (ByShape, r"packed tokens \[N, D\] and padded ones \[B, L, D\] give different states"),
        (NotFinite, "numbers that are not finite for packed tokens"),
        (OtherWidth, r"the shape \[31, 5\] for packed tokens \[N, D\], expected \[31, 8\]"),
        (OtherType, "returns torch.float64 for packed tokens .* expected torch.float32"),
        (Pair, "returns tuple for packed tokens"),
        (PackedOnly, "AttributeError for padded tokens .*'Padded' object has no attribute 'lengths'"),
    ],
)
def test_the_broken_condition_is_named(kind: type[Encoder], message: str) -> None:
    torch.manual_seed(0)
    place = rf"^user_tower\.encoder={__name__}\.{kind.__name__}: "
    with pytest.raises(UserError, match=f"{place}.*{message}.*; see docs/extending.md#history-encoder$"):
        check(kind())


def test_an_encoder_that_is_not_causal_is_compared_at_the_last_place() -> None:
    encoder = LooksAhead()
    encoder.is_causal = False
    check(encoder)


@pytest.mark.parametrize("name", ["is_causal", "reads_time"])
def test_attributes_are_required(name: str) -> None:
    encoder = MeanPooling(DIM)
    check_attributes(encoder)
    setattr(encoder, name, None)
    with pytest.raises(UserError, match=f"MeanPooling: attribute {name} is None, expected True or False"):
        check_attributes(encoder)


def test_mode_and_weights_stay_as_they_are() -> None:
    encoder = MeanPooling(DIM, hidden=4, dropout=0.5)
    assert encoder.mlp is not None
    encoder.mlp.eval()
    state = torch.get_rng_state()
    check(encoder)
    assert (encoder.training, encoder.mlp.training, encoder.dropout.training) == (True, False, True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in encoder.parameters())


@pytest.mark.parametrize("max_history", [1, 50])
def test_half_precision_is_rounded(max_history: int) -> None:
    check(MeanPooling(DIM, hidden=4).bfloat16(), max_history)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "data")


def settings(world: Path, *overrides: str) -> Any:
    usual = ["data=parquet", f"data.root={world}", f"data.cache={world.parent}/cache", "split=leave_last_out"]
    return compose("train", [*usual, "model.dim=8", "history.max_events=6", "logger=csv", *overrides])


@pytest.mark.parametrize("option", sorted(file.stem for file in (CONF / "user_tower").glob("*.yaml")))
def test_our_encoders_pass(world: Path, option: str) -> None:
    config = settings(world, f"user_tower={option}")
    tower = build_towers(config, open_data(config)).user_tower
    check_encoder(tower.encoder, tower.dim, max_history=6, device=torch.device("cpu"))


def test_it_runs_before_the_first_step_and_with_trained_weights(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(
        world, "user_tower=mean", "trainer.max_epochs=3", "+trainer.enable_progress_bar=false", "test=false"
    )
    weights = []

    def record(encoder: MeanPooling, dim: int, *, max_history: int, device: torch.device) -> None:
        assert (dim, max_history, device.type) == (8, 6, "cpu")
        weights.append(torch.cat([weight.detach().flatten() for weight in encoder.parameters()]))

    monkeypatch.setattr("recsys.training.module.check_encoder", record)
    train(config, tmp_path / "run")
    first, second = weights
    assert not torch.equal(first, second)
