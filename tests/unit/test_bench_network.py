"""The network bench's arithmetic, and the fates that its proxy deals out."""

from __future__ import annotations

import pytest

from jobs.bench.network.__main__ import Turn, summarize
from jobs.bench.network.faults import Faults, fate

pytestmark = pytest.mark.unit


def test_fates_come_at_the_stated_rates_and_again_with_the_same_seed():
    faults = Faults(slow_down_rate=0.01, stall_rate=0.05, seed=7)
    fates = [fate(faults, number) for number in range(20_000)]
    assert 0.008 < sum(each.slow_down for each in fates) / len(fates) < 0.012
    assert 0.045 < sum(each.stall_at is not None for each in fates) / len(fates) < 0.055
    assert all(0 <= each.stall_at < 1 for each in fates if each.stall_at is not None)
    assert fates == [fate(faults, number) for number in range(20_000)]
    assert fates != [fate(Faults(slow_down_rate=0.01, stall_rate=0.05, seed=8), number) for number in range(20_000)]


def test_no_fault_is_dealt_out_where_none_is_asked_for():
    assert not any(fate(Faults(), number).slow_down or fate(Faults(), number).stall_at for number in range(1000))


def test_settings_that_are_none_are_named():
    with pytest.raises(ValueError, match="speed"):
        Faults.from_dict({"speed": 1})


def test_fractions_are_of_what_the_connections_carry():
    counts = dict.fromkeys(("requests", "slow_downs", "stalls", "peak_busy", "bytes_up", "bytes_down", "store_s"), 0)
    turns = [
        Turn("tlcore", 4800, save, restore, counts, counts) for save, restore in ((100, 120), (110, 130), (150, 200))
    ]
    turns.append(Turn("dcp", 480, 100, 40, counts, counts))
    raw = {"put_bytes_per_s": 200.0, "get_bytes_per_s": 400.0}
    found = summarize(turns, ["tlcore", "dcp"], limit=48.0, cap=6.0, raw=raw, proxied=raw)
    assert found["save_fraction"] == pytest.approx(4800 / 110 / 48, abs=1e-4)
    assert found["restore_fraction"] == pytest.approx(4800 / 130 / 48, abs=1e-4)
    assert found["peers"]["dcp"]["save_fraction"] == pytest.approx(0.1)
    assert found["limit_over_raw"] == pytest.approx(0.24)
