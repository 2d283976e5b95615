"""Files of a Valkey or Redis server, which it writes anew so that they hold only its present keys. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from recsys.serving.events.event_store import StoreError

# Seconds in which a file is written anew, and between two looks.
_REWRITE_SECONDS, _LOOK_SECONDS = 900.0, 0.05


def write_anew(client: redis.Redis, place: str) -> list[Path]:
    """Let a server write its files from what it holds now, and return those of them that this process can read.

    `place` names the server in errors.
    """
    _write(client, place, client.bgrewriteaof, "aof_rewrite_in_progress", "aof_rewrite_scheduled")
    settings: Any = client.config_get("*")
    folder = Path(settings["dir"])
    snapshot = folder / settings["dbfilename"]
    if settings.get("save") or snapshot.is_file():
        _write(client, place, client.bgsave, "rdb_bgsave_in_progress")
    # Earlier versions of the server have one file, which is not in a folder of its own.
    logs = folder.glob(f"{settings.get('appenddirname') or '.'}/{settings['appendfilename']}*")
    return [file for file in sorted([*logs, snapshot]) if os.access(file, os.R_OK)]


def _write(client: redis.Redis, place: str, begin: Callable[[], object], *under_way: str) -> None:
    give_up, is_begun = time.monotonic() + _REWRITE_SECONDS, False
    while True:
        state: Any = client.info("persistence")
        if not any(state.get(name) for name in under_way):
            if is_begun:
                return
            # One that was under way may have begun before the keys were removed.
            with contextlib.suppress(redis.ResponseError):
                begin()
                is_begun = True
        if time.monotonic() > give_up:
            raise StoreError(f"events: {place}: its files were not written anew within {_REWRITE_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS)
