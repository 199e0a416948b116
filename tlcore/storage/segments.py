"""Segments: every full thousand of a journal's entries once more in one object, so that a long journal is read in few requests.

Owns their form (a JSON array of the entries), and reading a journal whole, with and without them. Does not own an entry's form
or its writing. Called by `journal.py`.

A segment is a copy and never the only place of an entry. The entries stay, because they are what keeps two drivers apart: a driver
that is behind finds the number that it would write next taken, however long ago that entry was rolled up. A marker in an entry's
place would need a request for every entry and save no listing; a fence that asked for segments too would need two requests for
every entry, and could be overtaken between the two. The price is that the journal lies in the store twice, some 300 bytes an entry.

Because nothing is deleted or replaced, a writer that is killed while it rolls up leaves the journal whole: there is a segment, or
there is none and its entries are read one by one, until the next driver rolls them up. A segment is put only where none is, after
its last entry is durable; entries never change, so two drivers would write the same. Journals of before have no segments and are
read as ever. The best case in requests, for n entries: one listing, n / 1000 segments, one listing of the last block, its entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tlcore.errors import StorageError
from tlcore.storage.base import ObjectStore
from tlcore.storage.documents import get_json
from tlcore.storage.keys import (
    SEGMENT_ENTRIES,
    SEGMENTS_PREFIX,
    entries_prefix,
    journal_key,
    parse_journal_key,
    parse_segment_key,
    segment_key,
)

_READERS = 16


def read_entries(store: ObjectStore) -> list[Any]:
    """Every entry's JSON, in order. Raises StorageError where one is missing, or a segment is malformed."""
    entries: list[Any] = []
    with ThreadPoolExecutor(_READERS, thread_name_prefix="journal") as pool:
        # listed before any entry: what has a segment by now is full
        whole = {first: pool.submit(_read_segment, store, first) for first in sorted(rolled_up(store))}
        is_full, first = True, 0
        while is_full:
            if first in whole:
                entries += whole.pop(first).result()
            else:
                numbers = _numbers(store, first)
                entries += pool.map(lambda n: get_json(store, journal_key(n)), numbers)
                is_full = len(numbers) == SEGMENT_ENTRIES
            first += SEGMENT_ENTRIES
    if whole:
        raise _gap(store, len(entries))
    return entries


def read_block(store: ObjectStore, first: int) -> list[bytes]:
    """The entries of one full block as they were written, from the entries themselves."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="journal") as pool:
        return list(pool.map(lambda n: store.get(journal_key(n)), range(first, first + SEGMENT_ENTRIES)))


def rolled_up(store: ObjectStore) -> set[int]:
    """First entries of the segments that there are."""
    return {first for info in store.list(SEGMENTS_PREFIX) if (first := parse_segment_key(info.key)) is not None}


def roll_up(store: ObjectStore, first: int, entries: Sequence[bytes]) -> None:
    """Put the segment of these durable entries, unless it is there."""
    if first % SEGMENT_ENTRIES or len(entries) != SEGMENT_ENTRIES:
        raise ValueError(f"{len(entries)} entries from number {first} on are no whole segment")
    store.put_if_absent(segment_key(first), b"[" + b",".join(entries) + b"]")


def _read_segment(store: ObjectStore, first: int) -> list[Any]:
    key = segment_key(first)
    read = get_json(store, key)
    found: list[Any] = read if isinstance(read, list) else []
    numbers = [entry.get("n") if isinstance(entry, dict) else None for entry in found]
    if numbers != list(range(first, first + SEGMENT_ENTRIES)):
        raise StorageError(
            f"{key} in {store.url} does not hold the {SEGMENT_ENTRIES} journal entries from {first} on",
            hint="delete that object: it is a copy, and its entries are read one by one then",
            key=key,
        )
    return found


def _numbers(store: ObjectStore, first: int) -> Sequence[int]:
    """The entries that a block has, without a gap; a block that is not full is the journal's last."""
    numbers = _listed(store, first)
    if len(numbers) < SEGMENT_ENTRIES and _listed(store, first + SEGMENT_ENTRIES):
        numbers = _listed(store, first)  # entries may have come between two listings
        if len(numbers) < SEGMENT_ENTRIES:
            raise _gap(store, _first_missing(numbers, first))
    if _first_missing(numbers, first) != first + len(numbers):
        raise _gap(store, _first_missing(numbers, first))
    return numbers


def _listed(store: ObjectStore, first: int) -> list[int]:
    return [n for info in store.list(entries_prefix(first)) if (n := parse_journal_key(info.key)) is not None]


def _first_missing(numbers: Iterable[int], first: int) -> int:
    expected = first
    for number in numbers:
        if number != expected:
            break
        expected += 1
    return expected


def _gap(store: ObjectStore, n: int) -> StorageError:
    return StorageError(f"journal of {store.url} has no entry {n}", hint="the run was changed by hand; start a new one")
