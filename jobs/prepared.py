"""What the jobs that prepare data leave in the store: files, and a SOURCE.json that says whether they are all there.

Owns the marker: it is written last and holds the digests of what was written, so a run that was cut short is done again, and one
that was not changes nothing. Called by the `prepare_*` jobs.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tlcore.errors import ObjectMissing
from tlcore.storage import ObjectStore, encode_json, get_json

MARKER: Final = "SOURCE.json"


def write(store: ObjectStore, files: Mapping[str, bytes], source: Mapping[str, Any]) -> None:
    """The files, then the marker. `source`: where they come from, and how they were made."""
    for name, content in files.items():
        store.put(name, content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    store.put(MARKER, encode_json({**source, "files": digests}))


def already_there(store: ObjectStore, source: Mapping[str, Any]) -> bool:
    """Whether the store holds what `write` left there for this source, byte for byte."""
    try:
        marker: dict[str, Any] = get_json(store, MARKER)
        files = marker.get("files")
        if not files or marker != {**source, "files": files}:
            return False
        return all(hashlib.sha256(store.get(name)).hexdigest() == digest for name, digest in files.items())
    except ObjectMissing:
        return False


def to_parquet(rows: Sequence[Any], columns: Sequence[str]) -> bytes:
    """A file with these attributes of each row."""
    import pyarrow as pa  # half a second, not needed where everything is there already
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table({name: [getattr(row, name) for row in rows] for name in columns}), sink)
    return sink.getvalue()
