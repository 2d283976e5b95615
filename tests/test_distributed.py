"""Two processes on gloo give the loss and the gradients of one process on the joint batch."""

from __future__ import annotations

import multiprocessing
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor
from worlds import FEATURES, compose, write_world

from recsys import distributed
from recsys.build import build_model, build_module, open_data
from recsys.data.builder import BatchBuilder
from recsys.data.loader import TrainingLoader
from recsys.module import RetrievalModule

FIXED = [
    "model.dim=8",
    "model.learn_temperature=true",
    "history.max_events=6",
    "user_tower.use_user_id=true",
    "user_tower.unknown_rate=0",
    "user_tower.encoder.dropout=0",
    "item_tower.crossing.dropout=0",
    "item_tower.unknown_rate=0",
    "logger=csv",
]
VARIANTS = {
    "in_batch": ["negatives=in_batch"],
    "in_batch_classic": ["negatives=in_batch", "loss.logq=classic"],
    "mixed": ["negatives=mixed", "negatives.num_negatives=20"],
    "mixed_sparse": ["negatives=mixed", "item_tower=ids", "item_tower.unknown_rate=0", "item_tower.sparse=true"],
    "uniform": ["negatives=uniform", "negatives.num_negatives=20"],
    "full": ["negatives=none", "loss=full_softmax"],
}


def build(config: DictConfig) -> RetrievalModule:
    dataset = open_data(config)
    module = build_module(config, dataset, build_model(config, dataset))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    for submodule in module.modules():
        # Hidden values of features are drawn from a stream of each process.
        if hasattr(submodule, "unknown_rate"):
            submodule.unknown_rate = 0.0
    return module


def loss_and_gradients(module: RetrievalModule, builder: BatchBuilder, rank: int, world: int) -> dict[str, Tensor]:
    loader = TrainingLoader(builder, 24, 0, rank, world)
    module.zero_grad()
    loss = module.training_step(next(iter(loader)), 0)
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in module.named_parameters():
        gradient = parameter.grad
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if gradient is None else gradient
            found[name] = gradient.to_dense() if gradient.is_sparse else gradient
    if world > 1:
        # What Lightning's DDP does after the step.
        for value in found.values():
            dist.all_reduce(value)
            value /= world
    return found


def process(rank: int, world: int, meeting: Path, builder: BatchBuilder, modules: Any, results: Path) -> None:
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
        found = {name: loss_and_gradients(module, builder, rank, world) for name, module in modules.items()}
        found["rows"] = gathered_rows(rank)
        torch.save(found, results / f"{rank}.pt")
        distributed.barrier()
    except BaseException:
        (results / f"{rank}.error").write_text(traceback.format_exc())
        raise


def gathered_rows(rank: int) -> dict[str, Tensor]:
    """Process 0 has three rows, process 1 one, and each weighs what it gets by its number."""
    mine = torch.arange(3.0 - 2 * rank).unsqueeze(1).add(10.0 * rank).requires_grad_()
    everything = distributed.gather(mine)
    (everything * (rank + 1.0)).sum().backward()
    assert mine.grad is not None
    return {
        "everything": everything.detach(),
        "gradient": mine.grad,
        "total": distributed.total(torch.tensor(rank + 1.0)),
        "empty": distributed.gather(torch.zeros(2 * rank, 3)),
    }


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results of one process, and those of each of two."""
    folder = tmp_path_factory.mktemp("distributed")
    root = write_world(folder / "data")
    common = ["data=parquet", f"data.root={root}", f"data.cache={folder}/cache", "split=leave_last_out", *FEATURES]
    configs = {name: compose("train", [*common, *FIXED, *extra]) for name, extra in VARIANTS.items()}
    modules = {name: build(config) for name, config in configs.items()}
    builder = BatchBuilder(open_data(configs["mixed"]), 6)
    # Forked processes see the very modules that one process uses.
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=process, args=(rank, 2, folder / "meeting", builder, modules, folder)) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    errors = [file.read_text() for file in folder.glob("*.error")]
    assert not errors, errors
    assert [worker.exitcode for worker in workers] == [0, 0]
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    return {name: loss_and_gradients(module, builder, 0, 1) for name, module in modules.items()}, found


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_equal_one(variant: str, outcome: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    single, pair = outcome
    assert float(single[variant]["loss"]) > 0.5
    for found in pair:
        assert found[variant].keys() == single[variant].keys()
        for name, expected in single[variant].items():
            torch.testing.assert_close(found[variant][name], expected, atol=2e-5, rtol=2e-4, msg=f"{variant}: {name}")
    learned = [name for name, gradient in single[variant].items() if name != "loss" and gradient.abs().sum() > 0]
    assert {"model.log_inverse_temperature", "model.item_tower.table.weight"} <= {*learned}


@pytest.mark.slow
def test_rows_are_gathered_in_order_with_their_gradients(outcome: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    for rank, found in enumerate(outcome[1]):
        rows = found["rows"]
        assert rows["everything"].flatten().tolist() == [0.0, 1.0, 2.0, 10.0]
        # The sum of what both derive for it: 1 + 2.
        assert rows["gradient"].flatten().tolist() == [3.0] * (3 - 2 * rank)
        assert float(rows["total"]) == 3.0
        assert rows["empty"].shape == (2, 3)


def test_one_process_exchanges_nothing() -> None:
    rows = torch.ones(2, 2)
    assert distributed.gather(rows) is rows
    assert distributed.total(rows) is rows
    assert (distributed.world_size(), distributed.rank(), distributed.is_first()) == (1, 0, True)
    distributed.barrier()
