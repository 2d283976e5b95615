"""The folder of a run: `config.yaml`, `run.json`, `metrics.json`, `per_user.parquet` and checkpoints.

Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from recsys.core.errors import UserError
from recsys.core.io import atomic_file, atomic_write
from recsys.core.stored_config import load_config
from recsys.experiments.run_names import ACCEPTED, OVERRIDES

STATE = "run.json"
METRICS = "metrics.json"
PER_USER = "per_user.parquet"
CONFIG = "config.yaml"
# Written even if they have no value, because readers outside the repository rely on these keys.
_ALWAYS = ("status", "git_commit", "seconds")
# Keys that may differ between two starts of a run.
_NOT_OF_THE_MODEL = ("test", "evaluation.baselines", "trainer.devices", "trainer.num_nodes", "variant_jobs")


class RunStatus(StrEnum):
    """Progress of a run."""

    RUNNING = "running"  # or killed
    SELECTED = "selected"  # the best checkpoint is measured on validation; the test part is not looked at
    FINISHED = "finished"
    STOPPED = "stopped"  # ended early by the sweep that it belongs to


# A run that has one of these has a measured checkpoint.
DONE = (RunStatus.SELECTED, RunStatus.FINISHED)


@dataclass(frozen=True)
class RunState:
    """Content of `run.json`.

    Attributes:
        status: progress; None for a folder that no command has begun to fill.
        dataset_fingerprint: prepared data set of the run.
        git_commit: commit of the code, with `+` for uncommitted changes; None outside a checkout.
        seconds: wall time over all starts of the run.
        steps: training steps made; None before training has ended.
        selected: step of the selected checkpoint; None before it is measured on validation.
        schedule_steps: length of the learning-rate schedule.
        targets_per_second: training speed.
        peak_memory_bytes: largest resident memory of the process.
        train_until: time of the newest event that training was given, in seconds.
        steps_before: steps of the run whose weights this one began from.
        parameters: number of parameters: `total`, `trainable`, both towers, all embedding `tables`, each table by name.
        popularity: metrics of popularity and item-kNN on validation and test, by name of the baseline.
        refitted: the selected checkpoint was trained again on train + val.
        variant: name of the variant, or description of the blend, that became the run.
        variants: validation metric of each variant.
        generator: name of the baseline; None for a trained model.
        metric: validation metric by which the settings of a baseline were chosen.
        tried: settings of a baseline that were measured on validation, with their metric.
        settings: chosen settings of a baseline.
        exclude_seen: rule of the test of a baseline that an earlier version measured, which wrote no `config.yaml`.
        other: keys that this version does not know; they are kept.
    """

    status: RunStatus | None = None
    dataset_fingerprint: str | None = None
    git_commit: str | None = None
    seconds: float = 0.0
    steps: int | None = None
    selected: int | None = None
    schedule_steps: int | None = None
    targets_per_second: float | None = None
    peak_memory_bytes: int | None = None
    train_until: int | None = None
    steps_before: int = 0
    parameters: dict[str, int] = field(default_factory=dict)
    popularity: dict[str, dict[str, float]] = field(default_factory=dict)
    refitted: bool = False
    variant: str | None = None
    variants: dict[str, float] = field(default_factory=dict)
    generator: str | None = None
    metric: str | None = None
    tried: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    exclude_seen: bool | None = None
    other: dict[str, Any] = field(default_factory=dict)

    @property
    def is_selected(self) -> bool:
        """True if the best checkpoint is chosen and measured on validation."""
        return self.selected is not None

    @classmethod
    def from_json(cls, content: Mapping[str, Any], place: str | Path) -> RunState:
        """Return the state in a decoded `run.json`.

        Args:
            content: keys and values.
            place: name of the file, for errors.

        Raises:
            UserError: If a value is of another type, or the status is unknown.
        """
        hints = typing.get_type_hints(cls)
        known: dict[str, Any] = {}
        for name, value in content.items():
            if name == "status":
                if value not in list(RunStatus):
                    raise UserError(f"{place}: status is '{value}', expected one of {', '.join(RunStatus)}")
                known[name] = RunStatus(value)
            elif name in hints and name != "other":
                if int in _classes(hints[name]) and isinstance(value, float) and value.is_integer():
                    # W&B returns every number of a summary as a float.
                    value = int(value)
                if not isinstance(value, _classes(hints[name])):
                    raise UserError(f"{place}: {name} is {value!r}, expected {_describe(hints[name])}")
                known[name] = value
        return cls(**known, other={name: value for name, value in content.items() if name not in known})

    def to_json(self) -> dict[str, Any]:
        """Return the content of `run.json`, without values that are not known yet."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "other"}
        unset = RunState()
        return {n: v for n, v in values.items() if n in _ALWAYS or v != getattr(unset, n)} | self.other

    def write(self, folder: Path) -> None:
        """Replace `run.json` of a folder that exists."""
        atomic_write(folder / STATE, json.dumps(self.to_json(), indent=2) + "\n")


def read_state(folder: Path) -> RunState:
    """Return the state of a run.

    Raises:
        UserError: If `run.json` is missing or damaged.
    """
    file = folder / STATE
    return RunState.from_json(read_json(file), file)


