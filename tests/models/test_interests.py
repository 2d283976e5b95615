"""Capsules: by hand, against a plain loop, and packed prefixes against each prefix alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.models.interests import Capsules, interests_of_prefixes
from recsys.models.two_tower import select_best_interest


def plain(dim: int, num_embeddings: int, num_iterations: int) -> Capsules:
    """Nothing but the routing: S is the identity, and the MLP adds nothing."""
    capsules = Capsules(dim, num_embeddings, num_iterations=num_iterations, hidden=4, dropout=0.0).eval()
    with torch.no_grad():
        capsules.bilinear.weight.copy_(torch.eye(dim))
        capsules.mlp[2].weight.zero_()
        capsules.mlp[2].bias.zero_()
    return capsules


def history(*events: tuple[float, ...]) -> Tensor:
    """A start token of nines, then events."""
    return torch.tensor([(9.0,) * len(events[0]), *events])


def answer(capsules: Capsules, tokens: Tensor) -> tuple[Tensor, list[bool]]:
    found, there = capsules(tokens[None], torch.tensor([[len(tokens)]]))
    return found[0, 0], there[0, 0].tolist()


def test_one_routing_by_hand() -> None:
    # Starts: b = (0, 2), the last event, and a = (2, 0), the least similar. squash(a) = 4/5 of the direction, so the
    # logit of an event with its own kind's capsule is 2 * 0.8 = 1.6, with the other's 0; sigmoid(1.6) = .832018.
    # Capsule 0 = squash(2 * .832018 b + 2 * .167982 a) = squash(.671926, 3.328074): its square is 11.527561, so the
    # length is .920176 and the direction (.197904, .980221). All of it times sqrt(2).
    a, b = (2.0, 0.0), (0.0, 2.0)
    found, there = answer(plain(2, 2, 1), history(a, a, b, b))
    assert there == [True, True]
    x, y = 0.920176 * 0.197904 * math.sqrt(2), 0.920176 * 0.980221 * math.sqrt(2)
    torch.testing.assert_close(found, torch.tensor([[x, y], [y, x]]), atol=1e-5, rtol=0)


def test_one_event_and_none() -> None:
    # A single capsule holds everything: squash((3, 4)) = 25/26 of the direction. Without events it is the start token.
    found, there = answer(plain(2, 2, 3), history((3.0, 4.0)))
    assert there == [True, False]
    torch.testing.assert_close(found[0], torch.tensor([0.6, 0.8]) * 25 / 26 * math.sqrt(2))
    found, there = answer(plain(2, 2, 3), torch.tensor([[0.0, 3.0]]))
    assert there == [True, False]
    torch.testing.assert_close(found[0], torch.tensor([0.0, 0.9]) * math.sqrt(2))


def squash(x: np.ndarray) -> np.ndarray:
    square = float(x @ x)
    return square / (1 + square) * x / math.sqrt(square)


def by_loop(events: np.ndarray, num_embeddings: int, num_iterations: int) -> np.ndarray:
    """MIND's algorithm 1 with the start of the docstring, one event and one capsule at a time."""
    count = max(1, min(num_embeddings, int(math.log2(len(events)))))
    unit = events / np.linalg.norm(events, axis=1, keepdims=True)
    starts = [len(events) - 1]
    while len(starts) < count:
        starts.append(min(range(len(events)), key=lambda e: max(unit[e] @ unit[s] for s in starts)))
    logits = np.array([[squash(events[s]) @ event for event in events] for s in starts])
    capsules = np.zeros((count, events.shape[1]))
    for _ in range(num_iterations):
        weights = np.exp(logits) / np.exp(logits).sum(0)
        for j in range(count):
            capsules[j] = squash(sum(weights[j, i] * events[i] for i in range(len(events))))
        logits += [[capsule @ event for event in events] for capsule in capsules]
    return capsules * math.sqrt(events.shape[1])


@pytest.mark.parametrize("num_events", [1, 2, 5, 11, 40])
@pytest.mark.parametrize(("num_embeddings", "num_iterations"), [(2, 1), (4, 3)])
def test_equals_a_plain_loop(num_events: int, num_embeddings: int, num_iterations: int) -> None:
    capsules = plain(6, num_embeddings, num_iterations)
    events = torch.randn(num_events, 6)
    found, there = answer(capsules, torch.cat([torch.randn(1, 6), events]))
    expected = by_loop(events.double().numpy(), num_embeddings, num_iterations)
    assert sum(there) == len(expected)
    found = found[: len(expected)].detach()
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), atol=1e-4, rtol=1e-4)


