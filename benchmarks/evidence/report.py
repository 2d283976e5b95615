"""The tables of the results page, written between two markers, and the picture beside it."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from evidence.picture import draw
from evidence.plan import Bar, Plan
from evidence.rows import Measured, Row, described_commit, read_rows

from recsys.baselines.tuning import describe
from recsys.core.io import atomic_write
from recsys.evaluation.significance import Comparison, holm

BEGIN, END = "<!-- evidence: begin; written by benchmarks/evidence -->", "<!-- evidence: end -->"
PICTURE = "evidence.svg"
# Most characters of a line of prose.
WIDTH = 120


def write_report(plan: Plan, runs: Path, page: Path) -> list[str]:
    """Replace the part of the page between the markers, and the picture; return what is missing, a line each.

    Raises:
        ValueError: If the page lacks a marker.
    """
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: no markers, expected the lines '{BEGIN}' and '{END}'")
    measured = [read_rows(plan, data, runs) for data in plan.data.values()]
    shown = [one for one in measured if one.rows]
    parts = [caption(shown, plan), *(section(one, plan) for one in shown)]
    draw(shown, plan.metrics[0], page.with_name(PICTURE))
    atomic_write(page, wrapped("\n\n".join([before + begin, *parts, end])) + after)
    return [f"{one.data.name}: not measured: {'; '.join(one.missing)}" for one in measured if one.missing]


def wrapped(text: str) -> str:
    """Return Markdown whose lines of prose have at most 120 characters; rows of tables and code stay as they are."""
    kept = ("|", "    ", "```")
    lines = [
        line if line.startswith(kept) or len(line) <= WIDTH else textwrap.fill(line, WIDTH, break_long_words=False)
        for line in text.split("\n")
    ]
    return "\n".join(lines)


def caption(measured: Sequence[Measured], plan: Plan) -> str:
    words = []
    for one in measured:
        figures = [(row.title, row.mean(plan.metrics[0])) for row in one.rows if not row.is_baseline]
        best = one.best_baseline(plan.metrics[0])
        figures += [(best.title, best.mean(plan.metrics[0]))] if best else []
        words.append(f"{one.data.title}: " + ", ".join(f"{name} {short(value)}" for name, value in figures))
    return f"![{label(plan.metrics[0])} on every data set. {'; '.join(words)}]({PICTURE})"


def section(measured: Measured, plan: Plan) -> str:
    data = measured.data
    baseline = measured.named(data.baseline)
    metrics = [metric for metric in plan.metrics if any(row.values[metric] for row in measured.rows)]
    names = [f"{label(metric)}" for metric in metrics]
    lines = [f"### {data.title}", ""]
    lines += [data.note.strip(), ""] if data.note else []
    lines += ["| row | " + " | ".join(names) + " | seeds | seconds | memory | parameters | commit |"]
    lines += ["|---|" + "---|" * (len(metrics) + 5)]
    for row in measured.rows:
        compared = row.compared(baseline, metrics) if baseline and row is not baseline else {}
        cells = [cell(row, metric, compared.get(metric)) for metric in metrics]
        lines.append(f"| {title(row)} | {' | '.join(cells)} | {' | '.join(cost(row))} |")
    for paper in data.published:
        cells = [short(paper.metrics.get(metric)) for metric in metrics]
        lines.append(f"| {paper.model} (published: {paper.source}) | {' | '.join(cells)} | | | | | |")
    if baseline:
        lines += ["", f"Brackets: difference from {baseline.title} with its 95% interval over users; bold without 0."]
    lines += [line for row in measured.rows if not row.is_baseline for line in against_best(row, measured, metrics)]
    lines += bars(measured)
    if measured.missing:
        lines += ["", f"Not measured yet: {'; '.join(measured.missing)}."]
    return "\n".join(lines)


def title(row: Row) -> str:
    chosen = row.states[0].settings
    return f"{row.title} ({describe(chosen)})" if row.is_baseline and chosen else row.title


def cell(row: Row, metric: str, compared: Comparison | None) -> str:
    values = row.values[metric]
    text = short(row.mean(metric))
    if len(values) > 1:
        text += f" ± {short(statistics.stdev(values))}"
    if compared is None or not compared.first:
        return text
    middle, low, high = (value / compared.first for value in (compared.difference, compared.low, compared.high))
    text += f" [{middle:+.0%}: {low:+.0%}, {high:+.0%}]"
    return f"**{text}**" if compared.low > 0 or compared.high < 0 else text


def cost(row: Row) -> list[str]:
    seconds = statistics.fmean(state.seconds for state in row.states)
    memory = max(state.peak_memory_bytes or 0 for state in row.states)
    parameters = row.states[0].parameters.get("total")
    commits = "; ".join(dict.fromkeys(described_commit(state.git_commit) for state in row.states))
    seeds = ", ".join(map(str, row.seeds)) or "-"
    return [seeds, f"{seconds:,.0f}", f"{memory / 2**30:.1f} GiB", f"{parameters:,}" if parameters else "-", commits]


def against_best(row: Row, measured: Measured, metrics: Sequence[str]) -> list[str]:
    """Say in which metrics a row is better or worse than the best tuned baseline of each."""
    best = {metric: measured.best_baseline(metric) for metric in metrics if metric.startswith("test/")}
    found = {
        metric: row.compared(baseline, [metric])[metric] for metric, baseline in best.items() if baseline is not None
    }
    corrected = holm({metric: one.p_value for metric, one in found.items()})
    words = []
    for metric, one in found.items():
        word = "no difference shown" if corrected[metric] >= 0.05 else "better" if one.difference > 0 else "WORSE"
        words.append(f"{label(metric)} {word} ({getattr(best[metric], 'title', '')}, p {corrected[metric]:.2g})")
    return ["", f"{row.title}, against the best tuned baseline of each metric: {'; '.join(words)}."] if words else []


def bars(measured: Measured) -> list[str]:
    lines = []
    for bar in measured.data.bars:
        row = measured.named(bar.row)
        value = row.mean(bar.metric) if row else None
        if row is None or value is None:
            continue
        lines.append(f"- {row.title}, {label(bar.metric)}: {verdict(bar, value, row, measured)}")
    return ["", "Bars:", "", *lines] if lines else []


def verdict(bar: Bar, value: float, row: Row, measured: Measured) -> str:
    if bar.at_least is not None:
        reached = value >= bar.at_least
        return f"{short(value)}, bar {short(bar.at_least)}: {'reached' if reached else '**missed**'}"
    baseline = measured.named(bar.above or "")
    if baseline is None:
        return f"{short(value)}; {bar.above} is not measured"
    compared: Mapping[str, Comparison] = row.compared(baseline, [bar.metric])
    one = compared[bar.metric]
    reached = one.difference > 0 and one.p_value < bar.p
    beside = f"{short(value)} against {short(one.first)} of {baseline.title}, p {one.p_value:.2g}"
    return f"{beside}, bar p < {bar.p:g}: {'reached' if reached else '**missed**'}"


def label(metric: str) -> str:
    part, _, name = metric.partition("/")
    name = name.replace("recall@", "R@").replace("ndcg@", "N@")
    return name if part == "test" else f"rolling {name}"


def short(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".removeprefix("0")
