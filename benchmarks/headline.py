"""The README's picture: learned models beside the best of the tuned baselines, on several data sets.

    python benchmarks/headline.py docs/headline.svg "Amazon Beauty" RUN BASELINES "Pinterest" RUN BASELINES ...

RUN is a finished run, BASELINES the folder that `recsys baselines` wrote for the same data.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

METRICS = {"recall@10": "recall@10", "ndcg@10": "NDCG@10", "recall@100": "recall@100"}
LEARNED, BASELINE = "#0b62a4", "#b9c2cb"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("given", nargs="+", help="name, run and baselines of each data set")
    arguments = parser.parse_args()
    if len(arguments.given) % 3:
        parser.error(f"found {len(arguments.given)} words, expected name, run and baselines of each data set")
    names = arguments.given[::3]
    runs = [test_metrics(Path(run)) for run in arguments.given[1::3]]
    baselines = [[test_metrics(path) for path in finished(Path(folder))] for folder in arguments.given[2::3]]
    figure, axes = pyplot.subplots(1, len(METRICS), figsize=(10, 2.6), layout="constrained")
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        learned = [run[f"test/{metric}"] for run in runs]
        best = [max(values[f"test/{metric}"] for values in found) for found in baselines]
        gains = [one / other for one, other in zip(learned, best, strict=True)]
        places = range(len(names))
        axis.barh(places, gains, color=[LEARNED if gain >= 1 else BASELINE for gain in gains], height=0.6)
        axis.axvline(1, color="#333333", linewidth=1)
        for place, gain, value in zip(places, gains, learned, strict=True):
            label = f"{value:.4f}".lstrip("0") + f" ({gain - 1:+.0%})"
            axis.text(max(gain, 1) + 0.03, place, label, va="center", fontsize=8)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_yticks(places, names if axis is axes[0] else [""] * len(names), fontsize=9)
        axis.set_xlim(0, 1.95)
        axis.set_xticks([0, 1], ["0", "best tuned\nbaseline"], fontsize=8)
        axis.invert_yaxis()
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(length=0)
    figure.savefig(arguments.out, metadata={"Date": None})


def finished(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/metrics.json"))


def test_metrics(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "metrics.json").read_text())
    return found


if __name__ == "__main__":
    main()
