"""The layout of a run: names there and back again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlcore.storage import keys

DIGEST = "ab" + "0" * 62
TRIAL = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
NUMBER = st.integers(0, 10**8 - 1)


def test_the_layout_is_this():
    """Spelled out, since stored runs have these names for ever."""
    assert keys.journal_key(7) == "journal/00000007.json"
    assert keys.history_key("t000", 3) == "trials/t000/history/00000003.json"
    assert keys.checkpoint_prefix("t000", 200) == "trials/t000/step-00000200/"
    assert keys.manifest_key("t000", 200) == "trials/t000/step-00000200/MANIFEST.json"
    assert keys.rank_index_key("t000", 200, 3, 1) == "trials/t000/step-00000200/rank-0003-0001.json"
    assert keys.chunk_key(DIGEST) == f"cas/ab/{DIGEST}"


@given(trial=TRIAL, n=NUMBER, rank=st.integers(0, 9999), attempt=st.integers(0, 9999))
def test_every_name_parses_back(trial, n, rank, attempt):
    assert keys.parse_journal_key(keys.journal_key(n)) == n
    assert keys.parse_history_key(keys.history_key(trial, n)) == (trial, n)
    assert keys.parse_manifest_key(keys.manifest_key(trial, n)) == (trial, n)
    assert keys.parse_rank_index_key(keys.rank_index_key(trial, n, rank, attempt)) == (trial, n, rank, attempt)


def test_a_run_id_is_known_by_its_form():
    assert keys.is_run_id(keys.new_run_id(datetime(2026, 11, 21, tzinfo=UTC), "x"))
    assert not [text for text in ("t000", "20261121-044500", "20261121-044500-ab12/", "") if keys.is_run_id(text)]


@given(a=NUMBER, b=NUMBER)
def test_key_order_is_number_order(a, b):
    assert (keys.journal_key(a) < keys.journal_key(b)) == (a < b)
    assert (keys.manifest_key("t", a) < keys.manifest_key("t", b)) == (a < b)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "journal/7.json",
        "journal/00000007.json.tmp",
        "x/journal/00000007.json",
        "trials/../step-00000001/MANIFEST.json",
        "run.json",
    ],
)
def test_strange_names_parse_to_nothing(key):
    parsers = (
        keys.parse_journal_key,
        keys.parse_history_key,
        keys.parse_manifest_key,
        keys.parse_rank_index_key,
        keys.parse_chunk_key,
    )
    assert [parse(key) for parse in parsers] == [None] * 5


def test_a_chunk_lies_under_its_own_digest():
    assert keys.parse_chunk_key(keys.chunk_key(DIGEST)) == DIGEST
    assert keys.parse_chunk_key(f"cas/cd/{DIGEST}") is None


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "ü", "-x", "a" * 201])
def test_names_that_cannot_stand_in_a_key(name):
    with pytest.raises(ValueError, match="must be letters"):
        keys.checkpoint_prefix(name, 0)


@pytest.mark.parametrize(
    "make", [lambda: keys.journal_key(-1), lambda: keys.journal_key(10**8), lambda: keys.chunk_key("AB")]
)
def test_numbers_and_digests_that_do_not_fit(make):
    with pytest.raises(ValueError):
        make()


def test_run_ids_sort_by_time_and_tell_apart_by_entropy():
    now = datetime(2026, 11, 21, 4, 45, 0, tzinfo=UTC)
    first, later = keys.new_run_id(now, "x"), keys.new_run_id(now + timedelta(seconds=1), "x")
    assert first.startswith("20261121-044500-") and len(first) == 20
    assert first < later
    assert first != keys.new_run_id(now, "y")
    assert first == keys.new_run_id(now.astimezone(timezone(timedelta(hours=9))), "x")
