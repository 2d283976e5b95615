"""Settings of gates with which a stopped candidate would have passed, as overrides for the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from recsys.operations.gates.verdict import Outcome

_DAYS = "known_days"


def fitting_settings(failures: Sequence[Outcome], *, names_days: bool = False) -> list[str]:
    """Return overrides with which all these checks would have passed; none if no setting fits one of them.

    Args:
        failures: failed checks.
        names_days: if true, exempt the dates that a check names, instead of widening its bound for every day.
    """
    found: dict[str, Any] = {}
    for row in failures:
        fits = {name: fit for name, fit in row.fits.items() if (name == _DAYS) == (names_days and _DAYS in row.fits)}
        if not fits:
            return []
        for name, fit in fits.items():
            key = f"gates.{row.gate}.{name}"
            found[key] = _merge(name, found[key], other=fit) if key in found else _outward(name, fit)
    return [f"{'++' if isinstance(fit, dict) else ''}{key}={_text(fit)}" for key, fit in found.items()]


def _merge(name: str, one: Any, *, other: Any) -> Any:
    other = _outward(name, other)
    if isinstance(one, list):
        return sorted({*one, *other})
    if isinstance(one, dict):
        return one | other
    return min(one, other) if name.startswith("min_") else max(one, other)


def _outward(name: str, fit: Any) -> Any:
    """Round a number to three digits, away from the side on which the check would fail."""
    if isinstance(fit, dict):
        return {key: _outward("min_", value) for key, value in fit.items()}
    if isinstance(fit, list | tuple):
        return [*fit]
    if not fit:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(fit))) - 2)
    # The small part keeps the check from failing by the error of its own arithmetic.
    return math.floor(fit / unit - 1e-6) * unit if name.startswith("min_") else math.ceil(fit / unit + 1e-6) * unit


def _text(fit: Any) -> str:
    if isinstance(fit, dict):
        return "{" + ", ".join(f"{key}: {value:.6g}" for key, value in fit.items()) + "}"
    return f"[{','.join(fit)}]" if isinstance(fit, list) else f"{fit:.6g}"
