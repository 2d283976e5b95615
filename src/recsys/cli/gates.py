"""Judge a run before it replaces what is served.

    recsys gates run=RUN against=production                  what is new since that release decides
    recsys gates run=RUN against=VERSION data.root=DIR       on the events of another folder
    recsys gates run=RUN against=VERSION gates.latency.slower=3 ~gates.overlap

The table says what each gate found; RUN/verdict.json and W&B hold the same. Exit code 0: may go out, 3: stopped, 1: the
command itself is wrong. `conf/gates/default.yaml` has the thresholds; the docstring of each gate gives its reason.
"""

from omegaconf import DictConfig

from recsys.cli.entry import entry

STOPPED = 3


def main(config: DictConfig) -> None:
    """Judge the run, leave its verdict, and exit with 3 where it is stopped."""
    from recsys.data.preparation.from_config import at_root
    from recsys.experiments.assembly import instantiate, open_data
    from recsys.experiments.tracking import log_verdict
    from recsys.experiments.trained_run import load_run
    from recsys.operations.gates.judge import candidate_of, judge, new_events, refused, seconds
    from recsys.operations.gates.staging import open_release
    from recsys.operations.gates.verdict import columns
    from recsys.serving.observability.samples import read_samples

    run, served = load_run(config.run), open_release(config.store, config.against)
    dataset = run.dataset if config.data.root is None else open_data(at_root(run.config, config.data.root))
    gates = {name: instantiate(node) for name, node in config.gates.items() if node is not None}
    window = new_events(
        dataset, served, seconds(config.window.begin, "window.begin"), seconds(config.window.end, "window.end")
    )
    now = seconds(config.now, "now")
    try:
        candidate = candidate_of(
            run, config.release, config.store, config.index, config.model, config.recall_target, config.corpus
        )
    except (ValueError, RuntimeError) as error:
        if config.release is not None:
            raise
        verdict = refused(run, served, dataset, error)
    else:
        samples = read_samples(config.samples.folder, config.samples.newest)
        verdict = judge(gates, run, candidate, served, dataset, window, config.max_users, now, samples)
    verdict.save(run.path)
    content = verdict.to_json()
    del content["outcomes"]
    log_verdict(run.config.logger.project, run.path, content, *columns(verdict.outcomes))
    verdict.print()
    print(run.path / "verdict.json")
    if not verdict.passed:
        raise SystemExit(STOPPED)


if __name__ == "__main__":
    entry("gates", main)
