"""Which processes belong to a local cluster, and how they are ended without touching any other.

Owns no state. Called by `local.py`. Ray's processes are found by three marks, since each alone has a hole: a variable
in their environment (Ray's workers overwrite theirs with a process title), the process session `ray start` ran in (a
submitted job's driver opens one of its own), and descent from either.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import psutil

MARK = "TLCORE_CLUSTER_MARK"


def members(mark: str, sessions: Iterable[int], booted: int) -> set[psutil.Process]:
    """Every live process of the cluster, zombies aside. Empty when the machine has been booted since."""
    if int(psutil.boot_time()) != booted:
        return set()
    # A session whose leader lives is not ours: `ray start` has exited, so the number was given to somebody else.
    ours = {session for session in sessions if not psutil.pid_exists(session)}
    roots = {process for process in psutil.process_iter() if _belongs(process, mark, ours)}
    found = set(roots)
    for process in roots:
        try:
            found.update(process.children(recursive=True))
        except psutil.NoSuchProcess:
            continue
    return {process for process in found if process.pid != os.getpid() and _alive(process)}


def _belongs(process: psutil.Process, mark: str, sessions: set[int]) -> bool:
    try:
        return os.getsid(process.pid) in sessions or process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def end(mark: str, sessions: Iterable[int], booted: int, patience_s: float = 8.0) -> int:
    """Stop them all and return how many there were.

    Raylets go first, while the head still answers: each hands its work back in about a second, and waits ten for a
    head that died with it. What does not go by SIGTERM in `patience_s` is killed.
    """
    sessions = tuple(sessions)
    seen = members(mark, sessions, booted)
    raylets = {process for process in seen if _name(process) == "raylet"}
    _signal_and_wait(raylets, patience_s)
    seen |= members(mark, sessions, booted)
    _signal_and_wait(seen, patience_s)
    for process in seen | members(mark, sessions, booted):
        if _alive(process):
            process.kill()
    psutil.wait_procs(seen, timeout=patience_s)
    return len(seen)


def _signal_and_wait(processes: set[psutil.Process], patience_s: float) -> None:
    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    deadline = time.monotonic() + patience_s
    while any(_alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
