"""A small memory of what was prepared last, per process.

Owns nothing but forgetting. A warm worker runs trial after trial on the same data; what it read and tokenized for one serves the
next. Called by the tasks, each with its own instance, so that the bound is stated where the size of the entries is known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The `entries` most recently used values by key. Not for several threads: a worker's loop is one."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value for `key`, made now if it is not remembered."""
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        while len(self._values) > self._entries:
            self._values.popitem(last=False)
        return self._values[key]


class Held(Generic[Value]):
    """Values of a group by number, until `most_bytes` are held; what does not fit is made anew each time. A group is the samples of
    one place, prepared in one way. The `groups` most recently used ones stay, which are the training, validation and test samples
    of a trial; older ones go, the least recently used first, where their bytes are needed.

    Within a group it is not the most recently used that stay: in a random order, epoch after epoch, those that came first are asked
    for as often as any, and with them no more is made anew than what does not fit.
    """

    def __init__(self, most_bytes: int, size_bytes: Callable[[Value], int], groups: int = 3) -> None:
        self._free_bytes, self._size_bytes, self._kept_groups = most_bytes, size_bytes, groups
        self._groups: OrderedDict[Hashable, dict[int, Value]] = OrderedDict()

    def get(
        self, group: Hashable, numbers: Sequence[int], make: Callable[[Sequence[int]], Sequence[Value]]
    ) -> list[Value]:
        """The values of these numbers; `make` gives those that are not held."""
        held = self._groups.setdefault(group, {})
        self._groups.move_to_end(group)
        absent = [number for number in dict.fromkeys(numbers) if number not in held]
        made = dict(zip(absent, make(absent), strict=True)) if absent else {}
        found = [held[number] if number in held else made[number] for number in numbers]
        for number, value in made.items():
            size = self._size_bytes(value)
            self._make_room(size)
            if size <= self._free_bytes:
                held[number] = value
                self._free_bytes -= size
        return found

    def _make_room(self, size_bytes: int) -> None:
        while size_bytes > self._free_bytes and len(self._groups) > self._kept_groups:
            _, old = self._groups.popitem(last=False)
            self._free_bytes += sum(self._size_bytes(value) for value in old.values())
