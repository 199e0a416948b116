"""Ranges signed in their headers: as botocore signs them, at the address that obstore has, with the keys of the moment."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import obstore
import pytest
from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from tlcore.storage.clients import PATIENT, client_of
from tlcore.storage.credentials import S3Access, StaticCredentials
from tlcore.storage.direct import RangeConnections
from tlcore.storage.signing import signed_headers

pytestmark = pytest.mark.unit
NOW = datetime(2026, 11, 28, 6, 7, 8, tzinfo=UTC)
KEY = "a key/ü=&?#%41+~*'(x)!@$,;:[]{}^`|<>\"/.hidden/0.bin"


def keys(token: str | None = None, name: str = "AKIA") -> StaticCredentials:
    return StaticCredentials(name, f"secret/of+{name}", token)


@pytest.mark.parametrize("token", [None, "session+token/=="])
@pytest.mark.parametrize(
    "url", ["https://b.s3.eu-west-1.amazonaws.com/k", "http://10.0.0.1:9000/b/a%20key/%C3%BC%3D%26"]
)
def test_a_range_is_signed_as_botocore_signs_it(url, token, monkeypatch):
    monkeypatch.setattr(auth, "get_current_datetime", lambda *_: NOW)
    request = AWSRequest("GET", url, headers={"Range": "bytes=5-9"})
    request.context["client_config"] = Config(s3={"payload_signing_enabled": False})
    auth.S3SigV4Auth(Credentials("AKIA", "secret/of+AKIA", token), "s3", "eu-west-1").add_auth(request)
    theirs = {name.lower(): value for name, value in request.headers.items()}
    parts = urlsplit(url)
    ours = signed_headers(parts.netloc, parts.path, "bytes=5-9", keys(token)(), "eu-west-1", NOW)
    assert ours.pop("host") == parts.netloc
    assert ours == theirs


class Asked:
    """In the place of a connection: notes what it is asked, and is broken."""

    def __init__(self) -> None:
        self.where: list[tuple[str, str, int | None]] = []
        self.requests: list[tuple[str, dict[str, str]]] = []

    def __call__(self, scheme, host, port):
        self.where.append((scheme, host, port))
        return self

    def request(self, verb, target, headers):
        self.requests.append((target, headers))
        raise ConnectionResetError

    def close(self) -> None:
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found = Asked()
    monkeypatch.setattr(RangeConnections, "_connection", lambda self, *where: found(*where))
    return found


def fill(connections: RangeConnections, access: S3Access) -> bool:
    return connections.fill(client_of(access, "bucket", PATIENT), KEY, 3, [memoryview(bytearray(4))])


@pytest.mark.parametrize(
    ("endpoint", "virtual"),
    [
        (None, False),
        (None, True),
        ("http://localhost:8333", False),
        ("http://[::1]:9000", False),
        ("https://S3.example.com:443", False),
        ("https://S3.example.com:8443/base", False),
        ("https://s3.example.com:8443/base", True),
    ],
)
def test_the_address_is_obstores_own(endpoint, virtual, asked):
    access = S3Access(endpoint, "eu-west-1", keys(), virtual_hosts=virtual)
    assert fill(RangeConnections(access), access) is False
    url = urlsplit(obstore.sign(client_of(access, "bucket", PATIENT), "GET", KEY, timedelta(seconds=1)))
    target, headers = asked.requests[0]
    assert asked.where == [(url.scheme, url.hostname, url.port)]
    assert (headers["host"], target) == (url.netloc, url.path)
    assert headers["range"] == "bytes=3-6"


def test_each_request_has_the_keys_of_its_moment_and_none_in_its_line(asked, caplog):
    caplog.set_level(logging.DEBUG)
    issued = [keys("token-1", "FIRST")]
    access = S3Access("https://s3.example.com", "eu-west-1", lambda: issued[-1]())
    connections = RangeConnections(access)
    fill(connections, access)
    issued.append(keys("token-2", "SECOND"))
    fill(connections, access)
    assert [headers["x-amz-security-token"] for _, headers in asked.requests] == ["token-1", "token-2"]
    assert ["Credential=FIRST/" in headers["authorization"] for _, headers in asked.requests] == [True, False]
    for text in (*(target for target, _ in asked.requests), caplog.text):
        assert not [word for word in ("token-", "X-Amz", "Signature", "Credential") if word in text]


@pytest.mark.parametrize("token", ["line\r\nbreak", "no latin \u20ac"])
def test_a_token_that_no_header_can_carry_is_left_to_obstore(token):
    access = S3Access("http://127.0.0.1:9", "eu-west-1", keys(token))
    assert fill(RangeConnections(access), access) is False


def test_keys_that_cannot_be_had_are_left_to_obstore(asked):
    issued = [keys()]
    access = S3Access("https://s3.example.com", "eu-west-1", lambda: issued[-1]())
    connections = RangeConnections(access)
    fill(connections, access)
    issued.clear()
    assert fill(connections, access) is False
    assert len(asked.requests) == 1
