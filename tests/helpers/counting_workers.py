"""A server of two processes on one port that have counted different numbers of answers before it is looked at.

    python counting_workers.py PORT FOLDER

Every path is answered with 200 and counted, /metrics with the metrics. One process begins with 29,100 answers and
900 errors, the other one with 300 answers; FOLDER holds a file for each that is ready.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn

from recsys.serving.observability.metrics import Metrics
from recsys.serving.workers import bind, supervise


def work(port: int, folder: Path) -> None:
    metrics = Metrics()
    try:
        (folder / "busy").touch(exist_ok=False)
        earlier = {200: 29_100, 500: 900}
    except FileExistsError:
        earlier = {200: 300}
    for status, count in earlier.items():
        for _ in range(count):
            metrics.count_answer("/v1/retrieve", status, seconds=0.001)

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        assert scope["type"] == "http"
        body = b"{}"
        if scope["path"] == "/metrics":
            body = metrics.expose()
        else:
            metrics.count_answer(scope["path"], 200, seconds=0.001)
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    opened = bind("127.0.0.1", port, shared=True)
    (folder / f"ready-{os.getpid()}").touch()
    config = uvicorn.Config(app, lifespan="off", access_log=False, log_level="warning")
    uvicorn.Server(config).run([opened])


if __name__ == "__main__":
    supervise(functools.partial(work, int(sys.argv[1]), Path(sys.argv[2])), 2)
