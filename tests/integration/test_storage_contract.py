"""One contract, every implementation: the same tests over a directory, over the real SeaweedFS, over SeaweedFS behind a network
with latency and 503 SlowDown, and over SeaweedFS without conditional PUT."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from store_fixtures import read_range

from jobs.bench.network.faults import Faults
from jobs.bench.network.proxy import FaultProxy
from tlcore.errors import ObjectMissing, StorageError
from tlcore.storage import EmbeddedStore, ObjectStore, append_json, get_json, open_store, probe, put_json
from tlcore.storage.base import is_too_short

pytestmark = pytest.mark.integration


ROUGH = Faults(round_trip_s=0.002, slow_down_rate=0.05, seed=3)


@pytest.fixture(scope="module")
def proxies(embedded_store: EmbeddedStore) -> Iterator[Callable[[str], FaultProxy]]:
    """The proxies by kind, each started when first asked for."""
    started: dict[str, FaultProxy] = {}
    env = embedded_store.env()
    faults = {"rough": ROUGH, "unconditional": Faults(conditional="ignored")}

    def proxy(kind: str) -> FaultProxy:
        if kind not in started:
            started[kind] = FaultProxy(env["AWS_ENDPOINT_URL"], faults[kind], keys=env)
        return started[kind]

    yield proxy
    for each in started.values():
        each.close()


@pytest.fixture(params=["file", "s3", "rough", "unconditional"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    if request.param == "file":
        return open_store((tmp_path / "root dir").as_uri())
    s3_store: ObjectStore = request.getfixturevalue("s3_store")
    if request.param == "s3":
        return s3_store
    env = request.getfixturevalue("embedded_store").env()
    endpoint = request.getfixturevalue("proxies")(request.param).endpoint
    for name, value in {**env, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    return open_store(s3_store.url)


@pytest.fixture
def conditional(request: pytest.FixtureRequest, store: ObjectStore) -> ObjectStore:
    """The stores that promise more than the fallback can."""
    if "unconditional" in request.node.name:
        pytest.skip("the fallback does not promise this: conditional.py says so")
    return store


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_the_implementations_are_object_stores(store):
    assert isinstance(store, ObjectStore)


def test_put_then_get_gives_the_same_bytes(store):
    store.put("a/b.bin", b"first")
    store.put("a/b.bin", b"second, longer")
    assert store.get("a/b.bin") == b"second, longer"


def test_an_empty_object_is_an_object(store):
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert [(info.key, info.size_bytes) for info in store.list()] == [("empty", 0)]


def test_buffers_of_any_kind_are_written_as_their_bytes(store):
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    for n, data in enumerate((array, bytearray(b"abc"), memoryview(b"abcdef")[2:4])):
        store.put(f"buffer/{n}", data)
        assert store.get(f"buffer/{n}") == bytes(memoryview(data).cast("B"))


def test_a_big_object_survives_whole(store):
    data = os.urandom(64 << 20)
    store.put("big", data)
    assert store.get("big") == data
    assert read_range(store, "big", (64 << 20) - 5, 5) == data[-5:]


def test_a_range_is_exact(store):
    store.put("range", b"0123456789")
    assert read_range(store, "range", 3, 4) == b"3456"
    assert read_range(store, "range", 0, 10) == b"0123456789"
    assert read_range(store, "range", 4, 0) == b""


def test_a_range_fills_parts_one_after_the_other(store):
    data = os.urandom(3 << 20)
    store.put("parts", data)
    sizes = [1, 0, 70_000, *[3] * 2000, 1 << 20]
    parts = [memoryview(bytearray(size)) for size in sizes]
    store.get_into("parts", 12_345, parts)
    assert b"".join(parts) == data[12_345 : 12_345 + sum(sizes)]


def test_many_ranges_at_once_are_whole_whatever_the_network_does(store):
    data = os.urandom(4 << 20)
    store.put("many", data)
    with ThreadPoolExecutor(8) as threads:
        starts = range(0, len(data), 1 << 16)
        pieces = list(threads.map(lambda start: read_range(store, "many", start, 1 << 16), starts))
    assert b"".join(pieces) == data


@pytest.mark.parametrize(("start", "length"), [(8, 3), (10, 1), (50, 5)])
def test_a_range_beyond_the_end_says_how_much_there_was(store, start, length):
    store.put("range", b"0123456789")
    said = f"wanted {length} bytes from byte {start}, got {max(0, 10 - start)}"
    with pytest.raises(StorageError, match=said) as caught:
        read_range(store, "range", start, length)
    assert is_too_short(caught.value)


def test_what_is_not_there_is_missing(store):
    store.put("there/x", b"")
    for read in (
        lambda: store.get("not/there"),
        lambda: read_range(store, "not/there", 0, 1),
        lambda: read_range(store, "not/there", 0, 0),
        lambda: store.get("there"),
        lambda: store.get("there/x/y"),
    ):
        with pytest.raises(ObjectMissing) as caught:
            read()
        assert not is_too_short(caught.value)


def test_put_if_absent_writes_once(store):
    assert store.put_if_absent("once", b"mine") is True
    assert store.put_if_absent("once", b"theirs") is False
    assert store.put_if_absent("once", b"much longer") is False
    assert store.get("once") == b"mine"


def test_put_if_absent_of_equal_bytes_counts_as_done(store):
    store.put("once", b"mine")
    assert store.put_if_absent("once", b"mine") is True


def test_of_many_racing_writers_exactly_one_wins(conditional):
    for round_number in range(3):
        key, barrier = f"race/{round_number}", threading.Barrier(16)
        won: list[int] = []

        def write(writer: int, key: str = key, barrier: threading.Barrier = barrier, won: list[int] = won) -> None:
            barrier.wait()
            if conditional.put_if_absent(key, b"writer %d" % writer):
                won.append(writer)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert conditional.get(key) == b"writer %d" % won[0]


def test_a_listing_has_size_and_time(store):
    before = datetime.now(UTC) - timedelta(seconds=2)
    store.put("x", b"12345")
    (info,) = store.list()
    assert info.size_bytes == 5
    assert before <= info.modified <= datetime.now(UTC) + timedelta(seconds=2)


def test_a_prefix_need_not_end_at_a_slash(store):
    for key in ("step-1/a", "step-10/a", "step-2/a", "stop"):
        store.put(key, b"")
    assert keys(store, "step-1") == ["step-1/a", "step-10/a"]
    assert keys(store, "step-1/") == ["step-1/a"]
    assert keys(store, "st") == ["step-1/a", "step-10/a", "step-2/a", "stop"]
    assert keys(store, "none") == keys(store, "none/") == []


def test_a_listing_is_in_key_order_not_in_directory_order(store):
    names = ["a-b", "a.b", "a/b", "a/b-c/d", "a/b.c", "a0", "B", "é"]
    for name in reversed(names):
        if not any(other.startswith(f"{name}/") for other in names):
            store.put(name, b"")
    assert keys(store) == sorted(keys(store))
    assert len(keys(store)) == len(names)


def test_long_listings_are_whole(store):
    wanted = sorted([f"p/{n % 3}/{n:05d}" for n in range(1150)] + [f"p-{n}/x" for n in range(60)])
    threads = [
        threading.Thread(target=lambda part=part: [store.put(key, b"") for key in wanted[part::8]]) for part in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys(store) == wanted
    assert keys(store, "p/1/") == [key for key in wanted if key.startswith("p/1/")]
    store.delete(wanted)
    assert keys(store) == []


@pytest.mark.parametrize(
    "key", ["with space/and ü/日本", "a+b=c&d", "100%/x%2Fy", "what?#[x]*", "~tilde'quote", ".hidden/x", "e\u0301"]
)
def test_keys_may_hold_any_printable_character(store, key):
    store.put(key, key.encode())
    assert store.put_if_absent(key, b"other") is False
    assert keys(store) == [key]
    assert store.get(key) == key.encode()
    store.delete([key])
    assert keys(store) == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../../b", "./a", "a\nb", "a\0b", "a\\b", ".tlcore-tmp-x"]
)
def test_keys_that_could_leave_the_root_are_refused(store, key):
    for use in (lambda: store.put(key, b""), lambda: store.get(key), lambda: store.delete([key])):
        with pytest.raises(StorageError, match="not a plain relative name"):
            use()


def test_delete_forgets_and_does_not_mind_the_absent(store):
    for key in ("d/1", "d/2", "e"):
        store.put(key, b"x")
    store.delete(["d/1", "d/never", "never/was", "e/below"])
    assert keys(store) == ["d/2", "e"]
    store.delete([])
    store.delete(["d/2", "e"])
    assert keys(store) == []


def test_a_store_goes_to_another_process_as_its_url_without_secrets(store):
    store.put("x", b"1")
    parcel = pickle.dumps(store)
    assert pickle.loads(parcel).get("x") == b"1"  # noqa: S301  (our own bytes)
    access = getattr(store, "_access", None)
    if access is not None:
        assert access.credentials.secret_access_key.encode() not in parcel
        assert access.credentials.secret_access_key not in repr(access) + repr(store)


def test_roots_nest(store):
    open_store(f"{store.url}/inner/root").put("x", b"1")
    assert keys(store) == ["inner/root/x"]
    assert keys(open_store(f"{store.url}/inner")) == ["root/x"]


def test_probe_passes_and_leaves_nothing(store):
    probe(store.url)
    assert keys(store) == []


def test_json_round_trips_and_appends_in_order(store):
    put_json(store, "facts.json", {"ä": [1, None, 0.1]})
    assert get_json(store, "facts.json") == {"ä": [1, None, 0.1]}
    numbers = [append_json(store, lambda n: f"log/{n:04d}", {"event": event}, start=0) for event in ("a", "b", "c")]
    assert numbers == [0, 1, 2]
    assert [get_json(store, key)["event"] for key in keys(store, "log/")] == ["a", "b", "c"]
    store.put("broken.json", b"{")
    with pytest.raises(StorageError, match=r"'broken.json' .* is not JSON"):
        get_json(store, "broken.json")


def test_appenders_at_once_take_a_number_each(conditional):
    taken: list[int] = []

    def append(writer: int) -> None:
        taken.extend(
            append_json(conditional, lambda n: f"log/{n:04d}", {"writer": writer, "i": i}, start=0) for i in range(5)
        )

    threads = [threading.Thread(target=append, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(30))
    assert len(keys(conditional, "log/")) == 30


def test_the_session_store_is_the_one_found_by_its_bucket(embedded_store: EmbeddedStore, s3_store: ObjectStore):
    assert str(embedded_store.status().endpoint) in repr(s3_store)
