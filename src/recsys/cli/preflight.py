"""Checks of the folders and files that a command is given, before it loads torch. Imports no torch.

A mistake here costs a fraction of a second; the same mistake after torch, the data and the model costs many.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from recsys.core.errors import UserError

# Command -> its keys whose values are run folders; below, files that it reads and files that it writes.
_RUNS = {
    "index": ("run",),
    "recommend": ("run",),
    "gates": ("run",),
    "train": ("warm_start", "item_tower.pretrained.source.path"),
}
# Keys of folders that only hold the metrics of a run.
_RUN_LISTS = {"compare": ("runs",), "generators": ("runs",), "baselines": ("against",), "index": ("sweep",)}
_READ = {"embed-items": ("items",), "sweep": ("file",)}
_WRITTEN = {"recommend": ("out",), "embed-items": ("out",), "compare": ("html",), "generators": ("out",)}
# Keys of releases, by command.
_RELEASES = {
    "recommend": ("release",),
    "gates": ("against", "release"),
    "lineage": ("version",),
    "embed-items": ("release",),
    "generators": ("releases",),
    "serve": ("release",),
}
# Required keys, and their values.
_EXPECTED = {
    "data.root": "DIR",
    "run": "RUN",
    "against": "VERSION|ALIAS",
    "release": "VERSION|ALIAS",
    "version": "VERSION|ALIAS",
    "items": "FILE",
    "file": "FILE|DIR",
    "out": "FILE",
    "item_tower.pretrained.source.path": "RUN",
}
# Sources that are folders on this machine.
_FOLDERS = ("csv", "jsonl", "parquet")


def check_places(command: str, config: DictConfig) -> None:
    """Refuse places that a command could not use.

    Args:
        command: name of the command.
        config: its composed configuration.

    Raises:
        UserError: If a folder or file is missing or of another kind. The message names the key, and what to type.
    """
    for key, expected in _EXPECTED.items():
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(config, parent, default=None) if parent else config
        if node is not None and OmegaConf.is_missing(node, name) and command != "retrain":
            raise UserError(f"{key}: missing, expected {key}={expected}")
    if "store" in config and config.store is not None and Path(config.store).is_file():
        raise UserError(f"store: {config.store} is a file, expected a folder of releases")
    if command == "index" and config.alias is not None:
        from recsys.release.store import ReleaseStore

        ReleaseStore(config.store).check_alias(config.alias)
    _check_choice(command, config)
    for key in _RUNS.get(command, ()):
        if (run := OmegaConf.select(config, key, default=None)) is not None:
            _check_run(key, str(run))
    for key in _RUN_LISTS.get(command, ()):
        runs = config[key]
        for run in [runs] if isinstance(runs, str) else runs or ():
            if not str(run).startswith("wandb:") and not Path(run).exists():
                raise UserError(f"{key}: {absent(Path(run))}{_other_runs(Path(run))}")
    for key in _READ.get(command, ()):
        if not Path(config[key]).exists():
            raise UserError(f"{key}: {absent(Path(config[key]))}")
    if command == "recommend" and config.users not in ("test", "all") and not Path(config.users).is_file():
        raise UserError(f"users: {absent(Path(config.users))}; expected test, all or a file with a column of users")
    for key in _WRITTEN.get(command, ()):
        if config[key] is not None:
            _check_written(key, Path(config[key]))
    if command == "recommend":
        from recsys.publishing.recommendation_files import check_name

        check_name(Path(config.out))
    for key in _RELEASES.get(command, ()) if config.get("role") != "gateway" else ():
        _check_releases(config, key)
    root = OmegaConf.select(config, "data.root", default=None)
    source = config.data.get("name", "parquet") if root is not None else None
    # `recsys retrain` checks its data itself, because its hook is notified of a failure.
    if source in _FOLDERS and root != "own" and "://" not in str(root) and command != "retrain":
        if not str(root):
            raise UserError("data.root: empty, expected data.root=DIR")
        check_data(Path(str(root)), source)


def check_run_folder(path: Path) -> None:
    """Refuse the folder of a new run if it cannot be made.

    Raises:
        UserError: If it is a file, or below a file or a folder that cannot be written to.
    """
    for place in (path, *path.parents):
        if place.exists():
            if not place.is_dir():
                raise UserError(f"hydra.run.dir: {place} is a file, expected a folder")
            if place == path and (path / "aliases").is_dir():
                raise UserError(f"hydra.run.dir: {path} is a folder of releases, expected the folder of a run")
            if not os.access(place, os.W_OK | os.X_OK):
                raise UserError(f"hydra.run.dir: cannot write to {place.absolute()}: permission denied")
            return


def check_state(key: str, place: str, *, store: str) -> None:
    """Refuse the file of a server's state if it cannot be written, or if an earlier version kept it elsewhere.

    Args:
        key: key that names the file.
        place: the file, or the address of a server.
        store: folder of releases, whose folder `state` is the usual home.

    Raises:
        UserError: If there is something to decide or to mend.
    """
    path = Path(place)
    if "://" in place:
        return
    if path == Path(store, "state", path.name) and not path.exists() and Path(path.name).exists():
        raise UserError(
            f"{key}: ./{path.name} was written by an earlier version, whose servers kept their state where they were "
            f"started. Type {key}={path.name} to go on with it, or move it to {path}"
        )
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not os.access(above, os.W_OK):
        raise UserError(f"{key}: cannot write to {above}: permission denied; expected {key}=FILE in another folder")


def _check_choice(command: str, config: DictConfig) -> None:
    for one, other, shown in (("run", "release", "VERSION|ALIAS"), ("run", "sweep", "DIR")):
        is_asked = (command, other) in (("recommend", "release"), ("index", "sweep"))
        if is_asked and (config[one] is None) == (config[other] is None):
            found = "both" if config[one] is not None else "neither"
            raise UserError(f"run, {other}: found {found}, expected run=RUN (a run folder) or {other}={shown}")


def _check_run(key: str, given: str) -> None:
    path = Path(given)
    if not path.exists():
        raise UserError(f"{key}: {absent(path)}{_other_runs(path)}")
    if not path.is_dir():
        where = f"; expected {key}={path.parent}" if (path.parent / "run.json").is_file() else ""
        raise UserError(f"{key}: {path} is a file, expected the folder of a run{where}")
    if not (path / "run.json").is_file():
        if (path / "manifest.json").is_file():
            raise UserError(f"{key}: {path} is a release, expected the folder of a run; release={path.name} names it")
        above = next((place for place in path.absolute().parents if (place / "run.json").is_file()), None)
        if above is not None:
            raise UserError(f"{key}: {path} is a part of a run; expected {key}={above}")
        inside = sorted(file.parent for file in path.glob("*/run.json"))
        some = f"; it holds runs, such as {key}={inside[0]}" if inside else f"; it has no run.json{_other_runs(path)}"
        raise UserError(f"{key}: {path} is not a run{some}")


def _check_releases(config: DictConfig, key: str) -> None:
    from recsys.release.store import ReleaseStore

    given = config[key]
    for name in [] if given is None else [given] if isinstance(given, str) else given:
        ReleaseStore(config.store).resolve(str(name), key)


def _check_written(key: str, path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{key}: {path} is a folder, expected the name of a file in it")
    parent = next(place for place in path.absolute().parents if place.exists())
    if not parent.is_dir():
        raise UserError(f"{key}: {parent} is a file, expected a folder for {path.name}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{key}: cannot write to {parent}: permission denied")


def check_data(root: Path, source: str) -> None:
    """Refuse a folder of tables that is missing or unreadable, or that is a file.

    Raises:
        UserError: If the tables cannot be read.
    """
    if not root.exists():
        raise UserError(f"data.root: {absent(root)}; expected a folder with interactions.{source}")
    if not root.is_dir():
        raise UserError(f"data.root: {root} is a file, expected its folder: data.root={root.parent}")
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"data.root: cannot read {root}: permission denied")


def absent(path: Path) -> str:
    """Return a description of a missing file or folder: for a relative path, where it was looked for."""
    if path.is_absolute():
        missing = next((place for place in reversed(path.parents) if not place.exists()), path)
        return f"{path}: no such file or folder" + (f" ({missing} does not exist)" if missing != path else "")
    names = _names(path.parent) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    hint = f"; did you mean {path.parent / close[0]}?" if close else ""
    return f"{path}: no such file or folder in {Path.cwd()}{hint}"


def _other_runs(path: Path) -> str:
    folders = dict.fromkeys((path.parent, path, Path("runs")))
    found = [file.parent for folder in folders for file in sorted(folder.glob("*/run.json"))]
    newest = sorted(dict.fromkeys(found), key=lambda run: -(run / "run.json").stat().st_mtime)
    return f"; runs: {', '.join(map(str, newest[:5]))}" if newest else "; `recsys train` prints the folder of its run"


def _names(folder: Path) -> Iterable[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
