"""One simulated driver in a process of its own: `python -m jobs.bench.sweep.stub SETTINGS.json`.

Owns the stand-in for a slot's worker group: a `Trainable` that reports what a slot reports, with no ranks. All else is the sweep's
own: Tune's controller, the conductor and the scheduler's seats, the searcher, the recorder and its journal on a real store. Owns
also what is measured in the driver: its processor time, memory, requests, and the time to the first trial handed out. Kills itself
with SIGKILL after `kill_after` results, its figures written just before. Started by `simulate.py`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from typing_extensions import Buffer

from tlcore.recipe import Recipe, apply_point, recipe_from_dict, report_fractions
from tlcore.storage.base import ObjectStore
from tlcore.sweep import SweepOptions, driver, run_sweep, runner
from tlcore.sweep.slots.slot import REPORT, TIME_ATTR, Slot, next_fraction


class StubSlot(Slot):
    """A slot whose trial's step costs nothing: pointers, order of calls and the form of a report are the slot's own."""

    def setup(self, config: dict[str, Any]) -> None:
        """Note the first trial."""
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Note the next trial."""
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The next report. Later trials are better, so that ASHA's rungs compare them all and stop none."""
        fraction = next_fraction(self._fractions, self._reached)
        step = round(fraction * 100 * self._recipe.train.epochs)
        metrics = {
            "eval_accuracy": int(self._trial.removeprefix("t")) * 1e-6 + 0.1 * fraction,
            "eval_loss": 1.0 - fraction,
        }
        self._reached = fraction
        self._checkpoint_step = step
        facts = {
            "step": step,
            "total_steps": 100 * self._recipe.train.epochs,
            "fraction": fraction,
            "metrics": metrics,
            "checkpoint_step": step,
            "loss": 1.0 - fraction,
            "samples_per_s": 100.0,
            "lost": [],
            "group": "stub",
            "told": False,
        }
        done = fraction >= self._fractions[-1]
        return {**metrics, TIME_ATTR: fraction, "step": step, "done": done, REPORT: json.dumps(facts)}

    def cleanup(self) -> None:
        """Nothing was started."""


class CountingStore:
    """A store that counts its requests, and the seconds that puts took: of the clock, and of this thread's processor time."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.requests: Counter[str] = Counter()
        self.put_s = self.put_cpu_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """The journal's request."""
        self.requests["put_if_absent"] += 1
        began, cpu = time.perf_counter(), time.thread_time()
        try:
            return self._inner.put_if_absent(key, data)
        finally:
            self.put_s += time.perf_counter() - began
            self.put_cpu_s += time.thread_time() - cpu


@dataclass(frozen=True)
class Mark:
    """A moment of the driver's: results so far, processor seconds without those of puts, resident MB."""

    results: int
    cpu_s: float
    rss_mb: float


def stretches(marks: Sequence[Mark]) -> list[float]:
    """Processor ms per result between each mark and the next."""
    return [1e3 * (end.cpu_s - begin.cpu_s) / (end.results - begin.results) for begin, end in pairwise(marks)]


@dataclass
class Meter:
    """The display of a simulated sweep: what it hears it measures. `began_s`: when the driver was made; `read_s`: seconds from then
    until it had the journal."""

    kill_after: int
    out: Path
    every: int = 1
    """Results between two marks."""
    began_s: float = 0.0
    read_s: float = 0.0
    store: CountingStore | None = None
    results: int = 0
    handed_out_s: float | None = None
    entries: int = 0
    _marks: list[Mark] = field(default_factory=list)
    _first_s: float = 0.0
    _process: Any = field(default_factory=psutil.Process)

    def on_event(self, entry: dict[str, Any]) -> None:
        """One entry is durable."""
        self.entries += 1
        if entry["kind"] == "started" and self.handed_out_s is None:
            self._first_s = time.perf_counter()
            self.handed_out_s = self._first_s - self.began_s
            self._mark()
        if entry["kind"] != "result":
            return
        self.results += 1
        if self.results % self.every == 0:
            self._mark()
        if self.results == self.kill_after:
            self.write()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_progress(self, snapshot: dict[str, Any]) -> None:
        """Nothing to show."""

    def close(self) -> None:
        """Nothing to give back."""

    def write(self) -> None:
        """Put the figures where `simulate.py` reads them."""
        assert self.store is not None, "no driver was made"
        whole = stretches(self._marks)
        self._mark()
        figures = {
            "results": self.results,
            "entries": self.entries,
            "handed_out_s": self.handed_out_s,
            "read_s": self.read_s,
            "wall_s": time.perf_counter() - self._first_s,
            "driver_ms": whole,
            "rss_mb": [mark.rss_mb for mark in self._marks],
            "head_rss_growth_mb": self._marks[-1].rss_mb - self._marks[0].rss_mb,
            "put_ms": 1e3 * self.store.put_s / max(1, self.store.requests["put_if_absent"]),
            "requests": dict(self.store.requests),
        }
        self.out.write_text(json.dumps(figures))

    def _mark(self) -> None:
        put_cpu_s = self.store.put_cpu_s if self.store is not None else 0.0
        rss_mb = float(self._process.memory_info().rss) / 2**20
        self._marks.append(Mark(self.results, time.process_time() - put_cpu_s, rss_mb))


class MeteredDriver(driver.Driver):
    """The sweep's driver with its journal's store counted."""

    meter: Meter

    def __init__(self, *arguments: Any) -> None:
        self.meter.began_s = time.perf_counter()
        super().__init__(*arguments)
        self.meter.read_s = time.perf_counter() - self.meter.began_s
        self.meter.store = CountingStore(self._store)
        self._recorder.journal._store = self.meter.store


def simulated_recipe(directory: Path, storage: str, trials: int, epochs: int) -> Recipe:
    """A sweep of `trials` trials with so many reports each, under ASHA with random search."""
    inputs = directory / "inputs"
    (inputs / "model").mkdir(parents=True, exist_ok=True)
    (inputs / "model" / "config.json").write_text(json.dumps({"model_type": "bert", "num_hidden_layers": 1}))
    (inputs / "train.csv").write_text("text,label\ngood,yes\nbad,no\n")
    return recipe_from_dict(
        {
            "name": "simulated",
            "task": "text-classification",
            "model": {"source": str(inputs / "model")},
            "data": {"train": str(inputs / "train.csv")},
            "train": {"epochs": epochs},
            "resources": {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1},
            "search": {
                "space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}},
                "trials": trials,
                "scheduler": {"asha": {"grace": 1 / epochs, "reduction": 4}},
            },
            "storage": storage,
        }
    )


def main() -> int:
    settings = json.loads(Path(sys.argv[1]).read_text())
    directory = Path(settings["directory"])
    recipe = simulated_recipe(directory, settings["storage"], settings["trials"], settings["epochs"])
    assert len(report_fractions(apply_point(recipe, {}))) == settings["reports"], report_fractions(recipe)
    meter = Meter(settings["kill_after"], Path(settings["out"]), every=max(1, settings["kill_after"] // 10))
    MeteredDriver.meter = meter
    options = SweepOptions(resume=settings["resume"], display=meter, logs=directory / "logs")
    with mock.patch.object(driver, "Slot", StubSlot), mock.patch.object(runner, "Driver", MeteredDriver):
        outcome = run_sweep(recipe, options)
    meter.write()
    wrong = [trial.trial for trial in outcome.trials if trial.status != "completed"]
    return 1 if wrong or len(outcome.trials) != settings["trials"] else 0


if __name__ == "__main__":
    sys.exit(main())
