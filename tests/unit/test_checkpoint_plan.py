"""The grid, the packing and the sharing of frozen parameters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlcore.checkpoint.intervals import ITEM_BYTES, Row
from tlcore.checkpoint.plan import frozen_shares, plan_chunks
from tlcore.errors import CheckpointError

pytestmark = pytest.mark.unit

CHUNK = 256
rows_of = st.lists(
    st.tuples(
        st.sampled_from(["fp32", "exp_avg", "frozen"]),
        st.sampled_from(sorted(ITEM_BYTES)),
        st.integers(0, 300),
        st.integers(1, 400),
        st.booleans(),
    ),
    max_size=20,
).map(lambda drawn: [(Row(f"p{i}", s, a, a + n, d), immutable) for i, (s, d, a, n, immutable) in enumerate(drawn)])


@given(rows_of)
def test_every_byte_of_every_row_is_in_exactly_one_chunk(drawn):
    rows = [row for row, _ in drawn]
    chunks = plan_chunks(rows, [immutable for _, immutable in drawn], CHUNK)
    seen = {}
    for chunk in chunks:
        assert 0 < chunk.size_bytes <= CHUNK
        assert chunk.size_bytes == sum(cut.row.size_bytes for cut in chunk.cuts)
        for cut in chunk.cuts:
            source, immutable = drawn[cut.piece]
            assert immutable == chunk.immutable
            assert cut.piece_offset == (cut.row.start - source.start) * source.item_bytes
            for element in range(cut.row.start, cut.row.end):
                assert (cut.piece, element) not in seen
                seen[cut.piece, element] = True
    assert len(seen) == sum(row.end - row.start for row in rows)


@given(rows_of)
def test_cuts_lie_on_the_grid_whatever_the_row_begins_at(drawn):
    for chunk in plan_chunks([row for row, _ in drawn], [i for _, i in drawn], CHUNK):
        for cut in chunk.cuts:
            cell = CHUNK // cut.row.item_bytes
            assert cut.row.start // cell == (cut.row.end - 1) // cell


@given(rows_of)
def test_packs_are_at_least_half_full_but_the_last(drawn):
    chunks = plan_chunks([row for row, _ in drawn], [i for _, i in drawn], CHUNK)
    for immutable in (True, False):
        packs = [chunk for chunk in chunks if len(chunk.cuts) > 1 and chunk.immutable == immutable]
        assert all(2 * chunk.size_bytes > CHUNK for chunk in packs[:-1])


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(1, 7))
def test_frozen_chunks_do_not_depend_on_the_world_size(lengths, world_size):
    rows = [Row(f"p{i}", "frozen", 0, n, "bfloat16") for i, n in enumerate(lengths)]
    alone = sorted((chunk.rows for chunk in plan_chunks(rows, [True] * len(rows), CHUNK)), key=str)
    shares = frozen_shares(rows, world_size, CHUNK)
    assert len(shares) == world_size
    together = [chunk.rows for share in shares for chunk in plan_chunks(share, [True] * len(share), CHUNK)]
    assert sorted(together, key=str) == alone


def test_shares_are_about_equal_in_bytes():
    rows = [Row(f"p{i}", "frozen", 0, 128, "bfloat16") for i in range(40)]
    sizes = [sum(row.size_bytes for row in share) for share in frozen_shares(rows, 4, CHUNK)]
    assert max(sizes) - min(sizes) <= CHUNK


def test_no_frozen_rows_no_shares():
    assert frozen_shares([], 3) == ((), (), ())


def test_chunk_sizes_that_would_split_elements_are_refused():
    with pytest.raises(CheckpointError, match="multiple of 16"):
        plan_chunks([], [], 100)


def test_a_pack_holds_one_state_after_the_other_so_that_weights_are_read_together():
    rows = [Row(f"p{i}", state, 0, 4, "float32") for i in range(3) for state in ("fp32", "exp_avg")]
    [chunk] = plan_chunks(rows, [False] * len(rows), CHUNK)
    assert [row.state for row in chunk.rows] == ["exp_avg"] * 3 + ["fp32"] * 3
    assert [row.parameter for row in chunk.rows] == ["p0", "p1", "p2"] * 2
