"""Verdicts, word by word."""

from __future__ import annotations

from pathlib import Path

import pytest
from written import write

from recsys.evaluation.significance import Comparison
from recsys.reports.comparison.differences import Difference
from recsys.reports.comparison.measured import MeasuredRun
from recsys.reports.comparison.narrative import p_text, title_of, verdicts
from recsys.reports.comparison.reading import read_runs


def difference(
    run: str, metric: str, first: float, second: float, margin: float, p_value: float, baseline: str = "a"
) -> Difference:
    gain = second - first
    pair = Comparison(metric, first, second, gain, gain - margin, gain + margin, p_value, 100)
    return Difference(run, baseline, pair, p_value)


@pytest.fixture
def runs(tmp_path: Path) -> list[MeasuredRun]:
    shown = {"a": (0.45, 2.0), "b": (0.31, 2.1), "c": (0.46, 1.0)}
    return read_runs(
        [
            write(tmp_path / name, {"recall@10": [0.1]}, coverage_at_10=coverage, popularity_at_10=popularity)
            for name, (coverage, popularity) in shown.items()
        ]
    )


def test_one_run_against_another(runs: list[MeasuredRun]) -> None:
    found = [
        difference("b", "recall@10", 0.2, 0.21, 0.004, 0.003),
        difference("b", "ndcg@10", 0.1, 0.12, 0.01, 0.0002),
        difference("b", "recall@100", 0.5, 0.4, 0.05, 0.01),
        difference("b", "mrr@10", 0.5, 0.4, 0.05, 0.2),
    ]
    assert verdicts(runs, found) == [
        "b is better than a in recall@10 by 5.0% (0.2100 against 0.2000, 95% interval +3.0% to +7.0%, p = 0.003, "
        "corrected for 4 comparisons); also better in ndcg@10; worse in recall@100; no difference shown in mrr@10; "
        "shows less of the corpus (coverage@10 31.0% against 45.0%)."
    ]
    assert "p = 0.003);" in verdicts(runs, found[:1])[0]


def test_several_runs_against_one(runs: list[MeasuredRun]) -> None:
    found = [
        difference("b", "recall@10", 0.2, 0.19, 0.02, 0.5),
        difference("c", "recall@10", 0.2, 0.1, 0.01, 0.0001),
    ]
    overall, first, second = verdicts(runs, found)
    assert overall == (
        "Against a in recall@10, better: none; worse: c; not significant: b (at p < 0.05, corrected for 2 comparisons)."
    )
    assert first == (
        "b and a do not differ significantly in recall@10 (0.1900 against 0.2000, -5.0%, 95% interval -15.0% to +5.0%, "
        "p = 0.500); shows less of the corpus (coverage@10 31.0% against 45.0%)."
    )
    assert second == (
        "c is worse than a in recall@10 by 50.0% (0.1000 against 0.2000, 95% interval -55.0% to -45.0%, p < 0.001); "
        "shows less popular items (popularity@10 1.0 against 2.0)."
    )


def test_the_best_of_many_come_first_and_alone(runs: list[MeasuredRun]) -> None:
    named = {f"r{number}": number for number in range(8)}
    more = [
        *runs,
        *(MeasuredRun(type(runs[0].row)(Path(n), n, {}, {}, {}), {}, Path(n), frozenset(), {}) for n in named),
    ]
    found = [difference(name, "recall@10", 0.2, 0.2 + 0.01 * value, 0.001, 0.5) for name, value in named.items()]
    overall, *others = verdicts(more, found)
    assert "not significant: r7, r6, r5, r4, r3, r2, r1 and r0" in overall
    assert [sentence.split()[0] for sentence in others] == ["r7", "r6", "r5", "r4", "r3"]


def test_pairs_have_no_common_baseline(runs: list[MeasuredRun]) -> None:
    found = [
        difference("b", "recall@10", 0.2, 0.3, 0.02, 0.01),
        difference("c", "recall@10", 0.3, 0.3, 0.01, 1.0, "b"),
    ]
    first, second = verdicts(runs, found)
    assert first.startswith("b is better than a")
    assert second.startswith("c and b do not differ significantly")
    assert "p = 1, corrected for 2 comparisons" in second


def test_a_baseline_that_finds_nothing(runs: list[MeasuredRun]) -> None:
    (sentence,) = verdicts(runs, [difference("b", "recall@10", 0.0, 0.02, 0.01, 0.01)])
    assert sentence.startswith("b is better than a in recall@10 by 0.0200 (0.0200 against 0.0000, ")
    assert "95% interval +0.0100 to +0.0300, p = 0.010)" in sentence


def test_small_words() -> None:
    assert [p_text(value) for value in (0.0002, 0.001, 0.0499, 0.9996)] == ["< 0.001", "0.001", "0.050", "1"]
    assert title_of("tail/recall@10") == "rare items (tail)"
    assert title_of("ndcg@10") == "ndcg@10"
