"""The order of training data, over all kinds of sizes: exact, repeatable, even, little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlcore.data import Order, split_batch

pytestmark = pytest.mark.unit

sizes = st.integers(1, 400)
batches = st.integers(1, 64)
seeds = st.integers(0, 2**32 - 1)


def epoch_of(order: Order, epoch: int) -> list[np.ndarray]:
    first = epoch * order.steps_per_epoch
    return [order.batch(step) for step in range(first, first + order.steps_per_epoch)]


@given(sizes, batches, seeds, st.integers(0, 3), st.booleans())
def test_every_epoch_takes_every_sample_once(
    samples: int, size: int, seed: int, epoch: int, with_lengths: bool
) -> None:
    lengths = [(number * 37) % 50 + 1 for number in range(samples)] if with_lengths else None
    taken = epoch_of(Order(samples, size, seed, lengths), epoch)
    assert sorted(np.concatenate(taken)) == list(range(samples))
    assert [len(batch) for batch in taken[:-1]] == [size] * (len(taken) - 1)
    assert len(taken[-1]) == (samples - 1) % size + 1


@given(sizes, batches, seeds, st.integers(0, 2000))
def test_a_step_is_the_same_whoever_asks_and_when(samples: int, size: int, seed: int, step: int) -> None:
    lengths = [number % 13 for number in range(samples)]
    asked_before = Order(samples, size, seed, lengths)
    for other in (0, step + 3, 5 * asked_before.steps_per_epoch):
        asked_before.batch(other)
    assert np.array_equal(asked_before.batch(step), Order(samples, size, seed, lengths).batch(step))


def test_epochs_and_seeds_differ() -> None:
    order, other = Order(100, 10, 1), Order(100, 10, 2)
    whole = [np.concatenate(epoch_of(order, epoch)) for epoch in (0, 1)]
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(whole[0], np.concatenate(epoch_of(other, 0)))


def test_the_order_is_pinned() -> None:
    """A checkpoint of last year must find its place again: these numbers may never change."""
    assert Order(10, 4, 7).batch(0).tolist() == [8, 4, 1, 6]
    assert Order(10, 4, 7, [5, 1, 4, 2, 3, 9, 8, 7, 6, 0]).batch(3).tolist() == [5, 6, 7, 8]


def test_like_lengths_share_a_batch_and_batches_come_in_no_order_of_length() -> None:
    lengths = np.random.default_rng(0).integers(10, 65, 2000)
    taken = epoch_of(Order(2000, 32, 3, lengths), 0)
    real = sum(int(lengths[batch].sum()) for batch in taken)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in taken)
    assert real / padded > 0.95
    longest = [int(lengths[batch].max()) for batch in taken]
    assert longest != sorted(longest, reverse=True)
    assert abs(np.mean(longest[:31]) - np.mean(longest[31:])) < 10


def test_a_batch_cannot_be_changed_under_the_order() -> None:
    order = Order(10, 5, 0)
    with pytest.raises(ValueError, match="read-only"):
        order.batch(0)[0] = 3


@given(st.integers(0, 200), st.integers(1, 7), st.integers(1, 6), st.integers(1, 40))
def test_splitting_takes_each_sample_once_and_evenly(count: int, world: int, steps: int, micro: int) -> None:
    if count > world * steps * micro:
        count = world * steps * micro
    indices = np.arange(1000, 1000 + count)
    dealt = split_batch(indices, world, micro, steps)
    assert len(dealt) == world
    assert all(len(rank) == steps for rank in dealt)
    assert sorted(index for rank in dealt for part in rank for index in part) == list(indices)
    assert max(len(part) for rank in dealt for part in rank) <= micro
    per_rank = [sum(len(part) for part in rank) for rank in dealt]
    assert max(per_rank) - min(per_rank) <= 1
    per_part = [len(part) for rank in dealt for part in rank]
    assert max(per_part) - min(per_part) <= 1


def test_ranks_of_one_micro_step_have_neighbours_in_length() -> None:
    longest_first = np.arange(16)
    dealt = split_batch(longest_first, 2, 4, 2)
    assert [part.tolist() for part in dealt[0]] == [[0, 2, 4, 6], [8, 10, 12, 14]]
    assert [part.tolist() for part in dealt[1]] == [[1, 3, 5, 7], [9, 11, 13, 15]]


def test_more_samples_than_places_are_refused() -> None:
    with pytest.raises(ValueError, match="33 samples do not fit 2 ranks x 8 samples x 2 micro-steps"):
        split_batch(np.arange(33), 2, 8, 2)
