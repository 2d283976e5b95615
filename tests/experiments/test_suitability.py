"""What the data has decides which variants are trained, before anything is trained."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import handmade
from omegaconf import DictConfig
from worlds import compose, write_world

from recsys.core.errors import UserError
from recsys.data.dataset import PreparedDataset
from recsys.experiments import variants as training
from recsys.experiments.assembly import open_data
from recsys.experiments.compose import compose_run
from recsys.experiments.suitability import PROPERTIES, properties, say_repeats, suitable_variants
from recsys.experiments.train import train

ORDERED, TIMED = ["sequences", "modern"], ["tastes_lately"]
ALWAYS = ["tastes", "tastes_in_full"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world whose files have a column `split`, and a copy without timestamps in `untimed`."""
    base = tmp_path_factory.mktemp("suitability")
    write_world(base / "timed")
    events = pq.read_table(base / "timed/interactions.parquet")
    split = np.where(np.random.default_rng(0).random(len(events)) < 0.2, "test", "train")
    events = events.append_column("split", pa.array(split))
    pq.write_table(events, base / "timed/interactions.parquet")
    (base / "untimed").mkdir()
    pq.write_table(events.drop(["timestamp"]), base / "untimed/interactions.parquet")
    return base


def words(root: Path, data: str, *more: str) -> list[str]:
    small = ["model.dim=8", "split=given", f"data.cache={root / 'cache'}", "negatives.num_negatives=16"]
    return [f"data.root={root / data}", *small, *more]


def chosen(tmp_path: Path, *given: str) -> list[str]:
    _, variants, _ = compose_run(list(given))
    return list(suitable_variants(variants, tmp_path / "left_out.json"))


@pytest.mark.parametrize(
    ("data", "more", "expected"),
    [
        ("timed", [], [*ORDERED, *ALWAYS, *TIMED, "content"]),
        ("untimed", [], ALWAYS),
        ("untimed", ["split=random"], ALWAYS),
        ("untimed", ["split=leave_last_out", "data.time=order"], [*ORDERED, *ALWAYS]),
    ],
)
def test_the_recipe_trains_what_the_data_allows(
    root: Path, tmp_path: Path, data: str, more: list[str], expected: list[str]
) -> None:
    assert chosen(tmp_path, "+experiment=recommended", *words(root, data, *more)) == expected


def test_each_variant_that_is_left_out_is_logged_with_what_the_data_lacks(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "recsys")
    given = ["+experiment=recommended", *words(root, "untimed", f"data.cache={tmp_path / 'cache'}")]
    assert chosen(tmp_path, *given) == ALWAYS
    lines = [record.getMessage() for record in caplog.records if "is left out: it needs" in record.getMessage()]
    assert lines == [
        "variant sequences is left out: it needs an order of events, and the data has none",
        "variant modern is left out: it needs an order of events, and the data has none",
        "variant tastes_lately is left out: it needs timestamps in seconds or days, and the data has none",
        f"variant content is left out: it needs {PROPERTIES['content']}, and the data has none",
    ]
    assert sum("no column 'timestamp', so data.time=none" in record.getMessage() for record in caplog.records) == 1


# Overrides that need something, and the words of what is said about data without it.
NEEDS = {
    "model.prior_shift.weight=0.5": "model.prior_shift with data.time=none",
    "history.half_life_days=10": "history.half_life_days=10 with data.time=none",
    "history.targets_since=0.5": "history.targets_since=0.5 with data.time=none",
    "user_tower=hstu": "the encoder reads time",
    "item_tower=features": "the data has no features of items",
}


def test_overrides_of_variants_and_of_the_command_are_checked(root: Path, tmp_path: Path) -> None:
    base = words(root, "untimed", "data=parquet")
    others = [f"+variants.{number}={{overrides: ['{override}']}}" for number, override in enumerate(NEEDS)]
    assert chosen(tmp_path, *base, "+variants.plain={overrides: []}", *others) == ["plain"]
    reasons = json.loads((tmp_path / "left_out.json").read_text())
    for number, message in enumerate(NEEDS.values()):
        assert message in reasons[str(number)]
    # The command line applies to every variant, so nothing remains.
    given = ["+variants.plain={overrides: []}", "history.half_life_days=10"]
    with pytest.raises(UserError, match="variants: the data suits none \\(plain: history.half_life_days=10 with"):
        chosen(tmp_path / "none", *base, *given)


