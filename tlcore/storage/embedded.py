"""The embedded object store: a real SeaweedFS on loopback that `tlcore` starts when nothing else is named.

Owns its life (up, down, status) and its files; `weed.py` owns the process. Called by `access.py`, `open.py` and the
command. It is a daemon: it outlives the command that started it and is stopped by `down`. Files, all readable by this
user only:

    ~/.cache/tlcore/store/        or TLCORE_STORE_DIR, or the directory given
        credentials.json          keys made once, kept over restarts
        state.json                pid, its start time, ports; absent when stopped
        ports.json                ports of the last start, taken again when free, so that clients keep their endpoint
        store.log                 the server's own log
        data/                     the objects

SeaweedFS does not fsync each object: a killed server loses nothing (tried: 20 times kill -9 right after a PUT was answered,
394 objects of 100 bytes to 9 MiB, none lost), a power cut may lose the last seconds.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tlcore.errors import StorageError, StorageUnreachable
from tlcore.storage import weed
from tlcore.storage.clients import QUICK
from tlcore.storage.credentials import S3Access, StaticCredentials
from tlcore.storage.room import Room
from tlcore.storage.s3 import S3ObjectStore
from tlcore.storage.translate import os_error
from tlcore.storage.urls import S3Place

BUCKET = "tlcore"
REGION = "us-east-1"
_START_ATTEMPTS = 3
_LISTEN_S = 60.0
_READY_S = 30.0
_STOP_S = 30.0
_LOG_LIMIT_BYTES = 32 << 20


@dataclass(frozen=True)
class Status:
    """What `tlcore store status` shows. `endpoint` and `pid` are None when stopped."""

    running: bool
    directory: Path
    log: Path
    endpoint: str | None = None
    pid: int | None = None
    bucket: str = BUCKET

    def to_dict(self) -> dict[str, Any]:
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class _State:
    """A started server, as `state.json` keeps it. A pid alone is nobody: its start time must match too."""

    pid: int
    started: float
    ports: weed.Ports

    @property
    def endpoint(self) -> str:
        return f"http://{weed.HOST}:{self.ports.s3}"


class EmbeddedStore:
    """The store in one directory. Objects of this class hold no state: any process may ask, start or stop.

    `volumes` bounds what it takes, in volumes of 256 MB, when this object starts it; None: what the disk has room for then.
    """

    def __init__(self, directory: Path | str | None = None, volumes: int | None = None) -> None:
        chosen = directory or os.environ.get("TLCORE_STORE_DIR") or "~/.cache/tlcore/store"
        self.directory = Path(chosen).expanduser().absolute()
        self.log = self.directory / "store.log"
        self._data = self.directory / "data"
        self._volumes = volumes
        self._state_file = self.directory / "state.json"
        self._ports_file = self.directory / "ports.json"
        self._keys_file = self.directory / "credentials.json"

    def status(self) -> Status:
        """Whether its process runs; asks the operating system, not the server."""
        state = self._running()
        down = Status(running=False, directory=self.directory, log=self.log)
        return down if state is None else replace(down, running=True, endpoint=state.endpoint, pid=state.pid)

    def access(self) -> S3Access:
        """Endpoint and keys for a client. Raises StorageUnreachable when it is down."""
        state = self._running()
        if state is None:
            raise StorageUnreachable(
                f"the embedded object store in {self.directory}, which holds bucket {BUCKET!r}, is not running",
                hint="tlcore store up (or set AWS_ENDPOINT_URL to use another store)",
                bucket=BUCKET,
            )
        keys = _read_json(self._keys_file) or {}
        static = StaticCredentials(keys["id"], keys["secret"])
        room = Room(str(self._data), f"http://{weed.HOST}:{state.ports.master}")
        return S3Access(state.endpoint, REGION, static, embedded=True, room=room)

    def env(self) -> dict[str, str]:
        """Environment for `aws`-style tools and s3fs. Raises StorageUnreachable when it is down."""
        access = self.access()
        keys = access.credentials()
        return {
            "AWS_ENDPOINT_URL": str(access.endpoint),
            "AWS_ACCESS_KEY_ID": keys["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": keys["secret_access_key"],
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,  # boto3 and s3fs know this name only
        }

    def up(self) -> Status:
        """Start it unless it runs; return once it has answered a signed request for its bucket.

        Raises StorageUnreachable, naming the log, when it does not come up; StorageDenied or StorageFull when its
        directory cannot be written.
        """
        try:
            self._make_directories()
            with self._locked():
                if self._running() is None:
                    self._start()
                self._await_ready()
                return self.status()
        except OSError as error:
            raise os_error(error, "keep the embedded object store in", str(self.directory), "") from error

    def down(self) -> None:
        """Stop it and wait until its data is written and its process gone. Nothing happens when it is down."""
        if not self.directory.is_dir():
            return
        with self._locked():
            state = self._state()
            process = state and weed.find(state.pid, state.started, self._data)
            if state and process:
                weed.stop(process, state.ports, _STOP_S)
            self._state_file.unlink(missing_ok=True)

    def _start(self) -> None:
        if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".log.old"))
        ports = self._last_ports()
        for _ in range(_START_ATTEMPTS):
            if ports is None or not weed.ports_free(ports):
                ports = weed.pick_ports()
            process = weed.start(self._data, ports, BUCKET, self._server_env(), self.log, self._volumes)
            _write_json(self._state_file, asdict(_State(process.pid, process.create_time(), ports)))
            if weed.listens(process, ports, _LISTEN_S):
                _write_json(self._ports_file, asdict(ports))
                return
            weed.stop(process, ports, _STOP_S)
            self._state_file.unlink(missing_ok=True)
            ports = None  # another program may have taken one in between: go elsewhere
        raise self._did_not_start("its process ended, or does not listen")

    def _await_ready(self) -> None:
        """Wait for the first good answer to a real, signed S3 request; the bucket appears last of all."""
        store = S3ObjectStore(S3Place(BUCKET, ""), self.access(), QUICK)
        deadline = time.monotonic() + _READY_S
        while True:
            try:
                store.list(".ready/")
                return
            except StorageError as error:
                if time.monotonic() > deadline or self._running() is None:
                    raise self._did_not_start(error.message) from error
            time.sleep(0.05)

    def _did_not_start(self, reason: str) -> StorageUnreachable:
        return StorageUnreachable(
            f"the embedded object store in {self.directory} did not come up: {reason}",
            hint=f"read {self.log}; then `tlcore store down` and `tlcore store up`",
        )

    def _running(self) -> _State | None:
        state = self._state()
        return state if state and weed.find(state.pid, state.started, self._data) else None

    def _state(self) -> _State | None:
        raw = _read_json(self._state_file)
        return _State(raw["pid"], raw["started"], weed.Ports(**raw["ports"])) if raw else None

    def _last_ports(self) -> weed.Ports | None:
        raw = _read_json(self._ports_file)
        return weed.Ports(**raw) if raw else None

    def _server_env(self) -> dict[str, str]:
        """The secrets the server starts with, made once and kept, so that clients' keys survive a restart."""
        keys = _read_json(self._keys_file)
        if keys is None:
            keys = {"id": f"tlcore{secrets.token_hex(7)}", "secret": secrets.token_urlsafe(30)}
            keys |= {name: secrets.token_urlsafe(36) for name in ("volume", "volume_read", "filer", "filer_read")}
            _write_json(self._keys_file, keys)
        return {
            "AWS_ACCESS_KEY_ID": keys["id"],
            "AWS_SECRET_ACCESS_KEY": keys["secret"],
            "WEED_JWT_SIGNING_KEY": keys["volume"],
            "WEED_JWT_SIGNING_READ_KEY": keys["volume_read"],
            "WEED_JWT_FILER_SIGNING_KEY": keys["filer"],
            "WEED_JWT_FILER_SIGNING_READ_KEY": keys["filer_read"],
        }

    def _make_directories(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for directory in (self.directory, self._data):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o700)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One `up` or `down` at a time. The lock falls with its holder, so a killed command leaves none behind."""
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StorageError(
            f"{path} is not JSON: {error}", hint="`tlcore store down`, remove that file, `tlcore store up`"
        ) from error
    return found


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write whole or not at all, readable by this user only from the first byte on."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(value, file)
    temporary.replace(path)
