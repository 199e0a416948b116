"""The heap that holds nothing."""

from __future__ import annotations

from tlcore.engine.heap import Heap


def test_a_gap_is_used_again_by_what_fits_it():
    heap = Heap()
    heap.take("a", 100)
    heap.take("b", 10)
    heap.give("a")
    heap.take("c", 60)
    heap.take("d", 40)
    assert heap.peak_bytes == 110


def test_gaps_of_two_blocks_are_no_room_for_a_larger_one():
    heap = Heap()
    for name in "abc":
        heap.take(name, 50)
    heap.give("a", "b")
    heap.take("large", 100)
    assert heap.peak_bytes == 250


def test_a_device_counts_what_is_live():
    heap = Heap(compact=True)
    for name in "abc":
        heap.take(name, 50)
    heap.give("a", "b")
    heap.take("large", 100)
    assert heap.peak_bytes == 150


def test_small_pieces_fill_gaps_before_the_heap_grows():
    heap = Heap()
    heap.take("a", 100)
    heap.take("b", 10)
    heap.give("a")
    heap.fluid(100)
    assert heap.peak_bytes == 110
    heap.fluid(130)
    assert heap.peak_bytes == 140


def test_growth_begins_in_the_gap_at_the_end():
    heap = Heap()
    heap.take("a", 10)
    heap.take("b", 50)
    heap.give("b")
    heap.take("c", 80)
    assert heap.peak_bytes == 90


def test_where_gaps_join_those_of_two_neighbours_are_room_for_a_larger_one():
    heap = Heap(joins=True)
    for name in "abc":
        heap.take(name, 10)
    heap.give("a")
    heap.give("b")
    heap.take("both", 20)
    assert heap.peak_bytes == 30
