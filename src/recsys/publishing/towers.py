"""Trained towers apart from their data, to build an index of newer data with the same weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from safetensors.torch import load
from torch import Tensor

from recsys.core.errors import UserError
from recsys.core.instantiate import instantiate
from recsys.data.codes import Codes
from recsys.data.dataset import PreparedDataset
from recsys.data.preparation.from_config import configured_data, with_root
from recsys.data.preparation.splits import NoSplit
from recsys.experiments.assembly import build_model
from recsys.experiments.run_folder import RunState, RunStatus
from recsys.experiments.trained_run import TrainedRun, stored_config
from recsys.models.blend import Model, members_of
from recsys.release.bounds import damaged
from recsys.release.files import read_file, read_schema, read_table, read_vocabulary
from recsys.release.manifest import (
    CONFIG,
    ITEM_VOCABULARY,
    ITEM_WEIGHTS,
    USER_VOCABULARY,
    USER_WEIGHTS,
    Manifest,
)


@dataclass(frozen=True, kw_only=True)
class Towers:
    """Weights of trained towers, and the ids and codes that they know.

    Attributes:
        config: configuration of the run.
        codes: ids and features that the towers know.
        user_weights, item_weights: weights by name, as in the files of a release.
        temperatures: temperature of each member; empty if that of the configuration is valid.
        run: folder of the run.
        metrics: metrics of the run.
        git_commit: commit of the code that trained the towers.
        train_until: time of the newest training event in seconds; None if the data has no times.
    """

    config: DictConfig
    codes: Codes
    user_weights: Mapping[str, Tensor]
    item_weights: Mapping[str, Tensor]
    temperatures: tuple[float, ...]
    run: Path
    metrics: dict[str, float]
    git_commit: str | None
    train_until: int | None

    @classmethod
    def of_run(cls, run: TrainedRun) -> Towers:
        """Return the towers of a finished run."""
        dataset = run.dataset
        known = dataset.item_ids.slice(0, dataset.meta.num_known)
        return cls(
            config=run.config,
            codes=Codes(
                schema=dataset.schema,
                item_ids=known,
                num_trained=dataset.num_trained,
                vocabularies={f.key: v for f in dataset.schema.features if (v := dataset.vocabulary(f)) is not None},
                user_ids=dataset.user_ids if run.model.reads_users else None,
                trained_users=_with_rows(run.model.user_tower.state_dict()),
            ),
            user_weights=run.model.user_tower.state_dict(),
            item_weights=run.model.item_tower.state_dict(),
            temperatures=tuple(member.model.temperature for member in members_of(run.model)),
            run=run.path,
            metrics=run.metrics,
            git_commit=run.state.git_commit,
            train_until=run.state.train_until or dataset.train_until,
        )

    @classmethod
    def of_release(cls, folder: Path, manifest: Manifest) -> Towers:
        """Return the towers of a verified release.

        Raises:
            UserError: If the release lacks something that its towers depend on.
        """
        config = stored_config(folder, read_file(folder, CONFIG, manifest))
        weights = read_weights(folder, ITEM_WEIGHTS, manifest)
        temperatures = manifest.temperatures or ((manifest.temperature,) if not config.members else ())
        if not temperatures and any(member.config.model.learn_temperature for member in config.members.values()):
            raise UserError(f"{folder}: a member of the blend has a learned temperature, which no file holds")
        schema = read_schema(folder, manifest)
        user_weights, users = read_weights(folder, USER_WEIGHTS, manifest), None
        if USER_VOCABULARY in manifest.files:
            users = read_table(folder, USER_VOCABULARY, manifest)["user_id"].combine_chunks()
        keys = [f.key for f in schema.features if f.has_vocabulary]
        return cls(
            config=config,
            codes=Codes(
                schema=schema,
                item_ids=read_table(folder, ITEM_VOCABULARY, manifest)["item_id"].combine_chunks(),
                num_trained=num_trained(manifest, weights),
                vocabularies={key: read_vocabulary(folder, key, manifest) for key in keys},
                user_ids=users,
                trained_users=None if users is None else _with_rows(user_weights),
            ),
            user_weights=user_weights,
            item_weights=weights,
            temperatures=temperatures,
            run=Path(manifest.run),
            metrics=dict(manifest.metrics),
            git_commit=manifest.git_commit,
            train_until=manifest.data.get("train_until"),
        )

    def prepare(self, root: str) -> PreparedDataset:
        """Prepare the data of a folder with the ids and codes of the towers. All events are training events.

        Raises:
            UserError: If the data lacks a column that the towers read, or is wrong.
        """
        return prepare_for(self.with_root(root), self.codes)

    def with_root(self, root: str) -> DictConfig:
        """Return the configuration with another data folder."""
        return with_root(self.config, root)

    def on(self, dataset: PreparedDataset) -> Model:
        """Return the model on data that `prepare` returned, in evaluation mode."""
        model = build_model(_with_priors(self.config, self.item_weights), dataset)
        with damaged(self.run):
            # There are more rows of users if the data has more users.
            sizes = {name: len(rows) for name, rows in model.user_tower.state_dict().items() if _is_user_rows(name)}
            rows = {name: _resized(self.user_weights[name], size) for name, size in sizes.items()}
            model.user_tower.load_state_dict({**self.user_weights, **rows})
            model.item_tower.load_state_dict(self.item_weights)
        if self.temperatures:
            for member, temperature in zip(members_of(model), self.temperatures, strict=True):
                with torch.no_grad():
                    member.model.log_inverse_temperature.fill_(-math.log(temperature))
        return model.eval()

    def state(self, dataset: PreparedDataset) -> RunState:
        """Return the state of a run with these towers on other data."""
        return RunState(
            status=RunStatus.FINISHED,
            dataset_fingerprint=dataset.meta.fingerprint,
            git_commit=self.git_commit,
            train_until=self.train_until,
        )


def read_weights(folder: Path, name: str, manifest: Manifest) -> dict[str, Tensor]:
    """Return the weights in a file of a verified release."""
    with damaged(folder / name):
        return load(read_file(folder, name, manifest))


def prepare_for(config: DictConfig, codes: Codes) -> PreparedDataset:
    """Prepare the data of a configuration with the ids and codes of towers."""
    configured = configured_data(config)
    # The counts of a new item are few.
    settings = dataclasses.replace(configured.settings, min_user_events=0, min_item_events=0)
    configured = dataclasses.replace(configured, split=NoSplit(), settings=settings)
    dataset = configured.prepare(instantiate(config.data.engine), codes)
    if codes.trained_users is not None:
        mask = np.zeros(dataset.num_users, bool)
        mask[: len(codes.trained_users)] = codes.trained_users
        dataset = dataclasses.replace(dataset, known_users=mask)
    return dataset


def _with_priors(config: DictConfig, weights: Mapping[str, Tensor]) -> DictConfig:
    """Return the configuration with the item priors that the towers have, whatever other data would allow."""
    changed = config.copy()
    members = [member.config for member in changed.members.values()]
    for number, node in enumerate(members or [changed]):
        prefix = f"{number}.priors." if members else "priors."
        if "priors" in node.model:
            node.model.priors.age, node.model.priors.recency = (f"{prefix}{n}" in weights for n in ("age", "recency"))
    return changed


def num_trained(manifest: Manifest, weights: Mapping[str, Tensor]) -> int:
    """Return the number of trained items of a release, which early manifests do not hold."""
    if manifest.num_trained is not None:
        return manifest.num_trained
    names = ("table.weight", "pretrained.table.weight")
    return max((len(weights[n]) - 1 for n in weights if n.lstrip("0123456789.") in names), default=0)


def _resized(rows: Tensor, size: int) -> Tensor:
    """Return the rows of users of data with more or fewer users. The last one is that of an unknown user."""
    kept = rows[: min(len(rows), size) - 1]
    return F.pad(kept, (0, size - len(kept)))


def _with_rows(weights: Mapping[str, Tensor]) -> npt.NDArray[np.bool_] | None:
    """Return the users with a row of a table of users; None if there is no such table."""
    masks = [(rows[:-1] > 0).cpu().numpy() for name, rows in weights.items() if _is_user_rows(name)]
    return np.any(masks, axis=0) if masks else None


def _is_user_rows(name: str) -> bool:
    return name.endswith("users.rows")
