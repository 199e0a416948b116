"""Whether a server honours `If-None-Match: *`, and what stands in for it where it does not.

Owns the finding, once per process and bucket, and the fallback. Called by `s3.py` for `put_if_absent` and by `open.py` for
the probe of a storage.

The finding: two conditional PUTs of one fresh key; the second must be refused. A server that answers the first with 501 or
another refusal of the header (NotImplemented), and one that lets the second through, both lack it. Amazon S3 and the
embedded server are known to have it and are not asked.

The fallback: look first; where nothing is, put; wait a moment; read back and compare. What it does not give: of two writers
that create one key within that moment (a quarter of a second, or twice the PUT's own time), both may be told that they
won, and the later one's bytes stay. Two drivers of one run started within that moment are the case that matters: both may
claim one attempt of a trial. Everything else keeps: one rank alone commits a trial's manifests, a claim made earlier fences
off the older attempt, and a manifest names every index by its digest, so a mixture would be found on restore.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tlcore.errors import StorageError

if TYPE_CHECKING:
    from tlcore.storage.credentials import S3Access

PROBE_PREFIX = ".tlcore-probe/"
SETTLE_S = 0.25

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_known: dict[tuple[S3Access, str], bool] = {}


def is_conditional(access: S3Access, bucket: str, finding: Callable[[], bool]) -> bool:
    """Whether this bucket's server honours the condition; `finding` is asked once per process where nothing is known."""
    if access.embedded or access.endpoint is None:
        return True
    known = _known.get((access, bucket))
    if known is None:
        with _lock:
            known = _known.get((access, bucket))
            if known is None:
                known = _known[access, bucket] = finding()
                if not known:
                    _log.warning(warning(access.shown))
    return known


def warning(endpoint: str) -> str:
    """The one line that says what is weaker there: in the log, and in the report of `tlcore preflight`."""
    return (
        f"the store at {endpoint} does not honour If-None-Match: objects are created only once by looking first and "
        f"reading back, so two runs started on one name within {SETTLE_S:g} s could both believe they own it"
    )


def find_conditional(create: Callable[[str, bytes], bool], delete: Callable[[str], None]) -> bool:
    """Ask the server itself.

    Args:
        create: one conditional PUT; True when it was let through, False when refused as present. Raises StorageError.
        delete: remove the key.
    """
    key = f"{PROBE_PREFIX}if-none-match-{secrets.token_hex(8)}"
    try:
        if not create(key, b"first"):
            return True  # refused as present: somebody honours it
        honoured = not create(key, b"second")
    except StorageError as error:
        if not lacks_condition(error):
            raise
        return False
    delete(key)
    return honoured


def lacks_condition(error: StorageError) -> bool:
    """Whether a server refused a PUT because it does not know the condition."""
    return error.fields.get("status") == 501 or error.fields.get("code") == "NotImplemented"


def settle(put_s: float) -> None:
    """Wait until a rival that looked before our PUT of `put_s` seconds has surely put its own."""
    time.sleep(max(SETTLE_S, 2 * put_s))
