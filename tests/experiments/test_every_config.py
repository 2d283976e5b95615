"""Every file in `conf/` composes and builds."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
import torch
from composing import composition_error
from omegaconf import DictConfig, OmegaConf
from worlds import CONF, FEATURES, compose, write_run, write_world

from recsys.cli.reference import keys
from recsys.data.preparation.engines import DuckDB, Spark
from recsys.experiments.assembly import build_callbacks, build_data, build_module, build_towers, instantiate, open_data

OPTIONS = sorted(file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.glob("*/*.yaml"))
EXPERIMENTS = sorted(file.stem for file in CONF.glob("experiment/*.yaml"))
# Groups of train.yaml; the others belong to other commands.
TRAINING = tuple(name for name in compose("train", []) if (CONF / str(name)).is_dir())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "data")


def on(world: Path, *overrides: str) -> list[str]:
    return [f"data.root={world}", f"data.cache={world.parent}/cache", "model.dim=8", "batch_size=16", *overrides]


def check_builds(config: DictConfig, folder: Path) -> None:
    """One training step, and the callbacks."""
    dataset = open_data(config)
    module = build_module(config, dataset, model=build_towers(config, dataset))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = next(iter(build_data(config, dataset).train_dataloader()))
    loss = module.training_step(batch, 0)
    loss.backward()
    assert bool(torch.isfinite(loss))
    module.optimizer_factory.optimizer(module.model).step()
    assert len(build_callbacks(config, folder)) == len(config.callbacks)


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.split("/")[0] in TRAINING])
def test_options_of_training(option: str, world: Path, tmp_path: Path) -> None:
    group, name = option.split("/")
    choice = [f"{group}={name}"]
    if option == "negatives/none":
        choice.append("loss=full_softmax")
    if option == "loss/full_softmax":
        choice.append("negatives=none")
    if group == "data":
        root = [] if name == "synthetic" else [f"data.root={tmp_path}"]
        config = compose("train", [*choice, *root])
        instantiate(config.data.source)
        instantiate(config.data.engine)
        return
    if option == "split/given":
        # The small world has no column `split`.
        assert instantiate(compose("train", choice).split) is not None
        return
    config = compose("train", ["data=parquet", *choice, *on(world, *FEATURES)])
    check_builds(config, tmp_path)
    if group == "trainer":
        assert callable(hydra.utils.get_method(config.trainer["_target_"]))


@pytest.mark.parametrize("option", [o.split("/")[1] for o in OPTIONS if o.startswith("crossing/")])
def test_networks_over_features(option: str, world: Path, tmp_path: Path) -> None:
    choice = [f"crossing@{tower}.crossing={option}" for tower in ("user_tower", "item_tower")]
    overrides = ["data=parquet", *on(world, *FEATURES), *choice]
    assert composition_error("train", overrides) is None
    config = compose("train", overrides)
    assert config.user_tower.crossing["_target_"] == config.item_tower.crossing["_target_"]
    check_builds(config, tmp_path)


@pytest.mark.parametrize("option", [o.split("/")[1] for o in OPTIONS if o.startswith("pretrained/")])
def test_pretrained_item_embeddings(option: str, world: Path, tmp_path: Path) -> None:
    choice = ["item_tower=pretrained", f"pretrained@item_tower.pretrained={option}"]
    if option == "earlier_run":
        choice.append(f"item_tower.pretrained.source.path={write_run(tmp_path / 'run', world, 'model.dim=8')}")
    overrides = ["data=parquet", *on(world, *FEATURES), *choice]
    assert composition_error("train", overrides) is None
    check_builds(compose("train", overrides), tmp_path)


OTHERS = [o for o in OPTIONS if o.split("/")[0] not in (*TRAINING, "experiment", "pretrained")]


@pytest.mark.parametrize("option", OTHERS)
def test_options_of_other_commands(option: str) -> None:
    node = OmegaConf.load(CONF / f"{option}.yaml")
    group, name = option.split("/")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(overrides=[f"+{group}={name}", "+seed=0"])
    assert isinstance(node, DictConfig)
    built = config.data.engine if group == "engine" else config[group]
    # Gates are several objects, as callbacks are. A null leaves one out.
    objects = [node for node in built.values() if node is not None] if group == "gates" else [built]
    assert objects
    for built in objects:
        assert "_target_" in built
        instantiate(built)


@pytest.mark.parametrize("file", sorted(file.stem for file in CONF.glob("*.yaml")))
def test_commands_compose(file: str) -> None:
    assert composition_error(file, []) is None


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments(name: str, world: Path, tmp_path: Path) -> None:
    text = (CONF / f"experiment/{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert f"+experiment={name}" in text.split("defaults:")[0], "an experiment opens with its command"
    own_data = OmegaConf.load(CONF / f"experiment/{name}.yaml").get("data") is not None
    own_data |= any(group in text for group in ("override /data:", "override /split:"))
    if own_data:
        config = compose("train", [f"+experiment={name}"])
        assert config.model.dim > 0
        assert composition_error("train", [f"+experiment={name}"]) is None
        return
    # It is not about one data set: it composes with any.
    overrides = [f"+experiment={name}", "data=parquet", "split=leave_last_out", *on(world)]
    assert composition_error("train", overrides) is None
    check_builds(compose("train", overrides), tmp_path)


DESCRIBED = ["train", "index", "recommend", "baselines", "generators"]
DESCRIBED += [
    o for o in OPTIONS if o.split("/")[0] in ("trainer", "logger", "corpus", "generator", "callbacks", "pretrained")
]


@pytest.mark.parametrize("option", DESCRIBED)
def test_every_key_has_a_comment(option: str) -> None:
    """The configuration reference and the help texts are made of these comments."""
    found = {key.name: key.comment for key in keys(CONF / f"{option}.yaml")}
    # A section needs no comment of its own, and the keys of a described value such as `grids` need none either.
    described = {name for name, comment in found.items() if comment}
    sections = {name.rpartition(".")[0] for name in found}
    silent = [
        name
        for name in found
        if name not in described | sections and not any(name.startswith(f"{other}.") for other in described)
    ]
    assert silent == []


@pytest.mark.parametrize("command", ["train", "baselines", "generators"])
def test_engines_of_preparation(command: str) -> None:
    assert [o for o in OPTIONS if o.startswith("engine/")] == ["engine/duckdb", "engine/spark"]
    assert instantiate(compose(command, ["engine=duckdb", "data.engine.threads=1"]).data.engine) == DuckDB(threads=1)
    spark = ["engine=spark", "data.engine.output=s3://b/c", "+data.engine.options={spark.executor.memory: 8g}"]
    engine = instantiate(compose(command, spark).data.engine)
    assert engine == Spark(output="s3://b/c", options={"spark.executor.memory": "8g"})
    assert composition_error(command, spark) is None
