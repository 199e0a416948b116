"""Training without Ray: in this one process, or on every rank that torchrun started.

Owns the run's life there: making or finding it, its journal, the order of events. Called by `tlcore train --local`; with several
GPUs, `torchrun --nproc_per_node N -m -- tlcore train RECIPE --local`. The store layout of a sweep of one trial, so `list`, `show`
and `--resume` work on it alike. Ctrl-C, SIGTERM and a budget that is used up let the ranks end their step and commit it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tlcore.checkpoint import best_step
from tlcore.engine.process import prepare_process
from tlcore.errors import RequestError, TrainError
from tlcore.recipe import Recipe, report_fractions
from tlcore.storage import RunRef, create_run, newest_run
from tlcore.storage.account import ALIVE_EVERY_S, utc_now
from tlcore.storage.journal import Journal, SweepState, read_journal
from tlcore.train.budget import Exhausted, exhausted
from tlcore.train.signals import stop_signals

if TYPE_CHECKING:
    from tlcore.train.progress import Progress
    from tlcore.train.session import TrialSession

TRIAL = "t000"


@dataclass(frozen=True)
class LocalOutcome:
    """What came of a local run; `checkpoint` is the newest committed one's URL, `metrics` the last evaluation, and the test figures
    where that checkpoint is the run's best: of another one, which only the store has, they are left to who exports it.

    `interrupted`: it was asked to stop before its end; `exhausted`: the budget that ended it. A resume goes on from `checkpoint`.
    """

    run: RunRef
    checkpoint: str | None
    metrics: dict[str, float]
    interrupted: bool = False
    exhausted: Exhausted | None = None


def run_local(
    recipe: Recipe,
    *,
    resume: bool = False,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> LocalOutcome:
    """Train the recipe, without its search, to the end, or until a signal or the budget stops it.

    Args:
        resume: continue the newest run of this name from its newest intact checkpoint.
        on_event: gets each journal entry, on rank 0.
        on_progress: gets `Progress.to_dict()` every few steps, on rank 0.
        clock: current time, timezone-aware: what the journal is dated by and the budget counted with.

    Raises:
        TlcoreError: anything the recipe, the data, the store or training came upon; a budget used up before the first report.
        KeyboardInterrupt: a signal came before there was anything to save, or a second one.
    """
    prepare_process(int(recipe.resources.cpus_per_worker))
    from tlcore.train.group import process_group

    with process_group():
        return _Run(recipe, resume, on_event, on_progress, clock).run()


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        resume: bool,
        on_event: Callable[[dict[str, Any]], None] | None,
        on_progress: Callable[[dict[str, Any]], None] | None,
        clock: Callable[[], datetime],
    ) -> None:
        import torch.distributed as dist

        self.recipe, self.resume, self._clock = recipe, resume, clock
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._on_event = on_event or (lambda event: None)
        self._on_progress = on_progress or (lambda progress: None)
        self._journal: Journal | None = None
        self._state = SweepState()
        self._session: TrialSession | None = None
        self._told_s = time.monotonic()
        self._exhausted: Exhausted | None = None

    def run(self) -> LocalOutcome:
        with stop_signals(self._ask):
            return self._train()

    def _ask(self) -> None:
        if self._session is None:
            raise KeyboardInterrupt
        self._session.interrupt()

    def _train(self) -> LocalOutcome:
        from tlcore.train.group import decide
        from tlcore.train.session import TrialSession

        run = decide(self._open)
        resume_step = None if self.resume else 0
        session = TrialSession(self.recipe, run.url, TRIAL, self._note, resume_step)
        self._session = session
        price = self.recipe.budget.price_per_worker_hour
        terms = {"workers": self.world_size} | ({} if price is None else {"price": price})
        self._tell("started", TRIAL, slot="local", from_step=session.step, **terms)
        self._watch_budget()
        metrics: dict[str, float] = {}
        for fraction in report_fractions(self.recipe):
            if session.is_past(fraction):
                continue
            report = session.advance(fraction)
            if report.interrupted:
                checkpoint = None if report.checkpoint_step is None else session.save(wait=True)
                session.close()
                limit = self._leave(report.checkpoint_step)
                return LocalOutcome(run, None if checkpoint is None else str(checkpoint), metrics, limit is None, limit)
            metrics = report.metrics
            facts = report.to_dict()
            del facts["interrupted"]
            for passed_over in facts.pop("fell_back"):
                self._tell("fell_back", TRIAL, **passed_over)
            self._tell("result", TRIAL, **facts)
        checkpoint = session.save(wait=True)
        self._tell("completed", TRIAL)
        if self.recipe.data.test is not None and self._is_best(run, session.step):
            metrics = {**metrics, **session.test()}
            self._tell(
                "final", TRIAL, metrics=metrics, **({} if checkpoint is None else {"checkpoint": str(checkpoint)})
            )
        self._tell("finished", None, best=TRIAL)
        session.close()
        return LocalOutcome(run, None if checkpoint is None else str(checkpoint), metrics)

    def _is_best(self, run: RunRef, step: int) -> bool:
        """Whether what the ranks hold is the run's best checkpoint, or there is none at all; the same on all ranks."""
        from tlcore.train.group import decide

        search = self.recipe.search
        return decide(lambda: best_step(run.open(), TRIAL, search.metrics, search.modes)) in (None, step)

    def _leave(self, step: int | None) -> Exhausted | None:
        """Write how a run ended that was stopped before its end. Returns the budget that stopped it, on all ranks, if one did."""
        from tlcore.train.group import agree, decide

        limit = agree(self._exhausted)
        self._tell("left", TRIAL, step=step)
        if limit is None:
            self._tell("interrupted", None)
        else:
            self._tell("finished", None, best=TRIAL, reason="budget", limit=limit.setting)
        if limit is not None and not decide(lambda: bool(self._state.trials[TRIAL].results)):
            raise TrainError(f"the budget ended the run before its first report: {limit}", hint=limit.hint, step=step)
        return limit

    def _note(self, progress: Progress) -> None:
        """Rank 0, every few steps."""
        self._on_progress(progress.to_dict())
        if time.monotonic() - self._told_s >= ALIVE_EVERY_S:
            self._tell("alive", None)
        self._watch_budget()

    def _watch_budget(self) -> None:
        limit = exhausted(self.recipe, self._state.account.used(self._clock()))
        if limit is not None and self._session is not None and self.rank == 0:
            self._exhausted = self._exhausted or limit
            self._session.interrupt()

    def _open(self) -> RunRef:
        now = self._clock()
        if not self.resume:
            identity = {"recipe": self.recipe.to_dict(), "digest": self.recipe.digest(), "kind": "train"}
            run = create_run(self.recipe.storage, self.recipe.name, identity, now, secrets.token_hex(8))
            self._journal = Journal(run.open(), self._clock)
            self._tell("suggested", TRIAL, point={})
            return run
        run = newest_run(self.recipe.storage, self.recipe.name)
        entries = read_journal(run.open())
        self._state = SweepState.from_entries(entries)
        self._check_unfinished(run, self._state)
        self._journal = Journal(run.open(), self._clock, start=len(entries))
        self._tell("resumed", None)
        return run

    def _check_unfinished(self, run: RunRef, state: SweepState) -> None:
        if set(state.trials) != {TRIAL}:
            raise RequestError(
                f"run {run.name}/{run.run_id} is a sweep of {len(state.trials)} trials, not one training run",
                hint="resume it with: tlcore sweep RECIPE --resume",
            )
        if state.trials[TRIAL].ended:
            raise RequestError(
                f"run {run.name}/{run.run_id} is {state.trials[TRIAL].status}: nothing is left to resume",
                hint="leave out --resume to start a new run",
            )

    def _tell(self, kind: str, trial: str | None, **facts: Any) -> None:
        if self._journal is not None:
            entry = self._journal.append(kind, trial, **facts)
            self._told_s = time.monotonic()
            self._state.apply(entry)
            self._on_event(entry)
