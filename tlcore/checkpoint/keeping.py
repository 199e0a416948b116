"""Which checkpoints of a whole sweep to keep: one decision over all trials.

Owns the decision, a pure function over what the journal tells, what is committed, and a policy. Does not read or delete
anything (`prune.py` does), and not what one writer keeps of its own trial while it runs (`retention.py`). Called by
`prune.py`, for the sweep's driver and for `tlcore checkpoints gc`.

Never deleted, whatever the policy says:

* of a trial that may go on (running, waiting, paused): its newest checkpoint, the one that its last report named, and both
  ends of a takeover after which it has not been started yet;
* of the best trial, or of each trial on the front where there are several metrics: the newest, and with one metric the best
  as well, which export and the test figures read; and the `best_overall` best checkpoints of all trials;
* what is pinned: a donor that is being cloned, what a trial of a population may take over, a checkpoint that another run names as
  its `model.source`;
* everything of a trial that the journal does not know.

A clone names its donor's chunks in its own manifest, so a donor may go as soon as the clone is there.

While a trial runs its writer keeps `best_overall` best ones where that is more than its own `own_best`: they may be the best of
all. Once it has ended, it keeps its `own_last` newest and `own_best` best, and of the others what is among the best of all.

Trials that ended early keep their `stopped` newest. Where all this is more than the byte budget, checkpoints go in this order
until it fits, the worst by the metric first: of trials that ended early; older ones of completed trials; older ones of live
trials; the newest of completed trials. Bytes are those of distinct chunks: what two checkpoints share counts once, and
deleting one of them frees none of it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tlcore.checkpoint.retention import steps_to_delete
from tlcore.storage.journal import SweepState, TrialState

Place = tuple[str, int]
"""Trial and step of a checkpoint."""

ENDED_EARLY: Final = "its trial ended early"
NOT_BEST: Final = "not among the best of all trials"
OVER_BUDGET: Final = "over budget.bytes"


@dataclass(frozen=True)
class Kept:
    """One committed checkpoint. `chunks` maps digests to bytes, and may be empty where there is no byte budget."""

    trial: str
    step: int
    attempt: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    chunks: Mapping[str, int] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        """Where it is."""
        return self.trial, self.step


@dataclass(frozen=True)
class KeepPolicy:
    """What to keep of a sweep.

    Args:
        metrics, modes: what trials are judged by, the first of them first; "max" or "min" each.
        best_overall: best checkpoints by the first metric to keep over all trials.
        stopped: newest checkpoints to keep of a trial that ended early; None as of one that completed.
        budget_bytes: bound on the bytes of all distinct chunks; None is no bound.
        own_last, own_best: newest and best checkpoints that each trial keeps of its own.
    """

    metrics: Sequence[str]
    modes: Sequence[str]
    best_overall: int = 1
    stopped: int | None = None
    budget_bytes: int | None = None
    own_last: int = 2
    own_best: int = 1

    @property
    def deletes(self) -> bool:
        """Whether anything ever goes by this policy; else what is committed need not be looked at."""
        return self.stopped is not None or self.budget_bytes is not None or self.trims

    @property
    def trims(self) -> bool:
        """Whether writers keep more than each trial's own."""
        return self.best_overall > self.own_best


@dataclass(frozen=True)
class Doomed:
    """One checkpoint to delete, and why."""

    trial: str
    step: int
    reason: str


@dataclass(frozen=True)
class Decision:
    """What to delete; bytes of distinct chunks that all the others need; by how much that is still over the budget."""

    delete: tuple[Doomed, ...]
    kept_bytes: int
    over_bytes: int = 0


def choose(
    state: SweepState, checkpoints: Iterable[Kept], policy: KeepPolicy, pinned: Collection[Place] = ()
) -> Decision:
    """Decide for one moment. Every checkpoint is given once; the answer does not depend on their order."""
    every = sorted(checkpoints, key=lambda each: each.place)
    safe = protected(state, every, policy) | set(pinned)
    going = [(each, NOT_BEST) for each in _beyond_own(state, every, policy)]
    going += [(each, ENDED_EARLY) for each in _of_early_ends(state, every, policy.stopped)]
    doomed = {each.place: reason for each, reason in going if each.place not in safe}
    left = [each for each in every if each.place not in doomed]
    sizes = _Sizes(left)
    if policy.budget_bytes is not None:
        ordered = sorted(
            (each for each in left if each.place not in safe), key=lambda each: _worth(state, each, every, policy)
        )
        doomed |= dict.fromkeys(_until_it_fits(sizes, ordered, policy.budget_bytes), OVER_BUDGET)
    over = 0 if policy.budget_bytes is None else max(0, sizes.total - policy.budget_bytes)
    return Decision(tuple(Doomed(*place, reason) for place, reason in sorted(doomed.items())), sizes.total, over)


