"""Batches made ahead: the right one each time, one at a time, errors where they belong."""

from __future__ import annotations

import threading

import pytest
import torch

from tlcore.tasks import Batch
from tlcore.train.ahead import Ahead

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


class Maker:
    """Makes the batch of a number, and notes in which order and on which thread. Number 13 cannot be made."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.threads: set[int] = set()
        self.begun = threading.Semaphore(0)
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, number: int) -> Batch:
        self.begun.release()
        self.may_go.wait()
        self.threads.add(threading.get_ident())
        self.made.append(number)
        if number == 13:
            raise ValueError("13 cannot be made")
        return {"number": torch.tensor(number)}


def ahead(maker: Maker, last: int = 20) -> Ahead[int]:
    return Ahead(maker, lambda number: number + 1 if number < last else None, CPU)


def taken(batches: Ahead[int], number: int) -> int:
    return int(batches.take(number)["number"])


def test_each_place_gets_its_own_batch_and_each_is_made_once() -> None:
    maker = Maker()
    batches = ahead(maker, last=9)
    assert [taken(batches, number) for number in range(10)] == list(range(10))
    assert maker.made == list(range(10))
    assert threading.get_ident() not in maker.threads and len(maker.threads) == 1


def test_the_next_is_begun_while_the_present_one_is_in_use() -> None:
    maker = Maker()
    batches = ahead(maker)
    taken(batches, 0)
    assert maker.begun.acquire(timeout=10) and maker.begun.acquire(timeout=10)  # 1 was begun, and nobody asked for it


def test_another_place_than_the_foreseen_one_is_made_anew() -> None:
    maker = Maker()
    batches = ahead(maker)
    assert [taken(batches, number) for number in (4, 9, 10)] == [4, 9, 10]
    assert maker.made[:4] == [4, 5, 9, 10]


def test_a_batch_that_cannot_be_made_fails_when_it_is_asked_for() -> None:
    batches = ahead(Maker())
    assert taken(batches, 12) == 12
    with pytest.raises(ValueError, match="13 cannot be made"):
        batches.take(13)
    assert taken(batches, 14) == 14


def test_two_that_are_read_in_turn_are_never_made_at_once() -> None:
    """Training's next batch is made when an evaluation begins: a task is not asked for two at a time."""
    first, second = Maker(), Maker()
    one, other = ahead(first), ahead(second)
    first.may_go.set()
    taken(one, 0)
    assert first.begun.acquire(timeout=10) and first.begun.acquire(timeout=10)
    first.may_go.clear()
    one.take(1)
    assert first.begun.acquire(timeout=10)  # 2 is being made, and held
    got: list[int] = []
    waiting = threading.Thread(target=lambda: got.append(taken(other, 5)))
    waiting.start()
    assert not second.begun.acquire(timeout=0.2)
    first.may_go.set()
    waiting.join(timeout=10)
    assert got == [5] and first.threads == second.threads
