"""Every block of docs/extending.md: a package and a folder of options outside the repository."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import REPOSITORY, run_all
from composing import composition_error
from tiny_run import command as tiny

from recsys.core.columns import Ragged
from recsys.index import Exact
from recsys.training.frequency import ExactFrequency
from recsys.training.losses import SampledCandidates
from recsys.training.negatives import SamplerInputs

CLI = "src/recsys/cli/__main__.py"

DOCUMENT = (REPOSITORY / "docs/extending.md").read_text()


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the document, as their titles name them."""
    folder = tmp_path_factory.mktemp("outside")
    files = dict(re.findall(r'```(?:python|yaml) title="(.*?)"\n(.*?)```', DOCUMENT, re.DOTALL))
    assert len(files) == 17
    files |= {
        "my_package/__init__.py": "",
        "my_conf/experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /user_tower: recent_mean\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def _importable(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(outside), str(REPOSITORY / "src")]))
    monkeypatch.syspath_prepend(str(outside))


def small(run: Path, cache: Path, *words: str) -> list[str]:
    """A short run with the words in front, where options of Hydra go."""
    program, *overrides = [word for word in tiny(run, cache) if "num_blocks" not in word]
    return [program, *words, *overrides, "trainer.max_epochs=2"]


@pytest.mark.usefixtures("_importable")
def test_the_encoder_passes_its_test() -> None:
    tests = vars(importlib.import_module("my_package.test_encoders"))
    (test,) = (function for name, function in tests.items() if name.startswith("test_"))
    test()


@pytest.mark.usefixtures("_importable")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-dir", "{}", "user_tower=recent_mean"], None),
        (["-cd={}", "user_tower=recent_mean", "user_tower.encoder.dropout=0.2"], None),
        (["--config-dir={}", "+experiment=mine"], None),
        (["user_tower=recent_mean", "hydra.searchpath=[file://{}]"], None),
        (["+experiment=mine", "hydra.searchpath=['file://{}']", "model.dim=8"], None),
        (["--config-dir", "{}", "user_tower=recent_man"], "no such option; did you mean 'recent_mean'?"),
        (["--config-dir", "{}", "+experiment=mien"], "experiment=mien: no such option; did you mean 'mine'?"),
        (
            ["--config-dir", "{}", "user_tower=recent_mean", "+user_tower.encoder.dropot=0"],
            "unknown configuration key 'user_tower.encoder.dropot'; did you mean 'user_tower.encoder.dropout'?",
        ),
        (["user_tower=recent_mean"], "user_tower=recent_mean: no such option"),
        (["--config-dir", "{}/none", "user_tower=recent_mean"], "none is not a folder"),
    ],
)
def test_options_outside_are_checked_like_ours(words: list[str], message: str | None, outside: Path) -> None:
    problem = composition_error("train", [word.format(outside / "my_conf") for word in words])
    if message is None:
        assert problem is None
    else:
        assert problem is not None
        assert message in problem


@pytest.mark.slow
@pytest.mark.usefixtures("_importable")
def test_trained_released_and_recommended_from(outside: Path, tmp_path: Path) -> None:
    run, cache, store, out = (tmp_path / name for name in ("run", "cache", "store", "out.parquet"))
    conf = str(outside / "my_conf")
    both = ["+variants.a={overrides: ['user_tower=recent_mean']}", "+variants.b={overrides: ['user_tower=mean']}"]
    jobs = [
        small(run, cache, "--config-dir", conf, "user_tower=recent_mean"),
        # Exported as ONNX, which is compared with the torch tower.
        ["index.py", f"run={run}", f"store={store}", "recall_target=0.5", "trust=[my_package]"],
        ["recommend.py", "release=candidate", f"store={store}", "users=test", "k=5", f"out={out}"],
        small(tmp_path / "by_path", cache, f"hydra.searchpath=[file://{conf}]", "+experiment=mine"),
        small(tmp_path / "several", cache, f"hydra.searchpath=[file://{conf}]", *both),
        small(tmp_path / "wrong", cache, "--config-dir", conf, "user_tower=recent_man"),
    ]
    *good, wrong = run_all([{"args": job} for job in jobs], tmp_path)
    for code, output in good:
        assert code == 0, output
    assert wrong[0] == 1
    assert wrong[1].splitlines() == ["error: user_tower=recent_man: no such option; did you mean 'recent_mean'?"]
    # An override and an experiment are the same run.
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (run, tmp_path / "by_path")]
    assert metrics[0] == metrics[1]
    encoder = yaml.safe_load((tmp_path / "several/variants/a/config.yaml").read_text())["user_tower"]["encoder"]
    assert encoder["_target_"] == "my_package.encoders.RecentMean"
    assert out.exists()


def test_every_kind_has_an_option_and_a_class(outside: Path) -> None:
    found = {path.parent.name for path in (outside / "my_conf").rglob("*.yaml")} - {"experiment"}
    assert found == {"user_tower", "item_tower", "negatives", "loss", "index", "gates", "logger", "generator"}


