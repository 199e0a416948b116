"""Muon's step against torch's own, and who orthogonalizes which matrix where ranks hold parts of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tlcore.engine.muon import MuonWithAdamW, Shared, orthogonalized, plan_rounds


@pytest.mark.parametrize("shape", [(7, 7), (5, 12), (12, 5), (1, 6)])
def test_a_whole_matrix_steps_as_in_torch_to_the_last_bit(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1))) for _ in "ab")
    mine = MuonWithAdamW([{"params": [ours], "muon": True, "weight_decay": 0.1}], lr=0.02)
    torchs = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradient = torch.randn(shape)
        for parameter, optimizer in ((ours, mine), (theirs, torchs)):
            parameter.grad = gradient.clone()
            optimizer.step()
        assert torch.equal(ours, theirs)
        assert torch.equal(mine.state[ours]["momentum_buffer"], torchs.state[theirs]["momentum_buffer"])


def test_an_orthogonalized_matrix_has_singular_values_about_one_and_its_own_directions() -> None:
    matrix = torch.randn(40, 16, generator=torch.Generator().manual_seed(2))
    found = orthogonalized(matrix)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert found.dtype == torch.bfloat16
    assert torch.linalg.svdvals(found.float()).min() > 0.6
    assert torch.linalg.svdvals(found.float()).max() < 1.3
    kept = torch.diagonal(left.T @ found.float() @ right.T)
    assert (kept > 0.6).all(), "no direction is turned round"
    assert values.max() / values.min() > 2, "a matrix that was orthogonal already proves nothing"


def test_no_gradient_changes_nothing_but_by_decay() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 3))
    weight.grad = torch.zeros(3, 3)
    MuonWithAdamW([{"params": [weight], "muon": True, "weight_decay": 0.5}], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((3, 3), 0.95))


def test_groups_are_stepped_alone_as_deepspeed_does() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3))
    optimizer = MuonWithAdamW([{"params": [matrix], "muon": True}, {"params": [vector], "muon": False}], lr=0.1)
    for each in (matrix, vector):
        each.grad = torch.ones_like(each)
    every = optimizer.param_groups
    optimizer.param_groups = [every[1]]
    optimizer.step()
    assert (matrix == 1).all() and (vector < 1).all()
    optimizer.param_groups = [every[0]]
    once = vector.clone()
    optimizer.step()
    assert (matrix != 1).all() and torch.equal(vector, once)


def cut(elements: int, world: int) -> tuple[int, ...]:
    """As stage 3 does."""
    share = -(-elements // world)
    return tuple(max(0, min(elements, (rank + 1) * share) - rank * share) for rank in range(world))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=20), st.integers(1, 5), st.integers(1, 500))
def test_every_matrix_is_computed_once_in_the_order_given_and_rounds_are_bounded(
    shapes: list[tuple[int, int]], world: int, most: int
) -> None:
    matrices = [Shared(str(at), *shape, cut(shape[0] * shape[1], world)) for at, shape in enumerate(shapes)]
    rounds = plan_rounds(matrices, world, most)
    assert [one for each in rounds for one in each.matrices] == matrices
    for each in rounds:
        assert [one for rank in range(world) for one in each.of(rank)] == sorted(
            each.matrices, key=lambda one: each.owners[each.matrices.index(one)]
        )
        before_last = each.matrices[:-1]
        assert len(before_last) < world or sum(one.elements for one in before_last) < most * world
    assert all(one.elements > 0 for each in rounds for one in each.matrices)


def test_like_matrices_are_dealt_evenly_where_all_hold_as_much() -> None:
    matrices = [Shared(str(at), 64, 32, (512,) * 4) for at in range(12)]
    (only,) = plan_rounds(matrices, 4)
    assert sorted(len(only.of(rank)) for rank in range(4)) == [3, 3, 3, 3]


def test_a_matrix_that_a_cut_hardly_touches_stays_with_who_holds_most_of_it() -> None:
    """Stages 1 and 2: only what a cut goes through is sent."""
    matrices = [Shared("a", 10, 10, (100, 0)), Shared("b", 10, 10, (70, 30)), Shared("c", 10, 10, (0, 100))]
    (only,) = plan_rounds(matrices, 2)
    assert only.owners == (0, 0, 1)
