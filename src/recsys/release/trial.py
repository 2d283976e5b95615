"""Opens a release in a process of its own first, so that a bad one cannot harm the process that will serve it.

The trial has a deadline and a limit of memory. It verifies the release, opens both halves and runs the self-check. It
catches what the checks of the files cannot bound: a tower that never ends or grows, and content at which a library
crashes. Imports no torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from recsys.core.errors import UserError
from recsys.core.strict_json import read_json
from recsys.core.trust import TRUST, trusted
from recsys.release.limits import memory_limit, memory_of
from recsys.release.manifest import Manifest
from recsys.release.parts import part_of
from recsys.release.runtime.shard import CorpusShard

# Exit status of a release that was refused; its message is on the standard output.
_REFUSED = 3
_MAX_MESSAGE = 2000


def try_release(folder: Path, *, seconds: float, most: int | None = None, shard: CorpusShard | None = None) -> None:
    """Open a release in another process.

    Args:
        folder: folder of the release.
        shard: shard whose part is opened, if the release has one; None for the whole release.
        seconds: time after which the process is killed.
        most: memory in bytes that it may take; None for a limit in proportion to the files.

    Raises:
        UserError: If the release is refused, ends the process, or exceeds a limit.
    """
    manifest = Manifest.load(folder)
    part = part_of(folder, manifest, shard)
    limit = memory_of(manifest if part is None else part[1]) if most is None else most
    command = [sys.executable, "-m", "recsys.release.trial", str(folder.absolute()), str(limit), str(seconds)]
    command += [] if part is None else [str(shard)]
    # Arrow's own pool and threads would reserve memory that nothing uses.
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    own = {"ARROW_DEFAULT_MEMORY_POOL": "system", TRUST: ",".join(_trusted(folder)), **single}
    own["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        ended = subprocess.run(command, env=os.environ | own, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{folder}: was not opened within {seconds:g} s") from error
    if ended.returncode == _REFUSED:
        raise UserError(ended.stdout.decode(errors="replace").strip()[:_MAX_MESSAGE])
    if ended.returncode:
        last = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        how = f"signal {-ended.returncode}" if ended.returncode < 0 else f"status {ended.returncode}"
        raise UserError(f"{folder}: damaged, a process that opened it ended with {how} {last}".rstrip())


def _trusted(folder: Path) -> list[str]:
    """Return the trusted packages, and the module of the index if this process has imported it already."""
    description = read_json(folder / "item_index.json")
    name = description.get("class") if isinstance(description, dict) else None
    module = name.rpartition(".")[0] if isinstance(name, str) else ""
    return [*trusted(), *([module] if module in sys.modules else [])]


def _main(folder: Path, limit: int, *, seconds: float, shard: CorpusShard | None) -> None:
    from recsys.release.runtime.item_search import ItemSearch
    from recsys.release.runtime.retriever import Retriever
    from recsys.release.verification import verify_part, verify_release

    # The alarm ends this process even if the one that waits for it is killed.
    signal.alarm(math.ceil(seconds) + 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    # The system ends this process before any other if memory runs out.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with memory_limit(limit):
        if shard is not None and (part := verify_part(folder, shard)) is not None:
            ItemSearch(*part).check()
            return
        Retriever(folder, verify_release(folder), threads=1)


if __name__ == "__main__":
    try:
        own = CorpusShard.parse(sys.argv[4]) if sys.argv[4:] else None
        _main(Path(sys.argv[1]), int(sys.argv[2]), seconds=float(sys.argv[3]), shard=own)
    except UserError as refusal:
        print(refusal, flush=True)
        os._exit(_REFUSED)
    except MemoryError:
        print(f"{sys.argv[1]}: needs more than {sys.argv[2]} bytes of memory", flush=True)
        os._exit(_REFUSED)
    # Destructors of libraries may crash, and nothing is left to do.
    os._exit(0)
