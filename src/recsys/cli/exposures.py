"""Write recorded impressions as data, in which items that were shown without engagement are exposures.

    recsys exposures out=DIR [store=releases] [since=2026-01-01]     exposures, and outcomes as events
    recsys exposures out=DIR data.root=EVENTS                        the events of a folder, and exposures

Then `recsys train data=parquet data.root=DIR data.engaged=engaged` trains with the exposures as negatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Write the folder, and print what it holds."""
    from pathlib import Path

    from recsys.core.errors import UserError
    from recsys.operations.exposure_files import ExposureSettings, write_exposures
    from recsys.release.runtime.timestamps import to_seconds
    from recsys.serving.events import StoreError
    from recsys.serving.impressions import impressions_file, open_impressions

    file = impressions_file(config.events)
    if file is not None and not file.exists():
        raise UserError(f"events: {file}: no impressions; expected the event store of a server")
    since = 0 if config.since is None else to_seconds(config.since, "since")
    actions = None if config.actions is None else list(config.actions)
    settings = ExposureSettings(since=since, top=config.top, actions=actions)
    data = None if config.data.root is None else Path(config.data.root)
    try:
        store = open_impressions(config.events)
        try:
            found = write_exposures(store, Path(config.out), settings=settings, data=data)
        finally:
            store.close()
    except StoreError as error:
        raise UserError(str(error)) from error
    print(", ".join(f"{number:,} {name}" for name, number in found.items()))
    print(config.out)
