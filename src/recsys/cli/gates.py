"""Judge a run before its release replaces the served one.

    recsys gates run=RUN against=production                  on the events since that release
    recsys gates run=RUN against=VERSION data.root=DIR       on the events of another folder
    recsys gates run=RUN against=VERSION gates.latency.max_ratio=3 ~gates.overlap

The table has one row for each check. RUN/verdict.json, the page RUN/verdict.html and W&B hold the same. Exit code 0:
the candidate passed, 3: a gate stopped it, 1: the command failed. `conf/gates/default.yaml` holds the thresholds. The
docstring of each gate gives its reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

STOPPED = 3


def main(config: DictConfig) -> None:
    """Judge the run, write its verdict, and exit with 3 if a gate stops it."""
    from recsys.core.screen import screen
    from recsys.data.preparation.from_config import with_root
    from recsys.experiments.assembly import open_data
    from recsys.experiments.trained_run import load_run
    from recsys.operations.gates.judge import JudgeSettings, judge_run, published_release, record_verdict
    from recsys.operations.gates.staging import open_release
    from recsys.operations.gates.verdict import Verdict
    from recsys.reports.cycles.fitting import fitting_settings
    from recsys.reports.cycles.tables import checks_table
    from recsys.reports.cycles.write import write_verdict_page

    settings = JudgeSettings.from_config(config)
    run, served = load_run(config.run), open_release(config.store, config.against)
    candidate = None if config.release is None else published_release(run, config.release, store=config.store)
    dataset = run.dataset if config.data.root is None else open_data(with_root(run.config, config.data.root))
    verdict = judge_run(run, served, settings=settings, dataset=dataset, candidate=candidate)
    path = record_verdict(run, verdict)
    checks_table(verdict.outcomes).print(screen())
    print(f"{run.path} against release {verdict.against}: {verdict.summary()}")
    if fitting := fitting_settings(verdict.failed):
        print("settings that fit, if such values are legitimate:", " ".join(fitting))
    print(write_verdict_page(run.path, Verdict.load(path), gates=config.gates))
    print(path)
    if not verdict.passed:
        raise SystemExit(STOPPED)
