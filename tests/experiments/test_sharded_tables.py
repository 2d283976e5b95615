"""Id tables whose rows two processes share train, resume, evaluate and open like those of one process."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import DictConfig
from sharded import in_shards
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from training_processes import run_processes
from worlds import FEATURES, compose, write_world

from recsys.core.errors import UserError
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.datamodule import RetrievalData
from recsys.data.batches.loaders import RequestLoader, TrainingLoader
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker, evaluate
from recsys.evaluation.relevance import rolling_requests
from recsys.experiments import loggers
from recsys.experiments.assembly import (
    build_data,
    build_module,
    build_towers,
    choose_sharding,
    corpus_of,
    keep_replicated,
    open_data,
)
from recsys.experiments.fitting import count_parameters
from recsys.experiments.run_folder import read_json
from recsys.experiments.train import train
from recsys.experiments.trained_run import load_run
from recsys.experiments.variants import train_best
from recsys.experiments.warm_start import open_earlier_run, start_from
from recsys.models.sharded_table import FusedOptimizer, ShardedTable, build_tables, sharded_tables
from recsys.models.two_tower import TwoTower
from recsys.training import sharded_checkpoints
from recsys.training.module import RetrievalModule

torchrec = pytest.importorskip("torchrec")

FIXED = [
    "model.dim=8",
    "user_tower=mean",
    "history.max_events=6",
    "user_tower.use_user_id=true",
    "user_tower.unknown_rate=0",
    "user_tower.encoder.dropout=0",
    "user_tower.crossing.dropout=0",
    "item_tower.crossing.dropout=0",
    "item_tower.unknown_rate=0",
    "batch_size=24",
    "logger=csv",
]
ROW_WISE = ["item_tower.sharding=row_wise", "user_tower.sharding=row_wise"]
VARIANTS = {
    "in_batch": ["negatives=in_batch", "item_tower=ids", "item_tower.unknown_rate=0"],
    "mixed": ["negatives=mixed", "negatives.num_negatives=20"],
    "uniform": ["negatives=uniform", "negatives.num_negatives=20", "user_tower.own_items=true"],
}
# A large eps, because Adagrad makes steps of full size from gradients that are zero but for rounding.
RULES = {
    "in_batch": FusedOptimizer("sgd", 0.5),
    "mixed": FusedOptimizer("adagrad", 0.1, eps=1e-2),
    "uniform": FusedOptimizer("rowwise_adagrad", 0.1, eps=1e-2),
}
STEPS = 5
PORTIONS = ["portions=true", "evaluation.rolling=true", "trainer.max_steps=1"]
RUN = [
    "trainer=ddp",
    "evaluation.baselines=false",
    "trainer.max_steps=5",
    "optimizer.sparse_lr=0.1",
    "optimizer.lr=0.01",
]
RUN += ["callbacks.last.every_n_train_steps=1", "+trainer.enable_progress_bar=false", "model.new_items_offset=0"]


def still(model: nn.Module) -> None:
    """Hidden values of features are drawn from a stream of each process."""
    for module in model.modules():
        if hasattr(module, "unknown_rate"):
            module.unknown_rate = 0.0


def build(config: DictConfig) -> RetrievalModule:
    dataset = open_data(config)
    module = build_module(config, dataset, model=build_towers(config, dataset))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    still(module)
    return module


def whole(table: ShardedTable | nn.Embedding) -> Tensor:
    """All rows of a table."""
    if isinstance(table, nn.Embedding):
        return table.weight.detach()
    rows = torch.zeros(table.num_embeddings, table.embedding_dim)
    rows[table.begin : table.begin + len(table.weight)] = table.weight.detach()
    if dist.is_initialized():
        dist.all_reduce(rows)
    return rows


def tables_of(model: nn.Module) -> dict[str, ShardedTable | nn.Embedding]:
    names = ("item_tower.table", "user_tower.users.table", "user_tower.own_items.table")
    return {name: module for name, module in model.named_modules() if name in names}  # type: ignore[misc]


class RowWiseAdagrad(torch.optim.Optimizer):
    """One sum for each row, of the mean squares of its gradients."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for rows in group["params"]:
                total = self.state[rows].setdefault("sum", torch.zeros(len(rows), 1))
                total += rows.grad.square().mean(1, keepdim=True)
                rows -= group["lr"] * rows.grad / (total.sqrt() + group["eps"])


def optimizer_of(rule: FusedOptimizer, rows: list[Tensor]) -> torch.optim.Optimizer:
    if rule.kind == "sgd":
        return torch.optim.SGD(rows, lr=rule.lr)
    kind: Any = torch.optim.Adagrad if rule.kind == "adagrad" else RowWiseAdagrad
    return (
        kind(rows, {"lr": rule.lr, "eps": rule.eps}) if kind is RowWiseAdagrad else kind(rows, lr=rule.lr, eps=rule.eps)
    )


