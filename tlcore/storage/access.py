"""Where an S3 bucket is and with what rights.

Owns the rules. The bucket `tlcore` belongs to the embedded server unless AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3)
says otherwise; every other bucket follows the usual AWS environment: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID
with AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, else botocore's chain (profile, SSO, web identity, container,
instance role), the same chain s3fs uses. Called by `open.py`.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from tlcore.errors import RequestError, StorageDenied
from tlcore.storage.credentials import ChainCredentials, S3Access, StaticCredentials
from tlcore.storage.embedded import BUCKET, EmbeddedStore
from tlcore.storage.urls import S3Place, without_credentials

_DEFAULT_REGION = "us-east-1"


def needs_embedded(place: S3Place) -> bool:
    """Whether this place lives in the embedded server, as the environment stands."""
    return place.bucket == BUCKET and _endpoint() is None


def resolve_access(place: S3Place) -> S3Access:
    """Endpoint, region and credentials for a bucket.

    Raises StorageUnreachable (embedded server down), StorageDenied (no credentials), RequestError (bad endpoint URL).
    """
    if needs_embedded(place):
        return EmbeddedStore().access()
    endpoint = _endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if key and secret:
        static = StaticCredentials(key, secret, os.environ.get("AWS_SESSION_TOKEN") or None)
        return S3Access(endpoint, region or _DEFAULT_REGION, static)
    chain = ChainCredentials(os.environ.get("AWS_PROFILE") or None)
    if not chain.found:
        raise StorageDenied(
            f"no credentials found for bucket {place.bucket!r} at {endpoint or 'Amazon S3'}",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role is given",
            bucket=place.bucket,
        )
    return S3Access(endpoint, region or chain.region or _DEFAULT_REGION, chain)


def _endpoint() -> str | None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        endpoint = os.environ.get(name)
        if endpoint:
            return _checked(name, endpoint)
    return None


def _checked(name: str, endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise RequestError(
            f"{name} is {without_credentials(endpoint)!r}, which is no endpoint URL",
            hint="write http://host:port or https://host, without user or password",
        )
    return endpoint.rstrip("/")
