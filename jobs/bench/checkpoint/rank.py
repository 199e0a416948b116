"""The operations of one rank, by the names under which the bench asks for them.

Owns the rank's models and what is reused between operations. Called by `worker.py`. An operation's answer is a flat
JSON-able dictionary; times in it are this rank's, from a barrier on.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
import torch
import torch.distributed as dist

from jobs.bench.checkpoint.model import AdaptedStack, Stack, Trained, layers_for, recipe_of
from jobs.bench.checkpoint.ours import Ours
from jobs.bench.checkpoint.raw import HostCopy, client_put, raw_client, raw_connections, raw_get, raw_put
from tlcore.checkpoint.plan import CHUNK_BYTES
from tlcore.train.saving import writer_settings

if TYPE_CHECKING:
    from jobs.bench.checkpoint.peers import Peers


class Rank:
    """Everything this rank holds between operations. `settings`: url, width."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._url, self._width, self._scratch = settings["url"], settings["width"], Path(settings["scratch"])
        self._peers: Peers | None = None
        self._client: Any = None
        self._trained: dict[str, Trained] = {}
        self._ours: dict[str, Ours] = {}
        self._copies: dict[str, HostCopy] = {}
        self._puts = 0

    def do(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out one operation."""
        answer: dict[str, Any] = getattr(self, f"do_{operation}")(**arguments)
        return answer

    def do_build(
        self,
        model: str,
        state_bytes: float,
        stage: int,
        layers: int | None = None,
        width: int | None = None,
        adapter_rank: int = 0,
    ) -> dict[str, Any]:
        """Make a model under DeepSpeed and take two steps, so that its optimizer has its state."""
        torch.manual_seed(0)
        world, width = dist.get_world_size(), width or self._width
        layers = layers or layers_for(state_bytes, width)
        stack = AdaptedStack(layers, width, adapter_rank) if adapter_rank else Stack(layers, width)
        trained = Trained(stack, recipe_of(stage, world, "eager", self._url), width, world)
        trained.train(2)
        self._trained[model] = trained
        self._ours[model] = Ours(trained, self._url, model)
        return {"trained_elements": trained.trained_elements}

    def do_drop(self, model: str) -> dict[str, Any]:
        """Give a model's memory back."""
        self._ours.pop(model).close()
        self._copies.pop(model, None)
        self._trained.pop(model).model.close()
        return {}

    def do_release(self, model: str) -> dict[str, Any]:
        """Give back what copies and savers of a model hold."""
        self._copies.pop(model, None)
        self._ours[model].close()
        return {}

    def do_drop_all(self) -> dict[str, Any]:
        self.close()
        return {}

    def do_touch(self) -> dict[str, Any]:
        """Use every client once, so that connections to a store that was restarted are new ones."""
        for ours in self._ours.values():
            ours.store.put("touch", b"touch")
        if self._client is not None:
            obstore.put(self._client, "touch", b"touch", use_multipart=False)
        if self._peers is not None:
            self._peers.touch()
        return {}

    def do_train(self, model: str, steps: int) -> dict[str, Any]:
        dist.barrier()
        began = time.monotonic()
        self._trained[model].train(steps)
        return {"seconds": time.monotonic() - began}

    def do_memcpy(self, model: str) -> dict[str, Any]:
        copy = self._copy(model)
        dist.barrier()
        return {"seconds": copy.copy()}

    def do_raw_put(self, model: str, through: str) -> dict[str, Any]:
        """PUT this rank's state, by the bare client or through tlcore's storage layer."""
        self._puts += 1
        copy = self._copy(model)
        copy.copy()
        put = client_put(self._raw_client(), self._url) if through == "client" else self._ours[model].store.put
        bodies = copy.bodies(CHUNK_BYTES)
        connections = writer_settings(self._trained[model].recipe, int(os.environ["LOCAL_WORLD_SIZE"])).connections
        dist.barrier()
        return {"seconds": raw_put(put, f"raw/{dist.get_rank()}/{self._puts}", bodies, connections)}

    def do_raw_get(self, model: str, trial: str, step: int, hashed: bool) -> dict[str, Any]:
        objects, client = self._ours[model].chunks(trial, step), self._raw_client()
        dist.barrier()
        seconds = raw_get(raw_connections(), client, objects, hashed)
        return {"seconds": seconds, "bytes": sum(size for _, size in objects)}

    def do_save(self, model: str, snapshot: str) -> dict[str, Any]:
        return self._ours[model].save(snapshot)

    def do_train_beside(self, model: str, snapshot: str | None, steps: int) -> dict[str, Any]:
        return self._ours[model].train_beside(snapshot, steps)

    def do_restore(self, model: str, trial: str, step: int) -> dict[str, Any]:
        return self._ours[model].restore(trial, step)

    def do_peer(self, model: str, peer: str) -> dict[str, Any]:
        from jobs.bench.checkpoint.peers import Peers

        if self._peers is None:
            self._peers = Peers(self._url, self._scratch)
        return self._peers.measure(peer, self._trained[model])

    def do_fingerprint(self, model: str) -> dict[str, Any]:
        return {"sum": self._ours[model].fingerprint()}

    def close(self) -> None:
        for name in list(self._trained):
            self.do_drop(name)

    def _raw_client(self) -> Any:
        if self._client is None:
            self._client = raw_client()
        return self._client

    def _copy(self, model: str) -> HostCopy:
        if model not in self._copies:
            self._copies[model] = HostCopy(self._trained[model])
            self._copies[model].copy()
        return self._copies[model]
