"""Trains one run, from a configuration to a run folder. A run that was killed continues from its last checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

from omegaconf import DictConfig

from recsys.core import distributed
from recsys.core.errors import UserError
from recsys.experiments.assembly import build_data, choose_sharding, freeze_suppressed, open_data
from recsys.experiments.baseline_check import compare_with_baselines
from recsys.experiments.environment import git_commit, peak_memory_bytes
from recsys.experiments.final_test import measure_on_test
from recsys.experiments.fitting import TrainingSession, fit_again, select_checkpoint, silence_lightning
from recsys.experiments.loggers import build_loggers, close_loggers, log_checkpoint, log_summary
from recsys.experiments.processes import check_same_data, unanimous
from recsys.experiments.refreshed_test import check_refresh
from recsys.experiments.run_folder import RunFolder, RunStatus, write_config
from recsys.experiments.run_lock import hold
from recsys.experiments.suitability import check_needs, say_repeats
from recsys.experiments.trained_run import stored_config


def train(config: DictConfig, path: Path) -> RunFolder:
    """Fit a run, refit it if the configuration asks for it, evaluate it on the test part, and fill its folder.

    A finished run is returned unchanged. With `test=false` the run ends as `select` leaves it, and the same command
    without `test=false` finishes it.

    Args:
        config: configuration composed from `conf/train.yaml`.
        path: folder of the run.

    Raises:
        UserError: If the configuration or the data is wrong, or the folder holds a run of another configuration or is
            in use.
    """
    with hold(path):
        if not config.test:
            return select(config, path)
        freeze_suppressed(config, path)
        run = RunFolder(path, config)
        if run.state.status == RunStatus.FINISHED:
            return run
        begin = time.monotonic()
        before = run.state.seconds
        session = _start(config, run)
        if not run.state.is_selected:
            select_checkpoint(session)
            run.update(seconds=before + time.monotonic() - begin)
        compare_with_baselines(config, session.dataset, run, parts=("val", "test"))
        if config.refit:
            session = session.refit()
            if not run.state.refitted:
                fit_again(session)
        measure_on_test(session)
        _end(session, RunStatus.FINISHED, seconds=before + time.monotonic() - begin)
        return run


def select(config: DictConfig, path: Path) -> RunFolder:
    """Fit a run and measure the selected checkpoint on validation, without a look at the test part.

    Args:
        config: configuration composed from `conf/train.yaml`.
        path: folder of the run.
    """
    with hold(path):
        freeze_suppressed(config, path)
        run = RunFolder(path, config)
        if run.state.is_selected:
            if run.state.status != RunStatus.FINISHED:
                run.update(status=RunStatus.SELECTED)
            return run
        begin = time.monotonic()
        before = run.state.seconds
        session = _start(config, run)
        select_checkpoint(session)
        if not config.test:
            compare_with_baselines(config, session.dataset, run, parts=("val",))
        _end(session, RunStatus.SELECTED, seconds=before + time.monotonic() - begin)
        return run


def try_out(config: DictConfig, path: Path, *, epochs: int) -> RunFolder:
    """Train a run for some epochs. `select` continues it as if it had not stopped.

    Args:
        config: configuration of the run.
        path: folder of the run.
        epochs: number of epochs, but one validation at least. The run's only metric is then the best one of its
            validations.
    """
    with hold(path):
        freeze_suppressed(config, path)
        run = RunFolder(path, config)
        if run.metrics:
            return run
        begin = time.monotonic()
        session = _start(config, run)
        # A trial without a validation would say nothing.
        epochs = max(epochs, config.trainer.get("check_val_every_n_epoch") or 1)
        select_checkpoint(session, epochs=epochs)
        _end(session, RunStatus.RUNNING, seconds=run.state.seconds + time.monotonic() - begin)
        return run


def refit(config: DictConfig, path: Path) -> RunFolder:
    """Train a selected run again on train + val if its configuration asks for it, without a look at the test part.

    Args:
        config: configuration composed from `conf/train.yaml`.
        path: folder of a run that `select` returned.
    """
    with hold(path):
        run = RunFolder(path, config)
        if not config.refit or run.state.refitted:
            return run
        begin = time.monotonic()
        session = _start(config, run)
        fit_again(session.refit())
        run.update(status=RunStatus.SELECTED, seconds=round(run.state.seconds + time.monotonic() - begin, 1))
        close_loggers(session.loggers)
        return run


def finish(path: Path) -> RunFolder:
    """Complete a run that `select` returned: refit it if its configuration asks for it, and evaluate it on test.

    Args:
        path: folder of the run.
    """
    with hold(path):
        config = stored_config(path)
        config.test = True
        write_config(path, config)
        return train(config, path)


def _start(config: DictConfig, run: RunFolder) -> TrainingSession:
    silence_lightning()
    # A run claims its folder only after its settings and data were checked, so a wrong start leaves the folder free.
    with unanimous():
        dataset = open_data(config)
        check_needs(config, dataset)
        check_refresh(config, dataset)
        config.batch_size = build_data(config, dataset).batch_size
        choose_sharding(config, dataset)
    say_repeats(config, dataset)
    fingerprint = dataset.meta.fingerprint
    check_same_data(fingerprint, config.data.get("root"))
    run.claim()
    run.update(status=RunStatus.RUNNING, dataset_fingerprint=fingerprint, git_commit=git_commit())
    try:
        loggers = build_loggers(config, run.path)
    except UserError:
        run.unclaim()
        raise
    log_summary(loggers, {"dataset_fingerprint": fingerprint})
    return TrainingSession(config, run, dataset, loggers)


def _end(session: TrainingSession, status: RunStatus, *, seconds: float) -> None:
    run, loggers = session.run, session.loggers
    run.update(status=status, seconds=round(seconds, 1), peak_memory_bytes=peak_memory_bytes())
    log_summary(loggers, {**run.state.to_json(), **run.metrics})
    if status == RunStatus.FINISHED:
        log_checkpoint(loggers, run.path, fingerprint=session.dataset.meta.fingerprint)
    close_loggers(loggers)
    distributed.barrier()
