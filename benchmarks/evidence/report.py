"""The tables of the results page, written between two markers, and the picture beside it."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from evidence.measured import Row, Table, read_measured, short, write_measured
from evidence.picture import draw
from evidence.plan import Bar, Plan
from evidence.rows import measure

from recsys.baselines.tuning import describe
from recsys.core.io import atomic_write

BEGIN, END = "<!-- evidence: begin; written by benchmarks/evidence -->", "<!-- evidence: end -->"
KEPT, PICTURE = "measured.json", "evidence.svg"
REPOSITORY = Path(__file__).parents[2]
# Most characters of a line of prose.
WIDTH = 120


def write_report(plan: Plan, runs: Path, *, kept: Path, page: Path) -> list[str]:
    """Bring the kept figures up to date with the run folders, and write page and picture from them.

    Args:
        plan: what is shown, and in which order.
        runs: folder of the run folders; none of them need to be there.
        kept: the file `measured.json`, which is made if there is none.
        page: file whose part between the markers is replaced. The picture is beside it.

    Returns:
        What is missing and which rows have lost seeds, a line each.

    Raises:
        ValueError: If the page lacks a marker, or the kept figures are damaged.
    """
    before = read_measured(kept, plan)
    write_measured(kept, {name: measure(table, runs) for name, table in before.items()})
    after = read_measured(kept, plan)
    render(after, plan, page)
    missing = [f"{name}: not measured: {'; '.join(table.missing)}" for name, table in after.items() if table.missing]
    return missing + [line for name, table in after.items() for line in lost_seeds(before[name], table)]


def lost_seeds(before: Table, after: Table) -> list[str]:
    lines = []
    for name, row in before.rows.items():
        if lost := sorted({*row.seeds} - {*after.rows[name].seeds}):
            lines.append(f"{after.data.name}: {name}: the new runs replace a row that had seeds {lost} too")
    return lines


def render(tables: Mapping[str, Table], plan: Plan, page: Path) -> None:
    """Replace the part of the page between the markers, and the picture."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: no markers, expected the lines '{BEGIN}' and '{END}'")
    shown = [table for table in tables.values() if table.rows]
    parts = [caption(shown, plan), *(section(table) for table in shown)]
    draw(shown, plan.metrics[0], page.with_name(PICTURE))
    atomic_write(page, wrapped("\n\n".join([before + begin, *parts, end])) + after)


def wrapped(text: str) -> str:
    """Return Markdown whose lines of prose have at most 120 characters; rows of tables and code stay as they are."""
    kept = ("|", "    ", "```")
    lines = [
        line if line.startswith(kept) or len(line) <= WIDTH else textwrap.fill(line, WIDTH, break_long_words=False)
        for line in text.split("\n")
    ]
    return "\n".join(lines)


def caption(tables: Sequence[Table], plan: Plan) -> str:
    words = []
    for table in tables:
        best = table.best_baseline(plan.metrics[0])
        names = table.models + ([best] if best else [])
        figures = [f"{plan.title(name)} {short(table.mean(name, plan.metrics[0]))}" for name in names]
        words.append(f"{table.data.title}: {', '.join(figures)}")
    return f"![{label(plan.metrics[0])} on every data set. {'; '.join(words)}]({PICTURE})"


def section(table: Table) -> str:
    data, plan = table.data, table.plan
    metrics = [metric for metric in plan.metrics if any(metric in row.figures for row in table.rows.values())]
    names = [f"{label(metric)}" for metric in metrics]
    lines = [f"### {data.title}", ""]
    lines += [data.note.strip(), ""] if data.note else []
    lines += ["| row | " + " | ".join(names) + " | seeds | seconds | memory | parameters | commit |"]
    lines += ["|---|" + "---|" * (len(metrics) + 5)]
    for name in (*table.models, *table.baselines):
        cells = [cell(name, metric, table) for metric in metrics]
        lines.append(f"| {title(name, table)} | {' | '.join(cells)} | {' | '.join(cost(table.rows[name]))} |")
    for paper in data.published:
        cells = [short(paper.metrics.get(metric)) for metric in metrics]
        lines.append(f"| {paper.model} (published: {paper.source}) | {' | '.join(cells)} | | | | | |")
    if data.baseline in table.rows:
        baseline = plan.title(data.baseline)
        lines += ["", f"Brackets: difference from {baseline} with its 95% interval over users; bold without 0."]
        if any("(not compared)" in line for line in lines):
            lines[-1] += f" Not compared: the runs of {baseline} or of the row are gone."
    lines += [line for name in table.models for line in against_best(name, table, metrics)]
    lines += bars(table)
    if table.missing:
        lines += ["", f"Not measured yet: {'; '.join(table.missing)}."]
    return "\n".join(lines)


