"""Vendor errors into `tlcore.errors`, once, at the edge.

Owns what an S3 answer or an operating system error means for the caller. Called by `s3.py` and `local.py` only.
Messages hold the endpoint, the bucket, the key, the status and the S3 error code, and nothing else of the answer: a
server's text may quote what was signed. The client's own text has no stable form, so the status and the code are read
with two patterns and everything else by kind.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import Any

from obstore.exceptions import UnauthenticatedError

from tlcore.errors import (
    BucketMissing,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageThrottled,
    StorageUnreachable,
)

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>|\(code: ([A-Za-z0-9]{1,60})\)")
"""In an answer of its own; and of one key of a bulk delete, whose status is 200."""

_FULL = frozenset({"InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded"})
_THROTTLED = frozenset(
    {"SlowDown", "SlowDownRead", "SlowDownWrite", "TooManyRequests", "RequestLimitExceeded", "ThrottlingException"}
)
_IN_TROUBLE = frozenset({"InternalError", "ServiceUnavailable"})
_NOT_IN_TIME = frozenset({"RequestTimeout", "RequestTimeoutException"})
_NO_BUCKET = frozenset({"NoSuchBucket", "InvalidBucketName"})
_OTHER_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_DENIED_HINTS = {
    "InvalidAccessKeyId": "the access key id is not known there: see AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key id: look at AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session has expired: log in again, or renew AWS_SESSION_TOKEN",
    "ExpiredTokenException": "the session has expired: log in again, or renew AWS_SESSION_TOKEN",
    "InvalidToken": "AWS_SESSION_TOKEN does not belong to these keys: renew or unset it",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
}
_RENEW_HINT = "log in again, or look at AWS_PROFILE and the role of this machine"
_DENIED_HINT = "these credentials are not allowed to do this: ask for list, get, put and delete on the bucket"
_CONNECTION = (
    ("dns error", "the host name is not known"),
    ("Connection refused", "connection refused: nothing listens there"),
    ("certificate", "the TLS certificate is not trusted"),
    (
        "InvalidCertificate",
        "the TLS certificate is not trusted (AWS_CA_BUNDLE names the certificates of a private authority)",
    ),
    ("kind: Timeout", "no answer in time"),
    ("TimedOut", "no answer in time"),
)


@dataclass(frozen=True)
class Where:
    """What a message names: the action and the key, the bucket and the endpoint (already free of credentials)."""

    action: str
    key: str
    bucket: str
    endpoint: str

    def __str__(self) -> str:
        target = f"{self.key!r} in " if self.key else ""
        return f"{self.action} {target}bucket {self.bucket!r} at {self.endpoint}"

    @property
    def fields(self) -> dict[str, Any]:
        return {"key": self.key, "bucket": self.bucket, "endpoint": self.endpoint}


def s3_error(error: Exception, where: Where) -> StorageError:
    """The one exception for what the S3 client raised."""
    text = str(error)
    status_match, code_match = _STATUS.search(text), _CODE.search(text)
    if status_match is None and code_match is None:
        if isinstance(error, FileNotFoundError):
            return ObjectMissing(f"cannot {where}: no such object", **where.fields)
        if isinstance(error, UnauthenticatedError):
            return StorageDenied(f"cannot {where}: no credentials could be had", hint=_RENEW_HINT, **where.fields)
        if "without LOCATION" in text:  # how the client reports S3's 301 for a bucket elsewhere
            return _answered(301, "", where)
        return _no_answer(text, where)
    code = code_match.group(1) or code_match.group(2) if code_match else ""
    return _answered(int(status_match.group(1)) if status_match else 0, code, where)


def _no_answer(text: str, where: Where) -> StorageError:
    reason = next((reason for sign, reason in _CONNECTION if sign in text), "the connection broke")
    return StorageUnreachable(
        f"cannot {where}: {reason}",
        hint="check the endpoint (AWS_ENDPOINT_URL) and that the store is up",
        **where.fields,
    )


def _answered(status: int, code: str, where: Where) -> StorageError:
    answer = f"cannot {where}: {status or 'error'} {code}".rstrip()
    fields = {**where.fields, "status": status, "code": code}
    if status == 507 or code in _FULL:
        return StorageFull(answer, hint="no space is left in the store: delete old runs or raise the quota", **fields)
    if status == 429 or code in _THROTTLED:
        return StorageThrottled(
            answer, hint="the store asks for fewer requests: try later or with fewer workers", **fields
        )
    if code in _NO_BUCKET or (status == 404 and not where.key):
        return BucketMissing(
            answer, hint=f"create bucket {where.bucket!r} first, or name another in the storage URL", **fields
        )
    if status == 301 or code in _OTHER_REGION:
        return BucketMissing(answer, hint="the bucket lives in another region: set AWS_REGION to it", **fields)
    if status in (401, 403) or code == "AccessDenied" or code in _DENIED_HINTS:
        return StorageDenied(answer, hint=_DENIED_HINTS.get(code, _DENIED_HINT), **fields)
    if status == 404 or code == "NoSuchKey":
        return ObjectMissing(f"cannot {where}: no such object", **fields)
    if status == 501 or code == "NotImplemented":
        return StorageError(answer, hint="the store lacks what this needs: use another one", **fields)
    if status == 408 or code in _NOT_IN_TIME:
        return StorageUnreachable(answer, hint="the network or a proxy is slow: look at it, then try again", **fields)
    if status >= 500 or code in _IN_TROUBLE:
        return StorageUnreachable(answer, hint="the store is in trouble: look at its log, then try again", **fields)
    return StorageError(answer, **fields)


def os_error(error: OSError, action: str, path: str, key: str) -> StorageError:
    """The one exception for what the operating system said about a local object."""
    text = f"cannot {action} {path}: {error.strerror or error}"
    if isinstance(error, FileNotFoundError):
        return ObjectMissing(f"cannot {action} {path}: no such object", key=key)
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return StorageDenied(text, hint="give this user access to it, or choose another directory", key=key)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(text, hint="free space on that disk, or choose another directory", key=key)
    if isinstance(error, NotADirectoryError | IsADirectoryError | FileExistsError):
        return StorageError(
            text, hint="a file cannot be an object and a directory at once: use other keys or another root", key=key
        )
    return StorageUnreachable(text, hint="look at that disk or mount, then try again", key=key)
