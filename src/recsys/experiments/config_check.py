"""Check of a composed configuration: unknown keys and values of a wrong type are refused."""

from __future__ import annotations

import importlib.util
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from recsys.core.errors import UserError, nearest
from recsys.core.renamed_keys import renamed
from recsys.core.schema import FEATURE_SETTINGS, KINDS, OWNERS, short_feature
from recsys.core.signatures import Signature, TargetNotFoundError, signature_of
from recsys.experiments.key_hints import hint, near

# Sections whose keys are names that the user chooses.
OPEN = ("data.features", "data.engine.options", "history.action_weights", "variants", "grids", "gates.absolute.floors",
        "kafka_options")  # fmt: skip
# Sections that a name alone may replace.
SHORT = ("data.engaged",)
# Values that may be null although their defaults are not.
NULLABLE = (
    "data.quote",
    "evaluation.val_users",
    "history.half_life_days",
    "history.window_days",
    "logger.project",
    "max_users",
    "choosing_users",
)
# Packages of an extra: the command itself says how to install what is missing.
_OF_EXTRAS = ("lightning", "torch")
_KINDS = {
    "integer": "an integer",
    "number": "a number",
    "string": "a string",
    "list": "a list",
    "mapping": "keys below it",
}


class UnknownKeyError(UserError):
    """A key that nothing reads.

    Attributes:
        key: the key.
        found: the nearest valid key; None if none is near.
    """

    def __init__(self, key: str, *, found: str | None, message: str) -> None:
        super().__init__(message)
        self.key, self.found = key, found


def check(config: DictConfig, reference: DictConfig) -> None:
    """Compare a configuration, key by key, with a valid one of the same groups without overrides.

    New keys are allowed in the sections `OPEN`, as arguments that a constructor takes, and as new objects, which have a
    `_target_`.

    Raises:
        UserError: If a key is unknown, or a value is of another type.
    """
    _Check(reference).node(config, reference, prefix="")


class _Check:
    def __init__(self, reference: DictConfig) -> None:
        self._reference = reference

    def node(self, node: DictConfig, known: DictConfig, *, prefix: str) -> None:
        target = node.get("_target_") or known.get("_target_")
        if prefix == "logger." and target is not None:
            raise UserError(f"logger._target_: expected below a name. Type '+logger.NAME={{_target_: {target}}}'")
        taken = None if target is None else _signature(str(target), f"{prefix}_target_")
        # OmegaConf does not count a missing value as `in` its node.
        names = {*map(str, known)}
        for name in map(str, node):
            key = f"{prefix}{name}"
            if message := renamed(key):
                raise UserError(message)
            if name.startswith("_") and name in ("_target_", "_partial_", "_recursive_", "_convert_", "_args_"):
                continue
            is_open = OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name)
            given = None if is_open else node[name]
            if taken is not None and not taken.takes_any and name not in taken.kinds:
                self._refuse_argument(key, str(target), taken, names)
            is_object = isinstance(given, DictConfig) and "_target_" in given
            if name not in names and taken is None and not is_object:
                self._refuse(_first_leaf(key, given))
            if key == "data.features" and isinstance(given, DictConfig):
                self._features(given)
            if is_open or key in OPEN or (key in SHORT and isinstance(given, str)):
                continue
            is_known = name in names and not OmegaConf.is_missing(known, name)
            usual = known[name] if is_known and not OmegaConf.is_interpolation(known, name) else None
            if isinstance(given, DictConfig) and (is_object or isinstance(usual, DictConfig)):
                self.node(given, usual if isinstance(usual, DictConfig) else DictConfig({}), prefix=f"{key}.")
            elif taken is not None and (kinds := taken.kinds.get(name)) is not None:
                # A default that the constructor does not take is replaced before the object is built.
                _check_kind(key, given, kinds=kinds if usual is None else kinds | {_kind(usual)})
            elif taken is None or not (isinstance(usual, str) or key.startswith("trainer.")):
                # Lightning's trainer takes numbers, lists and words such as `auto` for the same key.
                _check_type(key, given, usual=usual, nullable=taken is not None or key in NULLABLE)

    def _features(self, node: DictConfig) -> None:
        for owner, columns in node.items():
            place = f"data.features.{owner!s}"
            if owner not in OWNERS:
                self._refuse(_first_leaf(place, columns))
            for column in columns if isinstance(columns, DictConfig) else ():
                settings = columns[column]
                if settings is None:
                    continue
                if not isinstance(settings, DictConfig):
                    raise UserError(short_feature(f"{place}.{column!s}", settings))
                for name in settings:
                    if name not in FEATURE_SETTINGS:
                        key, found = f"{place}.{column!s}.{name!s}", near(str(name), FEATURE_SETTINGS)
                        found = "kind" if str(name).lower().endswith("type") else found
                        beside = found and f"{place}.{column!s}.{found}"
                        hints = f"; did you mean '{beside}'?" if found else f"; valid: {', '.join(FEATURE_SETTINGS)}"
                        message = f"unknown configuration key '{key}'{hints}"
                        raise UnknownKeyError(key, found=beside, message=message)
                    if name == "kind" and settings[name] not in (*KINDS, None):
                        close = nearest(str(settings[name]), KINDS)
                        raise UserError(f"{place}.{column!s}.kind={settings[name]}: no such kind{close}")

    def _refuse(self, key: str) -> None:
        found, text = hint(key, self._reference)
        raise UnknownKeyError(key, found=found, message=f"unknown configuration key '{key}'{text}")

    def _refuse_argument(self, key: str, target: str, taken: Signature, names: set[str]) -> None:
        prefix, _, name = key.rpartition(".")
        message = f"unknown configuration key '{key}'"
        valid = f"; {target} takes {', '.join(taken.kinds) or 'no arguments'}"
        if name in names:
            # The file of the group has it, for another class.
            others = (other for other in sorted(names) if other not in taken.kinds and not other.startswith("_"))
            typed = " ".join(f"~{prefix}.{other}" for other in others)
            raise UnknownKeyError(key, found=None, message=f"{message}{valid}. Type {typed}")
        # Arguments that the program passes stand in no configuration file, but they are valid.
        found, text = hint(key, self._reference, [f"{prefix}.{other}" for other in taken.kinds])
        raise UnknownKeyError(key, found=found, message=message + (text if found else valid))


