"""Digests: the name of a chunk, the proof of a part of it, and the seal on a metadata object.

Owns: how bytes become digests. Called by: `writer`, `reader`, `manifest`, `verify`.

A chunk is hashed leaf by leaf (BLAKE3 of each `leaf_bytes`), and its name is the BLAKE3 of its leaves' digests,
size and leaf size. Every byte is hashed once at save; the leaves stand in the rank index, so that restore at another
world size reads and proves a part of a chunk without the rest, again hashing every byte it reads once. One digest
of the whole object would need either the whole object on a partial read or a second hash per range at save.
The price: no tool's digest of a chunk is its key, and 64 index bytes per leaf (0.02 % at 256 KiB, 0.2 % at 32 KiB).

BLAKE3 (O'Connor, Aumasson, Neves, Wilcox-O'Hearn 2020; the authors' own package) and not SHA-256, which the design
started from and which was most of the client's work in a save or restore: 0.24 against 0.87 CPU-s/GB in leaves of
256 KiB and 0.28 against 0.90 in leaves of 32 KiB, on a CPU that has instructions for SHA-256; without them the distance
grows. Both resist collisions at 128 bits. Both release the GIL above 2 KiB per call, so training goes on while leaves are
hashed.

A metadata object (manifest, rank index) is one JSON object whose first member is the SHA-256 of every byte after it,
so that any flipped bit is found without a second serialisation, and by tools that every system has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from blake3 import blake3

from tlcore.errors import CheckpointCorrupt, CheckpointError

LEAF_DIGEST_BYTES = 32
_SEAL_HEAD = b'{"sha256":"'
_SEAL_TAIL = b'",'
_SEALED = len(_SEAL_HEAD) + 64 + len(_SEAL_TAIL)


def leaf_digests(parts: Sequence[memoryview], leaf_bytes: int) -> bytes:
    """Concatenated digests of each `leaf_bytes` of what the parts hold one after the other (the last may be shorter)."""
    digests: list[bytes] = []
    hasher, room = blake3(), leaf_bytes
    for part in parts:
        at = 0
        while at < len(part):
            taken = part[at : at + room]
            hasher.update(taken)
            at, room = at + len(taken), room - len(taken)
            if not room:
                digests.append(hasher.digest())
                hasher, room = blake3(), leaf_bytes
    if room < leaf_bytes:
        digests.append(hasher.digest())
    return b"".join(digests)


def chunk_digest(leaves: bytes, size_bytes: int, leaf_bytes: int) -> str:
    """Name of a chunk, 64 hex digits, from its leaves' digests."""
    head = b"tlcore chunk 2\0" + size_bytes.to_bytes(8, "little") + leaf_bytes.to_bytes(8, "little")
    return blake3(head + leaves).hexdigest()


def leaf_count(size_bytes: int, leaf_bytes: int) -> int:
    """Number of leaves of a chunk."""
    return -(-size_bytes // leaf_bytes)


def first_bad_leaf(parts: Sequence[memoryview], leaves: bytes, leaf_bytes: int, first: int) -> int | None:
    """Index of the first leaf of the parts (which begin at leaf `first`) that is not what `leaves` says; None when
    all are.
    """
    found = leaf_digests(parts, leaf_bytes)
    expected = leaves[first * LEAF_DIGEST_BYTES : first * LEAF_DIGEST_BYTES + len(found)]
    if found == expected:
        return None
    for at in range(0, len(found), LEAF_DIGEST_BYTES):
        if found[at : at + LEAF_DIGEST_BYTES] != expected[at : at + LEAF_DIGEST_BYTES]:
            return first + at // LEAF_DIGEST_BYTES
    return first + len(found) // LEAF_DIGEST_BYTES


def seal(body: dict[str, Any]) -> bytes:
    """One JSON object that proves itself.

    Raises CheckpointError where `body` holds what JSON cannot (NaN, bytes, objects).
    """
    try:
        text = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"a checkpoint's metadata must be JSON: {error}") from error
    rest = text[1:]
    return _SEAL_HEAD + hashlib.sha256(rest).hexdigest().encode() + _SEAL_TAIL + rest


def unseal(data: bytes, key: str) -> dict[str, Any]:
    """The object that `seal` wrote. Raises CheckpointCorrupt naming `key` on anything else."""
    rest = data[_SEALED:]
    if data[:_SEALED] != _SEAL_HEAD + hashlib.sha256(rest).hexdigest().encode() + _SEAL_TAIL:
        raise CheckpointCorrupt(f"{key}: {len(data)} bytes that do not match the digest they begin with", key=key)
    try:
        body = json.loads(b"{" + rest)
    except (ValueError, RecursionError) as error:
        raise CheckpointCorrupt(f"{key}: not JSON: {error}", key=key) from error
    if not isinstance(body, dict):
        raise CheckpointCorrupt(f"{key}: a JSON object is expected", key=key)
    return body


def sha256_hex(data: bytes) -> str:
    """SHA-256 of a metadata object, as a manifest names it."""
    return hashlib.sha256(data).hexdigest()
