"""Everything tlcore keeps: `open_store(url)` gives the six methods of `base.ObjectStore` for `s3://` and `file://`.

Owns objects, their retries and errors, the embedded server and the layout of keys. Reads no recipe and knows no
checkpoint.
"""

from tlcore.storage.base import ObjectInfo, ObjectStore
from tlcore.storage.documents import append_json, encode_json, get_json, put_json
from tlcore.storage.embedded import EmbeddedStore, Status
from tlcore.storage.open import ensure_embedded, fsspec_options, open_store, probe
from tlcore.storage.reclaim import reclaim
from tlcore.storage.runs import RunRef, create_run, list_runs, newest_run, parse_run_url

__all__ = [
    "EmbeddedStore",
    "ObjectInfo",
    "ObjectStore",
    "RunRef",
    "Status",
    "append_json",
    "create_run",
    "encode_json",
    "ensure_embedded",
    "fsspec_options",
    "get_json",
    "list_runs",
    "newest_run",
    "open_store",
    "parse_run_url",
    "probe",
    "put_json",
    "reclaim",
]
