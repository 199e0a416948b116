"""The note a local cluster leaves about itself, so that `submit`, `attach` and `preflight` find it.

Owns the file's place and form only. `cluster/local.py` writes it and starts and stops the nodes; `address.py` reads
it. The directory is readable by this user alone, for the token lies in it:

    ~/.cache/tlcore/cluster/      or TLCORE_CLUSTER_DIR
        cluster.json              this note; absent when no cluster is up
        token                     Ray's authentication token, mode 0600
        logs/                     what `ray start` said, one file per node
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tlcore.errors import RequestError


@dataclass(frozen=True)
class LocalNode:
    """One Ray node of this machine, as it was started."""

    address: str
    cpus: int
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class LocalCluster:
    """Everything `down` needs to stop exactly what `up` started, and a client needs to connect.

    `mark` stands in the environment of every process of the cluster; `sessions` are the process sessions `ray start`
    ran in; `booted` is the machine's boot time in seconds, for process ids mean nothing after a reboot.
    """

    mark: str
    booted: int
    scratch: str
    job_server: str
    gcs: str
    nodes: tuple[LocalNode, ...] = ()
    sessions: tuple[int, ...] = ()
    store_started: bool = False


def cluster_directory() -> Path:
    """Where the note, the token and the logs lie."""
    return Path(os.environ.get("TLCORE_CLUSTER_DIR") or "~/.cache/tlcore/cluster").expanduser().absolute()


def token_path() -> Path:
    """The token file of the local cluster."""
    return cluster_directory() / "token"


def _note() -> Path:
    return cluster_directory() / "cluster.json"


def write_note(cluster: LocalCluster) -> None:
    """Replace the note whole, so that a reader never sees half of it."""
    draft = _note().with_suffix(".new")
    draft.write_text(json.dumps(asdict(cluster), indent=1))
    draft.chmod(0o600)
    draft.replace(_note())


def read_note() -> LocalCluster | None:
    """The cluster noted down, alive or not; None without a note. Raises RequestError when the note cannot be read."""
    try:
        found: dict[str, Any] = json.loads(_note().read_text())
        nodes = tuple(LocalNode(node["address"], node["cpus"], tuple(node["gpus"])) for node in found.pop("nodes"))
        return LocalCluster(nodes=nodes, sessions=tuple(found.pop("sessions")), **found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{_note()} cannot be read: {error}", hint="remove that file once no local cluster runs any more"
        ) from error


def remove_note() -> None:
    """Forget the cluster and its token."""
    token_path().unlink(missing_ok=True)
    _note().unlink(missing_ok=True)


def visible_gpus() -> list[str]:
    """The devices of this machine to deal out over its nodes, as Ray itself would find them."""
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager as Nvidia

    chosen = Nvidia.get_current_process_visible_accelerator_ids()
    if chosen is not None:
        return list(chosen)
    return [str(index) for index in range(Nvidia.get_current_node_num_accelerators())]