def title(name: str, table: Table) -> str:
    settings, shown = table.rows[name].settings, table.plan.title(name)
    return f"{shown} ({describe(dict(settings))})" if name in table.baselines and settings else shown


def cell(name: str, metric: str, table: Table) -> str:
    row, baseline = table.rows[name], table.data.baseline
    figure = row.figures.get(metric)
    if figure is None:
        return ""
    text = short(figure.mean)
    if figure.deviation is not None:
        text += f" ± {short(figure.deviation)}"
    if name == baseline or not metric.startswith("test/") or not table.mean(baseline, metric):
        return text
    one = table.current(row.differences, metric, baseline=baseline)
    if one is None:
        return f"{text} (not compared)"
    middle, low, high = (value / one.baseline_mean for value in (one.difference, one.low, one.high))
    text += f" [{middle:+.0%}: {low:+.0%}, {high:+.0%}]"
    return f"**{text}**" if one.without_zero else text


def cost(row: Row) -> list[str]:
    commits = "; ".join(dict.fromkeys(described_commit(commit) for commit in row.commits))
    seeds = ", ".join(map(str, row.seeds)) or "-"
    parameters = f"{row.parameters:,}" if row.parameters else "-"
    return [seeds, f"{row.seconds:,.0f}", f"{row.memory_gib:.1f} GiB", parameters, commits]


def against_best(name: str, table: Table, metrics: Sequence[str]) -> list[str]:
    """Say in which metrics a row is better or worse than the best tuned baseline of each."""
    words = []
    for metric in metrics:
        baseline = table.best_baseline(metric)
        if baseline is None or not metric.startswith("test/"):
            continue
        one = table.current(table.rows[name].best, metric, baseline=baseline)
        if one is None:
            words.append(f"{label(metric)} not compared: {gone(baseline, table)}")
            continue
        word = "no difference shown" if one.p_value >= 0.05 else "better" if one.difference > 0 else "WORSE"
        words.append(f"{label(metric)} {word} ({table.plan.title(baseline)}, p {one.p_value:.2g})")
    if not words:
        return []
    return ["", f"{table.plan.title(name)}, against the best tuned baseline of each metric: {'; '.join(words)}."]


def bars(table: Table) -> list[str]:
    lines = []
    for bar in table.data.bars:
        value = table.mean(bar.row, bar.metric)
        if value is not None:
            lines.append(f"- {table.plan.title(bar.row)}, {label(bar.metric)}: {verdict(bar, value, table)}")
    return ["", "Bars:", "", *lines] if lines else []


def verdict(bar: Bar, value: float, table: Table) -> str:
    if bar.at_least is not None:
        reached = value >= bar.at_least
        return f"{short(value)}, bar {short(bar.at_least)}: {'reached' if reached else '**missed**'}"
    assert bar.above is not None
    if bar.above not in table.rows:
        return f"{short(value)}; {bar.above} is not measured"
    one = table.current(table.rows[bar.row].bars, bar.metric, baseline=bar.above)
    if one is None:
        return f"{short(value)}; not compared: {gone(bar.above, table)}"
    reached = one.difference > 0 and one.p_value < bar.p
    beside = f"{short(value)} against {short(one.baseline_mean)} of {table.plan.title(bar.above)}, p {one.p_value:.2g}"
    return f"{beside}, bar p < {bar.p:g}: {'reached' if reached else '**missed**'}"


def gone(baseline: str, table: Table) -> str:
    return f"the runs of {table.plan.title(baseline)} or of this row are gone"


def label(metric: str) -> str:
    part, _, name = metric.partition("/")
    name = name.replace("recall@", "R@").replace("ndcg@", "N@")
    return name if part == "test" else f"rolling {name}"


@cache
def described_commit(commit: str | None) -> str:
    """Return a commit in short, and how many commits of the code came after it."""
    if commit is None:
        return "unknown"
    changed = commit.endswith("+")
    name = commit[:7] + (", uncommitted changes" if changed else "")
    command = ["git", "-C", str(REPOSITORY), "rev-list", "--count", f"{commit.rstrip('+')}..HEAD", "--", "src", "conf"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        return f"{name}, not in this history"
    later = int(found.stdout)
    return f"{name}, older by {later} commit{'s' * (later != 1)}" if later else name
