"""Strict reading of untrusted JSON: every accessor returns the type asked for or raises CheckpointCorrupt with the
dotted path.

Owns: type and range checks. Called by `manifest.py`. Metadata comes from an object store where anybody may have
written, so nothing is taken on trust: no coercion, no booleans as integers, no numbers that would make a reader
allocate without bound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tlcore.errors import CheckpointCorrupt

_HEX64 = re.compile(r"[0-9a-f]{64}\Z")


class Fields:
    """One JSON object of the document `key`, at the dotted path `where`."""

    def __init__(self, value: object, key: str, where: str = "") -> None:
        self._key, self._where = key, where
        if not isinstance(value, dict):
            raise self._bad("", f"an object is expected, not {_kind(value)}")
        self._map: dict[str, Any] = value

    def integer(self, name: str, low: int = 0, high: int = 1 << 50) -> int:
        """A whole number in `[low, high]`."""
        return self.as_integer(self._get(name), name, low, high)

    def text(self, name: str, longest: int = 1024) -> str:
        """A string that is not empty."""
        return self.as_text(self._get(name), name, longest)

    def digest(self, name: str) -> str:
        """64 lower-case hex digits."""
        value = self._get(name)
        if not isinstance(value, str) or not _HEX64.match(value):
            raise self._bad(name, "64 hex digits are expected")
        return value

    def sequence(self, name: str, longest: int = 1 << 24) -> Sequence[Any]:
        """A list."""
        return self.as_sequence(self._get(name), name, longest)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """An object with any members."""
        value = self._get(name)
        if not isinstance(value, dict):
            raise self._bad(name, f"an object is expected, not {_kind(value)}")
        return value

    def fields(self, name: str) -> Fields:
        """An object, to be read strictly in turn."""
        return Fields(self._get(name), self._key, self._path(name))

    def hex_bytes(self, name: str, length: int) -> bytes:
        """`length` bytes written as lower-case hex."""
        value = self._get(name)
        if not isinstance(value, str) or len(value) != 2 * length or not value.isascii():
            raise self._bad(name, f"{2 * length} hex digits are expected")
        try:
            return bytes.fromhex(value)
        except ValueError:
            raise self._bad(name, f"{2 * length} hex digits are expected") from None

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            raise self._bad(name, f"true or false is expected, not {_kind(value)}")
        return value

    def optional_text(self, name: str) -> str | None:
        """A string, or null, or absent."""
        return None if self._map.get(name) is None else self.text(name)

    def as_integer(self, value: object, name: str, low: int = 0, high: int = 1 << 50) -> int:
        """`value`, found at `name`, as a whole number in `[low, high]`."""
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._bad(name, f"a whole number from {low} to {high} is expected, not {_short(value)}")
        return value

    def as_text(self, value: object, name: str, longest: int = 1024) -> str:
        """`value`, found at `name`, as a string that is not empty."""
        if not isinstance(value, str) or not 0 < len(value) <= longest:
            raise self._bad(name, f"a string of 1 to {longest} characters is expected, not {_short(value)}")
        return value

    def as_sequence(self, value: object, name: str, longest: int = 1 << 24) -> Sequence[Any]:
        """`value`, found at `name`, as a list."""
        if not isinstance(value, list) or len(value) > longest:
            raise self._bad(name, f"a list of at most {longest} is expected, not {_kind(value)}")
        return value

    def item(self, value: object, name: str) -> Fields:
        """`value`, found at `name`, as an object to be read strictly."""
        return Fields(value, self._key, self._path(name))

    def fault(self, name: str, text: str) -> CheckpointCorrupt:
        """The error for a value that reads well and still cannot be."""
        return self._bad(name, text)

    def _get(self, name: str) -> Any:
        if name not in self._map:
            raise self._bad(name, "is missing")
        return self._map[name]

    def _path(self, name: str) -> str:
        return ".".join(part for part in (self._where, name) if part)

    def _bad(self, name: str, text: str) -> CheckpointCorrupt:
        return CheckpointCorrupt(f"{self._key}: {self._path(name) or 'document'}: {text}", key=self._key)


def _kind(value: object) -> str:
    return type(value).__name__


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, int | float | str | None) else _kind(value)
    return text if len(text) <= 60 else text[:57] + "..."
