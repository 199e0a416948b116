"""The embedded SeaweedFS as a daemon: its ports, files, keys, start, stop and restart. Real processes throughout."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from store_fixtures import read_range, throwaway_store

from tlcore.errors import StorageDenied, StorageUnreachable
from tlcore.storage import EmbeddedStore, ensure_embedded, fsspec_options, open_store, probe
from tlcore.storage.embedded import BUCKET
from tlcore.storage.weed import pick_ports

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Every test has a store directory of its own, and nothing of the user's AWS settings."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TLCORE_STORE_DIR", str(tmp_path / "store"))


def listening(pid: int) -> set[tuple[str, int]]:
    connections = psutil.Process(pid).net_connections("inet")
    return {
        (c.laddr.ip, c.laddr.port)
        for c in connections
        if c.status in (psutil.CONN_LISTEN, psutil.CONN_NONE) and not c.raddr
    }


def answers(port: int) -> bool:
    with socket.socket() as probe_socket:
        return probe_socket.connect_ex(("127.0.0.1", port)) == 0


def test_a_store_lives_on_loopback_with_private_files_and_goes_away_whole(tmp_path):
    store = EmbeddedStore(tmp_path / "mine")
    status = store.up()
    try:
        assert status.running and status.endpoint
        sockets = listening(status.pid)
        assert {ip for ip, _ in sockets} == {"127.0.0.1"}
        assert len(sockets) == 10
        assert all(answers(port) for _, port in sockets)
        assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
        files = [path for path in store.directory.iterdir() if path.is_file()]
        assert {path.name for path in files} >= {"credentials.json", "state.json", "store.log"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        unix_sockets = {
            path for port in (port for _, port in sockets) for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")
        }
        assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in unix_sockets} == {0}
        assert os.getsid(status.pid) == status.pid  # detached from this terminal
    finally:
        store.down()
    assert not psutil.pid_exists(status.pid) or psutil.Process(status.pid).status() == psutil.STATUS_ZOMBIE
    assert not any(answers(port) for _, port in sockets)
    assert not any(path.exists() for path in unix_sockets)
    assert not store.status().running
    store.down()  # twice is no error


def test_secrets_stand_in_no_argument_and_in_no_log(tmp_path):
    with throwaway_store(tmp_path / "mine") as store:
        probe_url = "s3://tlcore/x"
        os.environ["TLCORE_STORE_DIR"] = str(store.directory)
        probe(probe_url)
        secrets_made = [
            value
            for key, value in json.loads((store.directory / "credentials.json").read_text()).items()
            if key != "id"
        ]
        arguments = " ".join(psutil.Process(store.status().pid).cmdline())
        log = store.log.read_text(errors="replace")
        for secret in secrets_made:
            assert len(secret) >= 32
            assert secret not in arguments + log + repr(store.access()) + repr(store.status())


def test_without_a_signature_nothing_is_served(tmp_path):
    """Neither by S3 nor by the HTTP ports of the filer and the volume server behind it."""
    import requests

    with throwaway_store(tmp_path / "store") as store:
        open_store("s3://tlcore").put("secret", b"x" * 100)
        ports = json.loads((store.directory / "state.json").read_text())["ports"]
        assert requests.get(f"http://127.0.0.1:{ports['s3']}/tlcore/secret", timeout=10).status_code == 403
        assert requests.get(f"http://127.0.0.1:{ports['filer']}/buckets/tlcore/secret", timeout=10).status_code == 401
        assert requests.put(f"http://127.0.0.1:{ports['filer']}/buckets/tlcore/y", b"y", timeout=10).status_code == 401
        assert requests.get(f"http://127.0.0.1:{ports['volume']}/1,01637037d6", timeout=10).status_code in (401, 404)


def test_data_and_endpoint_survive_a_restart(tmp_path):
    store = EmbeddedStore()
    first = store.up()
    objects = open_store("s3://tlcore/kept")
    data = os.urandom(5 << 20)
    try:
        objects.put("big", data)
        objects.put("small", b"1")
        store.down()
        second = store.up()
        assert second.endpoint == first.endpoint and second.pid != first.pid
        assert objects.get("big") == data  # the same client, never told
        assert objects.put_if_absent("small", b"2") is False
    finally:
        store.down()


def test_data_survives_a_move_to_other_ports(tmp_path):
    store = EmbeddedStore()
    try:
        first = store.up()
        open_store("s3://tlcore").put("x", b"1" * 100_000)
        store.down()
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", int(str(first.endpoint).rsplit(":", 1)[1])))
            taken.listen()
            second = store.up()
            assert second.endpoint != first.endpoint
            assert open_store("s3://tlcore").get("x") == b"1" * 100_000
            open_store("s3://tlcore").put("y", b"2" * 100_000)
            assert open_store("s3://tlcore").get("x") == b"1" * 100_000
    finally:
        store.down()


def test_a_killed_server_comes_back_with_its_data(tmp_path):
    with throwaway_store(tmp_path / "store") as store:
        open_store("s3://tlcore").put("x", b"1" * 1000)
        os.kill(int(store.status().pid or 0), signal.SIGKILL)
        while store.status().running:
            time.sleep(0.01)
        with pytest.raises(StorageUnreachable, match="is not running"):
            open_store("s3://tlcore")
        assert store.up().running
        assert open_store("s3://tlcore").get("x") == b"1" * 1000


def test_two_stores_run_at_once_and_know_nothing_of_each_other(tmp_path, monkeypatch):
    with throwaway_store(tmp_path / "one") as one, throwaway_store(tmp_path / "two") as two:
        stores = []
        for store in (one, two):
            monkeypatch.setenv("TLCORE_STORE_DIR", str(store.directory))
            objects = open_store("s3://tlcore")
            objects.put("who", store.directory.name.encode())
            stores.append(objects)
        assert [objects.get("who") for objects in stores] == [b"one", b"two"]
        assert one.env()["AWS_SECRET_ACCESS_KEY"] != two.env()["AWS_SECRET_ACCESS_KEY"]
        one.down()
        assert stores[1].get("who") == b"two"


def test_of_many_ups_at_once_one_starts_it(tmp_path):
    barrier, pids = threading.Barrier(4), []

    def up() -> None:
        barrier.wait()
        pids.append(EmbeddedStore(tmp_path / "store").up().pid)

    threads = [threading.Thread(target=up) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(pids) == 4 and len(set(pids)) == 1
        assert (tmp_path / "store" / "store.log").read_text(errors="replace").count("Starting SeaweedFS Mini") == 1
    finally:
        EmbeddedStore(tmp_path / "store").down()


def test_it_outlives_the_command_that_started_it(tmp_path):
    code = "from tlcore.storage import EmbeddedStore; print(EmbeddedStore().up().pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    store = EmbeddedStore(tmp_path / "store")
    try:
        assert store.status().pid == int(done.stdout)
        probe("s3://tlcore/x")
    finally:
        store.down()
    assert not store.status().running


def test_down_leaves_a_stranger_with_the_same_pid_alone(tmp_path):
    store = EmbeddedStore()
    store.up()
    store.down()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        state = {
            "pid": stranger.pid,
            "started": psutil.Process(stranger.pid).create_time(),
            "ports": vars(pick_ports()),
        }
        (store.directory / "state.json").write_text(json.dumps(state))
        assert not store.status().running
        store.down()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_store_that_cannot_start_says_why_and_where_its_log_is(tmp_path):
    store = EmbeddedStore()
    store.directory.mkdir()
    (store.directory / "data").write_text("in the way")
    with pytest.raises(Exception, match=str(store.directory)):
        store.up()
    (store.directory / "data").unlink()
    (store.directory / "data" / "filerldb2").parent.mkdir()
    (store.directory / "data" / "filerldb2").write_text("in the way of the server")
    with pytest.raises(StorageUnreachable, match="did not come up") as caught:
        store.up()
    assert str(store.log) in caught.value.hint
    assert not store.status().running


def test_ensure_embedded_starts_it_only_for_its_own_bucket(tmp_path, monkeypatch):
    store = EmbeddedStore()
    try:
        ensure_embedded("s3://another-bucket/x")
        ensure_embedded(str(tmp_path / "directory"))
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            ensure_embedded("s3://tlcore/x")
        assert not store.status().running
        ensure_embedded("s3://tlcore/x")
        assert store.status().running
    finally:
        store.down()


def test_a_store_that_is_down_names_the_command(tmp_path):
    with pytest.raises(StorageUnreachable, match="not running") as caught:
        open_store("s3://tlcore/x")
    assert "tlcore store up" in caught.value.hint


def test_its_environment_serves_s3fs_and_our_own_client(embedded_store, monkeypatch):
    import s3fs

    env = embedded_store.env()
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    with files.open(f"{BUCKET}/env/by s3fs.csv", "wb") as file:
        file.write(b"a,b\n1,2\n")
    assert open_store("s3://tlcore/env").get("by s3fs.csv") == b"a,b\n1,2\n"
    open_store("s3://tlcore/env").put("by tlcore", b"x" * 20_000_000)
    assert files.cat(f"{BUCKET}/env/by tlcore") == b"x" * 20_000_000


def test_fsspec_options_reach_the_same_objects(embedded_store, monkeypatch):
    import fsspec

    monkeypatch.setenv("TLCORE_STORE_DIR", str(embedded_store.directory))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # neither client may go there for this machine
    open_store("s3://tlcore/opt").put("x/y.txt", b"hello")
    with fsspec.open("s3://tlcore/opt/x/y.txt", "rb", **fsspec_options("s3://tlcore/opt")) as file:
        assert file.read() == b"hello"
    assert fsspec_options(str(embedded_store.directory)) == {}


def test_the_users_own_aws_settings_do_not_leak_into_the_embedded_store(embedded_store, monkeypatch):
    monkeypatch.setenv("TLCORE_STORE_DIR", str(embedded_store.directory))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAUSER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "their-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "their-token")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setattr("tlcore.storage.clients._clients", {})  # one made before would not have seen any of this
    probe("s3://tlcore/leak")
    monkeypatch.delenv("AWS_SKIP_SIGNATURE")
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(embedded_store.env()["AWS_ENDPOINT_URL"]))
    with pytest.raises(StorageDenied, match="InvalidAccessKeyId"):
        probe("s3://tlcore/leak")


@pytest.mark.long
def test_two_gigabytes_of_chunks_fit(tmp_path):
    with throwaway_store(tmp_path / "store"):
        objects = open_store("s3://tlcore/big")
        chunk = bytearray(os.urandom(32 << 20))
        for n in range(64):
            chunk[:8] = n.to_bytes(8, "little")
            objects.put(f"cas/{n}", chunk)
        for n in (0, 31, 63):
            assert int.from_bytes(read_range(objects, f"cas/{n}", 0, 8), "little") == n
        assert sum(info.size_bytes for info in objects.list()) == 2 << 30
