"""A real Milvus server that only this machine can reach.

Milvus listens on all interfaces, whatever its settings say. So it runs in a network namespace of its own, and a relay
in the same namespace passes on the connections of a socket that was bound to the loopback address outside of it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

# Of the namespace, in which nothing else listens.
_INSIDE = ("127.0.0.1", 19530)


def why_not() -> str | None:
    """Return why no server can be started here, or None."""
    try:
        import milvus  # noqa: F401
        import pymilvus  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        return "no network namespace can be made"
    return None


class MilvusProcess:
    """A server with its data in a folder; the unpacked program stays in the environment for later servers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, Path(sys.prefix) / "var/milvus"
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._relay: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"milvus://127.0.0.1:{self.port}"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "pid"

    @property
    def pid(self) -> int:
        return int(self._pid_file.read_text())

    def start(self, seconds: float = 60.0) -> None:
        """Start the server, and wait until it answers."""
        import milvus

        self.folder.mkdir(parents=True, exist_ok=True)
        self.programs.mkdir(parents=True, exist_ok=True)
        with (self.programs / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            milvus._initialize_data_files(str(self.programs))
        self._pid_file.unlink(missing_ok=True)
        number = self._socket.fileno()
        command = ["unshare", "-rn", sys.executable, __file__, str(number), str(self.folder), str(self.programs)]
        with (self.folder / "relay.log").open("ab") as log:
            self._relay = subprocess.Popen(command, pass_fds=[number], stdout=log, stderr=log)
        self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        import grpc
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        until = time.monotonic() + seconds
        while True:
            try:
                client = MilvusClient(f"http://127.0.0.1:{self.port}", timeout=1.0)
                client.list_collections(timeout=1.0)
                client.close()
                return
            except (MilvusException, grpc.RpcError):
                assert self._relay is not None
                assert self._relay.poll() is None, (self.folder / "relay.log").read_text()[-2000:]
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would; the relay ends with it."""
        assert self._relay is not None
        os.kill(self.pid, signal.SIGKILL)
        self._relay.wait()

    def stop(self) -> None:
        """End the server for good."""
        if self._relay is not None and self._relay.poll() is None:
            self.kill()
        self._socket.close()


def _set_up_loopback() -> None:
    """Set the flags UP and RUNNING of `lo`, as `ip link set lo up` does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while block := await reader.read(1 << 18):
            writer.write(block)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        inner_reader, inner_writer = await asyncio.open_connection(*_INSIDE)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))


async def _relay(number: int, folder: Path, programs: Path) -> None:
    from milvus import MilvusServerConfig

    _set_up_loopback()
    config = MilvusServerConfig(data_dir=str(folder))
    for role in ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode"):
        config.set(f"{role}.ip", "127.0.0.1")
    config.set("log.level", "warn")
    # Seconds until a server that was killed counts as gone; 30 by default.
    config.set("common.session.ttl", 20)
    config.resolve()
    environment = {
        **os.environ,
        "DEPLOY_MODE": "STANDALONE",
        "LD_LIBRARY_PATH": str(programs / "bin"),
        "MILVUS_RUN_DIR": str(folder / "run"),
    }
    process = await asyncio.create_subprocess_exec(
        str(programs / "bin" / "milvus"), "run", "standalone", cwd=folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=_end_with_parent,
    )  # fmt: skip
    (folder / "pid.part").write_text(str(process.pid))
    (folder / "pid.part").rename(folder / "pid")
    server = await asyncio.start_server(_pass_on, sock=socket.socket(fileno=number))
    async with server:
        await process.wait()


def _end_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    _end_with_parent()
    asyncio.run(_relay(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])))
