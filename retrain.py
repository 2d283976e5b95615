"""One retraining cycle: fresh events, train, gates, publish, roll out, watch, keep or roll back.

    python retrain.py data.root=DIR                               what has arrived in DIR since the cycle before
    python retrain.py data.root=DIR "train=['+experiment=NAME','model.dim=32']"
    python retrain.py data.root=DIR hosts=[A:8081,B:8081] gateways=[G:8080]
    python retrain.py data.root=DIR every=1d                      again and again, on this machine

Killed at any moment, the same command goes on. Exit code 0: the candidate is served, or there is nothing new; 3: it was
stopped by the gates; 4: it was rolled back; 1: the cycle failed. The last line says which.
"""

import sys

from omegaconf import DictConfig

from recsys.cli.entry import entry
from recsys.experiments.compose import compose_training

EXIT = {"kept": 0, "stopped": 3, "rolled_back": 4}


def main(config: DictConfig) -> None:
    """Run one cycle, or one after the other."""
    from recsys.operations.cycle.schedule import loop, parse_every

    if config.every is not None:
        once = [word for word in sys.argv[1:] if word.partition("=")[0] != "every"]
        return loop([sys.executable, sys.argv[0], *once], parse_every(config.every))
    from recsys.operations.cycle.cycle import run_cycle
    from recsys.operations.cycle.plan import Plan

    root = str(config.data.root).replace("'", "\\'")
    training, variants = compose_training(["data=parquet", f"data.root='{root}'", *config.train])
    cycle = run_cycle(Plan(config, training, variants), config.wait)
    if cycle is None:
        print("nothing new")
        return None
    print(cycle.outcome, cycle.version or "")
    raise SystemExit(EXIT[str(cycle.outcome)])


if __name__ == "__main__":
    entry("retrain", main)
