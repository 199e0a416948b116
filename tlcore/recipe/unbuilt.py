"""What the design names and this version does not build: one row each.

Owns the table. A row refuses a value that the schema already knows (or a key that it does not have yet), so that
nothing asked for is ever ignored. Whoever builds a capability deletes its row. Called by `build.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from tlcore.errors import Fault
from tlcore.recipe.credentials import shown


@dataclass(frozen=True)
class Unbuilt:
    """One refused thing: a dotted path, a test on the value, and what may be given instead."""

    path: str
    refuses: Callable[[Any], bool]
    built: str


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _is_nvme(value: Any) -> bool:
    return value == "nvme" or (isinstance(value, dict) and value.get("device") == "nvme")


UNBUILT: Final = (
    Unbuilt("deepspeed.offload_optimizer", _is_nvme, "cpu, none"),
    Unbuilt("deepspeed.offload_param", _is_nvme, "cpu, none"),
    Unbuilt("resources.workers", _is_map, "a fixed number of workers"),
)


def unbuilt_faults(data: dict[str, Any]) -> Iterator[Fault]:
    """One fault for each known thing in the raw recipe that is not built."""
    for row in UNBUILT:
        value = _value_at(data, row.path)
        if value is not _ABSENT and row.refuses(value):
            yield Fault(row.path, f"not built yet (got {shown(value)}); built: {row.built}")


_ABSENT: Final = object()


def _value_at(data: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(data, dict) or key not in data:
            return _ABSENT
        data = data[key]
    return data
