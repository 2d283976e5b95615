"""Forked processes of one training, which need not import anything again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only


def run_processes(num: int, function: Callable[..., None], folder: Path, *args: Any, seconds: float = 240) -> None:
    """Call `function(*args)` in several processes that Lightning takes for those of one training.

    Args:
        num: number of processes.
        function: function to call.
        folder: folder for the messages of failures.
        *args: its arguments.
        seconds: time after which processes that still run are ended.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_call, args=(rank, num, port, folder, function, args)) for rank in range(num)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(seconds)
    for worker in workers:
        worker.kill()
    errors = [file.read_text() for file in folder.glob("*.error")]
    assert not errors, "\n".join(errors)
    assert [worker.exitcode for worker in workers] == [0] * num


def _call(rank: int, num: int, port: int, folder: Path, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(num)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    try:
        function(*args)
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise
