"""Training without Ray: in this one process, or on every rank that torchrun started.

Owns the run's life there: making or finding it, its journal, the order of events, the test figures at its end. Called by
`tlcore train --local`; with several GPUs, `torchrun --nproc_per_node N -m -- tlcore train RECIPE --local`. The store layout of a
sweep of one trial, so `list`, `show` and `--resume` work on it alike. Ctrl-C, SIGTERM and a budget that is used up let the ranks
end their step and commit it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tlcore.checkpoint import CheckpointRef, best_step
from tlcore.engine.exhausted import as_out_of_memory
from tlcore.engine.process import prepare_process
from tlcore.errors import RequestError, TlcoreError, TrainError
from tlcore.recipe import Recipe, report_fractions
from tlcore.storage import RunRef, create_run, newest_run
from tlcore.storage.account import ALIVE_EVERY_S, utc_now
from tlcore.storage.journal import Journal, SweepState, read_journal
from tlcore.train.budget import Exhausted, exhausted
from tlcore.train.signals import stop_signals

if TYPE_CHECKING:
    from tlcore.train.progress import Progress, Report
    from tlcore.train.session import TrialSession

TRIAL = "t000"
_MAY_MEAN_MEMORY = (RuntimeError, MemoryError, OSError)
"""What libraries raise where memory ran out, among other reasons (`engine/exhausted.py`)."""


@dataclass(frozen=True)
class LocalOutcome:
    """What came of a local run; `checkpoint` is the newest committed one's URL, `metrics` the last evaluation, empty where a resume
    found nothing left to train. The test figures, of the best checkpoint, are in the journal.

    `interrupted`: it was asked to stop before its end; `exhausted`: the budget that ended it. A resume goes on from `checkpoint`.
    `untested`: why it ended without test figures, where these were wanted.
    """

    run: RunRef
    checkpoint: str | None
    metrics: dict[str, float]
    interrupted: bool = False
    exhausted: Exhausted | None = None
    untested: TlcoreError | None = None


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
        KeyboardInterrupt: a signal came before there was anything to save, or when nothing is left to, or a second one.
    """
    prepare_process(int(recipe.resources.cpus_per_worker))
    from tlcore.train.group import process_group

    with process_group():
        run = _Run(recipe, resume, on_event, on_progress, clock)
        try:
            return run.run()
        except _MAY_MEAN_MEMORY as error:
            if (known := run.known(error)) is None:
                raise
            raise known from error


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
        self._is_trained = False

    def known(self, error: Exception) -> TlcoreError | None:
        """The error as one of ours: itself, or that memory ran out; None for another one."""
        step = None if self._session is None else self._session.step
        return error if isinstance(error, TlcoreError) else as_out_of_memory(error, self.rank, step)

    def run(self) -> LocalOutcome:
        with stop_signals(self._ask):
            return self._train()

    def _ask(self) -> None:
        if self._session is None or self._is_trained:  # nothing is left to commit
            raise KeyboardInterrupt
        self._session.interrupt()

    def _train(self) -> LocalOutcome:
        from tlcore.train.group import decide
        from tlcore.train.session import TrialSession

        run = decide(self._open)
        session = self._session = TrialSession(self.recipe, run.url, TRIAL, self._note, None if self.resume else 0)
        metrics: dict[str, float] = {}
        is_left = decide(lambda: not self._state.trials[TRIAL].ended)
        if is_left:
            self._tell("started", TRIAL, slot="local", from_step=session.step, **self._terms())
            self._watch_budget()
            for fraction in report_fractions(self.recipe):
                if session.is_past(fraction):
                    continue
                report = session.advance(fraction)
                if report.interrupted:
                    checkpoint = None if report.checkpoint_step is None else session.save(wait=True)
                    session.close()
                    limit = self._leave(report.checkpoint_step)
                    url = None if checkpoint is None else str(checkpoint)
                    return LocalOutcome(run, url, metrics, limit is None, limit)
                metrics = report.metrics
                self._tell_report(report)
        checkpoint = session.save(wait=True)
        if is_left:
            self._tell("completed", TRIAL)
        self._is_trained = True
        untested = self._test(run)
        self._tell("finished", None, best=TRIAL)
        return LocalOutcome(run, None if checkpoint is None else str(checkpoint), metrics, untested=untested)

    def _tell_report(self, report: Report) -> None:
        facts = report.to_dict()
        del facts["interrupted"]
        for passed_over in facts.pop("fell_back"):
            self._tell("fell_back", TRIAL, **passed_over)
        self._tell("result", TRIAL, **facts)

    def _terms(self) -> dict[str, Any]:
        """What the run holds, for the account."""
        price = self.recipe.budget.price_per_worker_hour
        return {"workers": self.world_size} | ({} if price is None else {"price": price})

    def _test(self, run: RunRef) -> TlcoreError | None:
        """Write the figures of the best checkpoint on the test examples, and some answers: by the ranks that trained it, restored
        to it where they hold another one. The session is gone then. Returns why there are none, where an error is to blame."""
        from tlcore.train.group import decide
        from tlcore.train.session import TrialSession

        assert self._session is not None  # it has just trained
        session, search = self._session, self.recipe.search
        step = decide(lambda: best_step(run.open(), TRIAL, search.metrics, search.modes))
        if self.recipe.data.test is None or step is None:
            session.close()
            return None
        self._tell("testing", TRIAL, step=step, **self._terms())
        try:
            if session.step != step:
                session.close()
                session = self._session = TrialSession(self.recipe, run.url, TRIAL, None, step)
            metrics, examples = session.test(step), session.examples()
        except (TlcoreError, *_MAY_MEAN_MEMORY) as error:
            # the session is left as it is: the other ranks may hang in what failed here
            if (known := self.known(error)) is None:
                raise
            return known
        checkpoint = str(CheckpointRef(run.url, TRIAL, step))
        self._tell("final", TRIAL, metrics=metrics, checkpoint=checkpoint, examples=examples)
        session.close()
        return None

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
        trial, status = state.trials[TRIAL], state.trials[TRIAL].status
        if trial.ended and (state.finished or status != "completed"):  # else the test figures are left
            raise RequestError(
                f"run {run.name}/{run.run_id} is {status}: nothing is left to resume",
                hint="leave out --resume to start a new run",
            )

    def _tell(self, kind: str, trial: str | None, **facts: Any) -> None:
        if self._journal is not None:
            entry = self._journal.append(kind, trial, **facts)
            self._told_s = time.monotonic()
            self._state.apply(entry)
            self._on_event(entry)
