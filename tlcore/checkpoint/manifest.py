"""What a checkpoint is in the store: a manifest, and one index per rank.

Owns: the format, its version, writing and strict reading of it. Does not own: chunks (`digest.py`), the commit
(`commit.py`). Called by: `writer`, `reader`, `verify`, `retention`, `gc`, and whoever lists checkpoints.

    step-00000200/rank-<rank>-<attempt>.json  which rows this rank wrote, in which chunk, where; chunks' leaf digests
    step-00000200/MANIFEST.json               step, world size, attempt, indexes' digests, `common`, totals; written last

A checkpoint exists if and only if its manifest does. Both objects are sealed JSON (`digest.py`); bytes in chunks are
raw and little-endian. Nothing is pickled, nothing is executed on load. `common` is what rank 0 hands over: the table
of parameters, which this room reads, and JSON that it only keeps (scalars, model, metrics, offered).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tlcore.checkpoint.digest import LEAF_DIGEST_BYTES, chunk_digest, leaf_count, seal, sha256_hex, unseal
from tlcore.checkpoint.fields import Fields
from tlcore.checkpoint.intervals import ITEM_BYTES, MAX_ELEMENTS, ParameterFacts, Row
from tlcore.errors import CheckpointCorrupt, CheckpointError, CheckpointIncompatible, ObjectMissing
from tlcore.storage.base import ObjectStore
from tlcore.storage.keys import check_name, manifest_key, parse_manifest_key, parse_rank_index_key, trial_prefix

FORMAT = 2
"""1 had SHA-256 where chunks now have BLAKE3 (`digest.py`); nothing released wrote it."""
MAX_CHUNK_BYTES = 1 << 30
MAX_RANKS = 10_000
MAX_STEP = 10**8 - 1
MAX_ATTEMPT = 9999
"""What keys have digits for."""


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """One object of the content store: its name, its size, and the digests of its leaves (32 bytes each,
    concatenated).
    """

    digest: str
    size_bytes: int
    leaf_bytes: int
    leaves: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row and where its bytes are: chunk number `chunk` of the same index, from byte `offset`."""

    row: Row
    chunk: int
    offset: int


@dataclass(frozen=True)
class RankIndex:
    """What one rank wrote for one step. `bytes_new` is what it uploaded, the rest it found there."""

    trial: str
    step: int
    rank: int
    world_size: int
    attempt: int
    bytes_new: int
    chunks: tuple[StoredChunk, ...]
    rows: tuple[StoredRow, ...]

    def to_bytes(self) -> bytes:
        """Sealed JSON; names, states and dtypes stand once in tables, rows are lists of numbers."""
        names, states, dtypes = _Table(), _Table(), _Table()
        rows = [
            [
                names(at.row.parameter),
                states(at.row.state),
                dtypes(at.row.dtype),
                at.row.start,
                at.row.end,
                at.chunk,
                at.offset,
            ]
            for at in self.rows
        ]
        return seal(
            {
                "format": FORMAT,
                "kind": "rank-index",
                "trial": self.trial,
                "step": self.step,
                "rank": self.rank,
                "world_size": self.world_size,
                "attempt": self.attempt,
                "bytes_new": self.bytes_new,
                "parameters": list(names),
                "states": list(states),
                "dtypes": list(dtypes),
                "chunks": [
                    {
                        "digest": each.digest,
                        "bytes": each.size_bytes,
                        "leaf_bytes": each.leaf_bytes,
                        "leaves": each.leaves.hex(),
                    }
                    for each in self.chunks
                ],
                "rows": rows,
            }
        )


