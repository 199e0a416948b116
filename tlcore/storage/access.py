"""Where an S3 bucket is and with what rights.

Owns the rules. The bucket `tlcore` belongs to the embedded server unless AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3)
says otherwise; every other bucket follows the usual AWS environment: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID
with AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, else botocore's chain (profile, SSO, web identity, container,
instance role), the same chain s3fs uses. Called by `open.py`.

    AWS_CA_BUNDLE                      file with the certificates (PEM) of a private authority, trusted besides the system's
    AWS_VIRTUAL_HOSTED_STYLE_REQUEST   `true`: the bucket goes into the host name; the default, the path, is what MinIO, Ceph,
                                       SeaweedFS, R2 and Amazon all take

What the usual servers want:

    Amazon S3   AWS_REGION; no endpoint
    MinIO       AWS_ENDPOINT_URL=https://host:9000, AWS_CA_BUNDLE for its own certificate
    Ceph RGW    AWS_ENDPOINT_URL=https://host, AWS_REGION=default (or the zone group's name)
    R2          AWS_ENDPOINT_URL=https://<account>.r2.cloudflarestorage.com, AWS_REGION=auto
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from tlcore.errors import RequestError, StorageDenied
from tlcore.storage.credentials import ChainCredentials, S3Access, StaticCredentials
from tlcore.storage.embedded import BUCKET, EmbeddedStore
from tlcore.storage.urls import S3Place, without_credentials

_DEFAULT_REGION = "us-east-1"
_CA_BUNDLE = "AWS_CA_BUNDLE"
_STYLE = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"
_BOOLEANS = {"": False, "false": False, "0": False, "true": True, "1": True}


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
    virtual, trusted = _virtual_hosts(), _ca_bundle()
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if key and secret:
        static = StaticCredentials(key, secret, os.environ.get("AWS_SESSION_TOKEN") or None)
        return S3Access(endpoint, region or _DEFAULT_REGION, static, virtual_hosts=virtual, ca_bundle=trusted)
    chain = ChainCredentials(os.environ.get("AWS_PROFILE") or None)
    if not chain.found:
        raise StorageDenied(
            f"no credentials found for bucket {place.bucket!r} at {endpoint or 'Amazon S3'}",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role is given",
            bucket=place.bucket,
        )
    found = region or chain.region or _DEFAULT_REGION
    return S3Access(endpoint, found, chain, virtual_hosts=virtual, ca_bundle=trusted)


def _virtual_hosts() -> bool:
    said = os.environ.get(_STYLE, "").strip().lower()
    if said not in _BOOLEANS:
        raise RequestError(f"{_STYLE} is {said!r}, which is neither true nor false", hint="write true or false")
    return _BOOLEANS[said]


def _ca_bundle() -> bytes | None:
    path = os.environ.get(_CA_BUNDLE)
    if not path:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RequestError(
            f"{_CA_BUNDLE} is {path!r}, which cannot be read: {error.strerror}", hint="name a file of PEM certificates"
        ) from error
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise RequestError(
            f"{_CA_BUNDLE} is {path!r}, which holds no certificate", hint="name a file of PEM certificates"
        )
    return content


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
