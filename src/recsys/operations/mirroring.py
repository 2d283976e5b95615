"""Mirrors results to W&B without depending on it."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("recsys")


def mirror(send: Callable[[], None]) -> None:
    """Call `send`, and log a warning if it fails."""
    try:
        send()
    except Exception as error:
        # The local files are complete, so a failure of W&B must not stop a retraining cycle.
        log.warning("not mirrored to W&B: %s", error)
