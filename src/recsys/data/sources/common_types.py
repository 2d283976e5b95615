"""Types of a column in several shards: the type that holds the values of all of them without loss."""

from __future__ import annotations

import pyarrow as pa

_UNITS = ("s", "ms", "us", "ns")
_MOST_DIGITS = 38


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return a type without dictionaries, large types, views and extensions."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    return kind


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that holds every value of two plain types, or None if no type does.

    A column without any value (`null`) fits every type. Integers of 64 bits do not fit floats, because floats hold 53
    bits; times with a zone and times without one do not fit each other, because the place of the latter is not known.
    """
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    types = (one, other)
    if all(map(pa.types.is_integer, types)):
        return _integer(types)
    if all(pa.types.is_integer(t) or pa.types.is_floating(t) for t in types):
        fits = all(pa.types.is_floating(t) or t.bit_width <= 32 for t in types)
        return pa.float64() if fits else None
    if all(map(pa.types.is_decimal, types)):
        scale = max(t.scale for t in types)
        digits = max(t.precision - t.scale for t in types) + scale
        return pa.decimal128(digits, scale) if digits <= _MOST_DIGITS else None
    if all(pa.types.is_date(t) or (pa.types.is_timestamp(t) and t.tz is None) for t in types):
        # A date is the timestamp of its midnight.
        units = [t.unit for t in types if pa.types.is_timestamp(t)]
        return pa.timestamp(_finest(units)) if units else pa.date32()
    if all(pa.types.is_timestamp(t) and t.tz is not None for t in types):
        return pa.timestamp(_finest([t.unit for t in types]), "UTC")
    if all(pa.types.is_list(t) or pa.types.is_fixed_size_list(t) for t in types):
        inner = common_type(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    return None


def _integer(types: tuple[pa.DataType, pa.DataType]) -> pa.DataType | None:
    if all(map(pa.types.is_unsigned_integer, types)):
        return max(types, key=lambda t: t.bit_width)
    return None if any(t == pa.uint64() for t in types) else pa.int64()


def _finest(units: list[str]) -> str:
    return max(units, key=_UNITS.index)
