"""What the board makes of losses: which nodes they count against."""

from __future__ import annotations

import pytest
import ray

from tlcore.sweep.slots.board import Board

pytestmark = pytest.mark.unit


@pytest.fixture
def board(monkeypatch):
    alive = [{"NodeID": f"n{number}", "Alive": number < 8} for number in range(9)]
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    return Board()


def lost(trial, *nodes):
    where = {"node": None, "nodes": list(nodes)} if len(nodes) > 1 else {"node": nodes[0]}
    return {"kind": "lost", "trial": trial, "loss": "worker", **where}


def test_a_node_whose_gpu_keeps_failing_is_avoided_before_its_trial_has_no_budget_left(board):
    for _ in range(3):
        board.tell(lost("t000", "n1"))
    assert board.avoided() == ["n1"]
    assert [note["kind"] for note in board.notes()] == ["lost", "lost", "lost", "avoided"]


def test_of_several_nodes_the_one_that_is_among_them_each_time_is_avoided(board):
    for trial, other in enumerate(["n2", "n3", "n4"]):
        board.tell(lost(f"t{trial:03d}", "n1", other))
    assert board.avoided() == ["n1"]


def test_no_node_is_avoided_for_a_trial_that_spans_them_all(board):
    for _ in range(9):
        board.tell(lost("t000", *(f"n{number}" for number in range(8))))
    assert board.avoided() == []


def test_a_warning_counts_against_no_node(board):
    board.tell({"kind": "warned", "trial": "t000", "error": "StorageFull", "message": "no space", "rank": 0})
    assert board.avoided() == []
    assert len(board.notes()) == 1