def test_how_many_there_are() -> None:
    # max(1, min(M, log2 n)), n events.
    capsules = plain(8, 4, 2)
    tokens = torch.randn(1, 41, 8)
    _, there = capsules(tokens, torch.arange(1, 42)[None])
    assert [int(row.sum()) for row in there[0]] == [1] * 4 + [2] * 4 + [3] * 8 + [4] * 25
    # The first ones are there.
    assert bool((there[0].int().diff(dim=1) <= 0).all())


def test_repeated_items_start_no_further_capsules() -> None:
    kinds = torch.randn(3, 8)
    capsules = plain(8, 4, 2)
    for num_kinds in (1, 2, 3):
        tokens = torch.cat([torch.randn(1, 8), kinds[torch.arange(32) % num_kinds]])
        _, there = answer(capsules, tokens)
        assert sum(there) == num_kinds


def test_later_tokens_and_padding_do_not_change_the_result() -> None:
    capsules = Capsules(8, 3).eval()
    tokens = torch.randn(2, 30, 8)
    lengths = torch.tensor([[1, 9, 20], [5, 17, 30]])
    found, there = capsules(tokens, lengths)
    for row in range(2):
        for query in range(3):
            size = int(lengths[row, query])
            alone, alone_there = capsules(tokens[row : row + 1, :size], torch.tensor([[size]]))
            torch.testing.assert_close(found[row, query], alone[0, 0], atol=1e-5, rtol=1e-4)
            assert torch.equal(there[row, query], alone_there[0, 0])


def test_packed_prefixes_equal_each_alone() -> None:
    capsules = Capsules(8, 4).eval()
    # Of several sizes of row; a history that nothing is asked of, and queries in no order.
    lengths = np.array([1, 3, 40, 9, 8, 1, 12])
    states = torch.randn(int(lengths.sum()), 8)
    starts = np.cumsum(lengths) - lengths
    pairs = [(h, p) for h in range(7) if h != 4 for p in range(lengths[h]) if (h + p) % 3 or lengths[h] == 1]
    pairs = [pairs[at] for at in torch.randperm(len(pairs)).tolist()]
    owner, last = (torch.tensor(column) for column in zip(*pairs, strict=True))
    query = torch.from_numpy(starts)[owner] + last
    found, there = interests_of_prefixes(capsules, states, lengths=lengths, query=query, history=owner)
    assert found.shape == (len(pairs), 4, 8)
    for row, (h, p) in enumerate(pairs):
        alone, alone_there = answer(capsules, states[starts[h] : starts[h] + p + 1])
        torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=1e-4)
        assert there[row].tolist() == alone_there


def test_no_queries() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    found, there = interests_of_prefixes(
        Capsules(8, 4), torch.randn(5, 8), lengths=np.array([2, 3]), query=none, history=none
    )
    assert (found.shape, there.shape[0]) == ((0, 4, 8), 0)


def test_interests_are_found() -> None:
    """Two clusters of items, mixed in time: each has a capsule of its own that points to it."""
    centers = torch.eye(16)[:2] * 3
    kind = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1, 1, 0])
    events = centers[kind] + 0.1 * torch.randn(10, 16)
    found, _ = answer(plain(16, 2, 3), torch.cat([torch.randn(1, 16), events]))
    cosine = torch.nn.functional.cosine_similarity(found[:, None], centers[None], dim=2)
    # The last event is of kind 0.
    assert bool((cosine.diag() > 0.95).all())
    assert bool((cosine.flip(1).diag() < 0.3).all())


def test_everything_learns() -> None:
    capsules = Capsules(8, 4)
    tokens = torch.randn(3, 20, 8, requires_grad=True)
    found, there = capsules(tokens, torch.full((3, 1), 20))
    found[there].square().sum().backward()
    assert tokens.grad is not None
    assert bool((tokens.grad[:, 1:].abs().amax(2) > 0).all())
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in capsules.parameters())


@pytest.mark.parametrize(("settings", "message"), [({"num_embeddings": 1}, "found 1"), ({"num_iterations": 0}, "0")])
def test_invalid_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Capsules(8, **settings)


def test_a_target_chooses_the_embedding_that_scores_it_best() -> None:
    users = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[-1.0, 0.0], [0.0, -2.0], [0.0, 0.0]]])
    users.requires_grad_()
    # Scores .2, .9 and none: the second. Then -.5, -.2 and none: an embedding that is absent is not chosen for its 0.
    chosen = select_best_interest(users, torch.tensor([[0.2, 0.9], [0.5, 0.1]]))
    assert chosen.tolist() == [[0.0, 1.0], [0.0, -2.0]]
    chosen.sum().backward()
    assert users.grad is not None
    assert users.grad.sum(2).tolist() == [[0.0, 2.0, 0.0], [0.0, 2.0, 0.0]]