@dataclass(frozen=True, slots=True)
class IndexRef:
    """A rank index as the manifest names it."""

    rank: int
    key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Bytes of state in the checkpoint, bytes of it that this save uploaded, and the number of distinct chunks."""

    state_bytes: int
    new_bytes: int
    chunks: int


@dataclass(frozen=True)
class Manifest:
    """A committed checkpoint. `written` is the writer's clock (ISO 8601, UTC), for people; nothing is decided by it."""

    trial: str
    step: int
    world_size: int
    attempt: int
    written: str
    indexes: tuple[IndexRef, ...]
    common: Mapping[str, Any]
    parameters: Mapping[str, ParameterFacts]
    totals: Totals

    @property
    def key(self) -> str:
        """Its own key, relative to the run."""
        return manifest_key(self.trial, self.step)

    @property
    def zero_stage(self) -> int | None:
        """ZeRO stage at the save, where the caller gave it."""
        stage = self.common.get("zero_stage")
        return stage if isinstance(stage, int) else None

    @property
    def scalars(self) -> Mapping[str, Any]:
        """Scheduler, optimizer step, data position, seeds, as rank 0 handed them over."""
        scalars = self.common.get("scalars", {})
        return scalars if isinstance(scalars, dict) else {}

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics known at the save; what is not a number is left out."""
        metrics = self.common.get("metrics")
        known = metrics.items() if isinstance(metrics, dict) else ()
        return {name: value for name, value in known if isinstance(value, int | float) and not isinstance(value, bool)}

    @property
    def parent(self) -> str | None:
        """Key of the manifest from which this run of training was restored."""
        parent = self.common.get("parent")
        return parent if isinstance(parent, str) else None

    def to_bytes(self) -> bytes:
        """Sealed JSON. Raises CheckpointError when `common` holds what JSON cannot."""
        return seal(
            {
                "format": FORMAT,
                "kind": "manifest",
                "trial": self.trial,
                "step": self.step,
                "world_size": self.world_size,
                "attempt": self.attempt,
                "written": self.written,
                "totals": {
                    "state_bytes": self.totals.state_bytes,
                    "new_bytes": self.totals.new_bytes,
                    "chunks": self.totals.chunks,
                },
                "indexes": [
                    {"rank": each.rank, "key": each.key, "sha256": each.sha256, "bytes": each.size_bytes}
                    for each in self.indexes
                ],
                "common": dict(self.common),
            }
        )


def parse_manifest(data: bytes, key: str) -> Manifest:
    """Read a manifest's bytes. Raises CheckpointCorrupt on junk, CheckpointIncompatible on another format."""
    top = _document(data, key, "manifest")
    world_size = top.integer("world_size", 1, MAX_RANKS)
    totals = top.fields("totals")
    refs = []
    for number, value in enumerate(top.sequence("indexes", MAX_RANKS)):
        at = top.item(value, f"indexes[{number}]")
        rank = at.integer("rank", 0, world_size - 1)
        refs.append(IndexRef(rank, _index_key(at), at.digest("sha256"), at.integer("bytes")))
    if sorted(each.rank for each in refs) != list(range(world_size)):
        raise top.fault("indexes", f"one per rank of {world_size} is expected")
    return Manifest(
        trial=_trial(top),
        step=top.integer("step", 0, MAX_STEP),
        world_size=world_size,
        attempt=top.integer("attempt", 0, MAX_ATTEMPT),
        written=top.text("written"),
        indexes=tuple(refs),
        common=top.mapping("common"),
        parameters=_parameters(top.fields("common")),
        totals=Totals(totals.integer("state_bytes"), totals.integer("new_bytes"), totals.integer("chunks")),
    )


def parse_index(data: bytes, key: str) -> RankIndex:
    """Read a rank index's bytes. Raises CheckpointCorrupt on junk, CheckpointIncompatible on another format."""
    top = _document(data, key, "rank-index")
    chunks = tuple(_chunk(top.item(value, f"chunks[{at}]")) for at, value in enumerate(top.sequence("chunks")))
    names, states, dtypes = (
        tuple(top.as_text(value, table) for value in top.sequence(table))
        for table in ("parameters", "states", "dtypes")
    )
    for dtype in dtypes:
        if dtype not in ITEM_BYTES:
            raise top.fault("dtypes", f"{dtype!r} is not a dtype this version knows")
    rows = tuple(_row(top, at, value, names, states, dtypes, chunks) for at, value in enumerate(top.sequence("rows")))
    world_size = top.integer("world_size", 1, MAX_RANKS)
    return RankIndex(
        trial=_trial(top),
        step=top.integer("step", 0, MAX_STEP),
        rank=top.integer("rank", 0, world_size - 1),
        world_size=world_size,
        attempt=top.integer("attempt", 0, MAX_ATTEMPT),
        bytes_new=top.integer("bytes_new"),
        chunks=chunks,
        rows=rows,
    )


def parse_parameters(common: object, key: str) -> Mapping[str, ParameterFacts]:
    """The table of parameters in `common`. Raises CheckpointCorrupt where it is not one."""
    return _parameters(Fields(common, key, "common"))


def read_manifest(store: ObjectStore, trial: str, step: int) -> Manifest:
    """Read one committed checkpoint's manifest.

    Raises CheckpointError when there is none, CheckpointCorrupt when it cannot be trusted, StorageError of any kind.
    """
    key = manifest_key(trial, step)
    try:
        manifest = parse_manifest(store.get(key), key)
    except ObjectMissing as error:
        raise CheckpointError(
            f"{store.url}: trial {trial} has no checkpoint of step {step}",
            hint="`tlcore checkpoints list` shows what is there",
        ) from error
    if (manifest.trial, manifest.step) != (trial, step):
        raise CheckpointCorrupt(f"{key}: says it is trial {manifest.trial} step {manifest.step}", key=key)
    return manifest


