"""Vendor errors into ours: pickled, with fields, and without what a server quotes back."""

from __future__ import annotations

import pickle

import pytest
from obstore.exceptions import GenericError, UnauthenticatedError

from tlcore.errors import (
    BucketMissing,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageThrottled,
    StorageUnreachable,
)
from tlcore.storage.translate import Where, s3_error

WHERE = Where("read", "a/b", "bucket", "http://host:9000")
ROOT = Where("list", "", "bucket", "http://host:9000")


def answer(status: int, code: str = "", extra: str = "") -> GenericError:
    body = f"<Error><Code>{code}</Code>{extra}</Error>" if code else ""
    return GenericError(
        f"Generic S3 error: Error performing GET - Server returned non-2xx status code: {status} X: {body}"
    )


def of_one_key(code: str) -> GenericError:
    """What the client says of a bulk delete whose answer is 200."""
    return GenericError(f"Generic S3 error: DeleteObjects request failed for key a/b: some words (code: {code})")


@pytest.mark.parametrize(
    ("error", "where", "kind"),
    [
        (answer(404, "NoSuchKey"), WHERE, ObjectMissing),
        (FileNotFoundError("Object at location x not found"), WHERE, ObjectMissing),
        (answer(404, "NoSuchBucket"), WHERE, BucketMissing),
        (answer(404), ROOT, BucketMissing),
        (answer(403, "QuotaExceeded"), WHERE, StorageError),
        (answer(503, "SlowDown"), WHERE, StorageThrottled),
        (answer(400, "AuthorizationHeaderMalformed"), WHERE, BucketMissing),
        (answer(400, "ExpiredToken"), WHERE, StorageDenied),
        (answer(418, "Teapot"), WHERE, StorageError),
        (answer(408), WHERE, StorageUnreachable),
        (answer(400, "RequestTimeout"), WHERE, StorageUnreachable),
        (UnauthenticatedError("credential provider: ValueError"), WHERE, StorageDenied),
        (GenericError("HTTP error ... Connection refused (os error 111)"), WHERE, StorageUnreachable),
        (GenericError("something quite new"), WHERE, StorageUnreachable),
        (of_one_key("AccessDenied"), WHERE, StorageDenied),
        (of_one_key("InternalError"), WHERE, StorageUnreachable),
        (of_one_key("SlowDown"), WHERE, StorageThrottled),
        (of_one_key("NoSuchKey"), WHERE, ObjectMissing),
    ],
)
def test_each_has_its_meaning(error, where, kind):
    found = s3_error(error, where)
    assert isinstance(found, kind)
    assert found.fields["bucket"] == "bucket" and found.fields["endpoint"] == "http://host:9000"
    again = pickle.loads(pickle.dumps(found))  # noqa: S301  (it crosses processes)
    assert (type(again), str(again), again.fields) == (type(found), str(found), found.fields)


def test_what_the_server_quotes_is_not_repeated():
    found = s3_error(answer(403, "SignatureDoesNotMatch", "<StringToSign>AWS4 hunter2</StringToSign>"), WHERE)
    assert "hunter2" not in str(found) + repr(found.fields)
    assert str(found).startswith(
        "cannot read 'a/b' in bucket 'bucket' at http://host:9000: 403 SignatureDoesNotMatch\n"
    )
