"""A session that trains nothing, with real checkpoints of a few bytes: what each pair of scheduler and searcher is driven with.

Its accuracy is best near a learning rate of 3e-4, and grows with the fraction; its state is its step count and learning
rate, so a clone can be told from what it replaced. `trace.jsonl` above `data.train` says where each life of a trial began.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from tlcore.checkpoint import CheckpointReader, CheckpointWriter, Piece, Row, newest_intact
from tlcore.checkpoint.fence import claim_attempt
from tlcore.storage import open_store
from tlcore.train.progress import Report

STEPS = 24


def accuracy_of(recipe, fraction):
    far = abs(math.log10(recipe.train.learning_rate / 3e-4))
    return round((1.0 - 0.4 * far) * (0.5 + 0.5 * fraction) - recipe.train.weight_decay, 6)


class StubSession:
    """One trial on one rank."""

    def __init__(self, recipe, run_url, trial, on_progress=None, resume_step=None, inherits=False):
        self.recipe, self.trial, self.store = recipe, trial, open_store(run_url)
        self.total, self.step, self.state = STEPS * recipe.train.epochs, 0, np.zeros(2, dtype=np.float32)
        claim = claim_attempt(self.store, trial)
        found = newest_intact(self.store, trial, chunks=False).manifest if resume_step != 0 else None
        if found is not None:
            CheckpointReader(self.store, found).read_into([self._piece()])
            self.step = found.step
            assert self.state[0] == self.step
        self.writer = CheckpointWriter(self.store, trial, 0, 1, claim.attempt, parent=found, claim=claim.text)
        self._trace("start", inherits=inherits, parent=found.parent if found else None)

    def advance(self, fraction, commit=False):
        self.step = max(self.step, round(fraction * self.total))
        self.state[:] = self.step, self.recipe.train.learning_rate
        accuracy = accuracy_of(self.recipe, fraction)
        metrics = {"eval_accuracy": accuracy, "eval_loss": round(1.2 - accuracy + self.recipe.train.weight_decay, 6)}
        table = {"w": {"shape": [2], "dtype": "float32", "trained": True, "tied_to": None}}
        self.writer.save(
            self.step, [self._piece()], {"parameters": table, "scalars": {"step": self.step}, "zero_stage": 0}
        )
        self.writer.wait()
        self._trace("report", fraction=fraction, commit=commit)
        return Report(self.step, self.total, fraction, 1.0 - accuracy, 100.0, self.step, metrics)

    def interrupt(self):
        pass

    def close(self):
        self.writer.close()

    def _piece(self):
        return Piece(Row("w", "fp32", 0, 2, "float32"), self.state.view(np.uint8))

    def _trace(self, event, **facts):
        path = Path(self.recipe.data.train).parents[1] / "trace.jsonl"
        line = {
            "trial": self.trial,
            "event": event,
            "step": self.step,
            "point": self.recipe.train.learning_rate,
            **facts,
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
