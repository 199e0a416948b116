"""Figures: digits and units a reader can use."""

from __future__ import annotations

import math

import pytest

from tlcore.report import figures


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.7125, "0.7125"), (0.71249, "0.7125"), (1234.5678, "1235"), (math.nan, "nan"), (math.inf, "inf")],
)
def test_metric(value, text):
    assert figures.metric(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.1357e-4, "3.14e-4"),
        (1e-5, "1e-5"),
        (0.05, "0.05"),
        (0.0, "0"),
        (32, "32"),
        (2.0e5, "2e5"),
        ("last_n", "last_n"),
        (True, "true"),
        (None, "none"),
        ([1, 2.5], "1,2.5"),
    ],
)
def test_sampled(value, text):
    assert figures.sampled(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (312, "312 B"),
        (1023, "0.999 KiB"),
        (90_600_000, "86.4 MiB"),
        (1023 * 1024, "0.999 MiB"),
        (150 * 2**20, "150 MiB"),
        (5 * 2**40, "5 TiB"),
    ],
)
def test_size(count, text):
    assert figures.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.4, "0 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (273_600, "3 d 4 h"),
        (math.inf, "-"),
    ],
)
def test_duration(seconds, text):
    assert figures.duration(seconds) == text


def test_short_names_keep_whole_paths_where_leaves_collide():
    names = figures.short_names(["train.learning_rate", "transfer.n", "search.n"])
    assert names == {"train.learning_rate": "lr", "transfer.n": "transfer.n", "search.n": "search.n"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0002, "0.2 ms"), (0.0081, "8 ms"), (0.9994, "999 ms"), (0.99951, "1.0 s"), (12.34, "12.3 s")],
)
def test_brief(seconds, text):
    assert figures.brief(seconds) == text


@pytest.mark.parametrize(("bytes_per_s", "text"), [(45.4e6, "45.4 MB/s"), (999.4e6, "999 MB/s"), (1.24e9, "1.2 GB/s")])
def test_speed(bytes_per_s, text):
    assert figures.speed(bytes_per_s) == text
