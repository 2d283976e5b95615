"""End of a multirun of Hydra: a table of its runs, the commands to go on with, and the runs that failed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

# Numbers of failed runs, a line for each. A file, because runs may be jobs on other machines.
_FAILED = ".failed"


def note_failure(sweep: Path, number: int) -> None:
    """Record that a run has failed.

    Args:
        sweep: folder of the multirun.
        number: number of the run.
    """
    with (sweep / _FAILED).open("a") as file:
        file.write(f"{number}\n")


class MultirunReport(Callback):
    """Prints the runs of a multirun, best first, and the command that compares or promotes them."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Forget the failures of an earlier start."""
        (Path(config.hydra.sweep.dir) / _FAILED).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Print the table.

        Raises:
            SystemExit: If a run has failed.
        """
        self._print(config)
        file = Path(config.hydra.sweep.dir) / _FAILED
        if file.exists():
            failed = sorted({*map(int, file.read_text().split())})
            file.unlink()
            names = f"{'runs' if len(failed) > 1 else 'run'} {', '.join(map(str, failed))}"
            print(f"error: multirun: {names} failed; the reasons are above", file=sys.stderr)
            raise SystemExit(1)

    def _print(self, config: DictConfig) -> None:
        from recsys.core.screen import screen
        from recsys.evaluation.slices import NEW_ITEMS
        from recsys.experiments.run_folder import PER_USER
        from recsys.experiments.run_table import best_first, print_runs, read_runs

        folder, metric = Path(config.hydra.sweep.dir), config.evaluation.metric
        rows = read_runs(folder)
        if not any(row.value(metric) is not None for row in rows):
            return
        name, _, cutoff = metric.partition("/")[2].rpartition("@")
        tested = [f"test/{each}@{cutoff}" for each in dict.fromkeys((name, *NEW_ITEMS))]
        ranked = best_first(rows, metric)
        metrics = [metric, *(each for each in tested if any(row.value(each) is not None for row in rows))]
        print_runs([*ranked, *(row for row in rows if row not in ranked)], metrics, console=screen(), have_ended=True)
        print("promote:", shlex.join(["recsys", "index", f"sweep={folder}", f"metric={metric}"]))
        if sum((row.path / PER_USER).exists() for row in rows) > 1:
            print("compare:", shlex.join(["recsys", "compare", str(folder)]))