def five_steps(
    module: RetrievalModule, rule: FusedOptimizer, builder: BatchBuilder, rank: int, world: int
) -> dict[str, Tensor]:
    """Losses of five steps and the tables after them."""
    sharded = sharded_tables(module.model)
    build_tables(module.model, rule, device=torch.device("cpu"))
    rows = [table.weight for table in tables_of(module.model).values() if not isinstance(table, ShardedTable)]
    others = [p for p in module.model.parameters() if p.requires_grad and all(p is not row for row in rows)]
    optimizers = [torch.optim.SGD(others, lr=0.1)]
    if rows:
        optimizers.append(optimizer_of(rule, rows))
    losses = []
    for batch in itertools.islice(TrainingLoader(builder, 24, seed=0, rank=rank, world_size=world), STEPS):
        module.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        losses.append(loss.detach())
        if world > 1:
            # What Lightning's DDP does after the step.
            for parameter in others:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
            dist.all_reduce(losses[-1])
            losses[-1] /= world
        for each in optimizers:
            each.step()
    assert bool(sharded) == (world > 1)
    return {"loss": torch.stack(losses)} | {n: whole(table).clone() for n, table in tables_of(module.model).items()}


class Killed(BaseException):
    """A training is killed."""


def train_until(step: int | None, config: DictConfig, run: Path) -> None:
    """Train, and kill the training before a step."""
    training_step = RetrievalModule.training_step

    def killed(self: RetrievalModule, *args: Any) -> Tensor:
        still(self)
        if self.global_step == step:
            raise Killed
        return training_step(self, *args)

    RetrievalModule.training_step = killed  # type: ignore[method-assign,assignment]
    try:
        train(config, run)
    except Killed:
        assert step is not None
    finally:
        RetrievalModule.training_step = training_step  # type: ignore[method-assign]


class Shown(DummyLogger):
    """W&B in memory. Only the first process makes one."""

    experiment: Any = SimpleNamespace(config={}, summary={}, finish=lambda: None)
    tables: ClassVar[list[int]] = []

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def log_table(self, _: str, *, columns: list[str], data: list[list[str]]) -> None:
        assert len(columns) == 4
        self.tables.append(len(data))


def of_uneven_processes(model: TwoTower, whole: PreparedDataset, rank: int) -> list[dict[str, float]]:
    """Metrics by processes that opened portions, of which the first has four requests, and by processes that share."""
    own = PreparedDataset.open(whole.path, rank=rank, world_size=2)
    assert own.portion is not None
    few = slice(4 if rank == 0 else None)
    requests, found = whole.requests("test"), []
    users = requests.user_idx
    asked = Requests(*(c[(np.arange(len(users)) < 4) | (users >= own.portion.cuts[1])] for c in requests))
    corpus = corpus_of(model, whole)
    ranker = ModelRanker(model.eval(), corpus)
    for dataset, mine in ((own, Requests(*(c[few] for c in own.requests("test")))), (whole, asked)):
        data = RetrievalData(dataset, max_history=6)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        metrics = RetrievalMetrics(dataset, len(corpus))
        found.append(evaluate(ranker, dataset, part="test", batches=data.answer(mine), metrics=metrics))
    return found


def job(folder: Path, modules: dict[str, RetrievalModule], builders: Any, config: Any) -> None:
    """What both processes do."""
    loggers.WandbLogger = Shown  # type: ignore[misc,assignment]
    sharded_checkpoints.BLOCK_BYTES = 64
    train_until(None, config(2, "logger.project=test", "logger.examples=3"), folder / "straight")
    train_until(3, config(2), folder / "resumed")
    # Readers hold whole blocks of a checkpoint, so there are many small ones.
    assert len(FileSystemReader(*folder.glob("resumed/checkpoints/tables/3-*")).read_metadata().storage_data) > 20
    assert RequestLoader.__init__.__kwdefaults__ is not None
    RequestLoader.__init__.__kwdefaults__["batch_size"] = 5
    rank = dist.get_rank()
    machine = folder / f"machine-{rank}"
    train(config(2, *PORTIONS, f"data.cache={machine}"), folder / "portions")
    copied = {shard.stem for shard in machine.glob("prepared/*/events/copied/*.copied")}
    found = {name: five_steps(module, RULES[name], builders[name], rank, 2) for name, module in modules.items()}
    held = [len(table.weight) for table in sharded_tables(next(iter(modules.values())).model).values()]
    uneven = of_uneven_processes(modules["mixed"].model, open_data(config(2)), rank)
    warm = build(config(2, "negatives=mixed")).model
    start_from(open_earlier_run(folder / "straight"), warm, dataset=open_data(config(2)))
    build_tables(warm, FusedOptimizer("rowwise_adagrad", 0.1), device=torch.device("cpu"))
    outcome = {
        "steps": found,
        "held": held,
        "copied": copied,
        "uneven": uneven,
        "shown": Shown.tables,
        "warm": {name: whole(table) for name, table in tables_of(warm).items()},
    }
    torch.save(outcome, folder / f"{rank}.pt")


