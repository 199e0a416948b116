"""One request carried through the fault proxy: paced, delayed, standing still where its fate says.

Owns the pacing and the order of things in one exchange. Called by `proxy.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from jobs.bench.network.faults import Counts, Fate, Faults, fate
from jobs.bench.network.http1 import Head, body_parts, read_head

_PIECE_S = 0.02
_LEAST_PIECE, _MOST_PIECE = 16 << 10, 256 << 10
_LATE_S = 1.0

Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Pace:
    """Lets the bytes of one body through at a rate (0: no bound).

    Up to a second that this process or the store was late is caught up, as a wire goes on carrying what lies in its buffers;
    the time between two bodies is not.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self.restart()

    def restart(self) -> None:
        """From now on, with nothing to catch up."""
        self._due = asyncio.get_running_loop().time()

    async def passed(self, size: int) -> None:
        if not self._rate:
            return
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now - _LATE_S) + size / self._rate
        if self._due > now:
            await asyncio.sleep(self._due - now)


class Passage:
    """The exchange of one request and its answer.

    Args:
        head: the client's.
        faults, counts: as they are now.
        number: which request this is.
        shared: the bounds of all connections together, "up" and "down".
    """

    def __init__(self, head: Head, faults: Faults, counts: Counts, number: int, shared: Mapping[str, Pace]) -> None:
        self._head, self._faults, self._counts = head, faults, counts
        self._fate = fate(faults, number)
        self._shared = shared
        self._sent_at = 0.0

    async def carry(self, client: Wire, store: Wire, head: bytes) -> bool:
        """Pass the request on with this `head` and its answer back; False where the connections cannot be used again."""
        await asyncio.sleep(self._faults.round_trip_s / 2)
        store[1].write(head)
        sending = asyncio.create_task(self._send(client[0], store[1]))
        try:
            keep = await self._answer(store[0], client[1])
            if not sending.done() and not keep:
                return False
            await sending
        finally:
            sending.cancel()
        return keep

    async def _send(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        stall = _stall(self._faults, self._fate, self._head.length, self._counts) if self._head.has_body else None
        await self._pump(source, target, self._head, "request", stall)
        self._sent_at = asyncio.get_running_loop().time()

    async def _answer(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> bool:
        answer = await read_head(source)
        while answer is not None and answer.status // 100 == 1:
            target.write(answer.raw)
            answer = await read_head(source)
        if answer is None:
            return False
        if self._head.has_body and self._sent_at:
            self._counts.store_s += asyncio.get_running_loop().time() - self._sent_at
        await asyncio.sleep(self._faults.round_trip_s / 2)
        stall = None if self._head.has_body else _stall(self._faults, self._fate, answer.length, self._counts)
        if stall is not None:
            await stall(0)
        target.write(answer.raw)
        await target.drain()
        if self._head.verb != "HEAD" and answer.status not in (204, 304):
            await self._pump(source, target, answer, "answer", stall)
        return answer.keeps_alive and self._head.keeps_alive

    async def _pump(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        head: Head,
        kind: str,
        stall: Callable[[int], Awaitable[bool]] | None,
    ) -> None:
        pace, shared = Pace(self._faults.bytes_per_s), self._shared["up" if kind == "request" else "down"]
        async for part in body_parts(source, head, kind, piece_bytes(self._faults)):
            if kind == "request":
                self._counts.bytes_up += len(part)
            else:
                self._counts.bytes_down += len(part)
            if stall is not None and await stall(len(part)):
                pace.restart()
            await pace.passed(len(part))
            await shared.passed(len(part))
            target.write(part)
            await target.drain()


def piece_bytes(faults: Faults) -> int:
    """Bytes to move at once: about 20 ms of one connection."""
    return (
        int(min(_MOST_PIECE, max(_LEAST_PIECE, faults.bytes_per_s * _PIECE_S))) if faults.bytes_per_s else _MOST_PIECE
    )


def _stall(faults: Faults, its: Fate, size: int | None, counts: Counts) -> Callable[[int], Awaitable[bool]] | None:
    """Called with each part's size: stands still once, where fate says; True when it has."""
    if its.stall_at is None:
        return None
    left = its.stall_at * (size or 0)
    done = False

    async def passing(part: int) -> bool:
        nonlocal left, done
        left -= part
        if left > 0 or done:
            return False
        done = True
        counts.stalls += 1
        await asyncio.sleep(faults.stall_s)
        return True

    return passing
