"""Coordinate search over a grid. Values beyond the point where the metric falls are skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recsys.core.errors import UserError, nearest

Settings = dict[str, Any]
_OPTIONS = ("values", "every", "time")


@dataclass(frozen=True)
class Axis:
    """A setting and its values.

    Attributes:
        name: keyword argument of the generator.
        values: values in order, such that the metric rises up to one of them and falls after it.
        every: try all values, because the metric may rise again.
    """

    name: str
    values: Sequence[Any]
    every: bool = False


def axes_of(name: str, grid: Mapping[str, Any], *, start: Mapping[str, Any], time: str) -> list[Axis]:
    """Return the axes of a grid that apply to the data.

    Args:
        name: name of the generator.
        grid: setting -> {values, every, time}; `time` lists the values of `data.time` that the axis applies to, all by
            default.
        start: settings of the generator, where the search begins.
        time: value of `data.time`.

    Raises:
        UserError: If a key, a setting or its values are invalid.
    """
    axes, settings = [], [setting for setting in start if not setting.startswith("_")]
    for setting, axis in grid.items():
        key = f"grids.{name}.{setting}"
        if setting not in settings:
            raise UserError(f"{key}: generator '{name}' has no such setting{nearest(setting, settings)}")
        if not isinstance(axis, Mapping) or not isinstance(axis.get("values"), list):
            raise UserError(f"{key}: found {axis}, expected {{values: [...]}}")
        for option in axis:
            if option not in _OPTIONS:
                raise UserError(f"unknown configuration key '{key}.{option}'{nearest(option, _OPTIONS)}")
        if time not in axis.get("time", [time]):
            continue
        values = axis["values"]
        if start[setting] not in values:
            raise UserError(
                f"generator.{name}.{setting}={start[setting]}: the search begins there, but {key}.values={values} lack "
                f"it; add it, or do not search with ~{key}"
            )
        axes.append(Axis(setting, values, bool(axis.get("every", False))))
    return axes


def search(start: Mapping[str, Any], axes: Sequence[Axis], *, score: Callable[[Settings], float]) -> Settings:
    """Return the settings with the best score that one-setting-at-a-time changes can reach.

    Each axis in turn is followed from the best settings so far in the direction in which the score rises, until a round
    over all axes changes nothing. No settings are scored twice; the first of equals wins.

    Args:
        start: value for each axis.
        axes: settings that may change.
        score: function to maximise.
    """
    best, scores = dict(start), {}

    def scored(settings: Settings) -> float:
        key = tuple(settings.values())
        if key not in scores:
            scores[key] = score(settings)
        return scores[key]

    top, rising = scored(best), True
    while rising:
        rising = False
        for axis in axes:
            center = list(axis.values).index(best[axis.name])
            for direction in (axis.values[center + 1 :], axis.values[:center][::-1]):
                rose = False
                for value in direction:
                    settings = best | {axis.name: value}
                    if scored(settings) > top:
                        best, top, rose = settings, scored(settings), True
                    elif not axis.every:
                        break
                rising |= rose
                if rose and not axis.every:
                    break
    return best


def describe(settings: Settings) -> str:
    """Return settings as text, such as `l2=200, seed=0`."""
    shown = {name: "null" if value is None else value for name, value in settings.items()}
    return ", ".join(f"{n}={f'{v:g}' if isinstance(v, float) else v}" for n, v in shown.items()) or "as it is"
