"""Embed new items with the item tower of a release, so that its index takes them while it serves.

    recsys embed-items release=production items=new_items.parquet out=embedded.parquet
    recsys embed-items release=production items=new_items.parquet out=embedded.parquet hosts=[http://10.0.0.1:8080]

The file of items (.parquet, .csv or .jsonl) has a column of items, named as in training (data.columns.item_id) or
item_id, and any columns that the item tower reads or the release shows. Hosts in `hosts` get the items at once. The
last line of the output is the version of the release; only an index of this version takes the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Write the file, send it to the hosts, and print the version."""
    from pathlib import Path

    from recsys.operations.rollout.admin import AdminClient
    from recsys.publishing.new_items import embed_items
    from recsys.serving.gateway.remote_host import parse_address
    from recsys.serving.host.additions import load_additions

    out = Path(config.out)
    version = embed_items(config.store, config.release, items=Path(config["items"]), out=out, now=config.now)
    additions = load_additions(out)
    for host in config.hosts:
        admin = AdminClient(parse_address(host), config.admin_token)
        print(f"{host}: {admin.add_items(additions)} items")
    print(version)
