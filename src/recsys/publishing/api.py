"""Functions of the public Python API: train, open and publish. `recsys` exports them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from recsys.core.errors import UserError
from recsys.publishing.opened_release import OpenedRelease
from recsys.release.runtime.retriever import Retriever

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from recsys.core.index_time import IndexTime
    from recsys.experiments.trained_run import TrainedRun
    from recsys.publishing.opened_run import OpenedRun
    from recsys.publishing.promote import Promotion


P = ParamSpec("P")
R = TypeVar("R")


def _needs_extra(function: Callable[P, R]) -> Callable[P, R]:
    """Name the extra to install if a package that the function imports is missing."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ModuleNotFoundError as error:
            package = str(error.name).partition(".")[0]
            if package == "recsys":
                raise
            raise UserError(
                f"recsys.{function.__name__} needs the package '{package}', which is not installed: "
                "pip install 'recsys[train]'"
            ) from error

    return call


@_needs_extra
def train(overrides: Sequence[str] = (), *, path: str | Path | None = None) -> OpenedRun:
    """Train one model, or the best of several, as `recsys train` does.

        run = recsys.train(["+experiment=recommended", "data.root=events"], path="runs/first")

    Args:
        overrides: arguments of `recsys train`.
        path: folder of the run; None for `hydra.run.dir`, by default `runs/` and the time. A killed run continues; a
            finished one is opened.

    Returns:
        The finished run.

    Raises:
        UserError: If the configuration or the data is wrong.
    """
    from recsys.experiments.compose import compose_run
    from recsys.experiments.overrides import quoted
    from recsys.experiments.processes import join
    from recsys.experiments.run_table import write_overrides
    from recsys.experiments.train import train as train_one
    from recsys.experiments.variants import train_best

    if isinstance(overrides, str):
        raise UserError(f"overrides: found a text, expected a list such as {overrides.split()}")
    words = [*overrides, *([] if path is None else [f"hydra.run.dir={quoted(str(path))}"])]
    config, variants, folder = compose_run(words)
    join(config, folder)
    run = train_best(variants, folder, blend=config.blend) if variants else train_one(config, folder)
    write_overrides(run.path, overrides)
    return load_run(run.path)


@_needs_extra
def load_run(path: str | Path) -> OpenedRun:
    """Open the folder of a finished run.

    Args:
        path: run folder written by `recsys train`.

    Raises:
        UserError: If there is no such run, it is not finished, or its data has changed.
    """
    from recsys.experiments.trained_run import load_run as load
    from recsys.publishing.opened_run import OpenedRun

    return OpenedRun(load(path))


def load_release(
    release: str,
    *,
    store: str | Path = "releases",
    data: str | Path | None = None,
    threads: int = 0,
    require_signature: str | Path | None = None,
) -> OpenedRelease:
    """Open a release and verify its files.

    Args:
        release: version or alias.
        store: folder of releases.
        data: folder of Parquet files with histories and profiles; `"own"` for the data that the release was trained
            on; None if calls give `histories`.
        threads: threads of the user tower; 0 for one per core.
        require_signature: public key, or folder of them, of which one must have signed the release; None for that of
            the environment variable `RECSYS_REQUIRE_SIGNATURE`, if it is set.

    Raises:
        UserError: If there is no such release, a file is missing or changed, or a required signature is missing.
    """
    keys = None if require_signature is None else Path(require_signature)
    return OpenedRelease(Retriever.load(store, release, threads=threads, require_signature=keys), data)


@_needs_extra
def promote(
    run: OpenedRun | str | Path,
    *,
    store: str | Path = "releases",
    alias: str | None = "candidate",
    overrides: Sequence[str] = (),
) -> OpenedRelease:
    """Publish a run as a release, as `recsys index` does.

    Args:
        run: opened run, or its folder.
        store: folder of releases.
        alias: alias that points at the release afterwards; None for none.
        overrides: further arguments of `recsys index`, such as `index=hnsw` or `recall_target=0.95`.

    Returns:
        The release, with the data of the run.

    Raises:
        UserError: If the index misses the recall target, or the alias is not a valid name.
    """
    from recsys.experiments.compose import compose_command
    from recsys.experiments.overrides import quoted

    opened = load_run(run) if isinstance(run, str | Path) else run
    own = [f"store={quoted(str(store))}", "alias=null" if alias is None else f"alias={quoted(alias)}"]
    config = compose_command("index", [*own, *overrides])
    promotion = publish(opened.trained, config)
    return load_release(promotion.version, store=store, data="own")


def publish(run: TrainedRun, config: DictConfig) -> Promotion:
    """Publish a run, move the alias, and mirror the release to W&B.

    Args:
        run: finished run.
        config: composed from `conf/index.yaml`.

    Raises:
        UserError: If the index misses the recall target, or the alias is not a valid name.
    """
    from recsys.experiments.assembly import instantiate
    from recsys.experiments.wandb_mirror import mirror_release
    from recsys.publishing.promote import promote as promote_run
    from recsys.release.signing import check_signer
    from recsys.release.store import ReleaseStore

    store = ReleaseStore(config.store)
    if config.alias is not None:
        store.check_alias(config.alias)
        check_signer()
    run, index_time, refreshed = _on_data(run, config)
    promotion = promote_run(
        run,
        instantiate(config.index),
        store=store,
        model=config.model,
        recall_target=config.recall_target,
        policy=instantiate(config.corpus),
        index_time=index_time,
        refreshed=refreshed,
        item_embeddings=config.item_embeddings,
        shards=config.shards,
    )
    if config.alias is not None:
        store.set_alias(config.alias, promotion.version, why=f"recsys index run={run.path}")
    folder = store.root / promotion.version
    mirror_release(run.config.logger.project, folder, model=config.model, alias=config.alias, registry=config.registry)
    return promotion


def _on_data(run: TrainedRun, config: DictConfig) -> tuple[TrainedRun, IndexTime | None, dict[str, Any]]:
    """Return the run with the data and the item biases that `data.root`, `now` and `horizon_days` name."""
    from recsys.experiments.item_biases import set_bias
    from recsys.publishing.index_times import choose_index_time, newest_index_time
    from recsys.publishing.newer_data import absolute, on_newer_data, record
    from recsys.publishing.towers import Towers

    if config.data.root is None:
        index_time = choose_index_time(config.now, config.horizon_days, dataset=run.dataset)
        set_bias(run.model, run.dataset, config=run.config, index_time=index_time)
        return run, index_time, {}
    towers, root = Towers.of_run(run), absolute(str(config.data.root))
    dataset = towers.prepare(root)
    index_time = newest_index_time(config.now, config.horizon_days, dataset=dataset)
    return on_newer_data(towers, dataset, root=root, index_time=index_time), index_time, record(towers, root)
