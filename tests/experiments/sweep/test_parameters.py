"""Parameters of sweeps mean what they mean to W&B, whose own search is the reference."""

from __future__ import annotations

from typing import Any

import pytest
from sweeps.grid_search import grid_search_next_runs
from sweeps.params import HyperParameter

from recsys.core.errors import UserError
from recsys.experiments.sweep.parameters import Parameter, read_parameter

BOUNDS = {"min": 0.5, "max": 20.0}
LOG_BOUNDS = {"min": -2.0, "max": 3.0}
NORMAL = {"mu": 1.5, "sigma": 0.5}
BETA = {"a": 2.0, "b": 5.0}
DESCRIBED: list[dict[str, Any]] = [
    {"value": "x"},
    {"values": ["a", "b", "c"]},
    {"values": ["a", "b", "c"], "probabilities": [0.5, 0.2, 0.3]},
    {"min": 1, "max": 6},
    {"min": 0, "max": 1.5},
    {"distribution": "uniform", "min": 1, "max": 6},
    {"distribution": "q_uniform", **BOUNDS},
    {"distribution": "q_uniform", "min": 20, "max": 200, "q": 20},
    {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25},
    {"distribution": "log_uniform", **LOG_BOUNDS},
    {"distribution": "log_uniform_values", **BOUNDS},
    {"distribution": "q_log_uniform", "q": 0.5, **LOG_BOUNDS},
    {"distribution": "q_log_uniform_values", "q": 1, **BOUNDS},
    {"distribution": "inv_log_uniform", **LOG_BOUNDS},
    {"distribution": "inv_log_uniform_values", **BOUNDS},
    {"distribution": "normal", **NORMAL},
    {"distribution": "normal"},
    {"distribution": "q_normal", "q": 0.5, **NORMAL},
    {"distribution": "log_normal", **NORMAL},
    {"distribution": "q_log_normal", **NORMAL},
    {"distribution": "beta", **BETA},
    {"distribution": "q_beta", "q": 0.1, **BETA},
]


@pytest.mark.parametrize("node", DESCRIBED, ids=lambda node: "-".join(map(str, node.values())))
@pytest.mark.parametrize("u", [0.01, 0.2, 0.49, 0.51, 0.7, 0.77, 0.999])
def test_quantiles_are_those_of_wandb(node: dict[str, Any], u: float) -> None:
    reference = HyperParameter("p", node)
    ours, theirs = read_parameter("p", node), reference.ppf(u)
    if ours.distribution == "constant":
        assert ours.settings["value"] == theirs
    elif ours.distribution == "categorical":
        assert ours.choices == reference.config["values"]
    else:
        found = ours.quantile(u)
        assert found == (theirs if isinstance(theirs, str) else pytest.approx(float(theirs)))
        # An integer where W&B has one: `num_blocks=2.0` would be refused.
        assert isinstance(found, int) == (ours.distribution == "int_uniform" or isinstance(node.get("q"), int))


def test_by_hand() -> None:
    assert read_parameter("p", {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0}).quantile(
        0.5
    ) == pytest.approx(0.1)
    steps = read_parameter("p", {"distribution": "q_uniform", "min": 0, "max": 10, "q": 4})
    assert [steps.quantile(u) for u in (0.0, 0.19, 0.21, 0.59, 0.61, 1.0)] == [0, 0, 4, 4, 8, 8]
    dice = read_parameter("p", {"min": 1, "max": 6})
    assert [dice.quantile(u) for u in (0.0, 0.16, 0.17, 0.84, 1.0)] == [1, 1, 2, 6, 6]
    weighted = read_parameter("p", {"values": ["a", "b"], "probabilities": [0.75, 0.25]})
    assert [weighted.quantile(u) for u in (0.0, 0.74, 0.76, 1.0)] == ["a", "a", "b", "b"]


def test_grids_are_those_of_wandb() -> None:
    nodes = {
        "c": {"values": [1, "x", False]},
        "a": {"min": 2, "max": 4},
        "b": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.5},
        "d": {"value": 3},
    }
    parameters = {name: read_parameter(name, node) for name, node in nodes.items()}
    assert [parameters[name].grid() for name in "abcd"] == [[2, 3, 4], [0.0, 0.5], [1, "x", False], [3]]
    config = {"method": "grid", "parameters": nodes}
    theirs = [run.config for run in grid_search_next_runs([], config, n=18) if run is not None]
    ours = [
        {"a": a, "b": b, "c": c}
        for a in parameters["a"].grid()
        for b in parameters["b"].grid()
        for c in parameters["c"].grid()
    ]
    assert [{name: run[name]["value"] for name in "abc"} for run in theirs] == ours


@pytest.mark.parametrize("node", [{"min": 0.0, "max": 1.0}, {"values": [1, 2], "probabilities": [0.5, 0.5]}])
def test_a_distribution_without_values_has_no_grid(node: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"parameters.p: method grid takes .*, found"):
        read_parameter("p", node).grid()


@pytest.mark.parametrize(
    ("name", "node", "message"),
    [
        ("p", {"valeus": [1]}, "unknown key 'parameters.p.valeus'; did you mean 'values'?"),
        ("p", {"values": [1], "min": 0}, "unknown key 'parameters.p.min'; valid: values"),
        ("p", {"distribution": "log_unifrm", "min": 1, "max": 2}, "found 'log_unifrm'; did you mean 'log_uniform'"),
        ("p", {"min": 1}, "parameters.p.max: missing, expected by uniform"),
        ("p", {"min": 2, "max": 1}, "min 2 is not less than max 1"),
        ("p", {"min": "a", "max": 1}, "parameters.p.min: found 'a', expected a number"),
        ("p", {"distribution": "log_uniform_values", "min": 0, "max": 1}, "min: found 0, expected a positive number"),
        ("p", {"distribution": "int_uniform", "min": 0.5, "max": 2}, "expected integers for int_uniform"),
        ("p", {"distribution": "q_uniform", "min": 0, "max": 2, "q": 0}, "p.q: found 0, expected a positive"),
        ("p", {"values": []}, "expected a list of at least one value"),
        ("p", {"values": "abc"}, "found 'abc', expected a list"),
        ("p", {"values": [1, None]}, "quote it, 'null'"),
        ("p", {"value": None}, "quote it, 'null'"),
        ("p", {"value": {"a": 1}}, "Hydra takes one key at a time"),
        ("p", {"values": [1, 2], "probabilities": [0.5, 0.6]}, "expected one for each value, with sum 1"),
        ("p", {"values": [1, 2], "probabilities": [1.0]}, "expected one for each value, with sum 1"),
        ("p", {"parameters": {"a": {"value": 1}}}, "write parameters.p.KEY with a dot"),
        ("p", 3, "found 3, expected value, values, or min and max"),
        ("+experiment", {"value": "x"}, "belongs into `command`"),
    ],
)
def test_errors_name_the_key(name: str, node: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_parameter(name, node)
    assert message in str(error.value)


def test_a_parameter_is_a_value() -> None:
    assert read_parameter("p", {"value": 3}) == Parameter("p", "constant", {"value": 3})