def protected(state: SweepState, checkpoints: Sequence[Kept], policy: KeepPolicy) -> set[Place]:
    """What stays whatever the rest of the policy says, but for pins."""
    by_trial = _by_trial(checkpoints)
    safe = {each.place for each in checkpoints if each.trial not in state.trials}
    for trial in state.unfinished():
        safe |= _newest(by_trial[trial.trial])
        if trial.checkpoint_step is not None:
            safe.add((trial.trial, trial.checkpoint_step))
        if (last := trial.just_took_over) is not None:
            safe |= {(last.parent, last.step), (trial.trial, last.step)}
    for best in _best_trials(state, policy):
        safe |= _newest(by_trial[best.trial])
        if len(policy.metrics) == 1:
            safe |= {each.place for each in _best(by_trial[best.trial], policy)[:1]}
    return safe | {each.place for each in _best(checkpoints, policy)[: policy.best_overall]}


def _best_trials(state: SweepState, policy: KeepPolicy) -> list[TrialState]:
    best = state.best(policy.metrics[0], policy.modes[0])
    front = state.front(policy.metrics, policy.modes) if len(policy.metrics) > 1 else []
    return [*([best] if best is not None else []), *front]


def _by_trial(checkpoints: Iterable[Kept]) -> dict[str, list[Kept]]:
    found: dict[str, list[Kept]] = defaultdict(list)
    for each in checkpoints:
        found[each.trial].append(each)
    return found


def _newest(checkpoints: Sequence[Kept]) -> set[Place]:
    """By step, which a restore goes by, and by attempt, which says what was written last; mostly the same one."""
    if not checkpoints:
        return set()
    return {
        max(checkpoints, key=lambda each: each.step).place,
        max(checkpoints, key=lambda each: (each.attempt, each.step)).place,
    }


def _score(each: Kept, policy: KeepPolicy) -> float:
    """Higher is better; without a metric, the least."""
    value = each.metrics.get(policy.metrics[0], math.nan)
    if math.isnan(value):
        return -math.inf
    return value if policy.modes[0] == "max" else -value


def _best(checkpoints: Iterable[Kept], policy: KeepPolicy) -> list[Kept]:
    known = [each for each in checkpoints if _score(each, policy) > -math.inf]
    return sorted(known, key=lambda each: (-_score(each, policy), -each.attempt, -each.step, each.trial))


def _beyond_own(state: SweepState, checkpoints: Sequence[Kept], policy: KeepPolicy) -> list[Kept]:
    """Of trials that have ended: what their writers kept only because it might have been among the best of all."""
    if not policy.trims:
        return []
    found: list[Kept] = []
    for trial, mine in _by_trial(checkpoints).items():
        if trial in state.trials and state.trials[trial].ended:
            rule = policy.own_last, policy.own_best, policy.metrics[0], policy.modes[0]
            gone = steps_to_delete(mine, *rule)
            found += [each for each in mine if each.step in gone]
    return found


def _of_early_ends(state: SweepState, checkpoints: Sequence[Kept], keep: int | None) -> list[Kept]:
    if keep is None:
        return []
    found: list[Kept] = []
    for trial, mine in _by_trial(checkpoints).items():
        if _ended_early(state, trial):
            newest_first = sorted(mine, key=lambda each: (each.attempt, each.step), reverse=True)
            found += newest_first[keep:]
    return found


def _ended_early(state: SweepState, trial: str) -> bool:
    return trial in state.trials and state.trials[trial].status in {"stopped", "failed"}


def _worth(
    state: SweepState, each: Kept, checkpoints: Sequence[Kept], policy: KeepPolicy
) -> tuple[int, float, int, int, str]:
    """What goes first under a byte budget sorts first."""
    trial = state.trials[each.trial]
    if _ended_early(state, each.trial):
        kind = 0
    elif not trial.ended:
        kind = 2
    else:
        mine = [other for other in checkpoints if other.trial == each.trial]
        kind = 3 if each.place in _newest(mine) else 1
    return kind, _score(each, policy), each.attempt, each.step, each.trial


class _Sizes:
    """Bytes of distinct chunks of a set of checkpoints that changes."""

    def __init__(self, checkpoints: Iterable[Kept]) -> None:
        self._uses: Counter[str] = Counter()
        self.total = 0
        for each in checkpoints:
            self.add(each)

    def add(self, each: Kept) -> None:
        for digest, size in each.chunks.items():
            self.total += size if not self._uses[digest] else 0
            self._uses[digest] += 1

    def remove(self, each: Kept) -> None:
        for digest, size in each.chunks.items():
            self._uses[digest] -= 1
            self.total -= size if not self._uses[digest] else 0


def _until_it_fits(sizes: _Sizes, ordered: Sequence[Kept], budget_bytes: int) -> list[Place]:
    """Take checkpoints out of `sizes` in order until it fits; then take back what need not have gone, the best first."""
    gone: list[Kept] = []
    for each in ordered:
        if sizes.total <= budget_bytes:
            break
        sizes.remove(each)
        gone.append(each)
    staying: set[Place] = set()
    least = sizes.total
    for each in reversed(gone):
        sizes.add(each)
        if sizes.total <= max(budget_bytes, least):
            staying.add(each.place)
        else:
            sizes.remove(each)
    return [each.place for each in gone if each.place not in staying]
