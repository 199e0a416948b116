"""What the design names and this version does not build: one row each.

Owns the table. A row refuses a value that the schema already knows (or a key that it does not have yet), so that
nothing asked for is ever ignored. Whoever builds a capability deletes its row; what is built is then offered in
messages by itself. Called by `build.py` and `faults.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from tlcore.errors import Fault
from tlcore.recipe.credentials import shown
from tlcore.recipe.fields import literal_values


@dataclass(frozen=True)
class Unbuilt:
    """One refused thing: a dotted path, a word or a test on the value, and what may be given instead."""

    path: str
    refuses: str | Callable[[Any], bool]
    built: str = ""

    def meets(self, value: Any) -> bool:
        """Whether this row refuses the value."""
        return value == self.refuses if isinstance(self.refuses, str) else self.refuses(value)


def _given(value: Any) -> bool:
    return value not in (None, False, "none", [], {})


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _is_nvme(value: Any) -> bool:
    return value == "nvme" or (isinstance(value, dict) and value.get("device") == "nvme")


UNBUILT: Final = (
    Unbuilt("transfer.strategy", "qlora"),
    Unbuilt("deepspeed.offload_optimizer", _is_nvme, "cpu, none"),
    Unbuilt("deepspeed.offload_param", _is_nvme, "cpu, none"),
    Unbuilt("resources.workers", _is_map, "a fixed number of workers"),
    Unbuilt("track.mlflow", _given, "null"),
    Unbuilt("track.wandb", _given, "null"),
)


def unbuilt_words(path: str) -> tuple[str, ...]:
    """The words of a setting that are known and refused."""
    return tuple(row.refuses for row in UNBUILT if row.path == path and isinstance(row.refuses, str))


def built_words(path: str) -> tuple[str, ...]:
    """The words of a setting that this version builds, in the schema's order."""
    return tuple(word for word in literal_values(path) if word not in unbuilt_words(path))


def unbuilt_faults(data: dict[str, Any]) -> Iterator[Fault]:
    """One fault for each known thing in the raw recipe that is not built."""
    for row in UNBUILT:
        value = _value_at(data, row.path)
        if isinstance(row.refuses, str) and isinstance(value, dict):
            value = row.refuses if row.refuses in value else _ABSENT
        if value is _ABSENT or not row.meets(value):
            continue
        said = (
            f"{shown(value)} is not built yet"
            if isinstance(row.refuses, str)
            else f"not built yet (got {shown(value)})"
        )
        yield Fault(row.path, f"{said}; built: {row.built or ', '.join(built_words(row.path))}")


_ABSENT: Final = object()


def _value_at(data: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(data, dict) or key not in data:
            return _ABSENT
        data = data[key]
    return data
