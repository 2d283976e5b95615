"""Run the rows of `evidence.yaml` that are missing, check them, and write the tables of the results page.

    RECSYS_DATA=DIR python benchmarks/evidence                                   everything, one run at a time
    RECSYS_DATA=DIR python benchmarks/evidence --data yelp --rows single --seeds 0
    RECSYS_DATA=DIR python benchmarks/evidence --rows baselines --jobs 2         tuned baselines, two runs at a time
    RECSYS_DATA=DIR python benchmarks/evidence --report                          the tables alone

A row is a run folder below `--runs`. A finished run is not repeated, a killed one continues. Each finished run is
scored again by an independent program (`--scorer`, `protocol.py` beside the data by default), and a row without equal
figures is not written.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from evidence.plan import BASELINES, Plan, read_plan
from evidence.report import write_report
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
    if "RECSYS_DATA" not in os.environ:
        parser.error("RECSYS_DATA: not set, expected the folder that holds the data sets")
    root = Path(os.environ["RECSYS_DATA"])
    plan = read_plan(given.plan)
    failed = 0
    if not given.report:
        try:
            jobs = plan.jobs(data=given.data, rows=given.rows, seeds=given.seeds)
        except ValueError as error:
            parser.error(str(error))
        scorer = given.scorer or root.parent / "protocol.py"
        failed = run_missing(jobs, given.runs, data=root, scorer=scorer, num_jobs=given.jobs)
    report(plan, given.runs, given.page)
    raise SystemExit(1 if failed else 0)


def report(plan: Plan, runs: Path, page: Path) -> None:
    for warning in write_report(plan, runs, page):
        print(warning, file=sys.stderr)


if __name__ == "__main__":
    main()
