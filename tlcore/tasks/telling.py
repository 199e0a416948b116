"""What a task tells the user of the data that it prepares: once, by one of the ranks.

Owns that rule. Called by the tasks where they leave out, cut or miss something of what was given.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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


def tell_cut(
    place: str, lengths: Sequence[int], most: int, setting: str = "data.max_length", what: str = "texts"
) -> None:
    """Say how many texts of a place were cut; nothing where none was.

    Args:
        lengths: tokens of each text before.
        most: what `setting` is.
    """
    longer = [length for length in lengths if length > most]
    if longer:
        tell_once(
            f"{len(longer)} of {len(lengths)} {what} of {place} are longer than {setting}={most} tokens and were cut "
            f"(longest has {max(longer)})"
        )