def read_index(store: ObjectStore, ref: IndexRef) -> RankIndex:
    """Read one rank index that a manifest names.

    Raises CheckpointCorrupt when absent or not the bytes the manifest means.
    """
    return parse_index(index_bytes(store, ref), ref.key)


def index_bytes(store: ObjectStore, ref: IndexRef) -> bytes:
    """The proved bytes of a rank index, not yet parsed. Raises as `read_index`."""
    try:
        data = store.get(ref.key)
    except ObjectMissing as error:
        raise CheckpointCorrupt(f"{ref.key}: named by a manifest and missing", key=ref.key) from error
    if sha256_hex(data) != ref.sha256:
        raise CheckpointCorrupt(f"{ref.key}: {len(data)} bytes that do not match the manifest's digest", key=ref.key)
    return data


def list_manifests(store: ObjectStore, trial: str) -> list[int]:
    """Steps of the trial's committed checkpoints, ascending."""
    found = (parse_manifest_key(each.key) for each in store.list(f"{trial_prefix(trial)}step-"))
    return sorted(parsed.step for parsed in found if parsed is not None)


def newest_step(store: ObjectStore, trial: str) -> int | None:
    """Step of the trial's newest committed checkpoint, None when it has none."""
    return max(list_manifests(store, trial), default=None)


class _Table:
    """Numbers names in the order of first use."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)


def _document(data: bytes, key: str, kind: str) -> Fields:
    top = Fields(unseal(data, key), key)
    version = top.integer("format", 1)
    if version != FORMAT:
        raise CheckpointIncompatible(
            f"{key}: format {version}, this version of tlcore reads {FORMAT}",
            hint="install the tlcore that wrote it",
        )
    if top.text("kind") != kind:
        raise top.fault("kind", f"{kind!r} is expected")
    return top


def _trial(top: Fields) -> str:
    try:
        return check_name(top.text("trial"))
    except ValueError as error:
        raise top.fault("trial", str(error)) from error


def _index_key(at: Fields) -> str:
    key = at.text("key")
    if parse_rank_index_key(key) is None:
        raise at.fault("key", f"{key!r} is not the key of a rank index")
    return key


def _parameters(common: Fields) -> Mapping[str, ParameterFacts]:
    table = common.fields("parameters")
    facts = {}
    for name in common.mapping("parameters"):
        at = table.fields(name)
        shape = tuple(at.as_integer(extent, "shape", 0, MAX_ELEMENTS) for extent in at.sequence("shape", 64))
        facts[name] = ParameterFacts(shape, at.text("dtype"), at.flag("trained"), at.optional_text("tied_to"))
        if facts[name].elements > MAX_ELEMENTS:
            raise at.fault("shape", f"{list(shape)} has more than {MAX_ELEMENTS} elements")
    return facts


def _chunk(at: Fields) -> StoredChunk:
    size = at.integer("bytes", 1, MAX_CHUNK_BYTES)
    leaf = at.integer("leaf_bytes", 4096, MAX_CHUNK_BYTES)
    leaves = at.hex_bytes("leaves", LEAF_DIGEST_BYTES * leaf_count(size, leaf))
    digest = at.digest("digest")
    if chunk_digest(leaves, size, leaf) != digest:
        raise at.fault("digest", "is not the digest of the leaves beside it")
    return StoredChunk(digest, size, leaf, leaves)


def _row(
    top: Fields,
    number: int,
    value: object,
    names: tuple[str, ...],
    states: tuple[str, ...],
    dtypes: tuple[str, ...],
    chunks: tuple[StoredChunk, ...],
) -> StoredRow:
    where = f"rows[{number}]"
    items = top.as_sequence(value, where)
    if len(items) != 7:
        raise top.fault(where, f"7 numbers are expected, not {len(items)}")
    limits = (
        len(names) - 1,
        len(states) - 1,
        len(dtypes) - 1,
        MAX_ELEMENTS,
        MAX_ELEMENTS,
        len(chunks) - 1,
        MAX_CHUNK_BYTES,
    )
    name, state, dtype, start, end, chunk, offset = (
        top.as_integer(item, where, 0, high) for item, high in zip(items, limits, strict=True)
    )
    if start >= end:
        raise top.fault(where, f"[{start}, {end}) is empty")
    row = Row(names[name], states[state], start, end, dtypes[dtype])
    if offset + row.size_bytes > chunks[chunk].size_bytes:
        raise top.fault(
            where, f"bytes {offset} to {offset + row.size_bytes} reach past its chunk of {chunks[chunk].size_bytes}"
        )
    return StoredRow(row, chunk, offset)
