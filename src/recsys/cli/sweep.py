"""Run a sweep file of W&B's format on this machine, or show the runs below a folder.

    recsys sweep sweeps/NAME.yaml [dir=DIR] [workers=N] [max_runs=N] [KEY=VALUE ...] [--config-dir DIR]
    recsys sweep DIR [metric=val/recall@100]

Other keys (`data=parquet data.root=DIR`) are those of `recsys train`: they go to every run and win over the file. The
same command continues a sweep that was killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig


def main(words: list[str]) -> None:
    """Run the sweep, or show the runs.

    Args:
        words: keys of `conf/sweep.yaml`, overrides for training, and `--config-dir DIR`.

    Raises:
        UserError: If an argument is wrong, or no run has a result.
    """
    import sys
    from pathlib import Path

    from recsys.cli.entry import INTERRUPTED
    from recsys.cli.preflight import check_places
    from recsys.core.errors import UserError
    from recsys.experiments.compose import compose_command, keys_of
    from recsys.experiments.overrides import CONFIG_DIR

    own: list[str] = []
    overrides: list[str] = []
    options: list[str] = []
    names = keys_of("sweep")
    for before, word in zip(["", *words], words, strict=False):
        key = word.partition("=")[0]
        if key in CONFIG_DIR or before in CONFIG_DIR:
            options.append(word)
        elif word.startswith("-"):
            raise UserError(
                f"{word}: no option of a sweep; expected {', '.join(names)}, keys of training or --config-dir"
            )
        else:
            (own if key in names else overrides).append(word)
    config = compose_command("sweep", own)
    check_places("sweep", config)
    place = Path(config.file)
    if place.is_dir():
        if overrides or options:
            raise UserError(
                f"{[*overrides, *options][0]}: expected metric=NAME; a folder shows its runs, a file is run"
            )
        return _show(place, config)
    try:
        return _run(place, config, overrides, options)
    except KeyboardInterrupt as error:
        print("interrupted; the same command continues the sweep", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from error


def _run(file: Path, config: DictConfig, overrides: list[str], options: list[str]) -> None:
    from pathlib import Path

    from rich.console import Console

    from recsys.core.errors import UserError
    from recsys.experiments.sweep.file import read_sweep
    from recsys.experiments.sweep.runner import report, run_sweep

    for name in ("workers", "max_runs"):
        value = config[name]
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{name}: found {value!r}, expected a whole number of at least 1")
    sweep = read_sweep(file).with_more(overrides, options)
    folder = Path(f"runs/{file.stem}" if config.dir is None else config.dir)
    console = Console()
    study = run_sweep(sweep, folder, max_runs=config.max_runs, workers=config.workers, console=console)
    report(study, folder, console=console)
    statuses = [record.status for record in study.records()]
    if "done" not in statuses:
        raise UserError(f"{folder}: none of {len(statuses)} runs have a result; see {folder}/NUMBER/train.log")


def _show(folder: Path, config: DictConfig) -> None:
    from recsys.core.errors import UserError
    from recsys.experiments.run_table import best_first, print_runs, read_runs

    rows = read_runs(folder)
    if not rows:
        raise UserError(f"{folder}: contains no run")
    ranked = best_first(rows, config.metric)
    print_runs([*ranked, *(row for row in rows if row not in ranked)], [config.metric])
