"""Kills of the store: SeaweedFS ends by SIGKILL in the middle of saves and starts again on what it left on the disk.

Owns that lane. Called by `__main__.py`. Ranks bear the failed saves, as training does within `failures.max_storage`; after
the restart they must commit again, and everything acknowledged before must still be there. In some of the kills the ranks die
with the store, as when a machine goes down.
"""

from __future__ import annotations

import random
import time

from jobs.bench.kill import state as kill_state
from jobs.bench.kill.checks import Ledger, prove_content
from jobs.bench.kill.ranks import Life, run_rank
from jobs.bench.kill.saves import Record, begun, bury, take_notes, told_of
from jobs.bench.kill.server import Victim, hear_until, listen, start
from jobs.bench.kill.shop import Shop
from tlcore.storage import open_store

KEEP_LAST = 3
WINDOW_S = {"put": 0.03, "index": 0.01, "commit": 0.01, "delete": 0.02, "any": 1.0}
_START_S = 60.0
_RECOVER_S = 180.0
_LIFE_NUMBERS = 1_000_000
"""Lives of this lane begin here, so that no number is used twice."""


class StoreKills:
    """The store's lane."""

    def __init__(self, shop: Shop, seed: int) -> None:
        self._shop, self._seed = shop, seed

    def kill(self, index: int) -> Record:
        """Kill the store once, in the middle of a fresh trial's saves."""
        began = time.monotonic()
        draw = random.Random(f"{self._seed}/stores/{index}")
        name = f"s{index:04d}-{int(time.time())}"
        ledger = Ledger(
            open_store(self._shop.run_url), name, KEEP_LAST, lambda step: kill_state.score(name, step), prove_content
        )
        record = Record("stores", index, "with ranks" if draw.random() < 0.3 else "alone", trial=name)
        life = self._life(ledger, index)
        ranks = [start(run_rank, life, rank) for rank in range(life.world_size)]
        hear_until(ranks, lambda: told_of(ranks[0], "committed") >= 2, _START_S)
        self._strike(record, ranks, draw)
        if record.kind == "with ranks":
            bury(record, ranks)
        listen(ranks, draw.uniform(0.0, 2.0))
        self._shop.start()
        if record.kind == "alone":
            self._await_commits(record, ranks)
            bury(record, ranks)
        take_notes(record, ledger, life, ranks)
        record.take(ledger.check())
        record.seconds = time.monotonic() - began
        return record

    def _life(self, ledger: Ledger, index: int) -> Life:
        return Life(
            url=self._shop.run_url,
            trial=ledger.trial,
            number=_LIFE_NUMBERS + index,
            world_size=2,
            snapshot="eager",
            keep_last=KEEP_LAST,
            rendezvous=str(self._shop.scratch / f"gloo-{ledger.trial}"),
            bears_failures=True,
        )

    def _strike(self, record: Record, ranks: list[Victim], draw: random.Random) -> None:
        record.aimed = draw.choice(list(WINDOW_S))
        if record.aimed != "any":
            target = begun(ranks[0], record.aimed) + draw.randint(1, 4)
            hear_until(ranks, lambda: begun(ranks[0], record.aimed) >= target, _START_S)
        listen(ranks, draw.uniform(0.0, WINDOW_S[record.aimed]))
        record.stages = [f"store {stage}" for stage in ranks[0].stages]
        self._shop.kill()

    def _await_commits(self, record: Record, ranks: list[Victim]) -> None:
        """Two commits more than before: the writers have found the store again."""
        before = told_of(ranks[0], "committed")
        if not hear_until(ranks, lambda: told_of(ranks[0], "committed") >= before + 2, _RECOVER_S):
            said = "; ".join(f"{each.told[-1].word} {each.told[-1].text}" for each in ranks if each.told)
            record.errors.append(f"no commit within {_RECOVER_S:g} s of the store's restart; last told: {said}")
