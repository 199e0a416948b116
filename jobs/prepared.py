"""What the jobs that prepare data leave in the store: files, and a SOURCE.json that says whether they are all there.

Owns the marker: it is written last and holds the digests of what was written, so a run that was cut short is done again, and one
that was not changes nothing. Owns also the command that most of these jobs are (`prepare`). Called by the `prepare_*` jobs.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tlcore.errors import ObjectMissing, TlcoreError
from tlcore.storage import ObjectStore, encode_json, ensure_embedded, get_json, open_store

MARKER: Final = "SOURCE.json"


Made = tuple[Mapping[str, bytes], str]
"""Files by their name in the store, and a phrase that says what they are."""


def prepare(
    job: str,
    description: str,
    source: Mapping[str, Any],
    make: Callable[[Path], Made],
    assets: Path,
    arguments: Sequence[str] | None,
) -> int:
    """The whole command of a job: `make` from the folder of what is fetched, unless the destination has it all. The exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{job}", description=description.partition("\n")[0])
    parser.add_argument("--destination", required=True, help="s3://bucket/prefix or a directory")
    destination = parser.parse_args(arguments).destination.rstrip("/")
    try:
        ensure_embedded(destination)
        store = open_store(destination)
        if already_there(store, source):
            print(f"{store.url}: all is there already")
            return 0
        files, said = make(assets.expanduser())
        write(store, files, source)
        print(f"{store.url}: {said}")
    except TlcoreError as error:
        print(f"{job}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


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