@pytest.mark.usefixtures("_importable")
def test_the_index_finds_what_exact_search_finds(tmp_path: Path) -> None:
    indexes = importlib.import_module("my_package.indexes")
    rng = np.random.default_rng(0)
    items, queries = rng.normal(size=(200, 8)).astype(np.float32), rng.normal(size=(16, 8)).astype(np.float32)
    allow, exclude = rng.random(200) < 0.5, Ragged(np.arange(16), np.arange(17))
    exact, mine = Exact(), indexes.Projected(width=3)
    for index in (exact, mine):
        index.build(items)
    mine.effort = mine.effort._replace(breadth=200)
    mine.save(tmp_path)
    opened = indexes.Projected(**mine.parameters())
    opened.load(tmp_path, items, names=[indexes.FILE])
    opened.effort = mine.effort
    for settings in ({}, {"allow": allow}, {"exclude": exclude}):
        expected = exact.search(queries, 10, **settings)
        for index in (mine, opened):
            scores, rows = index.search(queries, 10, **settings)
            np.testing.assert_array_equal(rows, expected[1])
            np.testing.assert_allclose(scores, expected[0], rtol=1e-5)
    assert opened.search(queries, 300)[1][0, 200:].tolist() == [-1] * 100


@pytest.mark.usefixtures("_importable")
def test_the_negatives_know_their_probabilities() -> None:
    negatives = importlib.import_module("my_package.negatives")
    probabilities = torch.tensor([0.0, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    inputs = SamplerInputs(probabilities, torch.arange(1, 5), ExactFrequency(probabilities))
    sampler = negatives.HeadNegatives(inputs, num_negatives=1000, share=0.5)
    drawn = sampler.draw(torch.Generator().manual_seed(0), torch.tensor([1]))
    assert set(drawn.tolist()) == {1, 2}
    found = sampler.log_q(torch.tensor([1, 2, 3]), 1).exp()
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 0.0]), atol=1e-9, rtol=0)


@pytest.mark.usefixtures("_importable")
def test_the_loss_is_the_mean_over_negatives() -> None:
    losses = importlib.import_module("my_package.losses")
    users, positives = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    sampled = SampledCandidates(
        embeddings=torch.tensor([[1.0, 0.0], [9.0, 0.0], [0.0, 5.0]]),
        log_q=torch.zeros(3),
        log_q_target=torch.zeros(1),
        # The second candidate is another positive of the user.
        mask=torch.tensor([[False, True, False]]),
        q_masked=torch.zeros(1),
        num_drawn=torch.tensor([2]),
        history=torch.tensor([0]),
    )
    # Differences of the target's score, 2, to those of the negatives: 2 - 1 and 2 - 0.
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2
    found = losses.PairwiseLogistic()(users, positives, sampled=sampled)
    assert float(found) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.usefixtures("_importable")
def test_every_other_kind_from_training_to_judging(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_TRUST", "my_package")
    run, cache, store, measured = (tmp_path / name for name in ("run", "cache", "store", "baselines"))
    conf = ["--config-dir", str(outside / "my_conf")]
    mine = [
        "item_tower=layer_on_top",
        "negatives=head",
        "loss=pairwise_logistic",
        "logger=lines",
        "logger.lines.prefix=m.",
    ]
    data = [word for word in tiny(run, cache) if word.startswith("data.")]
    grid = "+grids.trending={days: {values: [1, 7], every: true, time: [seconds, day]}}"
    trending = ["+generator@generator.trending=trending", "generators=[popularity,trending]", grid]
    jobs = [
        [word for word in small(run, cache, *conf, *mine) if word != "logger=csv"],
        ["index.py", *conf, f"run={run}", f"store={store}", "alias=production", "index=projected", "recall_target=0.9"],
        ["recommend.py", "release=production", f"store={store}", "users=test", "k=5", f"out={tmp_path}/out.parquet"],
        [CLI, "gates", *conf, "gates=mine", f"run={run}", "against=production", f"store={store}", "recall_target=0.9",
         "index=projected", "~gates.fresh", "~gates.clock", "~gates.absolute"],
        [CLI, "baselines", *conf, *trending, *data, f"hydra.run.dir={measured}"],
    ]  # fmt: skip
    *good, judged, baselines = run_all([{"args": job} for job in jobs], tmp_path)
    for code, output in (*good, baselines):
        assert code == 0, output
    lines = [json.loads(line) for line in (run / "lines.jsonl").read_text().splitlines()]
    assert lines[0] == {"dim": 8}
    assert any("m.val/ndcg@10" in line for line in lines)
    (release,) = (path for path in store.iterdir() if (path / "manifest.json").exists())
    assert (release / "item_index.projection.npy").exists()
    assert "my_package.indexes.Projected" in "".join(path.read_text() for path in release.glob("*.json"))
    assert judged[0] in (0, 3), judged[1]
    outcomes = json.loads((run / "verdict.json").read_text())["outcomes"]
    (found,) = (outcome for outcome in outcomes if outcome["gate"] == "full_lists")
    assert (found["status"], found["value"]) == ("pass", 1.0)
    assert json.loads((measured / "trending/metrics.json").read_text())["test/recall@10"] > 0
