"""No stored configuration chooses code to run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recsys.core.conf_folder import conf_folder
from recsys.core.errors import UserError
from recsys.core.instantiate import class_of, instantiate
from recsys.core.stored_config import load_config, load_plain
from recsys.core.trust import TRUST, is_trusted, name_targets, trust, trusted
from recsys.data.sources import ParquetFolder

# Each would do harm, or import a module of another's choice. Some are in Hydra's block list, some are not.
TARGETS = [
    "os.system",
    "os.popen",
    "os.execv",
    "posix.system",
    "subprocess.run",
    "subprocess.Popen",
    "subprocess.check_output",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "builtins.__import__",
    "builtins.compile",
    "importlib.import_module",
    "runpy.run_path",
    "runpy.run_module",
    "pickle.load",
    "pickle.loads",
    "shelve.open",
    "marshal.loads",
    "code.interact",
    "pdb.run",
    "cProfile.run",
    "timeit.timeit",
    "webbrowser.open",
    "shutil.rmtree",
    "shutil.move",
    "socket.create_connection",
    "urllib.request.urlopen",
    "urllib.request.urlretrieve",
    "ctypes.CDLL",
    "multiprocessing.Process",
    "threading.Thread",
    "functools.partial",
    "functools.reduce",
    "operator.methodcaller",
    "types.FunctionType",
    "sympy.sympify",
    "numpy.load",
    "numpy.fromfile",
    "joblib.load",
    "pexpect.run",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "pandas.read_pickle",
    "pandas.eval",
    "yaml.unsafe_load",
    "hydra.utils.instantiate",
    "hydra.utils.get_object",
    "hydra.utils.call",
    "omegaconf.OmegaConf.load",
    "lightning.Trainer",
    "datasets.load_dataset",
    "fsspec.open",
    "duckdb.connect",
    "onnx.load",
    "onnxruntime.InferenceSession",
    "wandb.init",
    "recsys.core.io.os.system",
    "recsys.core.io.shutil.rmtree",
    "recsys.core.io.atomic_write",
    "recsys.core.instantiate.instantiate",
    "recsys.core.instantiate.hydra.utils.instantiate",
    "recsys.core.trust.importlib.import_module",
    "recsys.core.trust.trust",
    "recsys.index.storage.backend_class",
    "recsys.index.storage.importlib.import_module",
    "recsys.cli.main.main",
    "recsys.cli.entry.run_command",
    "recsys.training.ema.torch.load",
    "recsys.models.encoders.torch.hub.load",
    "recsys.data.sources.files.fsspec.open",
    "recsys.data.sources.files.shutil.rmtree",
    "recsys.data.sources.ParquetFolder.tables",
    "recsys.data.sources.ParquetFolder.__init__",
    "recsys.data.sources.__builtins__",
    "recsys.data.sources.files.build_once",
    "recsys.experiments.train.train",
    "recsys.experiments.trained_run.load_run",
    "recsys.publishing.promote.promote",
    "recsys.load_run",
    "recsys.serving.server.run",
    "recsys.client.Client",
    "recsys.no.such.Class",
    "recsys",
    "my_package.Tower",
    "my_package.os.system",
    "__main__.main",
    ".os.system",
    "os..system",
    "recsys..",
    "5",
    "[]",
    "{}",
    "true",
]


@pytest.fixture(autouse=True)
def _nothing_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the targets that other tests of this process composed."""
    monkeypatch.setattr("recsys.core.trust._composed", set())


