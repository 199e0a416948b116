"""Where the bytes of a request land."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tlcore.checkpoint.landing import Landing

START, END = 1000, 1400
STORED = np.random.default_rng(0).integers(0, 256, 2000, np.uint8)
runs = st.tuples(st.integers(START, END), st.integers(START, END)).map(sorted).filter(lambda run: run[0] < run[1])


def landed(places):
    landing = Landing(START, END, places)
    for part, at in zip(landing.parts, np.cumsum([START, *(part.nbytes for part in landing.parts)]), strict=False):
        part[:] = STORED[at : at + part.nbytes]
    landing.settle()
    return landing


@given(st.lists(runs, max_size=8))
def test_every_place_gets_its_bytes_whatever_overlaps(found):
    places = [(low, np.zeros(high - low, np.uint8)) for low, high in found]
    landing = landed(places)
    assert sum(part.nbytes for part in landing.parts) == END - START
    for at, memory in places:
        assert (memory == STORED[at : at + memory.nbytes]).all()


def test_what_is_wanted_once_is_received_where_it_stays():
    memory = np.zeros(END - START, np.uint8)
    landing = landed([(START, memory[:150]), (START + 150, memory[150:])])
    assert [part.ctypes.data for part in landing.parts] == [memory.ctypes.data, memory.ctypes.data + 150]


def test_what_nobody_wants_goes_elsewhere():
    memory = np.zeros(10, np.uint8)
    landing = landed([(START + 20, memory)])
    assert [part.nbytes for part in landing.parts] == [20, 10, END - START - 30]
    assert landing.parts[1].ctypes.data == memory.ctypes.data
