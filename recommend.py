"""Batch retrieval: ranked items for many users, from a run or a release, to a Parquet file."""

from omegaconf import DictConfig

from recsys.cli.entry import entry


def main(config: DictConfig) -> None:
    """Rank for the chosen users, and print the file's name as the last line."""
    from recsys.publishing.batch_recommend import choose_users, write_recommendations
    from recsys.publishing.recommenders import open_recommender

    recommender = open_recommender(config.run, config.release, config.store, config.data.root)
    audience = choose_users(config.users, recommender.dataset)
    write_recommendations(recommender, audience, config.k, config.exclude_seen, config.out)
    print(config.out)


if __name__ == "__main__":
    entry("recommend", main)