def _signature(target: str, key: str) -> Signature | None:
    try:
        return signature_of(target)
    except TargetNotFoundError as error:
        cause, package = error.__cause__, target.partition(".")[0]
        other = isinstance(cause, ModuleNotFoundError) and str(cause.name).partition(".")[0] != package
        if package in _OF_EXTRAS and not importlib.util.find_spec(package) or other:
            return Signature({}, takes_any=True)
        raise UserError(
            f"{key}: found no {target} ({error}); expected the path of a class, such as package.module.Class, of a "
            "package that Python finds (PYTHONPATH)"
        ) from error


def _first_leaf(key: str, value: Any) -> str:
    while isinstance(value, DictConfig) and len(value):
        name = str(next(iter(value)))
        key, value = f"{key}.{name}", None if OmegaConf.is_missing(value, name) else value[name]
    return key


def _check_kind(key: str, value: Any, *, kinds: frozenset[str]) -> None:
    if _kind(value) not in kinds:
        kinds -= {"integer"} if "number" in kinds else set()
        expected = " or ".join(sorted((_KINDS.get(kind, kind) for kind in kinds), key=lambda kind: kind == "null"))
        raise UserError(f"{key}: found {value!r}, expected {expected}{_as_list(key, value, 'list' in kinds)}")


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "integer", float: "number", str: "string"}
    return names.get(type(value)) or ("list" if isinstance(value, ListConfig) else "mapping")


# Values of the kind that a key with the default `auto` takes, if it is not an integer.
_CHOSEN = {
    "model.priors.age": True,
    "model.priors.recency": True,
    "model.priors.lag_days": 1.0,
    "model.new_items_offset": 1.0,
    "model.new_items_scale": 1.0,
}


def _check_type(key: str, value: Any, *, usual: Any, nullable: bool) -> None:
    if usual is None or (value is None and nullable) or value == usual == "auto":
        return
    # A number that the program chooses if the default stays.
    or_auto = ", or auto" if usual == "auto" else ""
    usual = _CHOSEN.get(key, 1) if or_auto else usual
    expected: tuple[type, ...] = (int, float) if isinstance(usual, float) else (type(usual),)
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        kinds = {int: "an integer", float: "a number", str: "a string", bool: "true or false", ListConfig: "a list"}
        found = f"{key}: found {value!r}, expected {kinds.get(type(usual), 'keys below it')}{or_auto}"
        raise UserError(found + _as_list(key, value, isinstance(usual, ListConfig)))


def _as_list(key: str, value: Any, is_list: bool) -> str:
    return f", such as {key}=[{value}]" if is_list and isinstance(value, str | int | float) else ""
