"""Run one retraining cycle: new events, training, gates, publishing, rollout, and rollback if servers fail.

    recsys retrain data.root=DIR                               events that arrived in DIR since the last cycle
    recsys retrain data.root=DIR "train=['+experiment=NAME','model.dim=32']"
    recsys retrain data.root=DIR hosts=[A:8081,B:8081] gateways=[G:8080]
    recsys retrain data.root=DIR every=1d                      one cycle a day, on this machine

The same command continues a cycle that was killed. Exit code 0: the candidate is served, or there is nothing new;
3: the gates stopped it; 4: it was rolled back; 1: the cycle failed. The last line of the output names the outcome.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

EXIT = {"kept": 0, "stopped": 3, "rolled_back": 4}


def main(config: DictConfig) -> None:
    """Run one cycle, or one after the other if `every` is set."""
    import sys

    from recsys.operations.cycle.schedule import loop, parse_every

    if config.every is not None:
        words = sys.argv[2:] if sys.argv[1:2] == ["retrain"] else sys.argv[1:]
        once = [word for word in words if word.partition("=")[0] != "every"]
        return loop([sys.executable, "-m", "recsys.cli", "retrain", *once], parse_every(config.every))
    from recsys.experiments.compose import compose_training
    from recsys.experiments.overrides import quoted
    from recsys.operations.cycle.cycle import run_cycle
    from recsys.operations.cycle.plan import CyclePlan

    root = quoted(str(config.data.root))
    training, variants = compose_training(["data=parquet", f"data.root={root}", *config.train])
    cycle = run_cycle(CyclePlan(config, training, variants=variants), config.wait)
    if cycle is None:
        print("nothing new")
        return None
    print(cycle.outcome, cycle.version or "")
    raise SystemExit(EXIT[str(cycle.outcome)])
