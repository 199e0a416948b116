"""A request's head signed anew with the store's own keys, with the payload's digest as the client gave it: for the fault proxy.

Owns Signature Version 4 as far as that needs it (https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html).
Called by `proxy.py`, where a head is changed on its way or the client's keys are not the store's.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from urllib.parse import urlsplit

from jobs.bench.network.http1 import Head

_UNSIGNED = "UNSIGNED-PAYLOAD"
_SIGNED = frozenset({"host", "x-amz-date", "x-amz-content-sha256", "range", "if-none-match", "content-md5"})


def resigned(head: Head, host: str, keys: Mapping[str, str], drop: AbstractSet[str]) -> bytes:
    """The head as the store shall see it; what was signed in the URL is signed in the head.

    A virtual-hosted request (`Host: bucket.store.test`) becomes a path-style one; a path-style one stays.

    Args:
        head: the client's.
        host: host and port of the store.
        keys: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION.
        drop: lower-case header names to leave out.
    """
    payload = head.headers.get("x-amz-content-sha256", _UNSIGNED)
    if payload.startswith("STREAMING-"):
        raise EOFError("a payload whose parts are signed one by one cannot be signed anew here")
    parts = urlsplit(head.target)
    path = parts.path or "/"
    named = parts.hostname or head.headers["host"].partition(":")[0]
    if named.endswith(".test"):
        path = f"/{named.partition('.')[0]}{path}"
    query = "&".join(each for each in parts.query.split("&") if not each.startswith("X-Amz-"))
    now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    gone = drop | {"authorization", "x-amz-security-token", "host", "x-amz-date", "x-amz-content-sha256"}
    headers = {name: value for name, value in head.headers.items() if name not in gone}
    headers |= {"host": host, "x-amz-date": now, "x-amz-content-sha256": payload}
    headers["authorization"] = _authorization(head.verb, path, query, headers, keys, now)
    target = f"{path}?{query}" if query else path
    lines = (f"{head.verb} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", "")
    return "\r\n".join(lines).encode("latin-1")


def _authorization(
    verb: str, path: str, query: str, headers: Mapping[str, str], keys: Mapping[str, str], now: str
) -> str:
    signed = sorted(name for name in headers if name in _SIGNED or name.startswith("x-amz-"))
    names = ";".join(signed)
    pairs = "&".join(sorted(part if "=" in part else f"{part}=" for part in query.split("&") if part))
    lines = "".join(f"{name}:{headers[name]}\n" for name in signed)
    canonical = f"{verb}\n{path}\n{pairs}\n{lines}\n{names}\n{headers['x-amz-content-sha256']}"
    scope = f"{now[:8]}/{keys['AWS_REGION']}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{keys['AWS_SECRET_ACCESS_KEY']}".encode()
    for word in (*scope.split("/"), text):
        key = hmac.new(key, word.encode(), hashlib.sha256).digest()
    return (
        f"AWS4-HMAC-SHA256 Credential={keys['AWS_ACCESS_KEY_ID']}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
    )
