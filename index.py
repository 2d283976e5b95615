"""Promote a run to a release: encode the corpus, build, tune and check the index, and publish the pair."""

from omegaconf import DictConfig

from recsys.cli.entry import entry


def main(config: DictConfig) -> None:
    """Publish the run, point the alias at it, and print its version as the last line."""
    from recsys.experiments.assembly import instantiate
    from recsys.experiments.tracking import mirror_release
    from recsys.experiments.trained_run import load_run
    from recsys.publishing.promote import choose_run, promote, report
    from recsys.release.store import ReleaseStore

    store = ReleaseStore(config.store)
    store.check_alias(config.alias)
    run = load_run(choose_run(config.run, config.sweep, config.metric))
    promotion = promote(
        run,
        instantiate(config.index),
        store=store,
        model=config.model,
        recall_target=config.recall_target,
        policy=instantiate(config.corpus),
    )
    if config.alias is not None:
        store.set_alias(config.alias, promotion.version, why=f"index.py run={run.path}")
    folder = store.root / promotion.version
    mirror_release(run.config.logger.project, folder, config.model, config.alias, config.registry)
    report(promotion)
    print(promotion.version)


if __name__ == "__main__":
    entry("index", main)
