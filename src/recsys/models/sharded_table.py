"""Embedding tables whose rows are divided among the processes of a training, with TorchRec.

TorchRec and its kernels are imported when such a table is built, and nowhere else.

Shapes: R rows asked for, N rows of the table, D dim.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.checkpoint.state_dict_loader import load

from recsys.core import distributed
from recsys.core.errors import UserError

# Place of an id table: whole in every process, divided among processes by rows, or without memory of its own until the
# file of a checkpoint is mapped.
Sharding = Literal["replicated", "row_wise", "on_disk"]
FusedKind = Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]
# Returns the values [end - begin, D] of the rows from `begin` to `end`.
Fill = Callable[[int, int], Tensor]

PACKAGES = ("torchrec", "fbgemm_gpu", "tensordict")
INSTALL = (
    "pip install --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0 tensordict==0.15.3 && "
    "pip install pyre-extensions pyvers orjson"
)
# Rows that are drawn or copied at a time.
_BLOCK = 65_536


class FusedOptimizer(NamedTuple):
    """Optimizer that updates a row in the backward pass of its look-up.

    Attributes:
        kind: rule of the update.
        lr: learning rate.
        eps: added to the root of the accumulated squares.
        betas: decay rates of both moments of Adam.
    """

    kind: FusedKind
    lr: float
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.98)


# Evaluation changes no row, and this rule keeps no state.
NO_UPDATES = FusedOptimizer("sgd", 0.0)


def is_installed() -> bool:
    """Return whether TorchRec and its kernels can be imported."""
    return all(importlib.util.find_spec(name) for name in PACKAGES)


def require_torchrec(place: str) -> None:
    """Raise a `UserError` if TorchRec is not installed.

    Args:
        place: key and value that ask for it.
    """
    if missing := [name for name in PACKAGES if not importlib.util.find_spec(name)]:
        raise UserError(
            f"{place}: needs TorchRec, but {', '.join(missing)} cannot be imported; type: {INSTALL} (its own "
            "requirements would replace torchmetrics by a version of 2023)"
        )


class ShardedTable(nn.Module):
    """An embedding table of which each process holds a block of consecutive rows, with their optimizer state.

    A look-up sends row numbers to the processes that own them and receives the embeddings; the backward pass sends the
    gradients back, and their owner updates the rows. So every process must make the same look-ups in the same order.
    The gradient of a row is the mean over processes, as in DDP.

    Rows belong to no parameter of the module: DDP, clipping and `state_dict` do not see them. `build` creates them.

    Args:
        num_rows: rows of the table, N.
        dim: width of the embeddings, D.
        std: standard deviation of the first values.
    """

    # As a table with sparse gradients: a look-up costs as much as it has distinct rows.
    sparse = True

    def __init__(self, num_rows: int, dim: int, *, std: float) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_rows, dim
        self._std, self._seed = std, int(torch.randint(2**62, ()))
        self._parts: tuple[Any, ...] = ()
        # None if a checkpoint will fill the rows.
        self.fill: Fill | None = self._draw
        self.stored: tuple[Path, str] | None = None
        # Learning rate of the update that follows a look-up; None for that of `build`.
        self.rate: Callable[[], float] | None = None

    @property
    def is_built(self) -> bool:
        """Flag that says that the rows exist."""
        return bool(self._parts)

    def build(self, optimizer: FusedOptimizer, device: torch.device) -> None:
        """Create the rows that this process owns and fill them with `fill`. All processes must call it together.

        Args:
            optimizer: rule of the updates.
            device: device of the rows.

        Raises:
            UserError: If the rule needs a GPU and the device is none.
        """
        if optimizer.kind == "adam" and device.type == "cpu":
            raise UserError(
                "optimizer.fused=adam: the kernel of Adam runs on GPUs only; expected rowwise_adagrad, adagrad or sgd"
            )
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        with _quiet():
            self._parts = (_shard(self.num_embeddings, self.embedding_dim, optimizer=optimizer, device=device),)
        begin, rows = self.begin, self.weight
        fill, self.fill = self.fill, None
        for low in range(0, len(rows) if fill is not None else 0, _BLOCK):
            assert fill is not None
            high = min(low + _BLOCK, len(rows))
            rows[low:high] = fill(begin + low, begin + high).to(device)
        if self.stored is not None:
            self.load(*self.stored, with_state=False)

    def load(self, folder: Path, name: str, *, with_state: bool) -> None:
        """Read the rows of this process from a distributed checkpoint of any number of processes.

        All processes must call it together. Before `build` it only notes what `build` will read.

        Args:
            folder: folder of the checkpoint.
            name: name of the table in it.
            with_state: read the optimizer state too.
        """
        if not self.is_built:
            self.stored = (folder, name)
            return
        wanted = {part: value for part, value in self.shards().items() if with_state or part == "weight"}
        with _quiet():
            load({f"{name}.{part}": value for part, value in wanted.items()}, checkpoint_id=folder)

    @property
    def begin(self) -> int:
        """Number of the first row of this process."""
        return int(self.shards()["weight"].local_shards()[0].metadata.shard_offsets[0])

    @property
    def weight(self) -> Tensor:
        """Rows of this process, [N / processes, D]; a view."""
        local: Tensor = self.shards()["weight"].local_shards()[0].tensor
        return local

    def shards(self) -> dict[str, Any]:
        """Return the rows of all processes and their optimizer state as sharded tensors, by name."""
        assert self._parts, "the table has no rows before `build`"
        collection = self._parts[0]
        with _quiet():
            (weight,) = collection.state_dict().values()
            states = collection.fused_optimizer.state_dict()["state"]
        named = {name.rpartition(".")[2]: value for state in states.values() for name, value in state.items()}
        return {"weight": weight, **named}

    def set_row(self, row: int, value: Tensor) -> None:
        """Set one row in the process that owns it."""
        if 0 <= row - self.begin < len(self.weight):
            self.weight[row - self.begin] = value

    def mean_of_known(self) -> Tensor:
        """Return the mean [D] of all rows but row 0, in every process."""
        rows = self.weight[max(1 - self.begin, 0) :]
        # A copy of all rows in double precision would take twice their memory.
        own = torch.zeros(self.embedding_dim, dtype=torch.float64, device=rows.device)
        for block in rows.split(_BLOCK):
            own += block.double().sum(0)
        return distributed.total(own).div(self.num_embeddings - 1).float()

    def largest(self) -> Tensor:
        """Return the largest absolute value of all rows, in every process; infinity if one is not a number."""
        low, high = self.weight.aminmax() if len(self.weight) else (self.weight.sum(),) * 2
        return distributed.largest(torch.maximum(-low, high).nan_to_num(nan=torch.inf))

    def forward(self, rows: Tensor) -> Tensor:
        """Return the embeddings [R, D] of `rows` int64 [R]. R may differ between processes."""
        if torch.is_inference_mode_enabled():
            # The kernels have no form for inference tensors.
            with torch.inference_mode(False), torch.no_grad():
                return self._look_up(rows.clone())
        return self._look_up(rows)

    def _look_up(self, rows: Tensor) -> Tensor:
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        assert self._parts, "the table has no rows before `build`"
        (collection,) = self._parts
        if self.rate is not None and torch.is_grad_enabled():
            for group in collection.fused_optimizer.param_groups:
                group["lr"] = self.rate()
            # This hands the learning rate to the kernel, which reads it in the forward pass.
            collection.fused_optimizer.step()
        lengths = torch.tensor([len(rows)], device=rows.device)
        # The kernels read a view with strides as if it had none.
        asked = KeyedJaggedTensor(keys=["row"], values=rows.contiguous(), lengths=lengths)
        found: Tensor = collection(asked)["row"].values()
        return found

    def _draw(self, begin: int, end: int) -> Tensor:
        """Return first values that do not depend on the number of processes."""
        block = begin // _BLOCK
        parts = []
        while block * _BLOCK < end:
            generator = torch.Generator().manual_seed(self._seed ^ block)
            drawn = torch.randn(_BLOCK, self.embedding_dim, generator=generator).mul_(self._std)
            parts.append(drawn[max(begin - block * _BLOCK, 0) : end - block * _BLOCK])
            block += 1
        return torch.cat(parts)


def id_table(
    num_rows: int, dim: int, *, sharding: Sharding = "replicated", std: float | None = None, sparse: bool = False
) -> nn.Embedding | ShardedTable:
    """Return a table of N rows for ids.

    Args:
        num_rows: rows of the table, N.
        dim: width of the embeddings, D.
        sharding: place of the rows.
        std: standard deviation of the first values; None for 1.
        sparse: compute gradients of the rows that are read only.
    """
    if sharding == "row_wise":
        return ShardedTable(num_rows, dim, std=1.0 if std is None else std)
    if sharding == "on_disk":
        return nn.Embedding(num_rows, dim, device="meta")
    table = nn.Embedding(num_rows, dim, sparse=sparse)
    if std is not None:
        nn.init.normal_(table.weight, std=std)
    return table


def sharded_tables(model: nn.Module) -> dict[str, ShardedTable]:
    """Return the sharded tables of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ShardedTable)}


