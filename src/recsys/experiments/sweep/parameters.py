"""Parameters of a sweep and their distributions, in the terms of W&B's sweep files.

Every distribution is a quantile function of a uniform number, as in W&B's own search. So a sampler draws only numbers
from 0 to 1 and choices, and the settings have W&B's meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna import Trial
from scipy import stats

from recsys.core.errors import UserError, nearest

# Settings of distributions with a quantile function. Distributions named `q_...` round to multiples of `q`.
_QUANTILES: dict[str, Callable[..., Any]] = {
    "int_uniform": lambda min, max: stats.randint(min, max + 1),
    "uniform": lambda min, max: stats.uniform(min, max - min),
    # Bounds are natural logarithms of the values, or the values themselves.
    "log_uniform": lambda min, max: stats.loguniform(np.exp(min), np.exp(max)),
    "log_uniform_values": lambda min, max: stats.loguniform(min, max),
    "inv_log_uniform": lambda min, max: stats.loguniform(np.exp(-max), np.exp(-min)),
    "inv_log_uniform_values": lambda min, max: stats.loguniform(min, max),
    "normal": lambda mu, sigma: stats.norm(mu, sigma),
    "log_normal": lambda mu, sigma: stats.lognorm(sigma, scale=np.exp(mu)),
    "beta": lambda a, b: stats.beta(a, b),
}
_ROUNDED = ("uniform", "log_uniform", "log_uniform_values", "normal", "log_normal", "beta")
_SETTINGS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "normal": ("mu", "sigma"),
    "log_normal": ("mu", "sigma"),
    "beta": ("a", "b"),
} | {name: ("min", "max") for name in _QUANTILES if "uniform" in name}
_SETTINGS |= {f"q_{name}": (*_SETTINGS[name], "q") for name in _ROUNDED}
_DEFAULTS = {"q": 1.0, "mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0}
# Names that W&B accepts.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# Uniform numbers stay this far from 0 and 1, so that quantiles are finite and integers within their bounds.
_EDGE = 1e-12


@dataclass(frozen=True)
class Parameter:
    """One parameter of a sweep.

    Attributes:
        name: key of the configuration.
        distribution: name of the distribution in W&B's terms.
        settings: settings of the distribution.
    """

    name: str
    distribution: str
    settings: Mapping[str, Any]

    @property
    def choices(self) -> list[Any]:
        """Values of a constant or of choices; empty for other distributions."""
        return list(self.settings.get("values", [self.settings["value"]] if "value" in self.settings else []))

    def draw(self, trial: Trial) -> Any:
        """Draw the value for a trial, whose sampler gives the number of a choice or a uniform number."""
        if self.distribution == "constant":
            return self.settings["value"]
        if self.distribution == "categorical":
            return self.choices[trial.suggest_categorical(self.name, range(len(self.choices)))]
        return self.quantile(trial.suggest_float(self.name, 0.0, 1.0))

    def quantile(self, u: float) -> Any:
        """Return the value below which a share `u` of all draws lies."""
        u = min(max(u, _EDGE), 1.0 - _EDGE)
        if self.distribution == "categorical_w_probabilities":
            return self.choices[int(np.searchsorted(np.cumsum(self.settings["probabilities"])[:-1], u, side="right"))]
        step = self.settings.get("q")
        bounds = {key: value for key, value in self.settings.items() if key != "q"}
        value = float(_QUANTILES[self.distribution.removeprefix("q_")](**bounds).ppf(u))
        if step is not None:
            value = round(value / step) * step
        return int(value) if isinstance(step, int) or self.distribution == "int_uniform" else value

    def grid(self) -> list[Any]:
        """Return all values, in order, for a grid search.

        Raises:
            UserError: If the parameter has no list of values.
        """
        settings = self.settings
        if self.distribution == "int_uniform":
            return list(range(settings["min"], settings["max"] + 1))
        if self.distribution == "q_uniform":
            # The upper bound is excluded, as in W&B.
            return list(np.arange(settings["min"], settings["max"], settings["q"]).tolist())
        if self.distribution not in ("constant", "categorical"):
            raise UserError(
                f"parameters.{self.name}: method grid takes value, values, int_uniform and q_uniform, "
                f"found {self.distribution}"
            )
        return self.choices


def read_parameter(name: str, node: Any) -> Parameter:
    """Return the parameter that a node of a sweep file describes.

    Raises:
        UserError: If a key, the distribution or a setting is unknown, missing or impossible.
    """
    place = f"parameters.{name}"
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{place}: W&B takes letters, digits, '_', '.' and '-' in a name; an override that begins with '+', such "
            f"as +experiment=NAME, belongs into `command`"
        )
    if not isinstance(node, Mapping):
        raise UserError(f"{place}: found {node!r}, expected value, values, or min and max")
    if "parameters" in node:
        raise UserError(f"{place}: Hydra takes no nested parameters; write parameters.{name}.KEY with a dot")
    distribution = node.get("distribution", _usual(node))
    if distribution not in _SETTINGS:
        raise UserError(f"{place}.distribution: found '{distribution}'{nearest(str(distribution), _SETTINGS)}")
    wanted = _SETTINGS[distribution]
    for key in node:
        if key not in (*wanted, "distribution"):
            valid = wanted if {*wanted} & {*node} else ("value", "values", "min", "max")
            raise UserError(f"unknown key '{place}.{key}'{nearest(str(key), valid)}")
    settings = {key: node.get(key, _DEFAULTS.get(key)) for key in wanted}
    for key, value in settings.items():
        if key not in node and value is None:
            raise UserError(f"{place}.{key}: missing, expected by {distribution}")
        if key not in ("value", "values", "probabilities") and not _is_number(value):
            raise UserError(f"{place}.{key}: found {value!r}, expected a number")
    _check(place, distribution, settings=settings)
    return Parameter(name, distribution, settings)


def _usual(node: Mapping[str, Any]) -> str:
    """Return the distribution that W&B uses by default."""
    if "values" in node:
        return "categorical_w_probabilities" if "probabilities" in node else "categorical"
    if "min" in node or "max" in node:
        whole = all(isinstance(node.get(key), int) for key in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    return "constant"


def _check(place: str, distribution: str, *, settings: Mapping[str, Any]) -> None:
    values = settings.get("values", [settings.get("value")] if "value" in settings else None)
    if values is not None:
        if not isinstance(values, list) or not values:
            raise UserError(f"{place}.values: found {values!r}, expected a list of at least one value")
        for value in values:
            if value is None:
                raise UserError(f"{place}: W&B passes null on as the word None; quote it, 'null', for Hydra's null")
            if isinstance(value, Mapping):
                raise UserError(f"{place}: found {value!r}; Hydra takes one key at a time, {place}.KEY")
    probabilities = settings.get("probabilities")
    if probabilities is not None:
        ok = isinstance(probabilities, list) and all(_is_number(p) and p >= 0 for p in probabilities)
        if not ok or len(probabilities) != len(values or ()) or not np.isclose(sum(probabilities), 1.0):
            raise UserError(f"{place}.probabilities: found {probabilities!r}, expected one for each value, with sum 1")
    if "min" in settings:
        low, high = settings["min"], settings["max"]
        if not low < high:
            raise UserError(f"{place}: min {low} is not less than max {high}")
        if distribution == "int_uniform" and not (isinstance(low, int) and isinstance(high, int)):
            raise UserError(f"{place}: found min {low} and max {high}, expected integers for int_uniform")
        if "log_uniform_values" in distribution and low <= 0:
            raise UserError(f"{place}.min: found {low}, expected a positive number for {distribution}")
    for key in ("q", "sigma", "a", "b"):
        if key in settings and not settings[key] > 0:
            raise UserError(f"{place}.{key}: found {settings[key]}, expected a positive number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
