"""Write ranked items for many users to a Parquet file with the columns user_id, item_ids and scores.

    recsys recommend run=RUN users=test k=100 out=FILE.parquet
    recsys recommend release=production users=all out=FILE.parquet
    recsys recommend release=production data.root=DIR users=FILE.parquet out=FILE.parquet

The last line of the output is the name of the file. If the command was killed, run it again: it continues where it
stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Rank for the chosen users, and print the name of the file."""
    from recsys.publishing.batch_recommend import choose_users, write_recommendations
    from recsys.publishing.recommenders import open_recommender

    recommender = open_recommender(config.run, config.release, store=config.store, root=config.data.root)
    audience = choose_users(config.users, recommender.dataset)
    write_recommendations(recommender, audience, k=config.k, exclude_seen=config.exclude_seen, out=config.out)
    print(config.out)
