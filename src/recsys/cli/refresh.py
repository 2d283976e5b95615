"""Refresh a served release from newer data: the same towers, item biases as of now, and the new items.

    recsys refresh release=production data.root=DIR                      after the newest event, for one day
    recsys refresh release=production data.root=DIR now=clock            a daily job
    recsys refresh release=production data.root=DIR now=2026-11-30 horizon_days=7 alias=candidate

The release is published behind the gates of `conf/gates/refresh.yaml`, and the alias moves to it. The same command
continues a refresh that was killed. Exit code 0: the alias points at the refreshed release, or nothing has changed; 3:
gates stopped it; 1: the command failed. The last line of the output names the outcome and the version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

STOPPED = 3


def main(config: DictConfig) -> None:
    """Refresh the release, print the outcomes of the gates, and exit with 3 if one stopped it."""
    from recsys.core.screen import screen
    from recsys.operations.refresh import run_refresh
    from recsys.reports.cycles.tables import checks_table

    result = run_refresh(config)
    if result.verdict is not None:
        checks_table(result.verdict.outcomes).print(screen())
        print(f"{result.version} against {result.served}: {result.verdict.summary()}")
        print(result.path)
    moved = f", {result.alias} points at it" if result.alias else ""
    print(f"refreshed in {result.seconds:.1f} s{moved}")
    print(result.outcome, result.version)
    if result.outcome == "stopped":
        raise SystemExit(STOPPED)
