"""Write ranked items for many users to a file: .parquet, .csv or .jsonl, by its name.

    recsys recommend run=RUN users=test k=100 out=FILE.parquet
    recsys recommend release=production users=all out=FILE.parquet
    recsys recommend release=production data.root=DIR users=FILE.csv out=FILE.csv

Parquet and JSON Lines have a row for each user: user_id, item_ids (ranked) and scores. CSV has a row for each user and
rank: user_id, rank, item_id and score. A name that ends in .csv.gz or .jsonl.gz is compressed. The file of users may be
Parquet, CSV or JSON Lines; its column of users has the name that it had in training (data.columns.user_id), or user_id.

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
    audience = choose_users(config.users, recommender.dataset, data=recommender.data)
    write_recommendations(recommender, audience, k=config.k, exclude_seen=config.exclude_seen, out=config.out)
    print(config.out)
