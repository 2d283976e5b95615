"""Loading of stored configurations, whose `_target_` paths may belong to an earlier layout of this package.

A stored configuration is data: `recsys.core.instantiate` builds only classes from it that `recsys.core.trust` allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recsys.core.errors import UserError
from recsys.core.trust import STORED

# Limits of a configuration file. The largest one of a blend has some hundred kilobytes.
MAX_BYTES, MAX_DEPTH = 8 << 20, 40
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Mappings that the configuration of every training has; each stands before its own parts.
_PARTS = (
    "data", "data.source", "data.columns", "data.features", "split", "history", "model", "user_tower", "item_tower"
)  # fmt: skip
# Earlier path of a module or class -> later path. The longest match is used. The table is applied until nothing
# changes, so a class that moved and was then renamed needs one row for each step.
MOVED = {
    "recsys.averaging": "recsys.training.ema",
    "recsys.checkpoints": "recsys.training.checkpoints",
    "recsys.corpus": "recsys.publishing.corpus_policies",
    "recsys.data.engines": "recsys.data.preparation.engines",
    "recsys.data.movielens": "recsys.data.sources.movielens",
    "recsys.data.preparation.splits.Given": "recsys.data.preparation.splits.GivenSplit",
    "recsys.data.preparation.splits.LeaveLastOut": "recsys.data.preparation.splits.LeaveLastOutSplit",
    "recsys.data.preparation.splits.Temporal": "recsys.data.preparation.splits.TemporalSplit",
    "recsys.data.sources.ListedFiles": "recsys.data.sources.ParquetFiles",
    "recsys.data.splits": "recsys.data.preparation.splits",
    "recsys.data.synthetic": "recsys.data.simulation.synthetic",
    "recsys.experiments.pretrained_sources.ALS": "recsys.experiments.pretrained_sources.ALSEmbeddings",
    "recsys.experiments.pretrained_sources.EarlierRun": "recsys.experiments.pretrained_sources.EarlierRunEmbeddings",
    "recsys.experiments.pretrained_sources.SVD": "recsys.experiments.pretrained_sources.SVDEmbeddings",
    "recsys.frequency": "recsys.training.frequency",
    "recsys.generators": "recsys.baselines",
    "recsys.losses": "recsys.training.losses",
    "recsys.negatives": "recsys.training.negatives",
    "recsys.optimizers": "recsys.training.optimizers",
    "recsys.pretraining": "recsys.experiments.pretrained_sources",
    "recsys.publishing.corpus_policies.All": "recsys.publishing.corpus_policies.AllItems",
    "recsys.publishing.corpus_policies.Engaged": "recsys.publishing.corpus_policies.EngagedItems",
    "recsys.publishing.corpus_policies.Listed": "recsys.publishing.corpus_policies.ListedItems",
    "recsys.retraining.accuracy": "recsys.operations.gates.accuracy",
    "recsys.retraining.artefact": "recsys.operations.gates.artifact",
    "recsys.retraining.contents": "recsys.operations.gates.event_contents",
    "recsys.retraining.drift": "recsys.operations.gates.drift",
    "recsys.retraining.events": "recsys.operations.gates.event_times",
    "recsys.retraining.leakage": "recsys.operations.gates.leakage",
    "recsys.retraining.shadow": "recsys.operations.gates.shadow",
    "recsys.retraining.volume": "recsys.operations.gates.event_volume",
    "recsys.training.frequency.CountMin": "recsys.training.frequency.CountMinFrequency",
    "recsys.training.frequency.Exact": "recsys.training.frequency.ExactFrequency",
    "recsys.training.frequency.Streaming": "recsys.training.frequency.StreamingFrequency",
    "recsys.training.negatives.CrossBatch": "recsys.training.negatives.CrossBatchNegatives",
    "recsys.training.negatives.Hard": "recsys.training.negatives.HardNegatives",
    "recsys.training.negatives.InBatch": "recsys.training.negatives.InBatchNegatives",
    "recsys.training.negatives.Mined": "recsys.training.negatives.MinedNegatives",
    "recsys.training.negatives.Mixed": "recsys.training.negatives.MixedNegatives",
    "recsys.training.negatives.Popularity": "recsys.training.negatives.PopularityNegatives",
    "recsys.training.negatives.Uniform": "recsys.training.negatives.UniformNegatives",
}


def load_config(path: Path, content: bytes | None = None) -> DictConfig:
    """Return the configuration in a YAML file, marked as stored, with earlier `_target_` paths replaced by today's.

    Args:
        path: `config.yaml` of a run or a release.
        content: what was read from it and verified; None to read it.

    Raises:
        OSError: If the file cannot be read.
        UserError: If it is not a plain configuration: a mapping of resolved values.
    """
    with _refusing(path):
        config = OmegaConf.create(_read(path, content).decode())
        if not isinstance(config, DictConfig):
            raise ValueError("expected a mapping")
        _translate(config)
    config._set_flag(STORED, True)
    return config


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UserError):
        raise
    except (ValueError, TypeError, yaml.YAMLError, OmegaConfBaseException, RecursionError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a configuration of recsys ({reason[:300]})") from error


def _read(path: Path, content: bytes | None = None) -> bytes:
    size = path.stat().st_size if content is None else len(content)
    if size > MAX_BYTES:
        raise UserError(f"{path}: found {size} bytes, expected a configuration of at most {MAX_BYTES}")
    content = path.read_bytes() if content is None else content
    _check_form(content)
    return content


def load_plain(path: Path) -> dict[str, Any]:
    """Return the configuration in a YAML file as plain values, from which nothing is built; see `load_config`."""
    with _refusing(path):
        content = _read(path)
        found = yaml.load(content, _LOADER)
        if not isinstance(found, dict):
            raise ValueError("expected a mapping")
        return found


def load_training(path: Path, content: bytes | None = None) -> DictConfig:
    """Return the stored configuration of a training; see `load_config`.

    Raises:
        UserError: Also if a part is missing that every training has.
    """
    config = load_config(path, content)
    for name in _PARTS:
        head, _, last = name.rpartition(".")
        found = (config.get(head) if head else config).get(last)
        if not isinstance(found, DictConfig):
            raise UserError(f"{path}: {name}: found {found!r:.60}, expected a mapping: not the configuration of a run")
    return config


def _check_form(content: bytes) -> None:
    """Refuse YAML that grows when it is read: references to other parts, and deep nesting."""
    depth, is_mapping = 0, False
    for event in yaml.parse(content, Loader=_LOADER):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {line}: found a reference (*), expected plain values")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"line {line}: found more than {MAX_DEPTH} levels")
        is_mapping = is_mapping or (depth == 1 and isinstance(event, yaml.MappingStartEvent))
    if not is_mapping:
        raise ValueError("expected a mapping")


def current_target(target: str) -> str:
    """Return the path of a class in today's layout.

    Args:
        target: dotted path, such as `recsys.averaging.EMA`.
    """
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        moved = MOVED.get(".".join(parts[:length]))
        if moved is not None:
            return current_target(".".join([moved, *parts[length:]]))
    return target


def _translate(node: Any) -> None:
    if isinstance(node, ListConfig | DictConfig):
        keys: Any = node if isinstance(node, DictConfig) else range(len(node))
        for key in keys:
            if OmegaConf.is_interpolation(node, key):
                # An interpolation could read the environment, or become the name of a class after names were checked.
                raise ValueError(f"{node._get_full_key(key)}: found an interpolation, expected a resolved value")
            if OmegaConf.is_missing(node, key):
                continue
            child = node[key]
            if key == "_target_" and isinstance(child, str):
                node[key] = current_target(child)
            else:
                _translate(child)
