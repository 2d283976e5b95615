"""Guard of background tasks: a programming error must not end them. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from recsys.serving.observability.metrics import Metrics

log = logging.getLogger("recsys")


@contextmanager
def keep_going(task: str, metrics: Metrics) -> Iterator[None]:
    """Log an exception of the block with its traceback, count it in `recsys_task_errors_total`, and suppress it.

    Use it around one round of a repeating task, after expected failures were handled. Without it, a host or an alias
    would be lost until the process is restarted.

    Args:
        task: name of the task, in the log and as a label.
        metrics: metrics of the server.
    """
    try:
        yield
    except Exception:
        metrics.task_errors[task].inc()
        log.exception("%s failed, and is tried again", task)
