"""What each component earns: a base model, and the same with one thing changed, tested on the same users.

    python benchmarks/ablation.py --out runs/ablation/beauty data=parquet data.root=DIR split=leave_last_out
    python benchmarks/ablation.py --out DIR --only "in-batch" --only "uniform" ...       some of them

The variants are those of `ablation.yaml`. Finished runs are not repeated, a killed one goes on. The Markdown table has
the test figures, and the relative difference from the base with its 95% interval by paired bootstrap over users: what
the choice of users explains. What training explains is in the rows of other seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from recsys.reports.comparison.differences import Difference, differences
from recsys.reports.comparison.measured import read_folder

BASE = "base"
METRICS = ("recall@10", "ndcg@10", "recall@100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("overrides", nargs="*", help="of every run: the data, and what is to be smaller")
    arguments = parser.parse_args()
    plan = yaml.safe_load(arguments.variants.read_text())
    unknown = set(arguments.only) - set(plan["variants"])
    if unknown:
        parser.error(f"--only: no variant {sorted(unknown)}, expected some of {sorted(plan['variants'])}")
    time = dict(word.partition("=")[::2] for word in arguments.overrides).get("data.time", "seconds")
    chosen = {
        name: variant["overrides"]
        for name, variant in plan["variants"].items()
        if time in variant.get("time", [time]) and (not arguments.only or name in arguments.only)
    }
    for name, overrides in ({BASE: []} | chosen).items():
        run(arguments.out, name, plan["base"], overrides, arguments.overrides)
    print_table(arguments.out, chosen)


def run(out: Path, name: str, base: list[str], changed: list[str], given: list[str]) -> None:
    path = folder(out, name)
    if status(path) == "finished":
        return
    overrides = [*replaced(base, changed), *given]
    out.mkdir(parents=True, exist_ok=True)
    print(f"{name}: {' '.join(changed)}", file=sys.stderr, flush=True)
    with (out / f"{path.name}.log").open("w") as log:
        command = [sys.executable, "train.py", *overrides, "logger=csv", f"hydra.run.dir={path}"]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)


def replaced(base: list[str], changed: list[str]) -> list[str]:
    """Return the overrides of a variant: another option of a group drops the base's keys of that group."""
    groups = tuple(f"{word.partition('=')[0]}." for word in changed if "." not in word.partition("=")[0])
    return [*(word for word in base if not word.startswith(groups or ("=",))), *changed]


def print_table(out: Path, variants: dict[str, list[str]]) -> None:
    rows = {name: folder(out, name) for name in (BASE, *variants)}
    finished = {name: read_folder(path)[0] for name, path in rows.items() if status(path) == "finished"}
    found: dict[tuple[str, str], Difference] = {}
    for name, measured in finished.items():
        if name != BASE:
            # One question for each variant and metric, so p-values are not corrected over the table.
            for difference in differences([finished[BASE], measured], METRICS, baseline=finished[BASE]):
                found[name, difference.paired.metric] = difference
    print("| variant | " + " | ".join(f"{metric}, difference" for metric in METRICS) + " | seconds |")
    print("|---|" + "---|" * (len(METRICS) + 1))
    for name in rows:
        if name not in finished:
            print(f"| {name} | failed, see {rows[name]}.log |" + " |" * len(METRICS))
            continue
        cells = [cell(finished[name].metrics, metric, found.get((name, metric))) for metric in METRICS]
        print(f"| {name} | {' | '.join(cells)} | {finished[name].state.seconds:.0f} |")


def cell(metrics: Any, metric: str, difference: Difference | None) -> str:
    figure = f"{metrics[f'test/{metric}']:.4f}".lstrip("0")
    if difference is None or difference.relative is None:
        return figure
    middle, low, high = difference.relative
    text = f"{figure} {middle:+.1%} [{low:+.1%}, {high:+.1%}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def folder(out: Path, name: str) -> Path:
    return out / re.sub(r"\W+", "_", name.lower()).strip("_")


def status(path: Path) -> str:
    file = path / "run.json"
    return str(json.loads(file.read_text())["status"]) if file.exists() else "missing"


if __name__ == "__main__":
    main()