def read_json(file: Path) -> dict[str, Any]:
    """Return the keys and values of a JSON file.

    Raises:
        UserError: If the file is missing or damaged.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: missing or damaged, expected a run of `recsys train` ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: found {type(content).__name__}, expected keys and values")
    return content


# Keys whose value `auto` a run replaces by its choice.
CHOSEN = (
    *("batch_size", "model.new_items_offset", "model.new_items_scale"),
    *("item_tower.sharding", "user_tower.sharding"),
)


class RunFolder:
    """Reads and writes the files of one run. Of several processes only the first writes.

    Nothing is written before `claim`. What an earlier attempt with another configuration left does not count unless it
    has made a checkpoint.

    Args:
        path: folder of the run.
        config: configuration of the run. `test` may differ from that of an earlier start, because a run that was
            selected without a look at the test part can be finished later.

    Raises:
        UserError: If the folder holds a run of another configuration.
    """

    def __init__(self, path: Path, config: DictConfig) -> None:
        self.path, self.config = path, config
        self.checkpoints = path / "checkpoints"
        self._is_current, self._is_new = True, False
        if (path / CONFIG).exists():
            found = load_config(path / CONFIG)
            chosen = [key for key in CHOSEN if OmegaConf.select(config, key) == "auto"]
            for key in chosen:
                # What the earlier start chose from the same data.
                OmegaConf.update(config, key, OmegaConf.select(found, key))
            stored, wanted = (OmegaConf.to_container(each, resolve=True) for each in (found, config))
            difference = _difference(stored, wanted)
            for key in chosen if difference is not None else ():
                OmegaConf.update(config, key, "auto")
            self._is_current = difference is None
            if difference is not None and self._has_results():
                raise UserError(f"{path / CONFIG}: {difference}; choose another hydra.run.dir")

    def _has_results(self) -> bool:
        state = read_state(self.path) if (self.path / STATE).exists() else RunState()
        return any(self.checkpoints.rglob("*.ckpt")) or state.is_selected or bool(state.tried)

    def claim(self) -> None:
        """Create the folder and write `config.yaml`. What another configuration left there is removed."""
        if not _is_first():
            return
        self._is_new = not (self.path / CONFIG).exists()
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._is_current:
            for name in (STATE, METRICS):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / "logs", ignore_errors=True)
            self._is_current = True
        if (self.path / OVERRIDES).exists():
            atomic_write(self.path / ACCEPTED, (self.path / OVERRIDES).read_text())
        # A run that was tested stays one.
        if self.config.get("test", True) or not (self.path / CONFIG).exists():
            write_config(self.path, self.config)

    def unclaim(self) -> None:
        """Remove what this start has written, if the folder was new and there are no results."""
        if self._is_new and _is_first() and not self._has_results():
            for name in (CONFIG, STATE, ACCEPTED):
                (self.path / name).unlink(missing_ok=True)
            for name in ("logs", "wandb", "checkpoints"):
                shutil.rmtree(self.path / name, ignore_errors=True)

    @property
    def state(self) -> RunState:
        """Content of `run.json`; empty for a new run."""
        return read_state(self.path) if self._is_current and (self.path / STATE).exists() else RunState()

    def update(self, **changes: Any) -> None:
        """Replace values of `run.json`, given as fields of `RunState`."""
        if _is_first():
            dataclasses.replace(self.state, **changes).write(self.path)

    @property
    def metrics(self) -> dict[str, float]:
        """Content of `metrics.json`; empty for a new run."""
        file = self.path / METRICS
        return read_json(file) if file.exists() else {}

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        """Replace `metrics.json`."""
        if _is_first():
            atomic_write(self.path / METRICS, json.dumps(dict(metrics), indent=2) + "\n")

    def write_per_user(self, table: pa.Table) -> None:
        """Replace `per_user.parquet`."""
        if _is_first():
            with atomic_file(self.path / PER_USER) as aside:
                pq.write_table(table, aside)


def _is_first() -> bool:
    # Imported late, since torch takes seconds and commands that read run folders need none of it.
    from recsys.core import distributed

    return distributed.is_first()


def write_config(path: Path, config: DictConfig) -> None:
    """Replace `config.yaml` of the run folder `path`, with interpolations resolved."""
    if _is_first():
        resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        atomic_write(path / CONFIG, OmegaConf.to_yaml(resolved))


def _classes(hint: Any) -> tuple[type, ...]:
    """Return the classes that a type hint allows; an integer is also a valid float."""
    if isinstance(hint, types.UnionType):
        return tuple(one for part in typing.get_args(hint) for one in _classes(part))
    kind = typing.get_origin(hint) or hint
    return (int, float) if kind is float else (kind,)


def _describe(hint: Any) -> str:
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false", list: "a list"}
    kinds = [kind for kind in _classes(hint) if kind is not types.NoneType]
    return names.get(kinds[-1], "keys and values")


def _difference(found: Any, wanted: Any) -> str | None:
    """Return a description of the keys of the model in which two configurations differ; None if in none."""
    differing = [
        difference for difference in config_differences(found, wanted) if difference[0] not in _NOT_OF_THE_MODEL
    ]
    if not differing:
        return None
    held = ", ".join(f"{key}={old}" for key, old, _ in differing[:5])
    asked = ", ".join(f"{key}={new}" for key, _, new in differing[:5])
    return f"this folder holds a run with {held}, but {asked} is requested"


def config_differences(found: Any, wanted: Any) -> list[tuple[str, Any, Any]]:
    """Return the keys in which two configurations, as containers, differ, with both values.

    A key that is interpolated from another one differs too. The shortest names, which are the causes, come first.
    """
    return sorted(_differences(found, wanted, ""), key=lambda difference: (difference[0].count("."), difference[0]))


def _differences(found: Any, wanted: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in {*found, *wanted}:
            yield from _differences(found.get(name), wanted.get(name), f"{key}.{name}" if key else str(name))
    elif found != wanted and not (found is None and _is_off(wanted)):
        yield key, found, wanted


def _is_off(value: Any) -> bool:
    """True for what a configuration that is older than the key meant."""
    return value is False or (isinstance(value, dict) and value.get("capacity", 0) is None)
