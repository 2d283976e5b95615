"""Publish a run as a release: encode the corpus, build, tune and check the index, and write both halves together.

    recsys index run=RUN [alias=candidate] [store=releases]
    recsys index run=RUN index=hnsw recall_target=0.99
    recsys index sweep=DIR metric=val/recall@100            the best run of a sweep

The last line of the output is the version of the release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Publish the run, point the alias at it, and print the version."""
    from recsys.experiments.assembly import instantiate
    from recsys.experiments.trained_run import load_run
    from recsys.experiments.wandb_mirror import mirror_release
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
    mirror_release(run.config.logger.project, folder, model=config.model, alias=config.alias, registry=config.registry)
    report(promotion)
    print(promotion.version)
