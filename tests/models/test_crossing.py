"""Networks over features, by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from recsys.models.crossing import MLP, Crossing, CrossNetwork, MaskNet


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


def test_mask_block_by_hand() -> None:
    network = MaskNet([2, 2], out_dim=3, num_blocks=1, reduction=0.25, hidden=3)
    block = network.blocks[0]
    put(block.mask[0], [[1.0, 1.0, 1.0, 1.0]], [0.0])  # type: ignore[index]
    put(block.mask[2], [[0.5], [1.0], [1.0], [1.0]], [1.0, 1.0, 1.0, 1.0])  # type: ignore[index]
    put(block.projection, [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [1.0, 1.0, 1.0, 1.0]])  # type: ignore[arg-type]
    network.mlp = nn.Identity()  # type: ignore[assignment]
    # Each feature is normalised by itself: (1, 3) -> (-1, 1), (2, 2) -> (0, 0). The mask of the sum 8 is (5, 9, 9, 9):
    # (-5, 9, 0, 0), projected (-5, 9, 4), whose mean is 8/3 and standard deviation 5.792716; then ReLU.
    found = network(torch.tensor([[1.0, 3.0, 2.0, 2.0]]))
    expected = [0.0, (9 - 8 / 3) / 5.792716, (4 - 8 / 3) / 5.792716]
    torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-5, rtol=1e-4)
    # Of the sum -8 the hidden layer is 0, and the mask 1: (1, -1) -> (1, -1, 0), standard deviation .816497.
    found = network(torch.tensor([[-1.0, -3.0, -2.0, -2.0]]))
    torch.testing.assert_close(found, torch.tensor([[1 / 0.816497, 0.0, 0.0]]), atol=1e-5, rtol=1e-4)


def test_mask_blocks_lie_side_by_side() -> None:
    network = MaskNet([2, 3], out_dim=4, num_blocks=3, hidden=6)
    assert network.mlp[0].in_features == 18  # type: ignore[union-attr]
    assert network.blocks[0].mask[0].out_features == 5  # type: ignore[index,union-attr]


@pytest.mark.parametrize("build", [MLP, CrossNetwork, partial(CrossNetwork, rank=2), MaskNet])
def test_every_feature_and_parameter_matters(build: Crossing) -> None:
    network = build([3, 2, 2], 5)
    x = torch.randn(7, 7, requires_grad=True)
    out = network(x)
    assert out.shape == (7, 5)
    (out**3).sum().backward()
    assert x.grad is not None
    assert bool((x.grad.abs().amax(0) > 0).all())
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in network.parameters())


@pytest.mark.parametrize("build", [MLP, CrossNetwork, MaskNet])
def test_dropout_is_a_layer_or_none(build: Callable[..., nn.Module]) -> None:
    def rates(network: nn.Module) -> list[float]:
        return [m.p for m in network.modules() if isinstance(m, nn.Dropout)]

    assert (rates(build([2], 2)), rates(build([2], 2, dropout=0.3))) == ([], [0.3])


@pytest.mark.parametrize(
    ("build", "settings"),
    [(CrossNetwork, {"num_layers": 0}), (CrossNetwork, {"rank": 0}), (MaskNet, {"num_blocks": 0}),
     (MaskNet, {"reduction": 0})],
)  # fmt: skip
def test_invalid_settings_are_refused(build: Callable[..., nn.Module], settings: dict[str, int]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name}: found 0, expected"):
        build([2, 2], 3, **settings)
