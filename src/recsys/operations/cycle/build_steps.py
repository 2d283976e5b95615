"""Steps of a cycle that make a candidate: prepare, train, judge, publish. Each can be repeated after a kill."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recsys.experiments.assembly import instantiate, open_data
from recsys.experiments.train import train as train_one
from recsys.experiments.trained_run import load_run, stored_config
from recsys.experiments.variants import train_best
from recsys.experiments.wandb_mirror import mirror_release
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.state import Cycle
from recsys.operations.gates.judge import JudgeSettings, judge_run, record_verdict
from recsys.operations.gates.staging import STAGED, open_release
from recsys.operations.gates.verdict import VERDICT, Verdict, explain
from recsys.operations.mirroring import mirror
from recsys.publishing.corpus_policies import choose_items


def prepare(plan: CyclePlan, cycle: Cycle) -> str:
    """Prepare the files of the cycle, unless they are prepared already, and choose the starting weights."""
    dataset = open_data(next(iter(plan.configurations(cycle).values())))
    cycle.fingerprint = dataset.meta.fingerprint
    cycle.newest = int(dataset.time.max()) if dataset.meta.time_resolution.has_clock else None
    # Wrong settings of the corpus policy are reported before training starts.
    choose_items(instantiate(plan.config.corpus), dataset, corpus=dataset.corpus(reads_features=True))
    cycle.served = plan.served()
    cycle.warm_start, start = plan.starting_runs(cycle.served)
    cycle.step = "train"
    return (
        f"{dataset.meta.num_events:,} events of {dataset.num_users:,} users, {dataset.meta.num_known:,} items, "
        f"data {cycle.fingerprint[:12]}; training starts {start}"
    )


def train(plan: CyclePlan, cycle: Cycle) -> str:
    """Train, or continue training; a finished run is left as it is."""
    configurations, path = plan.configurations(cycle), plan.run_folder(cycle)
    if plan.variants:
        run = train_best(configurations, path, blend=plan.training.blend)
    else:
        run = train_one(configurations[""], path)
    cycle.step = "judge"
    metrics = ", ".join(f"{name} {run.metrics[name]:.4f}" for name in _reported(run.metrics))
    return f"{run.state.selected} steps selected of {run.state.steps}, {metrics}"


def judge(plan: CyclePlan, cycle: Cycle) -> str:
    """Let the gates compare the candidate with the served release, on the events that are new since that one."""
    run = load_run(plan.run_folder(cycle))
    cycle.served = plan.served()
    served = None if cycle.served is None else open_release(plan.config.store, cycle.served)
    verdict = judge_run(run, served, settings=JudgeSettings.from_config(plan.config))
    if cycle.accepted is not None and cycle.accepted.covers(verdict.failed):
        verdict = replace(verdict, accepted=cycle.accepted)
    path = record_verdict(run, verdict)
    cycle.version, cycle.measured = verdict.candidate, {name: dict(m) for name, m in verdict.measured.items()}
    cycle.verdict = verdict.summary()
    if verdict.passed or verdict.accepted:
        cycle.step = "publish"
    else:
        cycle.accepted = None
        cycle.end("stopped", verdict.summary())
    rows = [f"\n  {one.status}: {explain(one)}" for one in (*verdict.failed, *verdict.warnings)]
    return f"{verdict.summary()}; {path}{''.join(rows)}"


def accept(plan: CyclePlan, cycle: Cycle) -> str:
    """Record in the verdict that the candidate is released in spite of its failures."""
    assert cycle.accepted is not None
    run = plan.run_folder(cycle)
    replace(Verdict.load(run / VERDICT), accepted=cycle.accepted).write(run)
    cycle.step = "publish"
    failures = [f"{row['gate']}, {row['check']}" for row in cycle.accepted.overridden]
    return f"by {cycle.accepted.who} in spite of {'; '.join(failures)}: {cycle.accepted.why}"


def publish(plan: CyclePlan, cycle: Cycle) -> str:
    """Copy the judged release into the store and point the alias `candidate` at it.

    The version is a hash of the content, so a repeated step does not publish a second release. If another release is
    served now than the one that the candidate was compared with, the cycle goes back to `judge`.
    """
    if (message := plan.judge_again(cycle)) is not None:
        return message
    assert cycle.version is not None, "the gates stop a candidate without a release"
    run, store = plan.run_folder(cycle), plan.store
    version = store.adopt(run / STAGED / cycle.version)
    store.set_alias("candidate", version, why=plan.reason(cycle))
    project = stored_config(run).logger.project
    folder, config = store.root / version, plan.config
    mirror(lambda: mirror_release(project, folder, model=config.model, alias="candidate", registry=config.registry))
    cycle.step = "roll_out"
    return f"release {version}"


def _reported(metrics: dict[str, float]) -> list[str]:
    return [name for name in ("test/recall@10", "test/recall@100") if name in metrics and np.isfinite(metrics[name])]
