"""Settings of a cycle, and the configuration of its training with its files and starting weights."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from recsys.core.errors import UserError
from recsys.experiments.warm_start import open_earlier_run
from recsys.operations.cycle.state import Cycle
from recsys.release.signing import check_signer
from recsys.release.store import ReleaseStore

PRODUCTION = "production"
_FOLDER_SOURCE = "recsys.data.sources.ParquetFolder"


@dataclass(frozen=True)
class CyclePlan:
    """Settings of one cycle.

    Attributes:
        config: configuration of `conf/retrain.yaml`.
        training: configuration of `conf/train.yaml`.
        variants: configurations of the training's variants by name; empty if it has none.
        command: overrides of the command line, without secrets, for the commands that messages name.
    """

    config: DictConfig
    training: DictConfig
    _: KW_ONLY
    variants: Mapping[str, DictConfig]
    command: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        check_signer()
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
                raise UserError(f"{place}: test=false, expected true: gates compare with the test metrics of the run")
            if config.warm_start is not None:
                raise UserError(
                    f"{place}: warm_start={config.warm_start}; a cycle chooses its starting run: "
                    "set warm_start=true or false outside train="
                )

    @property
    def store(self) -> ReleaseStore:
        """Store of releases."""
        return ReleaseStore(self.config.store)

    @property
    def folder(self) -> Path:
        """Folder of the model's cycles."""
        return Path(self.config.folder).absolute() / str(self.config.model)

    @property
    def root(self) -> str:
        """Data folder to which events are appended; absolute, so that it does not depend on the working directory."""
        root = str(self.config.data.root)
        return root if "://" in root else str(Path(root).absolute())

    @property
    def trainings(self) -> dict[str, DictConfig]:
        """Configurations to train: the variants by name, or the only one under the empty name."""
        return dict(self.variants) or {"": self.training}

    @property
    def digest(self) -> str:
        """Digests of the settings of training, and of packing and gates, as `TRAINING-JUDGING`."""
        training = [self.root, self.config.warm_start, self.training, OmegaConf.create(dict(self.variants))]
        names = ("index", "corpus", "gates", "recall_target", "max_users", "samples")
        judging = [self.config[name] for name in names]
        judging += [one for one in (self.config.item_embeddings, self.config.shards) if one not in ("float32", None)]
        return "-".join(_digest(nodes) for nodes in (training, judging))

    def command_line(self, *words: str, only: Sequence[str] | None = None) -> str:
        """Return the shell command that repeats this cycle; given overrides replace those of the same keys.

        Args:
            words: further overrides.
            only: keys of the command to repeat, or their beginnings; None for all.
        """
        keys = {word.partition("=")[0].lstrip("+") for word in words}
        kept = [word for word in self.command if word.partition("=")[0].lstrip("+") not in keys]
        kept = [word for word in kept if only is None or word.startswith(tuple(only))]
        return " ".join(["recsys", "retrain", *map(_shell_word, [*kept, *words])])

    def reason(self, cycle: Cycle) -> str:
        """Return the reason for a move of an alias, which the store's history and the lineage show."""
        by = f", accepted by {cycle.accepted.who}: {cycle.accepted.why}" if cycle.accepted else ""
        return f"retraining cycle {cycle.number}{by}"

    def cycle_folder(self, cycle: Cycle) -> Path:
        """Return the folder of one cycle."""
        return self.folder / "cycles" / str(cycle.number)

    def run_folder(self, cycle: Cycle) -> Path:
        """Return the run folder of its training."""
        return self.cycle_folder(cycle) / "run"

    def configurations(self, cycle: Cycle) -> dict[str, DictConfig]:
        """Return `trainings` with the files of the cycle as their data, and with their starting weights."""
        return {
            name: _with_data(config, cycle, warm_start=cycle.warm_start.get(name))
            for name, config in self.trainings.items()
        }

    def served(self) -> str | None:
        """Return the version that is served; None if there is none yet."""
        return self.store.aliases().get(PRODUCTION)

    def judge_again(self, cycle: Cycle) -> str | None:
        """Send the cycle back to `judge` if another release is served than the one that it was compared with.

        Returns:
            A message if the cycle was sent back; None if it was not.
        """
        now = self.served()
        if now in (cycle.served, cycle.version):
            return None
        message = f"{now} is served now instead of {cycle.served}: the candidate is judged again"
        cycle.step = "judge"
        return message

    def starting_runs(self, served: str | None) -> tuple[dict[str, str | None], str]:
        """Return the run folder whose weights each training starts from, and a message about them.

        If the folder or the data of a run is missing, the training starts from random weights.
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


def _with_data(config: DictConfig, cycle: Cycle, *, warm_start: str | None) -> DictConfig:
    copy: DictConfig = config.copy()
    with open_dict(copy):
        copy.data.source = {"_target_": "recsys.data.sources.ParquetFiles", **cycle.listing.paths}
        copy.data.suppressed = cycle.suppressed
        copy.warm_start = warm_start
    return copy


def _shell_word(word: str) -> str:
    # A list of quoted words reads better between double quotes.
    return f'"{word}"' if "'" in word and not {*word} & {*'"$`\\!'} else shlex.quote(word)


def _digest(nodes: Sequence[object]) -> str:
    plain = [OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node for node in nodes]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=repr).encode()).hexdigest()[:16]
