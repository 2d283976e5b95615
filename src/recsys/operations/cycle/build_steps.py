"""The steps of a cycle that make a candidate: prepare, train, judge, publish. Each may be done again after a kill."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from recsys.experiments.assembly import instantiate, open_data
from recsys.experiments.tracking import log_verdict, mirror_release
from recsys.experiments.train import train as train_one
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.experiments.variants import train_best
from recsys.operations.cycle.plan import Plan
from recsys.operations.cycle.state import Cycle
from recsys.operations.gates.judge import judge as ask_gates
from recsys.operations.gates.judge import new_events, refused, seconds
from recsys.operations.gates.staging import STAGED, open_release, stage
from recsys.operations.gates.verdict import VERDICT, Verdict, columns
from recsys.publishing.corpus_policies import choose
from recsys.release.runtime.retriever import Retriever
from recsys.serving.observability.samples import read_samples

log = logging.getLogger("recsys")


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
    """Let candidate and served release answer the same requests of the newest window, and ask the gates."""
    config, run = plan.config, load_run(plan.run_folder(cycle))
    cycle.served = plan.served()
    served = None if cycle.served is None else open_release(config.store, cycle.served)
    try:
        candidate = stage(run, config.index, config.model, config.recall_target, config.corpus)
    except (ValueError, RuntimeError) as error:
        verdict = refused(run, served, run.dataset, error)
    else:
        verdict = _ask(plan, run, candidate, served)
    verdict.save(run.path)
    content = verdict.to_json()
    del content["outcomes"]
    _mirror(lambda: log_verdict(run.config.logger.project, run.path, content, *columns(verdict.outcomes)))
    cycle.version, cycle.measured = verdict.candidate, {name: dict(m) for name, m in verdict.measured.items()}
    if verdict.passed:
        cycle.step = "publish"
    else:
        cycle.end("stopped", verdict.summary())
    failed = [
        f"\n  {row.gate}, {row.check}: {row.value} against {row.threshold} ({row.reason})" for row in verdict.failed
    ]
    return f"{verdict.summary()}; {run.path / VERDICT}{''.join(failed)}"


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
    _mirror(lambda: mirror_release(project, folder, config.model, "candidate", config.registry))
    cycle.step = "roll_out"
    return f"release {version}"


def _ask(plan: Plan, run: TrainedRun, candidate: Retriever, served: Retriever | None) -> Verdict:
    config = plan.config
    gates = {name: instantiate(node) for name, node in config.gates.items() if node is not None}
    window = new_events(run.dataset, served, None, None)
    samples = read_samples(config.samples.folder, config.samples.newest)
    now = seconds(config.now, "now")
    return ask_gates(gates, run, candidate, served, run.dataset, window, config.max_users, now, samples)


def _mirror(send: Callable[[], None]) -> None:
    try:
        send()
    except Exception as error:
        # The local files are the truth; W&B being away is no reason to serve an old model.
        log.warning("not mirrored to W&B: %s", error)


def _told(metrics: dict[str, float]) -> list[str]:
    return [name for name in ("test/recall@10", "test/recall@100") if name in metrics and np.isfinite(metrics[name])]
