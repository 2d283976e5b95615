"""Types of the outside values of a feature, for values that cannot be refused later. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from recsys.core.schema import Feature


@dataclass(frozen=True)
class ValueType:
    """Values that a feature can hold; `codes` is the type of its vocabulary, None if it has none or none was read."""

    feature: Feature
    codes: pa.DataType | None = None

    @property
    def expected(self) -> str:
        """Description of a valid value, for messages."""
        kind = self.feature.kind
        if kind == "vector":
            return f"a list of {self.feature.size} numbers"
        one = {"numeric": "a finite number", "text": "a string"}.get(kind) or self._code
        return f"{one} or a list of them" if kind == "multi_categorical" else one

    @property
    def _code(self) -> str:
        if self.codes is None:
            return "an integer, a string or a boolean"
        if pa.types.is_integer(self.codes):
            return "an integer"
        return "a boolean" if pa.types.is_boolean(self.codes) else "a string"

    def holds(self, value: Any) -> bool:
        """Return True if the feature can be read from a value; None is a missing one."""
        if value is None:
            return True
        kind = self.feature.kind
        if kind == "numeric":
            return _is_number(value)
        if kind == "text":
            return isinstance(value, str)
        if kind == "vector":
            return isinstance(value, list) and len(value) == self.feature.size and all(map(_is_number, value))
        if kind == "multi_categorical" and isinstance(value, list):
            return all(entry is None or self._is_code(entry) for entry in value)
        return self._is_code(value)

    def normal(self, value: Any) -> Any:
        """Return a value that `holds`, in the one type that a column of such values has."""
        if self.feature.kind == "numeric":
            return None if value is None else float(value)
        if self.feature.kind == "multi_categorical":
            return value if value is None or isinstance(value, list) else [value]
        return [float(entry) for entry in value] if self.feature.kind == "vector" and value is not None else value

    def _is_code(self, value: Any) -> bool:
        if self.codes is None:
            return isinstance(value, str | bool) or _is_integer(value)
        if pa.types.is_integer(self.codes):
            return _is_integer(value)
        return isinstance(value, bool if pa.types.is_boolean(self.codes) else str)


def _is_integer(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
