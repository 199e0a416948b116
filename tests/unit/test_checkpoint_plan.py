"""The grid, the packing and the sharing of frozen parameters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlcore.checkpoint.intervals import ITEM_BYTES, Row
from tlcore.checkpoint.plan import by_buffer, frozen_shares, in_order, plan_chunks
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


@given(rows_of, st.integers(0, 5))
def test_every_byte_of_every_row_is_in_exactly_one_chunk(drawn, connections):
    rows = [row for row, _ in drawn]
    chunks = plan_chunks(rows, [immutable for _, immutable in drawn], CHUNK, connections)
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


@given(rows_of, st.integers(0, 5))
def test_cuts_lie_on_the_grid_whatever_the_row_begins_at(drawn, connections):
    for chunk in plan_chunks([row for row, _ in drawn], [i for _, i in drawn], CHUNK, connections):
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


@given(rows_of, st.integers(1, 5))
def test_what_is_left_after_whole_rounds_of_connections_is_cut_in_quarters(drawn, connections):
    rows, immutable = [row for row, _ in drawn], [immutable for _, immutable in drawn]
    whole, cut = plan_chunks(rows, immutable, CHUNK), plan_chunks(rows, immutable, CHUNK, connections)
    before, after = ([chunk for chunk in chunks if not chunk.immutable] for chunks in (whole, cut))
    assert [chunk for chunk in whole if chunk.immutable] == [chunk for chunk in cut if chunk.immutable]
    left = len(before) % connections
    left = left if 24 * left <= len(before) else 0
    assert after[: len(before) - left] == [before[number] for number in sorted(in_order(before)[: len(before) - left])]
    assert all(chunk.size_bytes <= CHUNK // 4 for chunk in after[len(before) - left :])
    assert sum(chunk.size_bytes for chunk in after) == sum(chunk.size_bytes for chunk in before)


def sizes(count, connections):
    rows = [Row(f"p{i}", "fp32", 0, CHUNK // 4, "float32") for i in range(count)]
    return [chunk.size_bytes for chunk in plan_chunks(rows, [False] * count, CHUNK, connections)]


def test_quarters_share_the_connections_at_the_end():
    """Fifty like chunks on eight connections: two full rounds after the sixth take as long as half a round."""
    assert sizes(50, 8) == [CHUNK] * 48 + [CHUNK // 4] * 8


@pytest.mark.parametrize(("count", "connections"), [(48, 8), (10, 8), (27, 16), (5, 8), (0, 8)])
def test_nothing_is_cut_where_that_is_an_eighth_more_requests_or_for_nothing(count, connections):
    assert sizes(count, connections) == [CHUNK] * count


@given(rows_of, st.integers(0, 5))
def test_buffers_hold_every_chunk_once_in_order(drawn, connections):
    chunks = plan_chunks([row for row, _ in drawn], [i for _, i in drawn], CHUNK, connections)
    runs = by_buffer(chunks, in_order(chunks), CHUNK)
    assert [number for run in runs for number in run] == in_order(chunks)
    assert all(sum(chunks[number].size_bytes for number in run) <= CHUNK for run in runs)
    assert len(runs) <= len(plan_chunks([row for row, _ in drawn], [i for _, i in drawn], CHUNK)) + 1
