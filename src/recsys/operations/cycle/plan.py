"""What a cycle is asked for, and how its data and its beginning enter the configuration of its training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from recsys.core.errors import UserError
from recsys.experiments.warm_start import open_earlier_run
from recsys.operations.cycle.arrivals import Listing
from recsys.operations.cycle.state import Cycle
from recsys.release.store import ReleaseStore

PRODUCTION = "production"
_FOLDER_SOURCE = "recsys.data.sources.ParquetFolder"


@dataclass(frozen=True)
class Plan:
    """One cycle's settings.

    Attributes:
        config: composed from `conf/retrain.yaml`.
        training: composed from `conf/train.yaml`.
        variants: of the training, by name; empty where it lists none.
    """

    config: DictConfig
    training: DictConfig
    variants: Mapping[str, DictConfig]

    def __post_init__(self) -> None:
        if self.config.keep is not None and self.config.keep < 0:
            raise UserError(f"keep: found {self.config.keep}, expected 0 or more, or null")
        for name, config in self.trainings.items():
            place = f"train ({name})" if name else "train"
            if config.data.source["_target_"] != _FOLDER_SOURCE:
                raise UserError(f"{place}: data={config.data.name}, expected data=parquet: shards are appended to it")
            if config.trainer.devices != 1:
                raise UserError(
                    f"{place}: trainer.devices={config.trainer.devices}, expected 1: a cycle trains in one process"
                )
            if not config.test:
                raise UserError(f"{place}: test=false, expected true: gates compare with what the run measured")
            if config.warm_start is not None:
                raise UserError(
                    f"{place}: warm_start={config.warm_start}; a cycle chooses the run to begin from itself: "
                    "warm_start=true or false beside train="
                )

    @property
    def store(self) -> ReleaseStore:
        """Of releases."""
        return ReleaseStore(self.config.store)

    @property
    def folder(self) -> Path:
        """Of the model's cycles."""
        return Path(self.config.folder).absolute() / str(self.config.model)

    @property
    def root(self) -> str:
        """Where events arrive; the same wherever the command is started."""
        root = str(self.config.data.root)
        return root if "://" in root else str(Path(root).absolute())

    @property
    def trainings(self) -> dict[str, DictConfig]:
        """Every configuration that is trained: variants by name, or the one without a name."""
        return dict(self.variants) or {"": self.training}

    @property
    def digest(self) -> str:
        """Of everything that decides what is trained, what is packed and how it is judged."""
        config = self.config
        named = {
            name: config[name] for name in ("index", "corpus", "gates", "recall_target", "warm_start", "max_users")
        }
        named |= {"training": self.training, "variants": OmegaConf.create(dict(self.variants))}
        plain = {
            name: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
            for name, node in named.items()
        }
        content = json.dumps([self.root, plain], sort_keys=True, default=repr)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def cycle_folder(self, cycle: Cycle) -> Path:
        """Of one cycle."""
        return self.folder / "cycles" / str(cycle.number)

    def run_folder(self, cycle: Cycle) -> Path:
        """Of its training."""
        return self.cycle_folder(cycle) / "run"

    def configurations(self, cycle: Cycle) -> dict[str, DictConfig]:
        """As `trainings`, with the files of the cycle as their data and what they begin from."""
        return {name: _on(config, cycle.listing, cycle.warm_start.get(name)) for name, config in self.trainings.items()}

    def served(self) -> str | None:
        """The version that is served; None: there is none yet."""
        return self.store.aliases().get(PRODUCTION)

    def judge_again(self, cycle: Cycle) -> str | None:
        """Back to the gates, where another release is served by now than the candidate was judged beside."""
        now = self.served()
        if now in (cycle.served, cycle.version):
            return None
        told = f"{now} is served by now, not {cycle.served}: the candidate is judged again"
        cycle.step = "judge"
        return told

    def beginnings(self, served: str | None) -> tuple[dict[str, str | None], str]:
        """What each training begins from, and what to tell of it.

        A run whose folder or data are gone is no reason not to train: it is told, and training begins from scratch.
        """
        if not self.config.warm_start:
            return {}, "from scratch: warm_start=false"
        if served is None:
            return {}, "from scratch: nothing is served yet"
        _, manifest = self.store.open(served)
        chosen: dict[str, str | None] = {}
        problem = ""
        for name in self.trainings:
            member = Path(manifest.run) / "variants" / name
            run = member if name and member.is_dir() else Path(manifest.run)
            try:
                open_earlier_run(run)
            except UserError as error:
                problem = str(error)
                continue
            chosen[name] = str(run)
        if problem:
            return chosen, f"from scratch: {problem}" if not chosen else f"from {served}, in part: {problem}"
        return chosen, f"from release {served}"


def _on(config: DictConfig, listing: Listing, begin: str | None) -> DictConfig:
    copy: DictConfig = config.copy()
    with open_dict(copy):
        copy.data.source = {"_target_": "recsys.data.sources.ParquetFiles", **listing.paths}
        copy.warm_start = begin
    return copy