@pytest.fixture
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside_package").mkdir()
    (tmp_path / "outside_package/__init__.py").write_text("")
    (tmp_path / "outside_package/parts.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "class Part:\n    def __init__(self, inner=None):\n        self.inner = inner\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(TRUST, "")


def stored(tmp_path: Path, text: str) -> object:
    (tmp_path / "config.yaml").write_text(text)
    return instantiate(load_config(tmp_path / "config.yaml").source)


@pytest.mark.parametrize("place", ["{}", "{{_target_: recsys.data.sources.ParquetFolder, root: {}}}"])
def test_nothing_is_imported_or_called(tmp_path: Path, place: str) -> None:
    assert len(TARGETS) > 60
    for target in TARGETS:
        before = set(sys.modules)
        for rest in ("", ", _partial_: true", ", _args_: [x]", ", _recursive_: false", ", _convert_: all"):
            node = f"{{_target_: {target}{rest}}}"
            with pytest.raises(UserError, match="_target_: found"):
                stored(tmp_path, f"source: {place.format(node)}")
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        # Modules of recsys may be imported, and what they need.
        assert target.startswith("recsys") or not new, (target, new)


def test_a_target_behind_other_nodes_is_found(tmp_path: Path) -> None:
    for inner in ("[{_target_: os.system}]", "{a: {b: [[{_target_: os.system, _partial_: true}]]}}"):
        text = f"source: {{_target_: recsys.data.sources.ParquetFolder, _recursive_: false, root: x, more: {inner}}}"
        with pytest.raises(UserError, match=r"source\.more.*_target_: found os.system"):
            stored(tmp_path, text)
    (tmp_path / "config.yaml").write_text("loss: {_target_: os.system}")
    with pytest.raises(UserError, match="os.system"):
        class_of(load_config(tmp_path / "config.yaml").copy().loss)


@pytest.mark.parametrize(
    "text",
    [
        "source: ${oc.env:HOME}",
        "x: [a, '${oc.env:HOME}']",
        "source: {_target_: '${other}'}\nother: os.system",
        "source: ${oc.create:{_target_: os.system}}",
        "a: &a [x, x]\nb: [*a, *a]",
        "a: " + "[" * 60 + "]" * 60,
        "a: " + "{a: " * 5000 + "1" + "}" * 5000,
        "[1, 2]", "text", "", "a: [", "a: !!python/object/apply:os.system [x]", "\x00", "a: {b: 1}: c",
    ],
)  # fmt: skip
def test_other_content_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"config\.yaml: not a configuration of recsys"):
        stored(tmp_path, text)
    if "${" not in text:
        # Values that nothing is built from may be interpolations.
        with pytest.raises(UserError, match=r"config\.yaml: not a configuration of recsys"):
            load_plain(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe" + text.encode())
    with pytest.raises(UserError, match="not a configuration of recsys"):
        load_config(tmp_path / "config.yaml")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.yaml").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(UserError, match="expected a configuration of at most"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.usefixtures("_package")
def test_a_package_that_the_operator_names(tmp_path: Path) -> None:
    text = (
        "source: {_target_: outside_package.parts.Part, inner: {_target_: recsys.data.sources.ParquetFolder, root: x}}"
    )
    with pytest.raises(UserError, match=r"type 'trust=\[outside_package\]' or set RECSYS_TRUST=outside_package"):
        stored(tmp_path, text)
    trust(["outside_package"])
    assert trusted() == ["outside_package"]
    found = stored(tmp_path, text)
    assert type(found).__name__ == "Part"
    assert isinstance(found.inner, ParquetFolder)  # type: ignore[attr-defined]
    for foreign in ("parts.os.system", "parts.os.popen", "parts.Path", "os.system", "parts.Nothing", "nothing.Part"):
        with pytest.raises(UserError, match="expected a class that a trusted package defines|would run code"):
            stored(tmp_path, f"source: {{_target_: outside_package.{foreign}}}")
    assert not is_trusted("outside_package_two.parts")
    for wrong in ("", "a b", "a,b", "os.", 5):
        with pytest.raises(UserError, match="expected the name of a package"):
            trust([wrong])  # type: ignore[list-item]


@pytest.mark.usefixtures("_package")
def test_a_target_of_the_operators_own_configuration(tmp_path: Path) -> None:
    name_targets(
        OmegaConf.create({"a": [{"_target_": "outside_package.parts.Part", "inner": 5}], "b": None, "c": "???"})
    )
    assert type(stored(tmp_path, "source: {_target_: outside_package.parts.Part}")).__name__ == "Part"


def test_every_option_may_be_stored(tmp_path: Path) -> None:
    from recsys.core.trust import check_targets

    checked = 0
    for file in sorted(conf_folder().glob("*/*.yaml")):
        group = file.parent.name
        if group in ("experiment", "logger", "trainer", "callbacks"):
            continue
        (tmp_path / "config.yaml").write_text(
            OmegaConf.to_yaml({group: OmegaConf.load(file)}).replace("${", "$(").replace("_target_: null", "a: 1")
        )
        check_targets(load_config(tmp_path / "config.yaml"))
        checked += 1
    assert checked > 40