def build_tables(model: nn.Module, optimizer: FusedOptimizer, *, device: torch.device) -> None:
    """Create the rows of all tables of a model that have none yet."""
    for table in sharded_tables(model).values():
        if not table.is_built:
            table.build(optimizer, device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what TorchRec says about missing libraries for GPUs, its settings, and types that PyTorch will replace."""
    level = logging.root.manager.disable
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _shard(num_rows: int, dim: int, *, optimizer: FusedOptimizer, device: torch.device) -> Any:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ShardingEnv
    from torchrec.modules.embedding_configs import EmbeddingConfig
    from torchrec.modules.embedding_modules import EmbeddingCollection

    kinds = {
        "sgd": EmbOptimType.EXACT_SGD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "adam": EmbOptimType.ADAM,
    }
    config = EmbeddingConfig(name="rows", embedding_dim=dim, num_embeddings=num_rows, feature_names=["row"])
    tables = EmbeddingCollection(device=torch.device("meta"), tables=[config])
    settings = {"optimizer": kinds[optimizer.kind], "learning_rate": optimizer.lr, "eps": optimizer.eps}
    if optimizer.kind == "adam":
        settings |= {"beta1": optimizer.betas[0], "beta2": optimizer.betas[1], "eps": 1e-8}
    sharder = EmbeddingCollectionSharder(fused_params=settings)
    # A group of its own, so that look-ups do not mix with the messages of DDP.
    group, size = dist.new_group(), dist.get_world_size()
    plan = construct_module_sharding_plan(
        tables,
        {"rows": row_wise(compute_kernel="fused")},
        sharder=sharder,
        local_size=size,
        world_size=size,
        device_type=device.type,
    )
    return sharder.shard(tables, plan, ShardingEnv.from_process_group(group), device)
