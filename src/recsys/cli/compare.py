"""Compare runs: which one is better, in which metric, and whether the difference is more than chance.

    recsys compare runs/a runs/b                          b against a
    recsys compare runs/sweep baseline=runs/sweep/0       all runs of a folder
    recsys compare runs/a runs/b metrics=[test/ndcg@10,test/recall@100] html=report.html
    recsys compare wandb:ENTITY/PROJECT                   finished runs of a W&B project

A run is a folder of `recsys train`, or any other that holds metrics.json and per_user.parquet. All runs must have the
same data, split and exclude_seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Print the comparison, and write it as a page if `html` names a file."""
    from pathlib import Path

    from recsys.core.errors import UserError
    from recsys.core.screen import screen
    from recsys.reports.comparison.comparison_report import ComparisonReport
    from recsys.reports.comparison.reading import read_runs

    if not config.runs:
        raise UserError("runs: found none, expected recsys compare RUN RUN ...")
    html = None if config.html is None else Path(config.html)
    if html is not None and not html.parent.is_dir():
        raise UserError(f"html: {html.parent} is not a folder")
    runs, metrics = read_runs(list(config.runs)), list(config.metrics)
    report = ComparisonReport(runs, metrics, baseline=config.baseline, all_pairs=config.all_pairs)
    if html is not None:
        report.write(html)
    report.print(screen())
    if html is not None:
        print(html)
