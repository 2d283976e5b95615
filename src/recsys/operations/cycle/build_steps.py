"""The steps of a cycle that make a candidate: prepare, train, judge, publish. Each may be done again after a kill."""

from __future__ import annotations

import numpy as np

from recsys.experiments.assembly import instantiate, open_data
from recsys.experiments.train import train as train_one
from recsys.experiments.trained_run import load_run
from recsys.experiments.variants import train_best
from recsys.experiments.wandb_mirror import mirror_release
from recsys.operations.cycle.plan import Plan
from recsys.operations.cycle.state import Cycle
from recsys.operations.gates.judge import JudgeSettings, judge_run, record_verdict
from recsys.operations.gates.staging import STAGED, open_release
from recsys.operations.mirroring import mirror
from recsys.publishing.corpus_policies import choose


def prepare(plan: Plan, cycle: Cycle) -> str:
    """Prepare the files of the cycle, or reuse what is prepared, and choose what training begins from."""
    dataset = open_data(next(iter(plan.configurations(cycle).values())))
    cycle.fingerprint = dataset.meta.fingerprint
    cycle.newest = int(dataset.time.max()) if dataset.meta.time_resolution.has_clock else None
    # What is wrong with these settings is said before anything is trained.
    choose(instantiate(plan.config.corpus), dataset, dataset.corpus(reads_features=True))
    cycle.served = plan.served()
    cycle.warm_start, begins = plan.beginnings(cycle.served)
    cycle.step = "train"
    return (
        f"{dataset.meta.num_events:,} events of {dataset.num_users:,} users, {dataset.meta.num_known:,} items, "
        f"data {cycle.fingerprint[:12]}; training begins {begins}"
    )


def train(plan: Plan, cycle: Cycle) -> str:
    """Train, or go on; a run that is finished is left as it is."""
    configurations, path = plan.configurations(cycle), plan.run_folder(cycle)
    if plan.variants:
        run = train_best(configurations, path, plan.training.blend)
    else:
        run = train_one(configurations[""], path)
    cycle.step = "judge"
    metrics = ", ".join(f"{name} {run.metrics[name]:.4f}" for name in _told(run.metrics))
    return f"{run.state.selected} steps selected of {run.state.steps}, {metrics}"


def judge(plan: Plan, cycle: Cycle) -> str:
    """Let the gates compare the candidate with the served release, on the events that are new since that one."""
    run = load_run(plan.run_folder(cycle))
    cycle.served = plan.served()
    served = None if cycle.served is None else open_release(plan.config.store, cycle.served)
    verdict = judge_run(run, served, settings=JudgeSettings.from_config(plan.config))
    path = record_verdict(run, verdict)
    cycle.version, cycle.measured = verdict.candidate, {name: dict(m) for name, m in verdict.measured.items()}
    if verdict.passed:
        cycle.step = "publish"
    else:
        cycle.end("stopped", verdict.summary())
    failed = [
        f"\n  {row.gate}, {row.check}: {row.value} against {row.threshold} ({row.reason})" for row in verdict.failed
    ]
    return f"{verdict.summary()}; {path}{''.join(failed)}"


def publish(plan: Plan, cycle: Cycle) -> str:
    """Copy what was judged into the store: its version names its content, so it is there once.

    Where another release is served by now than the one that the candidate was judged beside, it is judged again.
    """
    if (told := plan.judge_again(cycle)) is not None:
        return told
    assert cycle.version is not None, "a candidate without a release is refused"
    run, store = plan.run_folder(cycle), plan.store
    version = store.adopt(run / STAGED / cycle.version)
    store.set_alias("candidate", version, f"retraining cycle {cycle.number}")
    project = next(iter(plan.trainings.values())).logger.project
    folder, config = store.root / version, plan.config
    mirror(lambda: mirror_release(project, folder, model=config.model, alias="candidate", registry=config.registry))
    cycle.step = "roll_out"
    return f"release {version}"


def _told(metrics: dict[str, float]) -> list[str]:
    return [name for name in ("test/recall@10", "test/recall@100") if name in metrics and np.isfinite(metrics[name])]
