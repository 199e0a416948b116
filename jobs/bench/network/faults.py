"""What the fault proxy does to requests, as values: its settings, its counts, and the decision for one request.

Owns no connection; `proxy.py` carries this out. Called by the network bench and by the storage tests.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Conditional = Literal["kept", "ignored", "refused"]


@dataclass(frozen=True)
class Faults:
    """A network and a store's moods. The default is a plain wire."""

    round_trip_s: float = 0.0
    """Added to each request, half before it reaches the store and half before its answer leaves; once per connection too."""
    bytes_per_s: float = 0.0
    """Most of one connection, each way; 0 is no bound."""
    total_bytes_per_s: float = 0.0
    """Most of all connections together, each way; 0 is no bound."""
    slow_down_rate: float = 0.0
    """Share of requests answered with 503 SlowDown instead of being passed on."""
    stall_rate: float = 0.0
    """Share of requests that stand still for `stall_s` at a random place of their body."""
    stall_s: float = 5.0
    conditional: Conditional = "kept"
    """`ignored`: `If-None-Match` is taken out, so that the store overwrites; `refused`: such a PUT gets 501 NotImplemented."""
    valid_keys: tuple[str, ...] | None = None
    """Access key ids that are let through, re-signed with the store's own keys; others get 403 ExpiredToken."""
    full: bool = False
    """Every PUT gets 507 XMinioStorageFull, as from a MinIO without space."""
    seed: int = 0

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Faults:
        known = {field.name for field in fields(cls)}
        if unknown := set(raw) - known:
            raise ValueError(f"unknown fault settings {sorted(unknown)}; there are {sorted(known)}")
        keys = raw.get("valid_keys")
        return cls(**{**raw, "valid_keys": None if keys is None else tuple(keys)})


@dataclass
class Counts:
    """What has passed since the settings were last given."""

    requests: int = 0
    puts: int = 0
    gets: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    slow_downs: int = 0
    stalls: int = 0
    refused: int = 0
    connections: int = 0
    peak_busy: int = 0
    """Most connections that carried a request at one moment."""
    store_s: float = 0.0
    """Seconds that requests waited for the store after their body had arrived there, summed."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Fate:
    """What happens to one request. `stall_at`: share of the body after which it stands still; None: never."""

    slow_down: bool
    stall_at: float | None


def fate(faults: Faults, number: int) -> Fate:
    """The fate of the `number`-th request: the same for the same seed, whatever the others met."""
    draw = random.Random(f"{faults.seed}/{number}")
    slow_down, stalls, place = draw.random(), draw.random(), draw.random()
    return Fate(slow_down < faults.slow_down_rate, place if stalls < faults.stall_rate else None)


def error_body(code: str, message: str, resource: str) -> bytes:
    """An S3 error document."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
        f"<Resource>{resource}</Resource><RequestId>tlcore-proxy</RequestId></Error>"
    ).encode()
