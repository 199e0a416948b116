"""What a task tells the user of the data that it prepares: once, by one of the ranks.

Owns that rule. Called by the tasks where they leave out, cut or miss something of what was given.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_TOLD: Final[set[str]] = set()


def is_rank_0() -> bool:
    """Whether this process is the one that speaks for all ranks."""
    from torch import distributed

    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def tell_once(line: str) -> None:
    """Warn of it, if this is rank 0 and the process has not yet: trial after trial of a warm worker prepares the same data."""
    if line not in _TOLD and is_rank_0():
        _TOLD.add(line)
        logging.getLogger(__name__).warning("%s", line)


@dataclass(frozen=True)
class Cut:
    """How many of how many texts were longer than `most` tokens, and the longest's tokens."""

    most: int
    longer: int = 0
    texts: int = 0
    longest: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int], most: int) -> Cut:
        """Of texts that had so many tokens each."""
        longer = sum(1 for length in lengths if length > most)
        return cls(most, longer, len(lengths), int(max(lengths, default=0)))

    def __add__(self, other: Cut) -> Cut:
        longest = max(self.longest, other.longest)
        return Cut(self.most, self.longer + other.longer, self.texts + other.texts, longest)

    def tell(self, place: str, setting: str = "data.max_length", what: str = "texts") -> None:
        """Say how many texts of a place were cut, since `setting` is `most`; nothing where none was."""
        if self.longer:
            tell_once(
                f"{self.longer} of {self.texts} {what} of {place} are longer than {setting}={self.most} tokens and were cut "
                f"(longest has {self.longest})"
            )
