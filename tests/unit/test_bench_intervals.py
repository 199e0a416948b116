"""The benches' statistics."""

from __future__ import annotations

import pytest

from jobs.bench.intervals import paired_difference, paired_ratio


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


def test_a_difference_is_of_pairs() -> None:
    gap = paired_difference([0.9, 0.5], [0.8, 0.4])
    assert gap.value == pytest.approx(0.1)
    assert gap.low == pytest.approx(0.1)
    assert gap.pairs == 2


def test_the_interval_of_a_difference_is_students() -> None:
    gap = paired_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert gap.low is not None and gap.high is not None
    assert (gap.low, gap.high) == (pytest.approx(2 - 4.30 / 3**0.5), pytest.approx(2 + 4.30 / 3**0.5))


def test_one_pair_has_a_difference_and_no_interval() -> None:
    assert paired_difference([1.0], [0.5]).to_dict() == {"value": 0.5, "low": None, "high": None, "pairs": 1}
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([], [])
