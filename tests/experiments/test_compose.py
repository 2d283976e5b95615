"""Wrong keys, options and values: one clear line, and nothing dropped in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run_all
from composing import composition_error
from worlds import compose

from recsys.core.errors import UserError
from recsys.experiments.compose import compose_command
from recsys.experiments.conf_files import REMOVED_OPTIONS
from recsys.experiments.config_check import check


def problem(*overrides: str, config_name: str = "train") -> str | None:
    return composition_error(config_name, list(overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # Misspelled keys, with and without a plus.
        (["modle.dim=3"], "unknown configuration key 'modle.dim'; did you mean 'model.dim'?"),
        (["+modl.dim=3"], "unknown configuration key 'modl.dim'; did you mean 'model.dim'?"),
        (["+model.dmi=3"], "unknown configuration key 'model.dmi'; did you mean 'model.dim'?"),
        (["bach_size=3"], "unknown configuration key 'bach_size'; did you mean 'batch_size'?"),
        (["+refitt=true"], "unknown configuration key 'refitt'; did you mean 'refit'?"),
        (["+history.max_event=3"], "did you mean 'history.max_events'?"),
        (["+evaluation.vals_users=3"], "did you mean 'evaluation.val_users'?"),
        (["user_tower.encoder.num_blockz=1"], "did you mean 'user_tower.encoder.num_blocks'?"),
        (["+loss.log=off"], "did you mean 'loss.logq'?"),
        (["+trainer.precisio=64"], "unknown configuration key 'trainer.precisio'; did you mean 'trainer.precision'?"),
        (["+data.min_item_event=3"], "did you mean 'data.min_item_events'?"),
        (["+data.feature.items.x.kind=text"], "did you mean 'data.features.items.x.kind'?"),
        # Options of groups.
        (["loss=sampled_softmx"], "loss=sampled_softmx: no such option; did you mean 'sampled_softmax'?"),
        (["+experiment=beuty"], "experiment=beuty: no such option; did you mean 'beauty'?"),
        (["negatives=zzz"], "negatives=zzz: no such option; valid: "),
        (["item_tower.crossing.hiden=3"], "did you mean 'item_tower.crossing.hidden'?"),
        (["+history.window_dayz=3"], "did you mean 'history.window_days'?"),
        # Types.
        (["batch_size=abc"], "batch_size: found 'abc', expected an integer, or auto"),
        (["batch_size=1.5"], "batch_size: found 1.5, expected an integer"),
        (["seed=null"], "seed: found None, expected an integer"),
        (["refit=1"], "refit: found 1, expected true or false"),
        (["clip_norm=true"], "clip_norm: found True, expected a number"),
        (["optimizer.lr=fast"], "optimizer.lr: found 'fast', expected a number"),
        (["optimizer.betas=0.9"], "optimizer.betas: found 0.9, expected a list"),
        (["model=3"], "model"),
        (["evaluation.metric=10"], "evaluation.metric: found 10, expected a string"),
        # What Hydra's grammar cannot read.
        (["loss.logq=[[a=b]]"], "loss.logq=[[a=b]]: not a value that Hydra's grammar reads"),
    ],
)
def test_wrong_overrides(overrides: list[str], message: str) -> None:
    found = problem(*overrides)
    assert found is not None
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.dim=32", "optimizer.lr=1", "clip_norm=0"],
        ["evaluation.val_users=null", "optimizer.sparse_lr=null", "negatives.max_targets=null"],
        ["item_tower.sparse=true", "loss.logq=off"],
        ["+trainer.precision=bf16-mixed", "trainer.devices=auto"],
        ["trainer=ddp", "+trainer.strategy.bucket_cap_mb=3"],
        ["callbacks=ema", "callbacks.ema.decay=0.9", "~callbacks.early_stopping"],
        ["+callbacks.rate={_target_: lightning.pytorch.callbacks.LearningRateMonitor}"],
        ["data=parquet", "data.root=/somewhere", "+experiment=beauty"],
        ["+experiment=search", "data.search_share=0.9"],
        ["+data.features.items.text.kind=text", "+data.features.users.age.ignore=true"],
        ["hydra.run.dir=elsewhere", "hydra.job.name=y"],
        ["logger.project=null"],
        ["+history.action_weights.action.save=2.0", "history.window_days=28"],
        ["crossing@item_tower.crossing=cross_network", "item_tower.crossing.num_layers=3"],
        ["frequency=streaming", "frequency.num_hashes=2"],
        ["data=parquet", "data.root=/somewhere", "data.engaged=clicked"],
        [
            "data=csv",
            "data.root=/somewhere",
            "data.header.items=[item_id,Book Title]",
            "data.files.users=[a.csv,b.csv]",
        ],
    ],
)
def test_right_overrides(overrides: list[str]) -> None:
    assert problem(*overrides) is None


def test_blanks_in_quotes_belong_to_a_name() -> None:
    data = compose_command("train", ["data=csv", "data.root=.", "data.columns.user_id=user "]).data
    assert data.columns.user_id == "user "


def test_lists_of_files_and_of_columns_are_lists() -> None:
    words = ["data=csv", "data.root=.", "data.header.items=[item_id,Book Title]", "data.files.users=[a.csv,b (2).csv]"]
    data = compose_command("train", words).data
    assert (data.header["items"], data.files.users) == (["item_id", "Book Title"], ["a.csv", "b (2).csv"])


@pytest.mark.parametrize(
    "name", ["Book Title", "a.b", "count(*)", "year=", "a, b", "x:y", "C:\\d", "50%", "[1]", "2nd", "2010"]
)
def test_settings_of_columns_with_any_name(name: str) -> None:
    words = [
        "data=parquet",
        "data.root=.",
        f"data.features.items.{name}.kind=text",
        f"+data.features.items.{name}.buckets=8",
    ]
    features = compose_command("train", words).data.features["items"]
    assert features == {name: {"kind": "text", "buckets": 8}}


def test_a_column_that_a_command_line_cannot_name() -> None:
    message = problem('data.features.items.a"b.kind=text')
    assert message is not None
    assert "cannot name the column 'a\"b'" in message


@pytest.mark.parametrize(("option", "override"), REMOVED_OPTIONS.items())
def test_a_removed_option_names_its_override(option: str, override: str) -> None:
    typed = option.replace("experiment=", "+experiment=").replace("crossing=", "crossing@item_tower.crossing=")
    assert problem(typed) == f"{option}: removed; expected the override {override} instead"
    assert problem(*override.split()) is None


def test_the_runs_of_a_multirun_are_checked_before_the_first_one() -> None:
    assert problem("-m", "model.dim=8,16", "user_tower=mean,transformer", "--cfg", "job") is None
    for words, message in {
        "no.such.key=1,2": "unknown configuration key 'no.such.key'",
        "model.dim=8,x": "model.dim: found 'x', expected an integer",
        "user_tower=mean,transfomer": "did you mean 'transformer'?",
        "user_tower=mean,transformer user_tower.encoder.dropuot=0.1,0.2": "Type user_tower.encoder.dropout=0.1,0.2",
        "user_tower=transformer,mean user_tower.encoder.num_heads=2,4": "user_tower.encoder.num_heads",
    }.items():
        found = problem("-m", *words.split())
        assert found is not None
        assert message in found


def test_other_commands_are_checked_alike() -> None:
    assert problem("rn=x", config_name="index") == "unknown configuration key 'rn'; did you mean 'run'? Type run=x"
    assert problem("+recall_targt=0.9", config_name="index") is not None
    assert problem("run=RUN", "index=hnsw", config_name="index") is None


def test_check_of_a_composed_configuration() -> None:
    reference = compose("train", [])
    check(compose("train", ["model.dim=8"]), reference)
    with pytest.raises(UserError, match="unknown configuration key 'bogus'"):
        check(compose("train", ["+bogus=1"]), reference)


def run(*overrides: str, name: str = "train.py") -> dict[str, object]:
    return {"args": [name, *overrides]}


@pytest.mark.slow
def test_commands_fail_with_one_line(tmp_path: Path) -> None:
    small = ["data.num_users=30", "data.num_items=20", "data.num_events=300", "data.vector_width=4", "logger=csv"]
    small += [
        "data.num_categories=3",
        "data.topics_per_category=2",
        f"data.cache={tmp_path}/cache",
        "trainer.max_epochs=1",
    ]
    # One mistake for each place that finds one.
    cases = {
        "optimizer.lr=-1": "lr: found -1",
        "model.dim=7": "num_heads: found 2, expected a divisor of dim 7",
        "history.max_events=0": "history.max_events: found 0",
        "evaluation.metric=val/warm_user/recall@10": "did you mean 'val/warm_users/recall@10'?",
        "negatives=none": "negatives=none is valid only with loss=full_softmax",
        "+history.action_weights.action.sav=2": "did you mean 'save'?",
        "data.engaged=clicked": "data.engaged=clicked",
        "evaluation.metric=val/recal@10": "did you mean 'val/recall@10'?",
        "trainer.accelerator=abacus": "abacus",
        "callbacks.early_stopping.patience=x": "patience",
        "split.train=1.5": "split",
        "+modl.dim=3": "did you mean 'model.dim'?",
        "-m +modl.dim=3": "did you mean 'model.dim'?",
        "data=parquet": "data.root: missing",
        "data=parquet data.root=/nowhere/at/all": "/nowhere/at/all",
    }
    jobs = []
    for number, case in enumerate(cases):
        own = [o for o in small if not (case.startswith("data=") and o.startswith("data.") and "cache" not in o)]
        options = case.split()
        place = f"hydra.sweep.dir={tmp_path}/{number}" if "-m" in options else f"hydra.run.dir={tmp_path}/{number}"
        jobs.append(run(*options, *own, place))
    for (case, message), (code, output) in zip(cases.items(), run_all(jobs, tmp_path), strict=True):
        assert code == 1, (case, output)
        assert "Traceback" not in output, (case, output)
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, (case, output)
        assert message in errors[0], (case, output)
