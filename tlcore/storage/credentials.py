"""Credentials and endpoint of a bucket, as values a client takes.

Owns the types only; `access.py` decides which apply. Secrets never show in a repr. Called by `s3.py`, `embedded.py`
and `access.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from tlcore.errors import StorageDenied
from tlcore.storage.urls import is_loopback, without_credentials

if TYPE_CHECKING:
    from obstore.store import S3Credential

_REFRESH_EVERY = timedelta(minutes=5)


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


@dataclass(frozen=True)
class S3Access:
    """What a client needs. `endpoint` None: Amazon's own for the region."""

    endpoint: str | None
    region: str
    credentials: StaticCredentials | ChainCredentials
    embedded: bool = False

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
