"""Which generators earn their place: learned and heuristic ones under one budget.

python -m recsys.generators report releases=[production,candidate] data.root=DIR out=report.html
"""

import sys

from omegaconf import DictConfig

from recsys.cli import entry


def main(config: DictConfig) -> None:
    """Write the report, and print its main table."""
    from pathlib import Path

    from recsys.funnel.report import Report, progress, screen

    out = Path(config.out)
    with progress() as say:
        report = Report(config, say)
    report.write(out)
    report.mirror()
    report.print(screen())
    print(out)


if __name__ == "__main__":
    if sys.argv[1:2] != ["report"]:
        print("error: expected python -m recsys.generators report ...", file=sys.stderr)
        raise SystemExit(2)
    del sys.argv[1]
    entry("generators", main)
