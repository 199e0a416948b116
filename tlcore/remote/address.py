"""Which cluster is meant, and the token that opens it.

Owns the order in which the places are asked. Called by `jobs.py`, `preflight.py` and `cluster/local.py`. Loads no
Ray. The token is read from where Ray itself reads it; it is never printed, logged or put into a job's environment.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tlcore.errors import RequestError
from tlcore.remote.local_cluster import LocalCluster, read_note, token_path

CONNECT_TIMEOUT_S = 5.0


class NoCluster(RequestError):
    """Nothing names a cluster, and no local one is up."""


@dataclass(frozen=True)
class ClusterAddress:
    """A job server, and the head store's address where this machine can join the cluster itself."""

    job_server: str
    named_by: str
    token: str | None = field(default=None, repr=False)
    gcs: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What authenticates a request; empty without a token. Not for printing."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def find_cluster(address: str | None = None) -> ClusterAddress:
    """The job server given, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else the local cluster that is up.

    Raises NoCluster when none is known, RequestError when what is named is no http(s) address. Never connects.
    """
    local = read_note()
    candidates = (
        (address, "--address"),
        (os.environ.get("RAY_API_SERVER_ADDRESS"), "RAY_API_SERVER_ADDRESS"),
        (os.environ.get("RAY_ADDRESS"), "RAY_ADDRESS"),
        (local.job_server if local else None, "the local cluster"),
    )
    for value, named_by in candidates:
        if value:
            return _named(value.rstrip("/"), named_by, local)
    raise NoCluster("no cluster is named and no local one is up", hint="make cluster-up, or --address http://HEAD:8265")


def _named(value: str, named_by: str, local: LocalCluster | None) -> ClusterAddress:
    if local is not None and value in (local.job_server, local.gcs):
        return ClusterAddress(local.job_server, named_by, _read_token(token_path()), local.gcs)
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError(
            f"{named_by}: {value!r} is not a job server's address",
            hint="it looks like http://HEAD:8265, Ray's dashboard",
        )
    return ClusterAddress(value, named_by, _token_from_environment())


def _token_from_environment() -> str | None:
    """In Ray's own order: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read_token(Path(named).expanduser())
    usual = Path("~/.ray/auth_token").expanduser()
    return _read_token(usual) if usual.exists() else None


def _read_token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise RequestError(
            f"the cluster's token file {path} cannot be read: {error.strerror}",
            hint="RAY_AUTH_TOKEN_PATH names the file that holds the cluster's token",
        ) from error


def job_server_answers(cluster: ClusterAddress) -> bool:
    """Whether it says its version to this token: False while nothing listens or Ray is still starting.

    Raises RequestError when it refuses the token.
    """
    request = Request(f"{cluster.job_server}/api/version", headers=cluster.headers)
    try:
        with urlopen(request, timeout=CONNECT_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except HTTPError as error:
        if error.code in (401, 403):
            raise token_refused(cluster, error.code) from error
        return False
    except (URLError, TimeoutError, ConnectionError, socket.gaierror):
        return False


def token_refused(cluster: ClusterAddress, status: int) -> RequestError:
    """The error for an answer of 401 or 403."""
    said = "no token was given" if cluster.token is None else "the token was not accepted"
    return RequestError(
        f"{cluster.job_server} ({cluster.named_by}) answered {status}: {said}",
        hint="RAY_AUTH_TOKEN_PATH names the file that holds the cluster's token; on its head it is ~/.ray/auth_token",
        status=status,
    )