def test_wrong_settings_of_any_variant_are_refused_before_the_first_is_trained(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "select", lambda *_: pytest.fail("a variant was trained"))
    for override, message in {
        "user_tower.encoder.dropout=2": "variants.b: .*dropout.*2",
        "data.time=none": "variants.b: other data or another split than the first variant",
        "split=random": "variants.b: other data or another split than the first variant",
        "callbacks.early_stopping.monitor=val/recal@20": "variants.b: callbacks.early_stopping.monitor",
    }.items():
        two = ["+variants.a={overrides: []}", f"+variants.b={{overrides: ['{override}']}}"]
        _, variants, _ = compose_run(
            [*(word for word in words(root, "timed", "data=parquet") if "split" not in word), *two]
        )
        with pytest.raises(UserError, match=message):
            training.train_best(variants, tmp_path)


def test_needs_are_words_or_alternatives(root: Path, tmp_path: Path) -> None:
    base = words(root, "timed", "data=parquet", "user_tower=mean")
    given = {
        "plain": "overrides: []",
        "features": "overrides: [], needs: [item_features, user_features]",
        "text": "overrides: [], needs: [text]",
        "either": "overrides: [], needs: [births|clock]",
        "untimed": "overrides: [], time: [order, none]",
        "timed": "overrides: [], time: [seconds]",
    }
    written = [f"+variants.{name}={{{content}}}" for name, content in given.items()]
    assert chosen(tmp_path, *base, *written) == ["plain", "features", "either", "timed"]
    wrong = ["+variants.a={overrides: [], needs: [clocks]}"]
    with pytest.raises(UserError, match="variants.a: needs=clocks: no such property of data; did you mean 'clock'?"):
        chosen(tmp_path / "wrong", *base, *wrong)


def test_the_choice_is_kept_so_that_a_finished_run_needs_no_data(root: Path, tmp_path: Path) -> None:
    given = [
        *words(root, "untimed", "data=parquet"),
        "+variants={a: {overrides: []}, b: {overrides: [], needs: [clock]}}",
    ]
    assert chosen(tmp_path, *given) == chosen(tmp_path, *given, "data.root=GONE") == ["a"]


def test_a_single_run_is_refused_if_its_data_lacks_what_it_needs(root: Path, tmp_path: Path) -> None:
    config, _, _ = compose_run([*words(root, "untimed", "data=parquet"), "needs=[clock]"])
    assert properties(open_data(config)) == {"data.time=none"}
    config_of_items, _, _ = compose_run([*words(root, "timed", "data=parquet"), "data.features.items.title.kind=text"])
    assert {"text", "content", "item_features"} <= properties(open_data(config_of_items))
    with pytest.raises(UserError, match="it needs timestamps in seconds or days, and the data has none"):
        train(config, tmp_path)
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize("text", [[None] * 90, [" "] * 90, ["", "a", *[None] * 88]])
def test_a_column_of_text_without_words_is_no_content(root: Path, tmp_path: Path, text: list[str | None]) -> None:
    copy = tmp_path / "data"
    shutil.copytree(root / "untimed", copy)
    pq.write_table(pa.table({"item_id": [f"i{number:03d}" for number in range(90)], "words": text,
                             "made": pa.nulls(90, pa.int64())}), copy / "items.parquet")  # fmt: skip
    given = words(tmp_path, "data", "data.features.items.words.kind=text", "data.columns.born=made", "split=random")
    _, variants, _ = compose_run(["+experiment=recommended", *given])
    found = properties(open_data(next(iter(variants.values()))))
    assert ("text" in found, "content" in found) == ("a" in text, "a" in text)
    assert "births" not in found


def test_repeats_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    # Of the five items of validation parts two are in the history of their user.
    caplog.set_level("INFO", "recsys")
    data = handmade([([1, 2], [1, 3], []), ([3, 2], [2, 1, 2, 4], [])])
    leaves_out, keeps, in_portions = (
        compose("train", words) for words in ([], ["exclude_seen=false"], ["portions=true"])
    )

    def say(config: DictConfig, name: str, data: PreparedDataset = data) -> None:
        say_repeats(config, dataclasses.replace(data, path=Path(name)))

    for _ in range(2):
        say(leaves_out, "repeats")
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "repeats: 40% of the items in the validation part are in the history of their user"
    ]
    caplog.clear()
    say(keeps, "repeats are wanted")
    say(in_portions, "the machine has only some users")
    say(leaves_out, "no repeats", handmade([([1, 2], [3], [])]))
    assert not caplog.records
