"""One trial on one rank, from recipe to last checkpoint: the six verbs build, restore, step, evaluate, save, close.

Owns the trial's position and the order of these verbs. Every method is called on all ranks together. Called by `local.py` (one
process, torchrun) and by `sweep/slots/worker.py` (Ray). torch.distributed must be initialised.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from tlcore.checkpoint import CheckpointReader, CheckpointRef, Manifest, claim_attempt, newest_intact
from tlcore.data import Course
from tlcore.engine.optimizer import learning_rate
from tlcore.engine.process import give_memory_back
from tlcore.errors import CheckpointCorrupt
from tlcore.recipe import Recipe, plan_batch
from tlcore.storage import open_store
from tlcore.tasks import build_task
from tlcore.train.cadence import Cadence, ends_interval
from tlcore.train.divergence import LossWatch
from tlcore.train.evaluation import EXAMPLES, answered, evaluate
from tlcore.train.features import with_features
from tlcore.train.group import decide, rank_device, sum_over_ranks
from tlcore.train.making import EngineMaker
from tlcore.train.position import legs_from, position
from tlcore.train.progress import Progress, Report, finite
from tlcore.train.saving import Saver
from tlcore.train.stepper import Stepper

PROGRESS_EVERY_STEPS = 5
"""Steps between looks at the loss: each look is a small collective and, on a GPU, a wait for the device."""
SLOW_STEP_S = 1.0
"""Where a step takes longer, ranks ask each other after every step whether to stop; else they do with each look."""


class TrialSession:
    """One trial's training.

    Args:
        recipe: with the trial's point applied.
        run_url: where the run lives in the store.
        trial: its name there (`t003`).
        on_progress: called on rank 0 every few steps.
        resume_step: step of a committed checkpoint to continue from, 0 for a fresh start, None for the newest intact one if any.
        inherits: the trial once took over another one's state: the checkpoint may have been written with another global batch
            (training goes on at the same sample) and with other parameters trained (`ShardedModel.restore`).

    `step`, `phase` and `ticks` (batches of evaluations, saves begun) say where it is, to another thread that looks on.

    Raises:
        RecipeError, DataError, ModelError: what the recipe names cannot be used on this many ranks.
        CheckpointIncompatible: the checkpoint is of another model, data or order.
        CheckpointCorrupt: there are checkpoints, and none of them is intact.
    """

    def __init__(
        self,
        recipe: Recipe,
        run_url: str,
        trial: str,
        on_progress: Callable[[Progress], None] | None = None,
        resume_step: int | None = None,
        inherits: bool = False,
    ) -> None:
        self.recipe, self.run_url, self.trial = recipe, run_url, trial
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        rank_device()
        self._on_progress = on_progress or (lambda progress: None)
        self._store = open_store(run_url)
        self.task = build_task(recipe)
        self._batch = plan_batch(recipe, self.world_size)
        self.task.load_data()
        self._maker = EngineMaker(self.task, recipe, self._batch)
        self._inherits = inherits
        self.order = self._course([(0, recipe.train.global_batch_size)])
        self._cadence = Cadence.of(recipe)
        self.step, self.phase, self.ticks = 0, "first step", 0
        self._loss, self._watch = math.nan, LossWatch(recipe, trial)
        self._fell_back: list[dict[str, Any]] = []
        claim = decide(lambda: claim_attempt(self._store, trial))
        parent = self._restore(resume_step)
        self.model = self._maker.model_for(self.order, self.step)
        self.task = with_features(self.task, self.model, self._store, recipe, inherits)
        facts = {"recipe": recipe.to_dict(), "task": self.task.facts()}
        self._saver = Saver(
            self._store, trial, recipe, facts, self.rank, self.world_size, parent, self.model.memory, claim
        )
        if self._fell_back:
            self._saver.tell({"kind": "fell_back", "step": self.step, "passed_over": self._fell_back})
        self._stepper = self._new_stepper()
        self._prepared, self._due, self._target = False, False, 0
        self._losses: list[torch.Tensor] = []
        self._samples, self._since, self._samples_per_s = 0, time.monotonic(), 0.0
        self._saved_at = time.monotonic()
        self._interrupted = self._leaves = False
        self._looked, self._is_slow = (self.step, time.monotonic()), False

    @property
    def total_steps(self) -> int:
        """Steps of the whole trial."""
        return self.order.total_steps

    def _course(self, legs: Sequence[tuple[int, int]]) -> Course:
        lengths, train = self.task.lengths("train"), self.recipe.train
        return Course(len(lengths), train.epochs, train.seed, lengths, legs)

    def advance(self, fraction: float, commit: bool = False) -> Report:
        """Train to `fraction` of the trial's own epochs, evaluate on the validation examples, and begin to save; at the
        trial's end, and with `commit`, the save is waited for, and begun again where it fails. Once a rank was interrupted, all
        stop at the same step, commit what they have, and the report says so.

        Raises:
            Diverged: as `divergence.py` says.
            CheckpointError: more saves failed in a row than the recipe allows.
        """
        self._target = self._step_at(fraction)
        self._agree_to_leave()
        while self.step < self._target and not self._leaves:
            self.train_step()
        self._look()
        if self._leaves:
            return self._leave()
        self.phase = "evaluate"
        metrics = self._evaluate()
        self.phase = "save"
        self._save(metrics, wait=commit or self.step == self.total_steps)
        self.phase = "first step" if not self._prepared else "train"
        report = Report(
            self.step,
            self.total_steps,
            fraction,
            finite(self._loss),
            self._samples_per_s,
            self._saver.committed_step,
            metrics,
            self._fell_back,
            self._saver.totals.to_dict(),
            **self._saver.totals.last_to_dict(),
        )
        self._fell_back = []
        self._saver.tell({"kind": "report", **report.to_dict()})
        self._samples, self._since = 0, time.monotonic()
        return report

    def interrupt(self) -> None:
        """Have `advance` stop at its next step; may be called on any rank, from another thread or a signal handler."""
        self._interrupted = True

    def _leave(self) -> Report:
        self.phase = "save"
        if self.step:
            self._save({}, wait=True)
        stand = self.step, self.total_steps, self.step / self.total_steps
        return Report(*stand, finite(self._loss), self._samples_per_s, self._saver.committed_step, interrupted=True)

    def _agree_to_leave(self) -> None:
        """Whether any rank was interrupted: the same answer on all."""
        self._leaves = sum_over_ranks(torch.tensor([float(self._interrupted)], device=self.model.device)).item() > 0

    def is_past(self, fraction: float) -> bool:
        """Whether the trial already stood beyond `fraction` when it was restored, so that it need not be reported again."""
        return self.step > self._step_at(fraction)

    def test(self, step: int) -> dict[str, float]:
        """Metrics of the checkpoint at `step` on the test examples, named `test_<metric>`; for the final figures alone.

        Raises:
            CheckpointCorrupt: the session was to be restored from that one, and it is damaged.
            DataError: the test examples cannot be used.
        """
        if self.step != step:
            text = f"trial {self.trial}: the checkpoint of step {step}, which is to be tested, is damaged"
            raise CheckpointCorrupt(text, hint=self._verify_hint(), trial=self.trial, step=step)
        self.phase = "test data"
        self.task.load_data(("test",))
        self.phase = "evaluate"
        found = self._measure("test")
        return {f"test_{name}": value for name, value in found.items()}

    def examples(self, count: int = EXAMPLES) -> list[dict[str, Any]]:
        """The first `count` test examples with what the model says of each, the same on every rank (`answered`)."""
        self.phase = "examples"
        return answered(self.task, self.model.module, "test", count)

    def save(self, wait: bool = True) -> CheckpointRef | None:
        """Save the present step if that has not been done. With `wait`, returns the newest committed checkpoint, once it is."""
        self._save({}, wait)
        committed = self._saver.committed_step
        return None if committed is None else CheckpointRef(self.run_url, self.trial, committed)

    def close(self) -> None:
        """Complete the saves under way and give all memory back."""
        self._saver.close()
        self.model.close()
        del self._stepper, self._maker, self.model, self.task
        give_memory_back()

    def _step_at(self, fraction: float) -> int:
        return self.order.step_at(fraction)

    def train_step(self) -> None:
        """One optimizer step and what goes with it: the loss told every few steps, saves when due."""
        if self._maker.is_due(self.order, self.step):
            self._train_more()
        loss, samples = self._stepper.run(self.step)
        self.step += 1
        if not self._prepared:
            # Not earlier: the optimizer makes its state in its first step.
            self._saver.prepare(self.model)
            self._prepared = True
            self.phase = "train"
        self._samples += samples
        self._losses.append(loss)
        due = self._cadence.due_by_step(self.step, self.order.steps_per_epoch)
        if self.step % PROGRESS_EVERY_STEPS == 0 or due or self.step == 1:
            overdue, has_room = self._look()
            self._due = self._due or due or overdue
            # At the report's own step the save is the report's: one without metrics is never among the best.
            if self._due and not self._leaves and self.step != self._target:
                self._save_if_due(has_room)
        elif self._is_slow:
            self._agree_to_leave()

    def _new_stepper(self) -> Stepper:
        return Stepper(self.task, self.model, self.order, self._batch, self._saver.before_update)

    def _train_more(self) -> None:
        """Go on with the parts that join at this step. A snapshot that still reads the engine's memory is waited for."""
        self.phase = "first step"
        self._saver.before_update()
        self.model = self._maker.move_on(self.order, self.step)
        self._stepper, self._prepared = self._new_stepper(), False
        trained = sum(facts["trained"] for facts in self.model.parameters.values())
        self._saver.tell({"kind": "joined", "step": self.step, "trained_parameters": trained})

    def _save_if_due(self, has_room: bool) -> None:
        """Save, or do as `checkpoint.when_late` says where a rank has two saves under way; the same on all ranks."""
        when_late = self.recipe.checkpoint.when_late
        if has_room or when_late == "wait":
            self.phase = "save"
            self._save({})
            self.phase = "train"
        elif when_late == "skip":
            self._due, self._saved_at = False, time.monotonic()
        # newest: it stays due, and the state of the first look that finds room is saved.

    def _look(self) -> tuple[bool, bool]:
        """Agree on the mean loss of the steps since the last look and tell it, and whether to stop. Returns whether a save by time
        is due, and whether every rank has room for one."""
        self._saver.poll()
        overdue = self.rank == 0 and self._cadence.due_by_time(time.monotonic() - self._saved_at)
        full = not self._saver.has_room()
        if not self._losses:
            self._tell()
            return False, False
        mean = torch.stack(self._losses).mean()
        flags = torch.tensor(
            [overdue, full, self._interrupted, self._is_step_slow()], dtype=mean.dtype, device=mean.device
        )
        summed = sum_over_ranks(torch.cat([mean.reshape(1), flags])).tolist()
        loss_sum, overdue_ranks, full_ranks, interrupted_ranks, slow_ranks = summed
        self._leaves, self._is_slow = self._leaves or interrupted_ranks > 0, slow_ranks > 0
        self._losses.clear()
        self._loss = loss_sum / self.world_size
        self._watch.look(self.step, self._loss)
        self._samples_per_s = self._samples / max(1e-9, time.monotonic() - self._since)
        self._tell()
        return overdue_ranks > 0, full_ranks == 0

    def _is_step_slow(self) -> bool:
        """Whether steps took long since the last look, on this rank."""
        (step, at_s), now = self._looked, time.monotonic()
        self._looked = self.step, now
        return now - at_s > SLOW_STEP_S * (self.step - step)

    def _tell(self) -> None:
        if self.rank == 0:
            rate = learning_rate(self.recipe, *self.order.schedule(min(self.step, self.total_steps - 1)))
            self._on_progress(
                Progress(
                    step=self.step,
                    total_steps=self.total_steps,
                    fraction=self.step / self.total_steps,
                    loss=self._loss,
                    samples_per_s=self._samples_per_s,
                    learning_rate=rate,
                    checkpoint_step=self._saver.committed_step,
                    **self._saver.totals.last_to_dict(),
                )
            )

    def _evaluate(self) -> dict[str, float]:
        found = self._measure("validation")
        for name, value in found.items():
            self._watch.check_finite(self.step, f"eval_{name}", value)
        return {f"eval_{name}": value for name, value in found.items()}

    def _measure(self, split: str) -> dict[str, float]:
        model, micro = self.model, self._batch.micro_batch_size
        ranks = self.rank, self.world_size
        return evaluate(self.task, model.module, split, model.device, micro, *ranks, self._count_batch)

    def _count_batch(self) -> None:
        self.ticks += 1

    def _save(self, metrics: dict[str, float], wait: bool = False) -> None:
        def begin() -> None:
            self.ticks += 1  # to begin again is no standing still
            facts = {**self._position(), "loss": finite(self._loss), **self._watch.facts()}
            offered = ends_interval(self.recipe, self.step, self._step_at)
            self._saver.save(self.model, self.step, facts, metrics, offered)

        begin()
        if wait:
            self._saver.wait(begin)
        self._due, self._saved_at = False, time.monotonic()

    def _position(self) -> dict[str, Any]:
        legs = {"legs": self.order.legs} if len(self.order.legs) > 1 else {}
        return {**position(self.recipe, self.order), **legs}

    def _restore(self, resume_step: int | None) -> Manifest | None:
        """Take the state from the newest checkpoint that is intact, at `resume_step` at most; `_fell_back` says what is damaged.

        None when there is none to restore. Raises CheckpointCorrupt when there are some and none is intact: to begin anew is
        not for this method to decide, and half of a damaged state may stand in the model by then.
        """
        if resume_step == 0:
            return None
        damaged: dict[int, str] = {}
        while True:
            manifest, reasons = decide(lambda: self._newest(resume_step, damaged))
            if manifest is None:
                if reasons:
                    raise self._nothing_intact(reasons)
                return None
            legs = legs_from(manifest, self.trial, self.recipe, self.order, self._inherits)
            self.order = self.order if legs is None else self._course(legs)
            refreeze = self._inherits or self.recipe.transfer.strategy == "gradual"
            model = self._maker.model_for(self.order, manifest.step)
            try:
                model.restore(CheckpointReader(self._store, manifest), allow_refreeze=refreeze)
            except CheckpointCorrupt as error:
                # On all ranks, whichever read the damaged bytes.
                damaged[manifest.step] = error.message
                continue
            self.step = manifest.step
            self._note_fallback(reasons)
            # A trial killed between its last save and the report of it has no step left to get a loss from.
            loss = manifest.scalars.get("loss")
            self._loss = math.nan if loss is None else float(loss)
            self._watch.restore(manifest)
            return manifest

    def _newest(
        self, resume_step: int | None, damaged: dict[int, str]
    ) -> tuple[Manifest | None, list[tuple[int, str]]]:
        """What to restore, and why not something newer. Chunks show their damage when they are read."""
        before = None if resume_step is None else resume_step + 1
        found = newest_intact(self._store, self.trial, before, chunks=False, excluding=damaged)
        return found.manifest, [*damaged.items(), *((each.step, each.text) for each in found.problems)]

    def _note_fallback(self, reasons: list[tuple[int, str]]) -> None:
        self._fell_back = [{"instead": step, "step": self.step, "reason": text} for step, text in reasons]
        for step, text in reasons if self.rank == 0 else ():
            logging.getLogger(__name__).warning(
                "trial %s restored at step %s: the checkpoint of step %s is damaged: %s",
                self.trial,
                self.step,
                step,
                text,
            )

    def _nothing_intact(self, reasons: list[tuple[int, str]]) -> CheckpointCorrupt:
        told = "; ".join(f"step {step}: {text}" for step, text in reasons)
        return CheckpointCorrupt(
            f"trial {self.trial}: none of its checkpoints is intact: {told}",
            hint=f"{self._verify_hint()}; a new run begins from the recipe's model",
            trial=self.trial,
        )

    def _verify_hint(self) -> str:
        return f"`tlcore checkpoints verify {self.run_url}` says more"
