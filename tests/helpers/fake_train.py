"""Stands for train.py where the machinery of sweeps is tested: validates and keeps checkpoints, and trains nothing.

    python fake_train.py value=0.5 [epochs=3] [seconds=0.05] [gate=FILE] [held=VALUE] [fail=MESSAGE] [nothing=true]
        hydra.run.dir=DIR

The metric climbs to `value` in equal steps. Epochs that are done before a kill are not done again. Behind the second
epoch it waits until the file `gate` exists; a run of the value `held` waits there for a minute.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    asked = dict(word.split("=", 1) for word in sys.argv[1:])
    run = Path(asked["hydra.run.dir"].strip("'"))
    (run / "logs").mkdir(parents=True, exist_ok=True)
    threads, group = (os.environ.get(name) for name in ("OMP_NUM_THREADS", "WANDB_RUN_GROUP"))
    with (run / "starts").open("a") as file:
        file.write(json.dumps({"arguments": sys.argv[1:], "threads": threads, "group": group}) + "\n")
    write(run / "run.json", {"status": "running"})
    if message := asked.get("fail"):
        print("before")
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(1)
    epochs, value = int(asked.get("epochs", 3)), float(asked["value"])
    checkpoint = run / "epoch"
    begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
    log = run / "logs" / str(len(list((run / "logs").iterdir())))
    log.mkdir()
    for epoch in range(begin, epochs):
        time.sleep(float(asked.get("seconds", 0.05)))
        while epoch >= 2 and "gate" in asked and not Path(asked["gate"]).exists():
            time.sleep(0.02)
        if epoch == 2 and asked.get("held") == asked["value"]:
            time.sleep(60)
        with (log / "metrics.csv").open("a", newline="") as file:
            writer = csv.writer(file)
            if epoch == begin:
                writer.writerow(["epoch", "step", "train/loss", "val/x"])
            writer.writerow([epoch, 10 * epoch + 9, 1.0, ""])
            writer.writerow([epoch, 10 * epoch + 9, "", value * (epoch + 1) / epochs])
        checkpoint.write_text(str(epoch + 1))
    write(run / "metrics.json", {"val/xx" if asked.get("nothing") == "true" else "val/x": value})
    status = "selected" if asked["test"] == "false" else "finished"
    write(run / "run.json", {"status": status, "seconds": 1.0, "selected": 1})


def write(path: Path, content: dict[str, object]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content))
    os.replace(part, path)


if __name__ == "__main__":
    main()
