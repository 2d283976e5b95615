"""Compare the run of `make demo` with popularity and item-kNN: a table, a picture and the list of one user.

python demo.py RUN RECOMMENDATIONS.parquet PLOT.png
"""

import sys
from pathlib import Path

import matplotlib
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from recsys.baselines.interactions import Interactions
from recsys.baselines.item_knn import ItemKNN
from recsys.baselines.popularity import Popularity
from recsys.data.batches.loaders import RequestLoader
from recsys.evaluation.metrics import CUTOFFS, RetrievalMetrics
from recsys.evaluation.ranking import Ranker, evaluate
from recsys.experiments.assembly import source_of
from recsys.experiments.trained_run import TrainedRun, load_run

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def main(run_path: str, recommendations: str, picture: str) -> None:
    """Print the comparison and one user's list, and draw the picture."""
    run = load_run(run_path)
    recall = {"best reachable (the simulation's truth)": _recall(run.metrics, "test/best_reachable/")}
    recall["two-tower model"] = _recall(run.metrics, "test/")
    # Items without any event before the test part, which no baseline can find.
    recall["two-tower model, new items alone"] = _recall(run.metrics, "test/cold_items/")
    for name, generator in {"item-kNN": ItemKNN(), "popularity": Popularity()}.items():
        generator.fit(Interactions(run.dataset, "val"))
        recall[name] = _recall(_evaluate(run, generator), "")
    _print(recall)
    _print_user(run, recommendations)
    _draw(recall, Path(picture))


def _evaluate(run: TrainedRun, ranker: Ranker) -> dict[str, float]:
    requests = RequestLoader(run.builder, run.dataset.requests("test"))
    metrics = RetrievalMetrics(run.dataset, len(run.corpus))
    return evaluate(ranker, run.dataset, part="test", batches=requests, metrics=metrics)


def _recall(metrics: dict[str, float], prefix: str) -> list[float]:
    return [metrics[f"{prefix}recall@{cutoff}"] for cutoff in CUTOFFS]


def _print(recall: dict[str, list[float]]) -> None:
    table = Table(title="test recall, full corpus, exact", title_justify="left", title_style="bold")
    table.add_column("")
    for cutoff in CUTOFFS:
        table.add_column(f"@{cutoff}", justify="right")
    for name, values in recall.items():
        table.add_row(name, *(f"{value:.3f}" for value in values))
    Console().print(table)


def _print_user(run: TrainedRun, recommendations: str) -> None:
    source = source_of(run.config)
    items = pa.concat_tables(pq.read_table(file, columns=["item_id", "title"]) for file in source.items)
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    row = pq.read_table(recommendations).slice(0, 1).to_pylist()[0]
    data = run.dataset
    user = pc.index(data.user_ids, row["user_id"]).as_py()
    begin, end = data.offsets[user], data.val_end[user]
    history = [data.item_ids[int(item) - 1].as_py() for item in data.item_idx[begin:end][-5:]]
    table = Table(title=f"user {row['user_id']}", title_justify="left", title_style="bold")
    table.add_column("saved lately")
    table.add_column("recommended from the release")
    for saved, recommended in zip(reversed(history), row["item_ids"], strict=False):
        table.add_row(titles.get(saved), titles.get(recommended))
    Console().print(table)


def _draw(recall: dict[str, list[float]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for (name, values), style in zip(recall.items(), ("k--", "C0o-", "C0o:", "C1o-", "C2o-"), strict=True):
        axis.plot(CUTOFFS, values, style, label=name)
        axis.annotate(
            name, (CUTOFFS[-1], values[-1]), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8
        )
    axis.set(xscale="log", xlabel="K, items shown", ylabel="recall@K of the test part", ylim=(0, None))
    axis.set_xticks(CUTOFFS, [str(cutoff) for cutoff in CUTOFFS])
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlim(CUTOFFS[0] * 0.9, CUTOFFS[-1] * 4)
    figure.savefig(path, dpi=150)
    print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
