"""The board: the newest progress of every running trial, for whoever watches, and the way to stop all slots at once.

Owns what is true only for the moment; what must last is in the journal. One small actor per sweep, found by its name, beside the
driver and gone with it. Rank 0 of each slot writes at most twice a second and waits for no answer; the driver reads. Slots
register their mailbox here, so that an interrupt reaches them while they wait for their ranks. What befalls a trial between two
reports is told here and fetched by the driver for the journal; told before the next report, so the driver finds it here when that
arrives. As all losses come by, the record of nodes is kept here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from tlcore.sweep.slots.beside import beside_caller
from tlcore.sweep.slots.failures import NodeRecord

NAMESPACE = "tlcore"
PUSH_EVERY_S = 0.5


class Board:
    """Latest facts by trial, and the slots' mailboxes."""

    def __init__(self) -> None:
        self._progress: dict[str, dict[str, Any]] = {}
        self._mailboxes: dict[str, Any] = {}
        self._stopping = False
        self._notes: list[dict[str, Any]] = []
        self._nodes = NodeRecord()

    def push(self, trial: str, progress: dict[str, Any]) -> None:
        """Replace what is known of a trial."""
        self._progress[trial] = progress

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Newest progress by trial."""
        return self._progress

    def register(self, slot: str, mailbox: Any) -> bool:
        """Note a slot's present mailbox. False: the sweep is stopping, do not start."""
        self._mailboxes[slot] = mailbox
        return not self._stopping

    def tell(self, note: dict[str, Any]) -> None:
        """Take what is to be journalled: `kind`, `trial` and the kind's facts. A loss counts against its node; where one of several
        is to blame, against each: the one that is will be among them again, and the others less often."""
        self._notes.append(note)
        if note["kind"] == "lost" and note.get("loss") in {"worker", "hang"}:
            alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
            for node in note.get("nodes") or [note.get("node")]:
                avoided = self._nodes.note(note["trial"], node, alive)
                if avoided is not None:
                    self._notes.append({"kind": "avoided", "trial": None, **avoided})

    def notes(self) -> list[dict[str, Any]]:
        """What was told and not fetched yet, in order."""
        told, self._notes = self._notes, []
        return told

    def avoided(self) -> list[str]:
        """Ids of the nodes that get no more workers where others will do."""
        return self._nodes.avoided

    def leave(self) -> None:
        """Have every slot's ranks stop at their next step; none that registers from now on is to start."""
        self._stopping = True
        for mailbox in self._mailboxes.values():
            mailbox.leave.remote()

    def stop(self) -> None:
        """Wake every slot with the order to stop, now and whenever one registers."""
        self._stopping = True
        for mailbox in self._mailboxes.values():
            mailbox.cancel.remote()


def open_board(name: str) -> Any:
    """Start the board of a sweep under `name`, beside the caller. It takes no CPU and dies with the caller."""
    where = beside_caller()
    return ray.remote(Board).options(name=name, namespace=NAMESPACE, num_cpus=0, scheduling_strategy=where).remote()


def find_board(name: str) -> Any:
    """The board of that name, from any process of the cluster."""
    return ray.get_actor(name, namespace=NAMESPACE)


class ProgressFeed:
    """Rank 0's end: passes on at most one report per `PUSH_EVERY_S`, and never waits.

    Args:
        board: the board's name.
        clock: monotonic seconds.
    """

    def __init__(self, board: str, clock: Callable[[], float]) -> None:
        self._board = find_board(board)
        self._clock = clock
        self._last_s = float("-inf")

    def for_trial(self, trial: str) -> Callable[[Any], None]:
        """The `on_progress` of one trial's session; takes anything with `to_dict()`."""

        def push(progress: Any) -> None:
            now = self._clock()
            if now - self._last_s >= PUSH_EVERY_S:
                self._last_s = now
                self._board.push.remote(trial, progress.to_dict())

        return push
