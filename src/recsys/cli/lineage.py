"""Show what a release was made from (index, towers, run, configuration, data, commit), and when it was served.

    recsys lineage VERSION|ALIAS [store=releases] [json=true]

The command reads files only: the release, its run folder if that still exists, and the history of the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Print the lineage as a table, or as JSON for programs."""
    import json

    from recsys.core.screen import screen
    from recsys.operations.lineage import lineage
    from recsys.release.store import ReleaseStore
    from recsys.reports.cycles.tables import lineage_table

    found = lineage(ReleaseStore(config.store), config.version)
    if config.json:
        print(json.dumps(found.to_json(), indent=2))
        return
    lineage_table(found).print(screen())
