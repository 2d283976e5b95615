"""Two processes on gloo give the loss and the gradients of one process on the joint batch."""

from __future__ import annotations

import copy
import itertools
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

from recsys.core import distributed
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import TrainingLoader
from recsys.experiments.assembly import build_data, build_module, build_towers, open_data
from recsys.training.module import RetrievalModule

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
    "streaming": ["negatives=in_batch", "frequency=streaming", "frequency.num_hashes=2"],
    "count_min": ["negatives=mixed", "frequency=count_min", "frequency.width=50"],
    "action_weights": ["+history.action_weights.action={save: 3.0, hide: 0.0}"],
}


def build(config: DictConfig) -> RetrievalModule:
    dataset = open_data(config)
    module = build_module(config, dataset, model=build_towers(config, dataset))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    for submodule in module.modules():
        # Hidden values of features are drawn from a stream of each process.
        if hasattr(submodule, "unknown_rate"):
            submodule.unknown_rate = 0.0
    return module


def loss_and_gradients(module: RetrievalModule, builder: BatchBuilder, rank: int, world: int) -> dict[str, Tensor]:
    """Of the second step, which knows what the first one left."""
    first, second = itertools.islice(TrainingLoader(builder, 24, seed=0, rank=rank, world_size=world), 2)
    module.training_step(first, 0)
    module.zero_grad()
    loss = module.training_step(second, 0)
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in module.named_parameters():
        gradient = parameter.grad
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if gradient is None else gradient
            found[name] = gradient.to_dense() if gradient.is_sparse else gradient
    if world > 1:
        # What Lightning's DDP does after the step.
        for name in sorted(found.keys() - module._sparse.keys()):
            dist.all_reduce(found[name])
            found[name] /= world
        module.on_before_optimizer_step(None)
        for name, table in module._sparse.items():
            assert table.grad is not None
            found[name] = table.grad.to_dense()
    return found


def remembered(module: RetrievalModule) -> dict[str, Tensor]:
    """What the module knows beside the model."""
    return {name: value.clone() for name, value in module.state_dict().items() if not name.startswith("model.")}


def process(rank: int, world: int, meeting: Path, builders: Any, modules: Any, results: Path) -> None:
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
        found: dict[str, Any] = {
            name: loss_and_gradients(module, builders[name], rank, world) for name, module in modules.items()
        }
        found["state"] = {name: remembered(module) for name, module in modules.items()}
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
    builders = {name: build_data(config, open_data(config)).builder for name, config in configs.items()}
    # Forked processes see the very modules that one process uses.
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=process, args=(rank, 2, folder / "meeting", builders, modules, folder))
        for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    errors = [file.read_text() for file in folder.glob("*.error")]
    assert not errors, errors
    assert [worker.exitcode for worker in workers] == [0, 0]
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    copies = copy.deepcopy(modules)
    single: dict[str, Any] = {
        name: loss_and_gradients(module, builders[name], 0, 1) for name, module in modules.items()
    }
    with torch.autocast("cpu", torch.bfloat16):
        single["bf16"] = {name: loss_and_gradients(module, builders[name], 0, 1) for name, module in copies.items()}
    single["state"] = {name: remembered(module) for name, module in modules.items()}
    return single, found


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
@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_is_near_float32(variant: str, outcome: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    """The tolerance that docs/launching.md states."""
    single, lower = outcome[0][variant], outcome[0]["bf16"][variant]
    assert lower["loss"].dtype == torch.float32
    torch.testing.assert_close(lower["loss"], single["loss"], rtol=1e-3, atol=0.0)
    exact, found = (torch.cat([g.flatten() for n, g in each.items() if n != "loss"]) for each in (single, lower))
    assert float((found - exact).norm()) < 0.01 * float(exact.norm())


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["streaming", "count_min"])
def test_two_processes_count_like_one(variant: str, outcome: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    expected = outcome[0]["state"][variant]
    one, other = (found["state"][variant] for found in outcome[1])
    assert expected
    for name, value in expected.items():
        assert torch.equal(one[name], other[name]), name
        assert torch.equal(one[name], value), name


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
