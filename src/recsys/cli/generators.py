"""Which generators earn their place: learned and heuristic ones under one budget.

recsys generators report releases=[production,candidate] data.root=DIR out=report.html
"""

import sys

from omegaconf import DictConfig

from recsys.cli.entry import entry


def main(config: DictConfig) -> None:
    """Write the report, print its main tables, and the file's name as the last line."""
    from pathlib import Path

    from recsys.core.errors import UserError
    from recsys.reports.generators.generator_report import GeneratorReport, progress, screen
    from recsys.reports.generators.study import study
    from recsys.reports.generators.wandb_tables import mirror

    out = Path(config.out)
    if not out.parent.is_dir():
        raise UserError(f"out: {out.parent} is not a folder")
    with progress() as say:
        found = study(config, say)
    report = GeneratorReport(found)
    report.write(out)
    mirror(found, config.logger)
    report.print(screen())
    print(out)


if __name__ == "__main__":
    if sys.argv[1:2] != ["report"]:
        print("error: expected recsys generators report ...", file=sys.stderr)
        raise SystemExit(2)
    del sys.argv[1]
    entry("generators", main)
