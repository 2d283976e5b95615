"""Run the rows of `evidence.yaml` that are missing, check them, and write the tables of the results page.

    RECSYS_DATA=DIR python benchmarks/evidence                                   everything, one run at a time
    RECSYS_DATA=DIR python benchmarks/evidence --data yelp --rows single --seeds 0
    RECSYS_DATA=DIR python benchmarks/evidence --rows baselines --jobs 2         tuned baselines, two runs at a time
    python benchmarks/evidence --report                                          the tables alone

A run is a folder below `--runs`. A finished run is not repeated, a killed one continues. Each finished run is scored
again by an independent program (`--scorer`, `protocol.py` beside the data by default), and a run without equal figures
is not used.

The figures of these folders go to `measured.json` beside the plan, and tables and picture are written from this file
alone. So a row stays when its folders are gone. A run without a folder runs again, also if its figures are kept: choose
with `--data` and `--rows` what to measure. If some runs of a row are there, they replace the kept row as a whole, also
if it had more seeds. A comparison of two rows needs the folders of both. Without them the earlier comparison stays,
unless the tables show another mean for the baseline now: then the row is shown as not compared.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from evidence.plan import BASELINES, read_plan
from evidence.report import KEPT, write_report
from evidence.running import run_missing

REPOSITORY = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=Path(__file__).with_name("evidence.yaml"))
    parser.add_argument("--data", nargs="*", help="names of data sets; all by default")
    parser.add_argument("--rows", nargs="*", help=f"names of variants, '{BASELINES}', or baselines; all by default")
    parser.add_argument("--seeds", nargs="*", type=int, help="seeds of the variants; those of the plan by default")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--scorer", type=Path, default=None)
    parser.add_argument("--page", type=Path, default=REPOSITORY / "docs/results.md")
    parser.add_argument("--report", action="store_true", help="write the tables, run nothing")
    given = parser.parse_args()
    plan = read_plan(given.plan)
    failed = 0
    if not given.report:
        if "RECSYS_DATA" not in os.environ:
            parser.error("RECSYS_DATA: not set, expected the folder that holds the data sets")
        root = Path(os.environ["RECSYS_DATA"])
        try:
            jobs = plan.jobs(data=given.data, rows=given.rows, seeds=given.seeds)
        except ValueError as error:
            parser.error(str(error))
        scorer = given.scorer or root.parent / "protocol.py"
        failed = run_missing(jobs, given.runs, data=root, scorer=scorer, num_jobs=given.jobs)
    for warning in write_report(plan, given.runs, kept=given.plan.with_name(KEPT), page=given.page):
        print(warning, file=sys.stderr)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