def alone(folder: Path, config: Any) -> None:
    """What one process does afterwards."""
    train_until(None, config(1), folder / "resumed")


Outcome = tuple[Path, dict[str, dict[str, Tensor]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Folder of the runs, five steps of replicated tables in one process, and results of each of two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    root = write_world(folder / "data")
    common = ["data=parquet", f"data.root={root}", f"data.cache={folder}/cache", "split=leave_last_out", *FEATURES]

    def config(devices: int, *more: str) -> DictConfig:
        return compose("train", [*common, *FIXED, *RUN, *ROW_WISE, f"trainer.devices={devices}", *more])

    dataset = open_data(config(1))
    output = in_shards(dataset, folder / "output", (np.arange(6) * dataset.num_users // 6).tolist())
    for rank in range(2):
        own = folder / f"machine-{rank}/prepared" / dataset.path.name
        shutil.copytree(output, own, ignore=shutil.ignore_patterns("moved"))
    replicated, sharded, builders = {}, {}, {}
    for name, extra in VARIANTS.items():
        plain, divided = (compose("train", [*common, *FIXED, *extra, *more]) for more in ([], ROW_WISE))
        replicated[name], sharded[name] = build(plain), build(divided)
        builders[name] = build_data(plain, open_data(plain)).builder
        same_weights(replicated[name].model, sharded[name].model)
    run_processes(2, job, folder, folder, sharded, builders, config)
    run_processes(1, alone, folder, folder, config)
    single = {name: five_steps(module, RULES[name], builders[name], 0, 1) for name, module in replicated.items()}
    return folder, single, [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def same_weights(model: nn.Module, sharded: nn.Module) -> None:
    """Give a model with sharded tables the weights of another one."""
    rows = {name: whole(table).clone() for name, table in tables_of(model).items()}
    sharded.load_state_dict({n: v for n, v in model.state_dict().items() if n.removesuffix(".weight") not in rows})

    def fill(name: str) -> Callable[[int, int], Tensor]:
        return lambda begin, end: rows[name][begin:end]

    for name, table in sharded_tables(sharded).items():
        table.fill = fill(name)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_five_steps_of_two_processes_equal_one_with_replicated_tables(variant: str, outcome: Outcome) -> None:
    _, single, pair = outcome
    expected = single[variant]
    assert float(expected["loss"].min()) > 0.5
    for found in pair:
        assert found["steps"][variant].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found["steps"][variant][name], value, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_the_first_process_logs_examples(outcome: Outcome) -> None:
    assert [found["shown"] for found in outcome[2]] == [[3], []]


@pytest.mark.slow
def test_machines_copy_the_shards_of_their_own_users(outcome: Outcome) -> None:
    first, second = (found["copied"] for found in outcome[2])
    assert first
    assert second
    assert not first & second
    assert len(first | second) == 6


@pytest.mark.slow
def test_processes_with_fewer_requests_do_not_leave_the_others(outcome: Outcome) -> None:
    for found in outcome[2]:
        portions, shared = found["uneven"]
        assert portions == pytest.approx(shared, abs=1e-6)


@pytest.mark.slow
def test_each_process_holds_half_of_the_rows(outcome: Outcome) -> None:
    first, second = (found["held"] for found in outcome[2])
    assert len(first) == 2
    for mine, other in zip(first, second, strict=True):
        assert 0 <= mine - other <= 1


@pytest.mark.slow
def test_a_resumed_run_of_one_process_equals_a_straight_run_of_two(outcome: Outcome) -> None:
    folder = outcome[0]
    straight, resumed = (load_run(folder / name) for name in ("straight", "resumed"))
    assert read_json(folder / "resumed/run.json")["steps"] == STEPS
    for name, value in straight.model.state_dict().items():
        # Adam makes steps of full size from gradients that are zero but for rounding, such as those of biases of keys.
        tolerance = 1e-6 if name.removesuffix(".weight") in tables_of(straight.model) else 1e-3
        torch.testing.assert_close(resumed.model.state_dict()[name], value, atol=tolerance, rtol=1e-5, msg=name)
    # No folder of tables is left but those that the two checkpoints name.
    named = {
        torch.load(file, weights_only=True)["sharded_tables"]["folder"] for file in folder.glob("resumed/**/*.ckpt")
    }
    assert {path.name for path in (folder / "resumed/checkpoints/tables").iterdir()} == named
    parameters, expected = read_json(folder / "straight/run.json")["parameters"], count_parameters(straight.model)
    assert parameters["tables"] == expected["tables"]
    assert parameters["item_tower"] == expected["item_tower"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part", "prefix"),
    [
        ("straight", "test", "test/"),
        ("portions", "test", "test/"),
        ("portions", "val", "val/"),
        ("portions", "test", "test_rolling/"),
    ],
)
def test_metrics_of_two_processes_are_those_of_one(name: str, part: Part, prefix: str, outcome: Outcome) -> None:
    run = load_run(outcome[0] / name)
    metrics, rolling = RetrievalMetrics(run.dataset, len(run.corpus), part=part), prefix == "test_rolling/"
    loader = RequestLoader(run.builder, (rolling_requests if rolling else PreparedDataset.requests)(run.dataset, part))
    ranker = ModelRanker(run.model, run.corpus)
    expected = evaluate(ranker, run.dataset, part=part, batches=loader, metrics=metrics, rolling=rolling)
    found = {name: value for name, value in run.metrics.items() if name.startswith(prefix)}
    assert found == pytest.approx({f"{prefix}{name}": value for name, value in expected.items()}, abs=1e-6)
    assert len(found) > 50


@pytest.mark.slow
def test_warm_start_copies_rows_by_id(outcome: Outcome) -> None:
    run = load_run(outcome[0] / "straight")
    for found in outcome[2]:
        for name, rows in found["warm"].items():
            assert torch.equal(rows, whole(run.model.get_submodule(name))), name  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DictConfig]:
    """Configurations on a small data set."""
    folder = tmp_path_factory.mktemp("small")
    root = write_world(folder / "data")

    def config(*more: str) -> DictConfig:
        common = ["data=parquet", f"data.root={root}", f"data.cache={folder}/cache", "split=leave_last_out"]
        return compose("train", [*common, *FIXED, "trainer=ddp", *more])

    return config


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["negatives=none", "loss=full_softmax"], "loss: reads the embeddings of all items"),
        (["callbacks=ema"], "callbacks.ema"),
        (["+trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches"),
        (["+trainer.precision=16-mixed"], "trainer.precision"),
        (["item_tower.sharding=rows"], "expected auto, replicated or row_wise"),
    ],
)
def test_settings_that_need_whole_tables_are_refused(
    overrides: list[str], named: str, small: Callable[..., DictConfig]
) -> None:
    config = small("item_tower.sharding=row_wise", *overrides)
    with pytest.raises(UserError, match=named):
        choose_sharding(config, open_data(config))


def test_variants_have_replicated_tables(small: Callable[..., DictConfig], tmp_path: Path) -> None:
    auto, divided = small(), small("user_tower.sharding=row_wise")
    keep_replicated({"auto": auto})
    assert (auto.item_tower.sharding, auto.user_tower.sharding) == ("replicated", "replicated")
    with pytest.raises(UserError, match=r"variants\.second: user_tower\.sharding=row_wise: variants are compared"):
        train_best({"first": auto, "second": divided}, tmp_path)


def test_missing_torchrec_is_named_with_the_command(
    small: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    config = small("item_tower.sharding=row_wise")
    with pytest.raises(UserError, match=r"item_tower.sharding=row_wise: .*pip install --no-deps torchrec==1.8.0"):
        choose_sharding(config, open_data(config))


def test_large_tables_of_several_processes_are_divided(
    small: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(*overrides: str) -> tuple[str, str]:
        config = small(*overrides)
        choose_sharding(config, open_data(config))
        return config.item_tower.sharding, config.user_tower.sharding

    assert chosen() == ("replicated", "replicated")
    monkeypatch.setattr("recsys.experiments.assembly.sharding.SHARDED_BYTES", 1)
    assert chosen() == ("row_wise", "row_wise")
    assert chosen("trainer.devices=1") == ("replicated", "replicated")
    assert chosen("callbacks=ema") == ("replicated", "replicated")
    assert chosen("user_tower.use_user_id=false") == ("row_wise", "replicated")
    monkeypatch.setattr("recsys.experiments.assembly.sharding.is_installed", lambda: False)
    assert chosen() == ("replicated", "replicated")


def test_adam_is_refused_without_a_gpu() -> None:
    with pytest.raises(UserError, match="optimizer.fused=adam: .*expected rowwise_adagrad"):
        ShardedTable(4, 8, std=1.0).build(FusedOptimizer("adam", 0.1), torch.device("cpu"))


def test_first_values_do_not_depend_on_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.models.sharded_table._BLOCK", 4)
    table = ShardedTable(11, 8, std=2.0)
    assert table.fill is not None
    rows = table.fill(0, 11)
    assert rows.shape == (11, 8)
    assert torch.equal(torch.cat([table.fill(0, 5), table.fill(5, 6), table.fill(6, 11)]), rows)
    assert len(rows.unique()) == rows.numel()
