"""Addresses of the vector databases that hold collections of the releases of a store. Imports no torch.

They are recorded in the store and not in the release, so that opening a release of others calls no server of theirs.
"""

from __future__ import annotations

import logging
from pathlib import Path

from recsys.core.errors import UserError
from recsys.core.io import atomic_write
from recsys.index.vector_database import is_database, open_database

log = logging.getLogger("recsys")


def _record(store: Path, version: str) -> Path:
    return store / "collections" / version


def record_collection(store: Path, version: str, address: str) -> None:
    """Record where the collection of a version is or will be."""
    _record(store, version).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(_record(store, version), address + "\n")


def move_record(origin: Path, store: Path, version: str) -> None:
    """Move the record of a release that another store takes over, if there is one."""
    if origin != store and _record(origin, version).is_file():
        record_collection(store, version, _record(origin, version).read_text().strip())
        _record(origin, version).unlink()


def drop_collection(store: Path, version: str, *, force: bool = False) -> None:
    """Drop the collection of a version if one is recorded.

    Args:
        store: folder of the store.
        version: version of the release.
        force: log a failure, and forget the collection.

    Raises:
        UserError: If the database does not answer.
    """
    record = _record(store, version)
    if not record.is_file():
        return
    address = record.read_text().strip()
    try:
        if not is_database(address):
            raise UserError(f"{record}: found {address!r}, expected an address such as milvus://HOST:PORT")
        open_database(address).drop(version)
    except UserError as error:
        if not force:
            raise UserError(f"{error}; the release stays, and force=true deletes it without its collection") from error
        log.warning("the collection of %s is not dropped: %s", version, error)
    record.unlink()


def drop_collections(store: Path) -> None:
    """Drop the collections of a store that will be removed, and log those that cannot be dropped."""
    for record in sorted((store / "collections").glob("*")):
        drop_collection(store, record.name, force=True)
