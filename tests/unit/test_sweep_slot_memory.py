"""When a warm group is replaced for what it keeps, and what is measured."""

from __future__ import annotations

import pytest

from tlcore.engine.resident import measure
from tlcore.sweep.slots.slot_memory import AUTO_BYTES, Growth

pytestmark = pytest.mark.unit


def held(*resident, device=0):
    return [{"resident_bytes": each, "device_bytes": device} for each in resident]


def test_growth_is_what_a_rank_holds_beyond_its_first_trial():
    growth = Growth(100)
    assert growth.judge(held(1000, 5000)) is None
    assert growth.judge(held(1100, 5100)) is None
    said = growth.judge(held(1000, 5101))
    assert said is not None
    assert said.startswith("rank 1 holds 5101 resident bytes")
    assert "101 more" in said
    assert "resources.slot_growth_bytes allows 100" in said
    assert Growth(100).judge(held(10**9)) is None  # the first trial of a group is where it begins


def test_device_memory_counts_by_itself():
    growth = Growth("auto")
    growth.judge(held(1, 1))
    assert growth.judge(held(1, 1, device=AUTO_BYTES)) is None
    assert "device bytes" in str(growth.judge(held(1, 1, device=AUTO_BYTES + 1)))


def test_what_is_held_is_seen_and_what_was_given_back_is_not():
    before = measure().resident_bytes
    block = bytearray(b"x") * (64 << 20)
    during = measure().resident_bytes
    assert len(block) == 64 << 20
    del block
    after = measure().resident_bytes
    assert during - before > 60 << 20
    assert during - after > 60 << 20
