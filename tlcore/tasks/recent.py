"""A small memory of what was prepared last, per process.

Owns nothing but forgetting. A warm worker runs trial after trial on the same data; what it read and tokenized for one serves the
next. Called by the tasks, each with its own instance, so that the bound is stated where the size of the entries is known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
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
