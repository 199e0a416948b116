"""The obstore clients of this process: one per access, bucket and patience, each with its connection pool.

Owns how a client is set up and how long its requests go on. Called by `s3.py`; obstore appears nowhere else but there
and in `translate.py`.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from tlcore.errors import StorageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Store

    from tlcore.storage.credentials import S3Access


@dataclass(frozen=True)
class Patience:
    """How long a request goes on, in seconds: to connect, one attempt, the longest pause, until the client gives the error to us
    (`round_s`), and until no further round starts (`total_s`).
    """

    connect_s: float
    attempt_s: float
    backoff_s: float
    round_s: float
    total_s: float

    @property
    def retries(self) -> RetryConfig:
        return {
            "max_retries": 100,
            "retry_timeout": timedelta(seconds=self.round_s),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=self.backoff_s),
                "base": 2,
            },
        }


PATIENT = Patience(connect_s=5, attempt_s=120, backoff_s=5, round_s=8, total_s=60)
QUICK = Patience(connect_s=2, attempt_s=3, backoff_s=0.5, round_s=3, total_s=0)

_lock = threading.Lock()
_clients: dict[tuple[S3Access, str, Patience], S3Store] = {}
_runtime_pid: int | None = None


def client_of(access: S3Access, bucket: str, patience: Patience) -> S3Store:
    """The client for these, made at the first call. Raises StorageError in a fork of a process that had clients."""
    global _runtime_pid
    if _runtime_pid not in (None, os.getpid()):
        # The client's threads stay behind in a fork and the child would wait for them for ever.
        raise StorageError(
            f"this process was forked from process {_runtime_pid}, which had already used the object store",
            hint="start worker processes with 'spawn' or 'forkserver'",
        )
    with _lock:
        _runtime_pid = os.getpid()
        found = _clients.get((access, bucket, patience))
        if found is None:
            found = _clients[access, bucket, patience] = _new_client(access, bucket, patience)
        return found


def forget_clients(access: S3Access) -> None:
    """Let go of every client of this access: its next request asks for credentials anew."""
    with _lock:
        for known in [known for known in _clients if known[0] == access]:
            del _clients[known]


def _new_client(access: S3Access, bucket: str, patience: Patience) -> S3Store:
    from obstore.store import S3Store

    options: ClientConfig = {
        "allow_http": access.plain_http,
        "connect_timeout": timedelta(seconds=patience.connect_s),
        "timeout": timedelta(seconds=patience.attempt_s),
    }
    if access.ca_bundle is not None:
        options["root_certificate"] = access.ca_bundle
    if access.loopback:
        # HTTP_PROXY must not swallow requests to this very machine; an explicit proxy replaces the environment's.
        options |= {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": "127.0.0.1,localhost,::1"}
    # What obstore would otherwise take from the environment for another endpoint is named here, so that it cannot
    # leak in.
    config: S3Config = {
        "region": access.region,
        "unsigned_payload": access.loopback or not access.plain_http,
        "virtual_hosted_style_request": access.virtual_hosts,
    }
    if access.endpoint is not None:
        endpoint = _of_bucket(access.endpoint, bucket) if access.virtual_hosts else access.endpoint
        config |= {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint}
    if access.embedded:
        config |= {"skip_signature": False}
    return S3Store(
        bucket,
        config=config,
        client_options=options,
        retry_config=patience.retries,
        credential_provider=access.credentials,
    )


def _of_bucket(endpoint: str, bucket: str) -> str:
    """`https://s3.example.com` as `https://bucket.s3.example.com`."""
    parts = urlsplit(endpoint)
    return urlunsplit((parts.scheme, f"{bucket}.{parts.netloc}", parts.path, "", ""))
