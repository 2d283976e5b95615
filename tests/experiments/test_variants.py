"""Several variants in one command: the best on validation becomes the run, killed or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import run_all
from composing import composition_error
from omegaconf import OmegaConf
from tiny_run import STEP, assert_same_run, command, weights
from worlds import CONF, compose

from recsys.core.errors import UserError
from recsys.experiments import train
from recsys.experiments.compose import variants_of
from recsys.experiments.trained_run import load_run
from recsys.experiments.variants import _trial_epochs, _two_thirds, train_best

NAMES = ("mean", "attention")
VARIANTS = [f"+variants.{name}={{overrides: ['user_tower={name}']}}" for name in NAMES]


def several(run: Path, cache: Path, *overrides: str) -> list[str]:
    return [word for word in command(run, cache, *overrides) if "num_blocks" not in word] + [*VARIANTS, "refit=true"]


@pytest.mark.slow
def test_the_best_becomes_the_run_and_kills_change_nothing(tmp_path: Path) -> None:
    cache, whole, killed, untried = (tmp_path / name for name in ("cache", "whole", "killed", "untried"))
    trial = ("+variants.narrow={overrides: ['user_tower=mean', 'model.dim=4']}", "trial_epochs=2", "callbacks=ema")
    jobs = [
        {"args": several(whole, cache, *trial)},
        # In the second trial, behind the trials, in what follows, and before the winner is adopted.
        {"args": several(killed, cache, *trial), "kill": [STEP, 17]},
        {"args": several(killed, cache, *trial), "kill": ["file:killed/variants/kept.json", 1]},
        {"args": several(killed, cache, *trial), "kill": [STEP, 5]},
        {"args": several(killed, cache, *trial), "kill": ["file:killed/checkpoints/best.ckpt", 1]},
        {"args": several(killed, cache, *trial)},
        {"args": several(untried, cache, "callbacks=ema", "test=false")},
    ]
    codes = run_all(jobs, tmp_path)
    assert [code for code, _ in codes] == [0, -9, -9, -9, -9, 0, 0], codes
    assert_same_run(killed, whole)

    kept = json.loads((whole / "variants/kept.json").read_text())
    assert len(kept) == 2
    state = json.loads((whole / "run.json").read_text())
    assert state["status"] == "finished"
    metric = OmegaConf.load(whole / "config.yaml").evaluation.metric
    scores = {name: json.loads((whole / f"variants/{name}/metrics.json").read_text())[metric] for name in kept}
    assert state["variants"] == scores
    assert scores[state["variant"]] == max(scores.values())
    # A trial changes nothing in what follows.
    for name in {*kept} & {*NAMES}:
        for file in ("best.ckpt", "last.ckpt"):
            one, other = (weights(run / "variants" / name, file) for run in (whole, untried))
            assert all(torch.equal(one[key], other[key]) for key in one), (name, file)
    # The folder is a run of the winner like any other; test is not looked at with the others.
    run = load_run(whole)
    chosen = OmegaConf.load(whole / f"variants/{state['variant']}/config.yaml")
    assert run.config == chosen
    names = [*NAMES, "narrow"]
    assert all("test/recall@10" not in json.loads((whole / f"variants/{n}/metrics.json").read_text()) for n in names)
    assert any("test/recall@10" in line for line in (whole / "metrics.json").read_text().splitlines())


def test_members_of_the_blend_are_kept_and_then_the_best() -> None:
    scores = {"content": 0.19, "slow": 0.04, "slower": 0.02, "adds": 0.01, "like content": 0.18}
    assert _two_thirds({"content": 0.7, "adds": 0.3}, scores) == ["content", "adds", "like content"]
    assert _two_thirds({"content": 1.0}, dict(list(scores.items())[:3])) == ["content", "slow"]
    assert _two_thirds(dict.fromkeys(scores, 0.2), scores) == ["content", "like content", "slow"]


def test_trials_are_for_data_whose_training_is_long() -> None:
    def epochs(value: object, num_events: int) -> int:
        return _trial_epochs(OmegaConf.create({"trial_epochs": value}), num_events=num_events)

    assert [epochs("auto", n) for n in (99_999, 100_000, 200_000, 10_000_000)] == [0, 3, 2, 1]
    assert [epochs(2, 10), epochs(None, 200_000)] == [2, 0]
    with pytest.raises(UserError, match="trial_epochs: found 0, expected auto, null or a number from 1 on"):
        epochs(0, 10)


def test_a_trial_lasts_until_the_first_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(train, "_start", lambda *_: None)
    monkeypatch.setattr(train, "_end", lambda *_, **__: None)
    monkeypatch.setattr(train, "select_checkpoint", lambda _, *, epochs: tried.append(epochs))
    for name, every in (("a", 1), ("b", 4)):
        train.try_out(compose("train", [f"trainer.check_val_every_n_epoch={every}"]), tmp_path / name, epochs=2)
    assert tried == [2, 4]


def test_variants_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    configs = {name: compose("train", [f"evaluation.metric=val/{name}@10"]) for name in ("recall", "ndcg")}
    with pytest.raises(UserError, match="found 2 metrics .*'val/ndcg@10'.*, expected one evaluation.metric"):
        train_best(configs, tmp_path)


@pytest.mark.slow
def test_wrong_variants_are_named(tmp_path: Path) -> None:
    cases = {
        "+variants.a={overides: []}": "unknown configuration key 'variants.a.overides'; did you mean 'overrides'?",
        "+variants.a={overrides: ['user_towr=mean']}": "variants.a: unknown configuration key 'user_towr'",
        "+variants.a={overrides: [], time: [none]}": "variants: the data suits none (a: it needs data.time=none, ",
    }
    base = command(tmp_path / "run", tmp_path / "cache")
    results = run_all([{"args": [*base, case]} for case in cases], tmp_path)
    for (code, output), message in zip(results, cases.values(), strict=True):
        assert code == 1, output
        assert message in output


def test_an_option_of_the_command_line_that_a_variant_cannot_use() -> None:
    given = ["+experiment=recommended", "data=parquet", "data.root=DIR", "user_tower=mean"]
    message = (
        "variants.sequences: unknown configuration key 'user_tower.encoder.norm': user_tower=mean has no .*"
        "; user_tower=mean of the command line holds for every variant: leave it out, or type ~variants.sequences"
    )
    with pytest.raises(UserError, match=message):
        variants_of(compose("train", given), given)


@pytest.mark.parametrize("file", [f.stem for f in CONF.glob("experiment/*.yaml") if "\nvariants:" in f.read_text()])
def test_variants_of_experiments_compose(file: str) -> None:
    given = [f"+experiment={file}", "data=parquet", "data.root=DIR"]
    config = compose("train", given)
    assert len(config.variants) > 1
    for name, variant in config.variants.items():
        assert composition_error("train", [*variant.overrides, *given]) is None, name


@pytest.mark.slow
def test_a_blend_of_all_becomes_the_run_and_kills_change_nothing(tmp_path: Path) -> None:
    cache, whole, killed = tmp_path / "cache", tmp_path / "whole", tmp_path / "killed"
    blend = {"weights": {"mean": 0.75, "attention": 0.25}, "metrics": {"val/ndcg@10": 0.5, "val/recall@10": 0.25}}
    blend["prior_shift"] = {"weight": 0.5, "half_life_days": 2.0, "power": 2.0}
    for run in (whole, killed):
        # As if validation had chosen it.
        (run / "variants").mkdir(parents=True)
        (run / "variants/blend.json").write_text(json.dumps(blend))
    jobs = [
        {"args": several(whole, cache, "blend=true")},
        # In the refit of the second member, and before the weights are put together.
        {"args": several(killed, cache, "blend=true", "test=false"), "kill": [STEP, 48]},
        {
            "args": several(killed, cache, "blend=true", "test=false"),
            "kill": ["file:killed/checkpoints/last.ckpt", 1],
        },
        {"args": several(killed, cache, "blend=true", "test=false")},
        # What was only selected is tested by the same command without that.
        {"args": several(killed, cache, "blend=true"), "kill": ["file:killed/per_user.parquet", 1]},
        {"args": several(killed, cache, "blend=true")},
    ]
    codes = run_all(jobs, tmp_path)
    assert [code for code, _ in codes] == [0, -9, -9, 0, -9, 0], codes[-1][1]
    assert_same_run(killed, whole)

    state = json.loads((whole / "run.json").read_text())
    assert (state["status"], state["variant"]) == ("finished", "0.75 mean + 0.25 attention + 0.5 prior^2 of 2 days")
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["val/recall@10"] == 0.25
    assert "test/recall@10" in metrics
    run = load_run(whole)
    assert [member.weight for member in run.model.members] == [0.75, 0.25]
    # A dimension for the item priors of each member, and one for the prior shift.
    assert run.model.dim == 9 + 9 + 1
    assert run.state.train_until == run.dataset.train_until == state["train_until"]
    # Of members that were trained on validation as well.
    assert run.dataset.num_trained == run.model.members[0].model.item_tower.num_trained
