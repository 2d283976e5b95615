"""Compare candidate generators, learned and heuristic, under one budget of candidates, and write an HTML report.

    recsys generators report releases=[production,candidate] data.root=DIR out=report.html
    recsys generators report runs=[RUN] data=synthetic k=50
    recsys generators report ... logger=wandb              its tables to W&B, too

The report recommends which generators to keep and which to retire. Settings are chosen on validation and measured on
test; every figure has an interval over users. The last line of the output is the name of the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Write the report, and print its main tables and the name of the file."""
    from pathlib import Path

    from recsys.core.errors import UserError, nearest
    from recsys.core.progress import Progress
    from recsys.core.screen import screen
    from recsys.reports.generators.generator_report import GeneratorReport
    from recsys.reports.generators.study import study
    from recsys.reports.generators.wandb_tables import mirror

    if config.action != "report":
        raise UserError(f"recsys generators {config.action}: no such action{nearest(config.action, ['report'])}")
    out = Path(config.out)
    if not out.parent.is_dir():
        raise UserError(f"out: {out.parent} is not a folder")
    with Progress("generators", first=60.0):
        found = study(config)
    report = GeneratorReport(found)
    report.write(out)
    mirror(found, config.logger)
    report.print(screen())
    print(out)
