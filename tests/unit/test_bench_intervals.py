"""The benches' statistics."""

from __future__ import annotations

import pytest

from jobs.bench.intervals import paired_ratio


def test_equal_ratios_have_no_spread() -> None:
    ratio = paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (ratio.value, ratio.low, ratio.high, ratio.pairs) == (
        pytest.approx(2),
        pytest.approx(2),
        pytest.approx(2),
        3,
    )


def test_drift_that_hits_both_sides_cancels() -> None:
    ratio = paired_ratio([1.0, 10.0, 100.0], [2.0, 20.0, 200.0])
    assert ratio.high == pytest.approx(0.5)


def test_two_noisy_pairs_give_a_wide_interval() -> None:
    ratio = paired_ratio([1.0, 1.2], [1.0, 1.0])
    assert ratio.low < 1 < ratio.high


def test_one_pair_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two"):
        paired_ratio([1.0], [1.0])
