"""Compare runs: which is better, in what, and is it more than chance.

    recsys compare runs/a runs/b                          b against a
    recsys compare runs/sweep --baseline runs/sweep/0     all runs of a folder
    recsys compare runs/a runs/b --metric test/ndcg@10 test/recall@100 --html report.html
    recsys compare wandb:ENTITY/PROJECT                   finished runs of a W&B project

A run is a folder of train.py, or any other that holds metrics.json and per_user.parquet; all must be of the same data,
split and exclude_seen.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from recsys.core.errors import UserError

# Of tables that are written to a file or a pipe.
_WIDTH = 160


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the comparison, and write it as a page where that is asked for; exit with 1 on a user's error."""
    parser = argparse.ArgumentParser(
        prog="recsys compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, folder of runs, or wandb:ENTITY/PROJECT")
    parser.add_argument("--baseline", metavar="RUN", help="what the others are compared with (default: the first)")
    parser.add_argument(
        "--metric", nargs="+", default=[], metavar="NAME", help="the first decides (default: test/recall@10 and others)"
    )
    parser.add_argument("--all-pairs", action="store_true", help="test every two runs")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one HTML page with pictures as well")
    asked = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    try:
        _compare(asked)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from error


def _compare(asked: argparse.Namespace) -> None:
    from recsys.reports.comparison.comparison_report import ComparisonReport
    from recsys.reports.comparison.reading import read_runs

    if asked.html is not None and not asked.html.parent.is_dir():
        raise UserError(f"--html: {asked.html.parent} is not a folder")
    report = ComparisonReport(read_runs(asked.runs), asked.metric, baseline=asked.baseline, all_pairs=asked.all_pairs)
    if asked.html is not None:
        report.write(asked.html)
    console = Console()
    report.print(console if console.is_terminal else Console(width=_WIDTH))
    if asked.html is not None:
        print(asked.html)


if __name__ == "__main__":
    main()
