"""The object store of the integration tests: one real SeaweedFS for the whole session, in a temporary directory.

`embedded_store` is that server, `s3_store` a fresh prefix in it, `proxied` a proxy in front of it that
may misbehave, `throwaway_store` a second server for tests that stop theirs.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from jobs.bench.network.faults import Faults
from jobs.bench.network.proxy import FaultProxy
from tlcore.storage import EmbeddedStore, ObjectStore, open_store

Proxied = Callable[..., FaultProxy]


@contextmanager
def throwaway_store(directory: Path) -> Iterator[EmbeddedStore]:
    """A running store of one's own in `directory`; stopped at the end whatever happened to it meanwhile."""
    store = EmbeddedStore(directory)
    try:
        store.up()
        yield store
    finally:
        store.down()


def read_range(store: ObjectStore, key: str, start: int, length: int) -> bytes:
    """Bytes of an object, as one piece of new memory."""
    data = bytearray(length)
    store.get_into(key, start, [memoryview(data)])
    return bytes(data)


@pytest.fixture(scope="session")
def embedded_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """The session's store. TLCORE_STORE_DIR names it, so that child processes find it as well."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        directory = tmp_path_factory.mktemp("store")
        patch.setenv("TLCORE_STORE_DIR", str(directory))
        with throwaway_store(directory) as store:
            yield store


@pytest.fixture
def s3_store(embedded_store: EmbeddedStore) -> ObjectStore:
    """An empty prefix in the session's store; its URL is `s3_store.url`."""
    return open_store(f"s3://tlcore/test-{secrets.token_hex(6)}")


@pytest.fixture
def proxied(embedded_store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxied]:
    """Starts a proxy in front of the session's store and makes it the endpoint of this test's environment."""
    env = embedded_store.env()
    with ExitStack() as stack:

        def start(faults: Faults | None = None, **more: object) -> FaultProxy:
            proxy = stack.enter_context(FaultProxy(env["AWS_ENDPOINT_URL"], faults, keys=env, **more))
            for name, value in {**env, "AWS_ENDPOINT_URL": proxy.endpoint}.items():
                monkeypatch.setenv(name, value)
            return proxy

        yield start


@pytest.fixture(params=["s3", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind: what holds for checkpoints holds on both."""
    found: ObjectStore = (
        request.getfixturevalue("s3_store") if request.param == "s3" else open_store(f"file://{tmp_path}")
    )
    return found
