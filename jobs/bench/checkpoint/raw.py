"""The limits: the same bytes through the same client without anything around it, and through plain memory copies.

Owns raw concurrent PUT, raw ranged GET with and without SHA-256, and the memory copy. Called by `rank.py`.
The clients are those that tlcore's storage uses. For PUT it is obstore, configured as tlcore configures it: unsigned payload, one
request per object. For GET it is `RangeConnections`, as restores have it: connections of its own, bytes received in memory that
is there already; memory that is used again for the next object, which is the fastest there is. Calls are made from as many
threads as tlcore uses connections; the objects have the size of its chunks.
"""

from __future__ import annotations

import hashlib
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import obstore
import torch
from obstore.store import S3Store

from jobs.bench.checkpoint.model import Trained
from tlcore.checkpoint.reader import CONNECTIONS as GET_CONNECTIONS
from tlcore.engine import state
from tlcore.storage import EmbeddedStore
from tlcore.storage.direct import RangeConnections

Put = Callable[[str, memoryview], None]
_TRIES = 3


def raw_client() -> S3Store:
    """obstore on the embedded store's bucket."""
    access = EmbeddedStore().access()
    return S3Store(
        "tlcore",
        config={
            "endpoint": str(access.endpoint),
            "region": access.region,
            "virtual_hosted_style_request": False,
            "unsigned_payload": True,
            "skip_signature": False,
        },
        client_options={"allow_http": True, "proxy_url": "http://127.0.0.1:9", "proxy_excludes": "127.0.0.1"},
        credential_provider=access.credentials,
    )


def live_tensors(trained: Trained) -> list[torch.Tensor]:
    """This rank's masters and moments, flat views on live memory."""
    intervals = state.trained_intervals(trained.model.module, trained.model.stage)
    if trained.model.stage == 0:
        intervals = state.share_out(intervals)
    return [each.values for each in intervals]


class HostCopy:
    """A reused buffer on the host (pinned for a GPU), and the copy of the state into it: the limit of an eager snapshot."""

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        count = sum(each.nbytes for each in live_tensors(trained))
        self._pinned = trained.device.type == "cuda"
        self._buffer = torch.zeros(count, dtype=torch.uint8, pin_memory=self._pinned)

    def copy(self) -> float:
        """Copy now; seconds it took."""
        tensors = live_tensors(self._trained)
        began = time.monotonic()
        at = 0
        for each in tensors:
            into = self._buffer[at : at + each.nbytes]
            at += each.nbytes
            if self._pinned:
                into.view(each.dtype).copy_(each, non_blocking=True)
            else:
                np.copyto(into.numpy(), each.view(torch.uint8).numpy())
        if self._pinned:
            torch.cuda.synchronize()
        return time.monotonic() - began

    def bodies(self, size: int) -> list[memoryview]:
        """What was copied, in parts of `size` bytes."""
        whole = self._buffer.numpy().data
        return [whole[at : at + size] for at in range(0, len(whole), size)]


def client_put(client: S3Store, url: str) -> Put:
    """The client's PUT alone, under the run's place."""
    root = url.removeprefix("s3://tlcore/")

    def put(key: str, body: memoryview) -> None:
        obstore.put(client, f"{root}/{key}", body, use_multipart=False)

    return put


def raw_put(put: Put, prefix: str, bodies: Sequence[memoryview], connections: int) -> float:
    """PUT every body under a key of its own, `connections` at a time; seconds until the last is durable."""
    with ThreadPoolExecutor(connections) as threads:
        began = time.monotonic()
        for _ in threads.map(lambda each: put(f"{prefix}/{each[0]:05d}", each[1]), enumerate(bodies)):
            pass
        return time.monotonic() - began


def raw_connections() -> RangeConnections:
    """tlcore's own connections to the embedded store's bucket, none of them open yet, as a restore finds them after idling."""
    return RangeConnections(EmbeddedStore().access())


def raw_get(connections: RangeConnections, client: S3Store, objects: Sequence[tuple[str, int]], hashed: bool) -> float:
    """GET every object (key, bytes) by range through tlcore's own connections, and SHA-256 each where asked; seconds.

    Args:
        client: tells the connections where the bucket is; nothing is read through it.

    Raises RuntimeError where an object did not come: restores would ask for it through obstore, and this be no limit of theirs.
    """
    largest = max((size for _, size in objects), default=0)
    buffers: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
    for _ in range(GET_CONNECTIONS):
        buffers.put(np.ones(largest, np.uint8).data)  # of ones: its pages are there before the clock starts

    def read(each: tuple[str, int]) -> None:
        key, size = each
        buffer = buffers.get()
        try:
            into = buffer[:size]
            if not any(connections.fill(client, key, 0, [into]) for _ in range(_TRIES)):
                raise RuntimeError(
                    f"raw GET: {key} ({size} bytes) did not come in {_TRIES} requests; look at the store's log"
                )
            if hashed:
                hashlib.sha256(into).digest()
        finally:
            buffers.put(buffer)

    with ThreadPoolExecutor(GET_CONNECTIONS) as threads:
        began = time.monotonic()
        for _ in threads.map(read, objects):
            pass
        return time.monotonic() - began
