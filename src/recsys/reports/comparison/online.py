"""Runs of a W&B project, read through its public API. Metrics per user come from the artifact of each run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from recsys.core.errors import UserError
from recsys.core.io import atomic_write
from recsys.experiments.run_folder import RunState
from recsys.experiments.run_logs import curves_of
from recsys.experiments.run_table import RunRow
from recsys.reports.comparison.measured import PER_USER, MeasuredRun, flat, measured

log = logging.getLogger("recsys")

PREFIX = "wandb:"
_PARTS = ("val/", "test/", "test_rolling/")


class Api(Protocol):
    """The part of `wandb.Api` that this module uses."""

    def runs(self, path: str, *, filters: dict[str, Any]) -> Iterable[Any]:
        """Return the runs of `ENTITY/PROJECT` or `PROJECT`."""
        ...

    def run(self, path: str) -> Any:
        """Return the run `ENTITY/PROJECT/ID`."""
        ...


def read_wandb(address: str, cache: Path, *, api: Api | None = None) -> list[MeasuredRun]:
    """Read the finished runs of a project, or one run.

    Args:
        address: `wandb:PROJECT`, `wandb:ENTITY/PROJECT` or `wandb:ENTITY/PROJECT/ID`.
        cache: folder for downloads: `per_user.parquet` of each run, once.
        api: API client; `wandb.Api()` by default.

    Raises:
        UserError: If W&B is offline, does not have the address, or no run has the files that a comparison needs.
    """
    with _clear_errors(address):
        found = _find(address, api)
        runs = [run for one in found if (run := _measured(one, cache)) is not None]
    if not runs:
        raise UserError(
            f"{address}: {len(found)} finished runs, none with test metrics and {PER_USER}; expected runs that were "
            "online when they finished (for others name their folders)"
        )
    return runs


def fetch_run(address: str, cache: Path, *, api: Api | None = None) -> Path:
    """Download the configuration, best checkpoint and metrics of a W&B run into a run folder.

    Args:
        address: `wandb:ENTITY/PROJECT/ID`.
        cache: folder for downloads.
        api: API client; `wandb.Api()` by default.

    Raises:
        UserError: If W&B is offline, does not have the run, or the run has no model artifact.
    """
    if address.count("/") != 2:
        raise UserError(f"{address}: expected one run, {PREFIX}ENTITY/PROJECT/ID")
    with _clear_errors(address):
        (run,) = _find(address, api)
        folder = _folder(run, cache)
        names = {"best.ckpt": folder / "checkpoints", "config.yaml": folder, PER_USER: folder}
        if not all([_download(run, name, folder=root) for name, root in names.items()]):
            raise UserError(f"{address}: it has no artifact with {', '.join(names)}; name its local folder")
        metrics, state = _summary(run)
    atomic_write(folder / "metrics.json", json.dumps(metrics))
    state.write(folder)
    return folder


@contextmanager
def _clear_errors(address: str) -> Iterator[None]:
    import wandb

    try:
        yield
    except (wandb.errors.Error, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{address}: {error}") from error


def _find(address: str, api: Api | None) -> list[Any]:
    import wandb

    from recsys.experiments.wandb_mirror import wandb_online

    path = address.removeprefix(PREFIX)
    if not all(path.split("/")) or path.count("/") > 2:
        raise UserError(f"{address}: expected {PREFIX}ENTITY/PROJECT, or {PREFIX}ENTITY/PROJECT/ID for one run")
    if api is None:
        if not wandb_online():
            raise UserError(
                "W&B is offline: expected a key (wandb login), and WANDB_MODE not set; or name local folders"
            )
        api = wandb.Api()
    if path.count("/") == 2:
        return [api.run(path)]
    return list(api.runs(path, filters={"state": "finished"}))


def _measured(run: Any, cache: Path) -> MeasuredRun | None:
    metrics, state = _summary(run)
    if not any(name.startswith("test/") for name in metrics):
        # Releases are also W&B runs of the project, but have no test metrics.
        return None
    folder = _folder(run, cache)
    if not _download(run, PER_USER, folder=folder):
        log.warning("%s (%s) is left out: it has no artifact with %s", run.name, run.id, PER_USER)
        return None
    config = dict(run.config)
    # W&B does not store the command line, so differing settings are found in the whole configuration.
    settings = {name: str(value) for name, value in flat(config) if not name.startswith(("logger.", "variants."))}
    row = RunRow(folder, run.name, settings, state, metrics)
    return measured(
        row, config, per_user=folder / PER_USER, curves=curves_of(run.scan_history(), "trainer/global_step")
    )


def _summary(run: Any) -> tuple[dict[str, float], RunState]:
    """Return the last values that a run logged, as the contents of `metrics.json` and `run.json`."""
    summary = {name: value for name, value in dict(run.summary_metrics).items() if not name.startswith("_")}
    metrics = {name: float(value) for name, value in summary.items() if name.startswith(_PARTS)}
    state = {name: value for name, value in summary.items() if name not in metrics}
    return metrics, RunState.from_json(state, f"{PREFIX}{run.id}")


def _folder(run: Any, cache: Path) -> Path:
    return cache / "wandb" / str(run.entity) / str(run.project) / str(run.id)


def _download(run: Any, name: str, *, folder: Path) -> bool:
    entry = None
    # A restarted run may have several artifacts; the last one counts.
    for artifact in run.logged_artifacts():
        if artifact.type == "model":
            try:
                entry = artifact.get_entry(name)
            except KeyError:
                continue
    if entry is None:
        return False
    entry.download(root=str(folder))
    return True
