"""Full blocks of a journal as one object each, so that a long sweep is read back in seconds.

Owns the block's form, when one is written, and reading a journal by way of them. Called by `journal.py`.

A block repeats `BLOCK` entries that are there already and never change, so it may be written late, twice, by two drivers at once,
or never: it is a copy for reading, put if absent. The small entries stay. They are the fence between two drivers: the one that is
behind finds its next number taken, whatever was copied since; deleting them, or writing entries into blocks alone, would let it
write. Reading 100,000 entries is then 100 reads besides the listing, instead of 100,000.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from tlcore.errors import StorageError
from tlcore.storage.base import ObjectStore
from tlcore.storage.documents import encode_json, get_json
from tlcore.storage.keys import JOURNAL_PREFIX, block_key, journal_key, parse_block_key, parse_journal_key

BLOCK: Final = 1000
"""Entries in a block: about 300 kB."""
_READERS: Final = 16

_Entry = dict[str, Any]


class Blocks:
    """Copies every full block of a journal that one driver writes.

    Args:
        ask: performs one put, as in `Journal`.
    """

    def __init__(self, store: ObjectStore, ask: Callable[[Callable[[], bool]], bool]) -> None:
        self._store, self._ask = store, ask
        self._newest: list[_Entry] = []

    def add(self, entry: _Entry) -> None:
        """Take note of an entry that is durable; the last one of a block has the block written."""
        self._newest.append(entry)
        if (entry["n"] + 1) % BLOCK:
            return
        first = entry["n"] + 1 - BLOCK
        # A driver that resumed within this block knows its end alone.
        known = {each["n"]: each for each in self._newest}
        missing = [n for n in range(first, first + BLOCK) if n not in known]
        known |= {each["n"]: each for each in _read_each(self._store, missing)}
        data = encode_json([known[n] for n in range(first, first + BLOCK)])
        self._ask(lambda: self._store.put_if_absent(block_key(first // BLOCK), data))
        self._newest.clear()


def read_entries(store: ObjectStore) -> list[_Entry]:
    """Every entry of the journal at the root of `store`, in order. Raises StorageError if one is missing or malformed."""
    keys = [info.key for info in store.list(JOURNAL_PREFIX)]
    numbers = sorted(number for key in keys if (number := parse_journal_key(key)) is not None)
    if numbers != list(range(len(numbers))):
        gap = next(expected for expected, number in enumerate(numbers) if number != expected)
        raise StorageError(
            f"journal of {store.url} has no entry {gap}", hint="the run was changed by hand; start a new one"
        )
    blocks = [block for key in keys if (block := parse_block_key(key)) is not None]
    with ThreadPoolExecutor(_READERS) as pool:
        read = list(pool.map(lambda block: _read_block(store, block), blocks))
    known = {entry["n"]: entry for entries in read for entry in entries}
    rest = [n for n in numbers if n not in known]
    known |= dict(zip(rest, _read_each(store, rest), strict=True))
    return [known[n] for n in numbers]


def _read_block(store: ObjectStore, block: int) -> list[_Entry]:
    """The entries of one block; none where it is not what it should be, since each is there by itself as well."""
    try:
        entries: list[_Entry] = get_json(store, block_key(block))
    except StorageError as error:
        if error.retry_helps:
            raise
        return []
    whole = isinstance(entries, list) and len(entries) == BLOCK and all(isinstance(each, dict) for each in entries)
    if not whole or [each.get("n") for each in entries] != list(range(block * BLOCK, (block + 1) * BLOCK)):
        return []
    return entries


def _read_each(store: ObjectStore, numbers: Sequence[int]) -> list[Any]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda n: get_json(store, journal_key(n)), numbers))
