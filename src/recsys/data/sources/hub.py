"""Source: data sets that Hugging Face `datasets` reads, converted to Parquet once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.core.errors import UserError
from recsys.data.sources.files import Tables, build_once, digest, find_tables, fingerprint
from recsys.data.sources.text import write_parquet

_VERSION = 2
_PART_OF_SPLIT = {"validation": "val", "valid": "val", "dev": "val"}


@dataclass(frozen=True)
class HubDataset:
    """Source: a data set of the Hugging Face Hub, or a local folder that `datasets.load_dataset` reads.

    Attributes:
        name: `owner/name` on the Hub, or a local folder.
        interactions: SPLIT or CONFIG/SPLIT. Several splits joined with + are kept apart by a new column `split`.
        items: SPLIT or CONFIG/SPLIT of the items table, or null for none.
        users: the same for users.
        revision: branch, tag or commit on the Hub.
        timestamp: not used; configurations of earlier versions name it.
    """

    name: str
    interactions: str = "train"
    items: str | None = None
    users: str | None = None
    revision: str | None = None
    timestamp: str = "timestamp"

    def tables(self, cache: Path) -> Tables:
        """Return the data set as Parquet. It is downloaded once.

        Raises:
            UserError: If the data set cannot be found or reached.
        """
        addresses = {"interactions": self.interactions, "items": self.items, "users": self.users}
        loaded = {owner: self._load(address, cache / "hub") for owner, address in addresses.items() if address}
        digests = [
            (owner, part, [digest(file["filename"]) for file in dataset.cache_files])
            for owner, parts in loaded.items()
            for part, dataset in parts.items()
        ]
        folder = cache / f"hub-{fingerprint([_VERSION, digests])}"

        def build(aside: Path) -> None:
            for owner, parts in loaded.items():
                tables = [dataset.data.table for dataset in parts.values()]
                if len(parts) > 1:
                    tables = [
                        table.append_column("split", pa.array([part], pa.string()).take(pa.array([0] * len(table))))
                        for part, table in zip(parts, tables, strict=True)
                    ]
                file = aside / f"{owner}.parquet"
                write_parquet(pa.concat_tables(tables), file)

        build_once(folder, build)
        return find_tables(str(folder), [".parquet"])

    def _load(self, address: str, cache: Path) -> dict[str, Any]:
        """Return the data sets by part (train, val, test) or, of other splits, by the name of the split."""
        import datasets

        config, _, splits = address.rpartition("/")
        try:
            return {
                _PART_OF_SPLIT.get(split, split): datasets.load_dataset(
                    self.name, config or None, split=split, revision=self.revision, cache_dir=str(cache)
                )
                for split in splits.split("+")
            }
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"{self.name}: '{address}' cannot be loaded ({error}); expected a reachable data set of the Hub, "
                f"or a local folder"
            ) from error


# The log has one line for a conversion, so progress bars are switched off.
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
