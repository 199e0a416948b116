"""Credentials and endpoint of a bucket, as values a client takes.

Owns the types, and the renewal of keys that a store no longer accepts; `access.py` decides which apply. Secrets never show in
a repr. Called by `s3.py`, `clients.py`, `embedded.py` and `access.py`.

Keys that end are renewed in two ways. botocore renews what has a stated end (a credential_process, SSO, web identity, an
instance's role) before it comes; the client asks botocore before each request, at most every 0.1 s, for as long as
`expires_at` is within its five minutes. Keys without a stated end (a profile's file that something else rewrites), and
clocks that disagree, are met when the store refuses them: the chain is then read again from its beginning, and the request
repeated where that gave other keys. Keys from the environment cannot change while a process lives.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from tlcore.errors import StorageDenied
from tlcore.storage.urls import is_loopback, without_credentials

if TYPE_CHECKING:
    from obstore.store import S3Credential

    from tlcore.storage.room import Room

_REFRESH_EVERY = timedelta(minutes=5)
_ENDED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired"}
)
_lock = threading.Lock()
_renewed_at: dict[str | None, float] = {}


@dataclass(frozen=True)
class StaticCredentials:
    """Keys that last as long as the process."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    def __call__(self) -> S3Credential:
        return {
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
            "token": self.token,
            "expires_at": None,
        }

    def renewed(self, code: str, since: float) -> bool:
        """False: there is nowhere to read others from."""
        return False


@dataclass(frozen=True)
class ChainCredentials:
    """botocore's chain for one profile. It renews temporary keys itself, so it is asked again every few minutes."""

    profile: str | None

    @property
    def found(self) -> bool:
        """Whether the chain has any. Raises StorageDenied where it names an unknown profile or an expired login."""
        return _chain(self.profile) is not None

    @property
    def region(self) -> str | None:
        """The profile's own region."""
        region: str | None = _session(self.profile).get_config_variable("region")
        return region

    def __call__(self) -> S3Credential:
        frozen = _chain(self.profile).get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _REFRESH_EVERY,
        }

    def renewed(self, code: str, since: float) -> bool:
        """Whether there are other keys now than those which the store refused.

        Args:
            code: the store's error code; only those that say that keys have ended lead to a new look.
            since: when the refused request began, by `time.monotonic`.
        """
        if code not in _ENDED:
            return False
        with _lock:
            if _renewed_at.get(self.profile, 0.0) >= since:
                return True  # another thread has found new ones in the meantime
            old = self()
            _session.cache_clear()
            _chain.cache_clear()
            if _chain(self.profile) is None:
                return False
            new = self()
            if (new["access_key_id"], new["token"]) == (old["access_key_id"], old["token"]):
                return False
            _renewed_at[self.profile] = time.monotonic()
            return True


@dataclass(frozen=True)
class S3Access:
    """What a client needs. `endpoint` None: Amazon's own for the region."""

    endpoint: str | None
    region: str
    credentials: StaticCredentials | ChainCredentials
    embedded: bool = False
    virtual_hosts: bool = False
    """The bucket is part of the host name, not of the path."""
    ca_bundle: bytes | None = field(default=None, repr=False)
    """Certificates (PEM) trusted besides the system's."""
    room: Room | None = None
    """How the embedded server's space is looked at; None for every other server."""

    @property
    def plain_http(self) -> bool:
        return self.endpoint is not None and self.endpoint.startswith("http://")

    @property
    def loopback(self) -> bool:
        return self.endpoint is not None and is_loopback(self.endpoint)

    @property
    def shown(self) -> str:
        """The endpoint as messages name it."""
        return without_credentials(self.endpoint) if self.endpoint else f"Amazon S3 ({self.region})"


@cache
def _session(profile: str | None) -> Any:
    from botocore.session import Session  # 0.3 s, and only where no keys stand in the environment

    return Session(profile=profile)


@cache
def _chain(profile: str | None) -> Any:
    from botocore.exceptions import BotoCoreError

    try:
        return _session(profile).get_credentials()
    except BotoCoreError as error:
        raise StorageDenied(
            f"no credentials from AWS profile {profile or 'default'!r}: {error}",
            hint="look at AWS_PROFILE and ~/.aws, or log in again",
        ) from error
