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
    from recsys.experiments.trained_run import load_run
    from recsys.publishing.api import publish
    from recsys.publishing.promote import report
    from recsys.publishing.run_choice import choose_run
    from recsys.release.store import ReleaseStore

    if config.alias is not None:
        # The alias is checked first, because finishing the best run of a sweep takes long.
        ReleaseStore(config.store).check_alias(config.alias)
    promotion = publish(load_run(choose_run(config.run, config.sweep, metric=config.metric)), config)
    report(promotion)
    print(promotion.version)
