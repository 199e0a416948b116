"""Rows, intersection, coalescing and the cover check."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlcore.checkpoint.intervals import ParameterFacts, Piece, Row, coalesce, cover_faults, intersect
from tlcore.errors import CheckpointError

pytestmark = pytest.mark.unit


def row(start, end, parameter="w", state="fp32", dtype="float32"):
    return Row(parameter, state, start, end, dtype)


intervals = st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(intervals, intervals)
def test_intersection_is_the_set_of_common_elements(one, other):
    found = intersect(row(*one), row(*other))
    common = set(range(*one)) & set(range(*other))
    assert (set(range(*found)) if found else set()) == common


def test_rows_of_other_parameters_or_states_do_not_meet():
    assert intersect(row(0, 9), row(0, 9, parameter="v")) is None
    assert intersect(row(0, 9), row(0, 9, state="exp_avg")) is None


@given(st.lists(intervals, max_size=12), st.integers(0, 5))
def test_coalesced_spans_cover_the_same_and_lie_apart(spans, gap):
    merged = coalesce(spans, gap)
    covered = {at for span in merged for at in range(*span)}
    assert {at for span in spans for at in range(*span)} <= covered
    assert all(later[0] - earlier[1] > gap for earlier, later in itertools.pairwise(merged))
    if gap == 0:
        assert covered == {at for span in spans for at in range(*span)}


@given(st.lists(intervals, max_size=6), st.integers(1, 40))
def test_cover_check_agrees_with_counting(spans, elements):
    faults = cover_faults([row(*span) for span in spans], {"w": ParameterFacts((elements,), "float32", True)})
    counts = [sum(start <= at < end for start, end in spans) for at in range(max([elements, *(e for _, e in spans)]))]
    assert (not faults) == (counts == [1] * elements)


def test_cover_faults_name_what_is_wrong():
    table = {
        "w": ParameterFacts((2, 5), "float32", True),
        "b": ParameterFacts((), "float32", True),
        "head": ParameterFacts((2, 5), "float32", True, tied_to="w"),
    }
    rows = [row(0, 4), row(6, 10), row(0, 10, parameter="head"), row(0, 1, parameter="ghost")]
    text = "\n".join(cover_faults(rows, table))
    assert "parameter 'w' state 'fp32': elements [4, 6) are missing" in text
    assert "parameter 'b' of shape [] has no rows" in text
    assert "parameter 'head' is tied to 'w' and must have no rows of its own" in text
    assert "parameter 'ghost' has rows but is not in the table" in text


def test_mixed_dtypes_and_dangling_ties_are_faults():
    rows = [row(0, 4), row(4, 8, dtype="bfloat16")]
    table = {"w": ParameterFacts((8,), "float32", True), "t": ParameterFacts((8,), "float32", True, tied_to="gone")}
    text = "\n".join(cover_faults(rows, table))
    assert "several dtypes: bfloat16, float32" in text
    assert "tied to 'gone', which is not a stored parameter" in text


@pytest.mark.parametrize(("start", "end", "dtype"), [(3, 3, "float32"), (-1, 3, "float32"), (0, 3, "torch.float32")])
def test_impossible_rows_are_refused(start, end, dtype):
    with pytest.raises(CheckpointError, match="parameter 'w' state 'fp32'"):
        row(start, end, dtype=dtype)


@pytest.mark.parametrize("data", [np.zeros(4, np.float32), np.zeros((4, 4), np.uint8), np.zeros(32, np.uint8)[::2]])
def test_a_piece_is_a_flat_byte_view_of_the_rows_size(data):
    with pytest.raises(CheckpointError, match="data must be a contiguous"):
        Piece(row(0, 4), data)
    with pytest.raises(CheckpointError, match="16 bytes expected, the view has 15"):
        Piece(row(0, 4), np.zeros(15, np.uint8))
