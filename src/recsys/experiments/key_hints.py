"""The valid key that a misspelled one probably means."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator

from omegaconf import DictConfig, OmegaConf

from recsys.core.schema import FEATURE_SETTINGS, OWNERS
from recsys.core.signatures import TargetNotFoundError, signature_of

# Names of other tools -> keys.
_ELSEWHERE = {
    "learning_rate": "optimizer.lr",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "embedding_dim": "model.dim",
    "embedding_size": "model.dim",
    "max_len": "history.max_events",
    "max_seq_len": "history.max_events",
    "gpus": "trainer.devices",
    "output_dir": "hydra.run.dir",
}
_LISTED = 12


def hint(key: str, tree: DictConfig, siblings: list[str] | None = None) -> tuple[str | None, str]:
    """Return the key that `key` probably means, or None, and the end of an error message.

    Args:
        key: dotted key that is not valid.
        tree: valid configuration.
        siblings: valid keys of the same section; None for those of `tree`.
    """
    found = _found(key, tree, siblings)
    beside = _children(tree, key.rpartition(".")[0]) if siblings is None else siblings
    if found:
        return found[0], "; did you mean " + " or ".join(f"'{name}'" for name in found) + "?"
    if len(beside) <= _LISTED and beside:
        return None, f"; valid: {', '.join(sorted(beside))}"
    return None, ""


def near(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name nearest to a misspelled one; None if none is near."""
    plain = {_plain(other): other for other in valid}
    close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.6)
    return plain[close[0]] if close else None


def keys_below(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield all keys of a configuration, nested ones with dots."""
    for name in map(str, node):
        yield f"{prefix}{name}"
        if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
            continue
        child = node[name]
        if isinstance(child, DictConfig):
            yield from keys_below(child, f"{prefix}{name}.")


def _found(key: str, tree: DictConfig, siblings: list[str] | None) -> list[str]:
    leaves = [other for other in _leaves(tree) if other != key]
    last = key.rpartition(".")[2]
    joined = [other for other in leaves if _plain(other) == _plain(key)]
    same = [other for other in leaves if other.rpartition(".")[2] == last]
    # An interpolation only repeats another key.
    own = [other for other in same if not _is_interpolation(tree, other)] or same
    by_name = own if len(own) <= 3 else []
    level = _nearest_beside(last, siblings) if siblings else _corrected(key, tree)
    corrected = [level] if level else []
    # A long common beginning makes any key below it similar.
    alike = [other for other in leaves if _are_alike(last, other.rpartition(".")[2])]
    fuzzy = [found] if (found := near(key, alike)) else []
    options = [joined[:1], elsewhere(last), *([corrected, by_name] if "." in key else [by_name, corrected]), fuzzy]
    return next((option for option in options if option), [])


def _are_alike(name: str, other: str) -> bool:
    return difflib.SequenceMatcher(None, _plain(name), _plain(other)).ratio() >= 0.5


def elsewhere(name: str) -> list[str]:
    """Return the key for a name that other tools use, if any."""
    return [_ELSEWHERE[name]] if name in _ELSEWHERE else []


def _nearest_beside(name: str, keys: Iterable[str]) -> str | None:
    by_name = {key.rpartition(".")[2]: key for key in keys}
    found = near(name, by_name)
    return by_name[found] if found else None


def _leaves(tree: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the keys that hold no further ones, with the arguments of classes that are not in the configuration."""
    node = OmegaConf.select(tree, prefix) if prefix else tree
    for key in _children(tree, prefix):
        name = key.rpartition(".")[2]
        is_open = (
            OmegaConf.is_missing(node, name) or name not in map(str, node) or OmegaConf.is_interpolation(node, name)
        )
        if not is_open and isinstance(node[name], DictConfig):
            yield from _leaves(tree, key) if key != "hydra" else ()
        else:
            yield key


def _corrected(key: str, tree: DictConfig) -> str | None:
    """Return the key with each part replaced by the nearest valid name at its place."""
    prefix = ""
    for part in key.split("."):
        names = [name.rpartition(".")[2] for name in _children(tree, prefix)]
        if prefix == "data.features":
            names = [*OWNERS]
        elif re.fullmatch(r"data\.features\.\w+", prefix):
            names = [part]
        elif prefix.startswith("data.features."):
            names = [*FEATURE_SETTINGS]
        found = part if part in names else near(part, names)
        if found is None:
            return None
        prefix = f"{prefix}.{found}" if prefix else found
    return prefix if prefix != key else None


def _children(tree: DictConfig, prefix: str) -> list[str]:
    """Return the keys of one section: those that it has, and the arguments of its class."""
    node = OmegaConf.select(tree, prefix, default=None) if prefix else tree
    if not isinstance(node, DictConfig):
        return []
    names = {name for name in map(str, node) if not name.startswith("_")}
    if target := node.get("_target_"):
        with contextlib.suppress(TargetNotFoundError):
            names |= {*signature_of(str(target)).kinds}
    return [f"{prefix}.{name}" if prefix else name for name in sorted(names)]


def _is_interpolation(tree: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(tree, parent, default=None) if parent else tree
    return isinstance(node, DictConfig) and name in map(str, node) and OmegaConf.is_interpolation(node, name)


def _plain(name: str) -> str:
    return re.sub(r"[-./]", "_", name).lower()
