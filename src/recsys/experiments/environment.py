"""Facts about the running process that a run records: commit of the code and memory. Imports no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Folder of the running code.
PACKAGE = Path(__file__).parents[1]


def git_commit(package: Path = PACKAGE) -> str | None:
    """Return the commit of the running code, with `+` for uncommitted changes of it; None outside a checkout.

    Other files of the checkout, such as pages of results, change no run. A run records its configuration itself.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
