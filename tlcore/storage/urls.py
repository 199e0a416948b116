"""Names of places and objects: storage URLs and keys, taken apart and checked.

Owns the URL rules (`s3://bucket/prefix`, `file:///dir`, a plain directory path) and what a key may be. Does not open
anything. Called by the implementations, `open.py` and `runs.py`. A key is checked here before it reaches a disk or a
URL, because keys are also read back from stored manifests, which anyone with access to the bucket can write.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from tlcore.errors import RequestError, StorageError

TEMPORARY_PREFIX = ".tlcore-tmp-"
"""File names with this start are half-written local objects: never listed, never a key."""


@dataclass(frozen=True)
class S3Place:
    """`s3://bucket/prefix`; the prefix has no slash at either end and may be empty."""

    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"


@dataclass(frozen=True)
class LocalPlace:
    """A directory, absolute."""

    path: Path

    @property
    def url(self) -> str:
        return self.path.as_uri()


def parse_url(url: str) -> S3Place | LocalPlace:
    """Take a storage URL apart. Raises RequestError for a scheme or form that names no place."""
    if not url.strip():
        raise RequestError("storage URL is empty", hint="use s3://bucket/prefix, file:///directory or a directory path")
    if "://" not in url:
        return LocalPlace(_expanded(url).absolute())
    parts = urlsplit(url)
    if parts.scheme == "file":
        return LocalPlace(_file_path(url, parts.netloc, parts.path))
    if parts.scheme != "s3":
        raise RequestError(
            f"storage URL {without_credentials(url)!r} has scheme {parts.scheme!r}, which is not known",
            hint="use s3://bucket/prefix, file:///directory or a directory path",
        )
    # Not from urlsplit: '#' and '?' are legal in S3 keys and must not end the prefix.
    bucket, _, prefix = url[len("s3://") :].partition("/")
    if not bucket or "@" in bucket:
        raise RequestError(
            f"storage URL {without_credentials(url)!r} names no bucket",
            hint="use s3://bucket/prefix; credentials come from the environment, never from the URL",
        )
    prefix = prefix.strip("/")
    if prefix:
        check_key(prefix)
    return S3Place(bucket, prefix)


def real_place(url: str) -> S3Place | LocalPlace:
    """The place that a URL names however it is spelled: of a directory the path without symbolic links. Raises as `parse_url`."""
    place = parse_url(url)
    if isinstance(place, S3Place):
        return place
    try:
        return LocalPlace(Path(os.path.realpath(place.path)))
    except ValueError as error:
        raise RequestError(f"storage URL {url!r} cannot be a path: {error}", hint="write the directory out") from error


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RequestError(
            f"storage URL {path!r} begins with the home of a user who has none here", hint="write the directory out"
        ) from error


def _file_path(url: str, host: str, path: str) -> Path:
    if host not in ("", "localhost") or not path.startswith("/"):
        raise RequestError(
            f"storage URL {url!r} is not an absolute path", hint="write file:///directory, with three slashes"
        )
    return Path(unquote(path))


def check_key(key: str) -> str:
    """Return `key` when it is a plain relative name. Raises StorageError for one that could leave its root."""
    segments = key.split("/")
    bad = (
        not key
        or any(part in ("", ".", "..") or part.startswith(TEMPORARY_PREFIX) for part in segments)
        or any(ord(char) < 32 or ord(char) == 127 for char in key)
        or "\\" in key
    )
    if bad:
        raise StorageError(
            f"object key {key!r} is not a plain relative name",
            hint="keys have no empty, '.' or '..' segments, no backslash and no control characters",
            key=key,
        )
    return key


def without_credentials(url: str) -> str:
    """The URL as it may be printed: no user, no password, no query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint URL names this machine itself."""
    host = urlsplit(endpoint).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
