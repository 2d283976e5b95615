"""Networks over features, by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from recsys.models.crossing import MLP, Crossing, CrossNetwork


def put(module: nn.Module, weight: list[list[float]], bias: list[float] | None = None) -> None:
    assert isinstance(module, nn.Linear)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
        if bias is not None:
            module.bias.copy_(torch.tensor(bias))


def crossed(network: CrossNetwork, x: Tensor) -> Tensor:
    network.mlp = nn.Identity()  # type: ignore[assignment]
    return network(x)  # type: ignore[no-any-return]


def test_cross_layers_by_hand() -> None:
    network = CrossNetwork([1, 1], out_dim=3, num_layers=2)
    for layer in network.layers:
        put(layer, [[1.0, 2.0], [3.0, 4.0]], [1.0, 0.0])
    # x0 = (1, 2): W x0 + b = (6, 11), so x1 = (1 * 6 + 1, 2 * 11 + 2) = (7, 24).
    # W x1 + b = (56, 117), so x2 = (1 * 56 + 7, 2 * 117 + 24) = (63, 258).
    assert network(torch.randn(5, 4, 2)).shape == (5, 4, 3)
    assert crossed(network, torch.tensor([1.0, 2.0])).tolist() == [63.0, 258.0]


def test_low_rank_is_the_product_of_two_matrices() -> None:
    full, low = CrossNetwork([3, 1], 2, num_layers=1), CrossNetwork([3, 1], 2, num_layers=1, rank=2)
    v, u, bias = torch.randn(2, 4), torch.randn(4, 2), torch.randn(4)
    put(full.layers[0], (u @ v).tolist(), bias.tolist())
    put(low.layers[0][0], v.tolist())  # type: ignore[index]
    put(low.layers[0][1], u.tolist(), bias.tolist())  # type: ignore[index]
    x = torch.randn(6, 4)
    torch.testing.assert_close(crossed(low, x), crossed(full, x), atol=1e-5, rtol=1e-5)
    count = [sum(p.numel() for p in network.layers.parameters()) for network in (full, low)]
    assert count == [4 * 4 + 4, 2 * 4 + 4 * 2 + 4]


@pytest.mark.parametrize("build", [MLP, CrossNetwork, partial(CrossNetwork, rank=2)])
def test_every_feature_and_parameter_matters(build: Crossing) -> None:
    network = build([3, 2, 2], 5)
    x = torch.randn(7, 7, requires_grad=True)
    out = network(x)
    assert out.shape == (7, 5)
    (out**3).sum().backward()
    assert x.grad is not None
    assert bool((x.grad.abs().amax(0) > 0).all())
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in network.parameters())


@pytest.mark.parametrize("build", [MLP, CrossNetwork])
def test_dropout_is_a_layer_or_none(build: Callable[..., nn.Module]) -> None:
    def rates(network: nn.Module) -> list[float]:
        return [m.p for m in network.modules() if isinstance(m, nn.Dropout)]

    assert (rates(build([2], 2)), rates(build([2], 2, dropout=0.3))) == ([], [0.3])


@pytest.mark.parametrize(
    ("build", "settings"),
    [(CrossNetwork, {"num_layers": 0}), (CrossNetwork, {"rank": 0})],
)
def test_invalid_settings_are_refused(build: Callable[..., nn.Module], settings: dict[str, int]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name}: found 0, expected"):
        build([2, 2], 3, **settings)
