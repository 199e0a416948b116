"""Figures as people read them: sensible digits, units, no more precision than was measured.

Owns the conversion of single values to text. Pure functions without colors; called by every module of this room.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

ABSENT = "-"
_SHORT_NAMES = {
    "learning_rate": "lr",
    "global_batch_size": "batch",
    "micro_batch_size": "micro",
    "weight_decay": "decay",
    "warmup_ratio": "warmup",
}


def metric(value: float | None) -> str:
    """A metric or a loss: four decimals below ten (one test example in ten thousand), four digits above."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def gain(value: float) -> str:
    """A difference of two metrics, always with its sign."""
    return f"{value:+.4f}"


def rate(per_second: float | None) -> str:
    """Samples per second, three digits."""
    if per_second is None or not math.isfinite(per_second):
        return ABSENT
    return f"{per_second:.1f}" if per_second < 100 else f"{per_second:,.0f}"


def share(fraction: float | None) -> str:
    """A fraction of a trial's own epochs, as per cent: `25%`, `33.3%`."""
    return ABSENT if fraction is None else f"{fraction * 100:.3g}%"


def moment(iso: str | None) -> str:
    """A point in time as it is stored (ISO 8601), to the second, in UTC."""
    if iso is None:
        return ABSENT
    return f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def sampled(value: Any) -> str:
    """One value of a sampled point: three significant digits, exponents where a plain decimal would count zeros."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        if value != 0 and (abs(value) < 1e-2 or abs(value) >= 1e5):
            digits, exponent = f"{value:.2e}".split("e")
            return f"{float(digits):g}e{int(exponent)}"
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ",".join(sampled(each) for each in value)
    return str(value)


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Dotted paths to column headings.

    The last part, abbreviated where the field has a usual abbreviation; the whole path where two last parts are equal.
    """
    every = list(paths)
    leaves = [path.rpartition(".")[2] for path in every]
    return {
        path: _SHORT_NAMES.get(leaf, leaf) if leaves.count(leaf) == 1 else path
        for path, leaf in zip(every, leaves, strict=True)
    }


def size(count_bytes: float) -> str:
    """Bytes in binary units, three digits: `312 B`, `86.4 MiB`."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    value, index = float(count_bytes), 0
    while value >= 999.5 and index < len(units) - 1:
        value, index = value / 1024, index + 1
    return f"{value:.0f} {units[index]}" if index == 0 or value >= 100 else f"{value:.3g} {units[index]}"


def duration(seconds: float | None) -> str:
    """A length of time with the two units that matter: `8 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def brief(seconds: float) -> str:
    """A short time: `0.2 ms`, `8 ms`, `1.3 s`."""
    if seconds >= 0.9995:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.00095 else f"{seconds * 1000:.1f} ms"


def speed(bytes_per_s: float) -> str:
    """Bytes per second in the units of networks, powers of ten: `45 MB/s`, `1.2 GB/s`."""
    return f"{bytes_per_s / 1e9:.2g} GB/s" if bytes_per_s >= 0.9995e9 else f"{bytes_per_s / 1e6:.3g} MB/s"


def whole(number: int | None) -> str:
    """A step, or that there is none."""
    return ABSENT if number is None else str(number)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 trial`, `8 trials`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
