"""One command with subcommands: one grammar, help from the comments of `conf/`, and no heavy import for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from commands import run_all
from publishing import Published

from recsys.cli.commands import COMMANDS
from recsys.cli.entry import with_keys
from recsys.cli.help import command_help
from recsys.cli.main import main
from recsys.cli.reference import keys
from recsys.core.conf_folder import conf_folder
from recsys.core.errors import UserError
from recsys.experiments.compose import check_overrides, keys_of
from recsys.release.store import ReleaseStore

HEAVY = "import sys; heavy = {'torch', 'hydra', 'numpy', 'pyarrow'} & {*sys.modules}; assert not heavy, heavy"


def fails(arguments: list[str], code: int = 1) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == code


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"from recsys.cli.main import main; main({arguments!r}); {HEAVY}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_importing_the_command_line_changes_no_variable() -> None:
    code = "import os; before = dict(os.environ); import recsys.cli.main, recsys.cli.entry; assert before == os.environ"
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_torch_meets_the_variable_that_it_reads_at_import() -> None:
    program = "import os; from recsys.cli.main import main\ntry: main(['train', 'bogus=1'])\nexcept SystemExit: pass\n"
    program += "print(os.environ['THP_MEM_ALLOC_ENABLE'], 'torch' in __import__('sys').modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "False"]


def test_commands_do_not_print_how_faiss_was_loaded() -> None:
    # Hydra sets the root logger to INFO, and faiss reports there each build of itself that is not installed.
    program = "import logging; from recsys.cli.main import main; logging.basicConfig(level='INFO')\n"
    program += "try: main(['releases', 'list', 'store=nowhere'])\nexcept SystemExit: pass\nimport faiss"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "faiss" not in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_key_and_group(name: str) -> None:
    text = command_help(COMMANDS[name])
    assert text.startswith(f"usage: recsys {name} ")
    file = conf_folder() / f"{COMMANDS[name].config_name}.yaml"
    own = {key.split(".")[0] for key in keys_of(file.stem)}
    for key in own - {group.name for group in (conf_folder()).iterdir() if group.is_dir()}:
        assert f"  {key}" in text, key


def test_help_has_defaults_comments_and_options() -> None:
    text = command_help(COMMANDS["train"])
    assert "  batch_size=auto\n      Histories" in text
    assert "  loss         full_softmax [sampled_softmax]" in text
    assert "+experiment=NAME" in text
    assert "loss.logq=" in command_help(COMMANDS["train"], ["loss"])


def test_keys_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "# What the file is about.\na: 1\n# Above b,\n# in two lines.\nb:\n  c: [1,\n      2]  # behind c\n\n"
        "hydra:\n  run: {dir: x}\nd:\n  # Deep.\n  e:\n    f: null\n"
    )
    assert [(key.name, key.default, key.comment) for key in keys(file)] == [
        ("a", "1", ""),
        ("b", "", "Above b, in two lines."),
        ("b.c", "[1, 2]", "behind c"),
        ("d", "", ""),
        ("d.e", "", "Deep."),
        ("d.e.f", "null", ""),
    ]


def test_values_without_a_key() -> None:
    assert with_keys(COMMANDS["compare"], ["a b", "html=x", "it's"]) == ["runs=['a b','it\\'s']", "html=x"]
    assert with_keys(COMMANDS["lineage"], ["production"]) == ["version='production'"]
    assert with_keys(COMMANDS["generators"], ["report", "--config-dir", "d"]) == [
        "action='report'",
        "--config-dir",
        "d",
    ]
    assert with_keys(COMMANDS["train"], ["-m", "seed=1,2", "--cfg", "job"]) == ["-m", "seed=1,2", "--cfg", "job"]
    with pytest.raises(UserError, match="new.parquet: expected KEY=VALUE; recsys embed-items --help"):
        with_keys(COMMANDS["embed-items"], ["production", "new.parquet"])
    with pytest.raises(UserError, match="b: expected KEY=VALUE"):
        with_keys(COMMANDS["lineage"], ["a", "b"])
    for name, words in (("compare", ["it's", "a\\b"]), ("lineage", ["x, y=[z]"])):
        if name == "compare":
            check_overrides(name, with_keys(COMMANDS[name], words))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["trian"], 2, "recsys trian: no such command; did you mean 'train'?"),
        (["compare", "a", "b", "--html", "x"], 1, "--html: expected html=VALUE"),
        (["compare", "a", "--metric", "x"], 1, "--metric: expected metrics=VALUE"),
        (["compare", "a", "--all-pairs"], 1, "--all-pairs: expected all_pairs=VALUE"),
        (["lineage", "a", "--jsn"], 1, "--jsn: expected json=VALUE"),
        (["lineage", "a", "stor=x"], 1, "unknown configuration key 'stor'; did you mean 'store'?"),
        (["rollout", "strat"], 1, "action: found 'strat'; did you mean 'start'?"),
        (["rollout", "start", "share=2"], 1, "share: found 2, expected a share above 0 and up to 1"),
        (["rollout", "start", "hosts=A:1"], 1, "hosts: found 'A:1', expected a list"),
        (["releases", "shwo"], 1, "action: found 'shwo'; did you mean 'show'?"),
        (["releases", "show", "store=src"], 1, "version: missing, expected recsys releases show VERSION"),
        (["releases", "alias", "production", "store=src"], 1, "expected recsys releases alias ALIAS VERSION"),
        (["releases", "show", "a", "b"], 1, "b: expected KEY=VALUE"),
        (["embed-items", "release=x"], 1, "items: missing, expected items=FILE"),
        (["train", "modle.dim=3"], 1, "unknown configuration key 'modle.dim'; did you mean 'model.dim'?"),
        (["train", "--help", "user_towr"], 2, "user_towr: no such group; did you mean 'user_tower'?"),
        (["help", "train", "user_towr"], 2, "user_towr: no such group; did you mean 'user_tower'?"),
        (["serve", "relase=x"], 1, "unknown configuration key 'relase'; did you mean 'release'?"),
    ],
)
def test_mistakes(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(arguments, code)
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("missing", "line", "extra"),
    [
        ("torch", "train", "train"),
        ("lightning", "train trainer.max_epochs=1", "train"),
        ("rich.console", "compare here", "train"),
        ("filelock", "serve", "serving"),
    ],
)
def test_a_missing_package_is_named(missing: str, line: str, extra: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    # A process of its own, in which no other test has imported the package.
    code = f"import sys; sys.modules[{missing!r}] = None; from recsys.cli.main import main; main()"
    ended = subprocess.run([sys.executable, "-c", code, *line.split()], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1
    package = missing.partition(".")[0]
    expected = f"recsys {line.split()[0]} needs the package '{package}', which is not installed: "
    assert f"{expected}pip install 'recsys[{extra}]'" in ended.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


def test_completion() -> None:
    line = "recsys compare basel"
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_COMP_WORDBREAKS": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from recsys.cli.main import main; main()"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["baseline="], done.stderr


def test_releases(published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ReleaseStore(tmp_path / "store")
    one, two = (store.adopt(published.store / version) for version in published.versions)
    place = f"store={store.root}"

    def run(*arguments: str) -> str:
        main(["releases", *arguments, place])
        return capsys.readouterr().out

    assert run("alias", "production", one) == f"production -> {one}\n"
    run("alias", f"version={two}", "why=better")
    assert store.history()[-1]["why"] == "better"
    (listed, other) = sorted(json.loads(run("list", "json=true")), key=lambda row: row["version"] != two)
    assert (listed["version"], listed["aliases"], other["aliases"]) == (two, ["production"], ["previous"])
    assert two in run()
    assert json.loads(run("show", "production", "json=true"))["version"] == two
    assert "user_tower.onnx: " in run("show", f"version={one}")
    assert run("rollback") == f"production -> {one}\n"
    for version, message in ((one, "the alias 'production' points at"), ("production", "found 'production', expected")):
        fails(["releases", "delete", f"version={version}", place])
        assert message in capsys.readouterr().err
    store.set_alias("previous", one, why="test")
    rollout = {"version": one, "previous": two, "goal": "all", "share": 1.0, "hosts": [], "gateways": []}
    state = store.root / "state/rollout.json"
    state.parent.mkdir()
    state.write_text(json.dumps(rollout | {"model": None, "store": None, "alias_before": None}))
    fails(["releases", "delete", two, place])
    assert f"a rollout under way needs {two}" in capsys.readouterr().err
    state.unlink()
    # A deletion that was killed after the release had its hidden name.
    (store.root / ".tmp-killed").mkdir()
    (store.root / ".tmp-killed.lock").touch()
    assert run("delete", f"version={two}") == f"deleted {two}\n"
    assert store.versions() == [one]
    assert {path.name for path in store.root.glob(".tmp*")} == set()
    fails(["releases", "rollback", "candidate", place])
    assert "has no alias 'candidate'" in capsys.readouterr().err
    assert run("delete", one, "force=true") == f"deleted {one}\n"
    assert (store.versions(), store.aliases()) == ([], {})
    assert store.history()[-1]["to"] is None


def test_thin_entries_take_the_same_arguments(tmp_path: Path) -> None:
    entries = ("train.py", "index.py", "recommend.py", "serve.py", "retrain.py")
    done = run_all([{"args": [entry, "+bogus=1"]} for entry in entries], tmp_path)
    for code, log in done:
        assert code == 1
        assert "error: unknown configuration key 'bogus'" in log


@pytest.mark.parametrize("name", [command.config_name for command in COMMANDS.values() if command.is_job])
def test_no_command_leaves_a_log_file_where_it_is_called(name: str) -> None:
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = hydra.compose(name, return_hydra_config=True)
    assert set(config.hydra.job_logging.handlers) == {"console"}


def test_an_interrupted_training_says_how_it_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def interrupted(_: object, path: Path) -> None:
        (path / "run.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("recsys.experiments.train.train", interrupted)
    monkeypatch.chdir(tmp_path)
    fails(["train", f"hydra.run.dir={folder}"], code=130)
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"interrupted; type the same command with hydra.run.dir={folder} to continue"
    )
