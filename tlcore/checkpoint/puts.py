"""PUTs of one rank, many at a time, none held up by one that stands still.

Owns: the threads that wait in PUT, how many there are, and sending a late chunk a second time. Does not own: what is
sent (`upload.py`), nor retries of what failed (`patience.py`, and the client below it). Called by `upload.py`.

A connection moves `size / cap` seconds and then idles a round trip: with N connections of `cap` bytes/s each, chunks of
16 MiB reach `1 / (1 + round trip * cap / 16 MiB)` of N * cap: 0.94 at 20 ms and 50 MB/s, so 0.9 needs no more connections
than there are, only that they all have work until the end (`snapshot.py` sends the largest chunks first). A cap per
connection is met with more connections: 32 for each host by default.

A chunk is content-addressed, so that a PUT may be repeated while the first still runs, and whichever is done first
counts. A request that stands still for seconds (a lost packet, a server that pauses) would otherwise be what its whole
save waits for. It is late when it has taken `LATE_TIMES` the median of the last ones, `LATE_FLOOR_S` at least, and half as
many as were under way when it began have ended meanwhile: a store that pauses as a whole makes none late. It is sent once
more, on one of a few connections that are kept for that. At most `REPEATED_SHARE` of all PUTs are repeated, since where
many are slow, sending twice makes it worse: beside a saturated disk the median alone repeated up to one in ten.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from typing_extensions import Buffer

from tlcore.checkpoint.patience import Patience
from tlcore.storage.base import ObjectStore

LATE_TIMES = 3.0
LATE_FLOOR_S = 1.0
LOOK_EVERY_S = 0.1
FEWEST_TIMES = 4
"""PUTs that must have ended before any can be called late."""
RECENT_TIMES = 64
REPEATED_SHARE = 0.05
REPEATED_ANYWAY = 2


def is_late(running_s: float, recent_s: Collection[float]) -> bool:
    """Whether a PUT that has run for `running_s` seconds is late after those that took `recent_s`."""
    if running_s < LATE_FLOOR_S or len(recent_s) < FEWEST_TIMES:
        return False
    return running_s >= LATE_TIMES * statistics.median(recent_s)


@dataclass(eq=False)
class _Put:
    """One object on its way; `tries` are the threads that hold its body, `beside` how many others were under way
    when it began, `ended_before` how many had ended by then."""

    key: str
    body: Buffer
    release: Callable[[], None]
    done: Future[None] = field(default_factory=Future)
    tries: int = 1
    began: float | None = None
    beside: int = 0
    ended_before: int = 0
    repeated: bool = False
    settled: bool = False


class PutPool:
    """`connections` PUTs at a time into `store`, and a few more for late ones."""

    def __init__(
        self,
        store: ObjectStore,
        connections: int,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._patience = patience
        self._clock = clock
        self._main = ThreadPoolExecutor(connections, thread_name_prefix="checkpoint-put")
        self._spare = ThreadPoolExecutor(max(2, connections // 4), thread_name_prefix="checkpoint-put-again")
        self._lock = threading.Condition()
        self._flying: set[_Put] = set()
        self._recent_s: deque[float] = deque(maxlen=RECENT_TIMES)
        self._ended = 0
        self._repeated = 0
        self._watch: threading.Thread | None = None
        self._closed = False

    @property
    def repeated(self) -> int:
        """PUTs that were late and sent a second time, so far."""
        return self._repeated

    def submit(self, key: str, body: Buffer, release: Callable[[], None]) -> Future[None]:
        """PUT `body` as `key`. The future ends when the object is there, or no try is left; it is not cancelled.

        `release` is called once, when no thread needs `body` any more: after the future where a late try still runs.
        """
        put = _Put(key, body, release)
        with self._lock:
            self._flying.add(put)
            self._lock.notify()
            if self._watch is None:
                self._watch = threading.Thread(target=self._look, name="checkpoint-put-watch", daemon=True)
                self._watch.start()
        self._begin(self._main, put)
        return put.done

    def shutdown(self) -> None:
        """Wait for everything sent, then stop the threads."""
        self._main.shutdown()
        with self._lock:
            self._closed = True
            self._lock.notify()
        if self._watch is not None:
            self._watch.join()
        self._spare.shutdown()

    def _begin(self, threads: ThreadPoolExecutor, put: _Put) -> None:
        threads.submit(self._try, put).add_done_callback(lambda tried: self._tried(put, tried))

    def _try(self, put: _Put) -> None:
        began = self._clock()
        if put.began is None:
            with self._lock:
                put.began = began
                put.beside = sum(each.began is not None for each in self._flying) - 1
                put.ended_before = self._ended
        if not put.settled:
            self._patience.ask(lambda: self._store.put(put.key, put.body))
            with self._lock:
                self._recent_s.append(self._clock() - began)

    def _tried(self, put: _Put, tried: Future[None]) -> None:
        """The first try that got through ends the PUT; the last one that did not fails it."""
        error = tried.exception()
        with self._lock:
            put.tries -= 1
            last = put.tries == 0
            ends = not put.settled and (error is None or last)
            if ends:
                put.settled = True
                self._ended += 1
                self._flying.discard(put)
        if last:
            put.release()
        if ends and error is None:
            put.done.set_result(None)
        elif ends:
            put.done.set_exception(error)

    def _look(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._flying or self._closed)
                if self._closed:
                    return
            time.sleep(LOOK_EVERY_S)
            self.repeat_late()

    def repeat_late(self) -> None:
        """Send again what is late now."""
        now = self._clock()
        with self._lock:
            late = [put for put in self._flying if self._is_late(put, now)]
            del late[max(0, REPEATED_ANYWAY + int(REPEATED_SHARE * self._ended) - self._repeated) :]
            for put in late:
                put.repeated = True
                put.tries += 1
                self._repeated += 1
        for put in late:
            self._begin(self._spare, put)

    def _is_late(self, put: _Put, now: float) -> bool:
        if put.began is None or put.repeated or not is_late(now - put.began, self._recent_s):
            return False
        return self._ended - put.ended_before >= max(1, put.beside // 2)
