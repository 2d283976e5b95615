"""docs/extending.md, word by word: a package and a folder of options outside the repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import REPOSITORY, run_all
from tiny_run import command as tiny

from recsys.experiments import compose as composing

DOCUMENT = (REPOSITORY / "docs/extending.md").read_text()


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `my_package`, its test and `my_conf`, as the document shows them."""
    folder = tmp_path_factory.mktemp("outside")
    encoder, option, test = re.findall(r"```(?:python|yaml)\n(.*?)```", DOCUMENT, re.DOTALL)
    for name, text in {
        "my_package/__init__.py": "",
        "my_package/encoders.py": encoder,
        "my_package/test_encoders.py": test,
        "my_conf/user_tower/recent_mean.yaml": option,
        "my_conf/experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /user_tower: recent_mean\n",
    }.items():
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
def test_the_encoder_passes_its_test(outside: Path) -> None:
    test = outside / "my_package/test_encoders.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


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
    problem = composing.composition_error("train", [word.format(outside / "my_conf") for word in words])
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
        ["index.py", f"run={run}", f"store={store}", "recall_target=0.5"],
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
