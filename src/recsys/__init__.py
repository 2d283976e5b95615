"""Learned retrieval: two-tower models, from logged engagement to paired, versioned releases.

    import recsys

    run = recsys.train(["data=parquet", "data.root=events", "+experiment=recommended"], path="runs/first")
    run.recommend(users, k=10)
    release = recsys.promote(run, store="releases", alias="candidate")
    release = recsys.load_release("candidate", store="releases", data="own")

The names are imported when they are first used, so that `import recsys` loads no torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.core.errors import UserError
    from recsys.operations.refresh import refresh
    from recsys.publishing.api import load_release, load_run, promote, train
    from recsys.publishing.opened_release import OpenedRelease
    from recsys.publishing.opened_run import OpenedRun

__version__ = "0.1.0"

# For `python -m recsys.compare` and its like.
__path__.append(str(Path(__file__).parent / "cli" / "as_modules"))

__all__ = [
    "OpenedRelease",
    "OpenedRun",
    "UserError",
    "__version__",
    "load_release",
    "load_run",
    "promote",
    "refresh",
    "train",
]

_MODULES = {
    "OpenedRelease": "recsys.publishing.opened_release",
    "OpenedRun": "recsys.publishing.opened_run",
    "UserError": "recsys.core.errors",
    "load_release": "recsys.publishing.api",
    "load_run": "recsys.publishing.api",
    "promote": "recsys.publishing.api",
    "refresh": "recsys.operations.refresh",
    "train": "recsys.publishing.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'recsys' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
