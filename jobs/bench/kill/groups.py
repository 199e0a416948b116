"""Kills of whole DeepSpeed groups: real training on two gloo ranks, a rank killed, the group started again from what is there.

Owns that lane: the trials, and what a restarted group must show. Called by `__main__.py`; the ranks are in `group_ranks.py`.

Beyond the checks of every kill: a group that starts again must stand at the newest checkpoint's step, and the loss of each step
must be, to the last bit, the one that any life of any trial with the same ZeRO stage has computed for that step. A wrong byte in
weights, moments or data position would show there.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.bench.kill.checks import Ledger
from jobs.bench.kill.saves import Record, bury, told_of
from jobs.bench.kill.server import Victim, hear_until, listen, start
from jobs.bench.kill.shop import Shop
from tlcore.storage import open_store

RANKS = 2
KEEP_LAST = 2
STAGES = (2, 3, 1, 0)
ROWS, BATCH, EPOCHS = 480, 24, 6
_RANKS_MODULE = "jobs.bench.kill.group_ranks"
_START_S = 240.0
_RUN_S = 3.0


@dataclass(frozen=True)
class GroupLife:
    """One start of a trial's group; it continues from the newest checkpoint that it finds."""

    recipe: dict[str, Any]
    run_url: str
    trial: str
    world_size: int
    port: int


class GroupKills:
    """The groups' lane."""

    def __init__(self, shop: Shop, directory: Path, seed: int) -> None:
        self._shop, self._directory, self._seed = shop, directory, seed
        self._ledger: Ledger | None = None
        self._trials = 0
        self._run_url = ""
        self._losses: dict[tuple[int, int], str] = {}

    def kill(self, index: int) -> Record:
        """Start the trial's group, let it train for a while, kill one rank of it or all, check."""
        began = time.monotonic()
        draw = random.Random(f"{self._seed}/groups/{index}")
        ledger = self._trial()
        newest = (ledger.visible() or [0])[-1]
        record = Record("groups", index, draw.choice(["rank", "rank0", "rank0", "all"]), trial=ledger.trial)
        life = GroupLife(self._recipe(), self._run_url, ledger.trial, RANKS, _free_port())
        ranks = [start(f"{_RANKS_MODULE}:run_group_rank", life, rank) for rank in range(RANKS)]
        doomed = {"rank": ranks[1:], "rank0": ranks[:1], "all": ranks}[record.kind]
        self._strike(record, ranks, doomed, draw)
        self._judge(record, ledger, ranks, newest)
        record.take(ledger.check())
        if told_of(ranks[0], "ended"):
            self._ledger = None
        record.seconds = time.monotonic() - began
        return record

    def _strike(self, record: Record, ranks: Sequence[Victim], doomed: Sequence[Victim], draw: random.Random) -> None:
        if draw.random() < 0.1:  # while it starts or restores
            record.aimed = "start"
            listen(ranks, draw.uniform(0.2, 3.0))
        else:
            record.aimed = "training"
            hear_until(ranks, lambda: told_of(ranks[0], "started") > 0, _START_S)
            listen(ranks, draw.uniform(0.1, _RUN_S))
        for each in doomed:
            each.kill()
        for each in doomed:
            each.gone()
        record.stages = ["group training" if told_of(doomed[0], "started") else "group start"]
        listen(ranks, draw.choice([0.0, draw.uniform(0.0, 1.0)]))
        bury(record, ranks)

    def _judge(self, record: Record, ledger: Ledger, ranks: Sequence[Victim], newest: int) -> None:
        """Where the group began, what its losses were, and what it was told was committed."""
        for told in (told for each in ranks for told in each.told):
            if told.word == "started" and told.step != newest:
                record.lost.append(f"{ledger.trial}: step {newest} was the newest, and the group began at {told.step}")
            if told.word == "committed" and told.step > newest:
                ledger.committed(told.step, 0)
                record.acknowledged += 1
            if told.word == "loss":
                before = self._losses.get((self._stage, told.step))
                self._losses[self._stage, told.step] = told.text
                record.repeated += before == told.text
                if before not in (None, told.text):
                    fault = (
                        f"{ledger.trial} step {told.step}: the loss is {told.text}, and was {before} in another life"
                    )
                    record.lost.append(fault)
            if told.word == "failed":
                record.errors.append(told.text)
        if record.aimed == "training" and not told_of(ranks[0], "started"):
            record.errors.append(f"the group did not start: {[(each.word, each.text) for each in ranks[0].told[-1:]]}")

    @property
    def _stage(self) -> int:
        return STAGES[self._trials % len(STAGES)]

    def _trial(self) -> Ledger:
        """The trial under way; a new one when it has ended, or its store was thrown away."""
        if self._ledger is None or self._run_url != self._shop.run_url:
            self._trials += 1
            self._run_url = self._shop.run_url
            self._ledger = Ledger(open_store(self._run_url), f"g{self._trials:03d}-{int(time.time())}", KEEP_LAST)
        return self._ledger

    def _recipe(self) -> dict[str, Any]:
        data, model = self._directory / "samples.csv", self._directory / "model"
        if not data.exists():
            write_samples(data)
            if start(f"{_RANKS_MODULE}:make_model", model).gone() != 0:
                raise RuntimeError(f"no model could be made in {model}")
        return {
            "name": "kill",
            "task": "text-classification",
            "model": {"source": str(model)},
            "data": {"train": str(data), "validation": 0.1, "labels": ["no", "yes"], "max_length": 16},
            "train": {"epochs": EPOCHS, "global_batch_size": BATCH, "learning_rate": 2e-3},
            "deepspeed": {"zero_stage": self._stage},
            "checkpoint": {"every_steps": 1, "keep_last": KEEP_LAST},
            "resources": {"workers": RANKS},
            "storage": "s3://tlcore",
        }


def write_samples(path: Path) -> None:
    """Labelled lines for `EPOCHS` epochs of ROWS."""
    draw = random.Random(0)
    words = ("good", "bad", "film", "story", "long", "short", "warm", "dull", "bright", "slow")
    lines = [f"{' '.join(draw.choices(words, k=8))},{('no', 'yes')[index % 2]}\n" for index in range(ROWS)]
    path.write_text("text,label\n" + "".join(lines))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
