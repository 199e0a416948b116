"""Was it worth it: the best trial's strategy against the baselines, seed by seed.

Owns the words and the arithmetic; the trials are those of `sweep/baselines.py`. Called by `cli.py`.

Each seed decides the order of the data, the noise and every new weight alike for all strategies, so differences are taken seed by
seed: their spread is smaller than that of the figures themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from tlcore.report import figures
from tlcore.report.rows import usable
from tlcore.storage.journal import SweepState

_STRATEGY: Final = "transfer.strategy"
_SEED: Final = "train.seed"


def worth_lines(state: SweepState, metric: str, mode: str) -> list[str]:
    """What the first trial's strategy gained over each other one, and its own figures; says so where it lost, where seeds
    disagree, and where a trial did not end."""
    found = _by_strategy(state, metric)
    own = next(iter(found))
    width = max(map(len, found))
    lines = [f"was it worth it? {metric} at the end, {figures.count(_seeds(state), 'seed')}, everything else equal"]
    for strategy, values in found.items():
        line = f"  {strategy:<{width}}  {_spread(list(values.values()), figures.metric)}"
        lines.append(line if strategy == own else f"{line}  {_verdict(own, strategy, found[own], values, mode)}")
    return lines


def _by_strategy(state: SweepState, metric: str) -> dict[str, dict[int, float]]:
    """Strategy, the best trial's first, to the final figure of each seed that has one."""
    found: dict[str, dict[int, float]] = {}
    for trial in state.trials.values():
        values = found.setdefault(trial.point[_STRATEGY], {})
        value = trial.final(metric)
        if trial.status == "completed" and value is not None and usable(value):
            values[trial.point[_SEED]] = value
    return found


def _seeds(state: SweepState) -> int:
    return len({trial.point[_SEED] for trial in state.trials.values()})


def _spread(values: list[float], shown: Callable[[float], str]) -> str:
    if not values:
        return "no trial ended"
    mean = sum(values) / len(values)
    return (
        f"{shown(mean)} ({shown(min(values))} to {shown(max(values))})" if len(values) > 1 else f"{shown(mean)} (one)"
    )


def _verdict(own: str, other: str, mine: Mapping[int, float], theirs: Mapping[int, float], mode: str) -> str:
    sign = 1 if mode == "max" else -1
    gains = [sign * (mine[seed] - theirs[seed]) for seed in mine if seed in theirs]
    if not gains:
        return "nothing to compare"
    mean = _spread(gains, figures.gain)
    if min(gains) > 0:
        return f"{own} gained {mean}"
    if max(gains) < 0:
        return f"{'NEGATIVE TRANSFER: ' if other == 'scratch' else ''}{own} LOST {mean}"
    return f"no clear difference: {own} {mean}"
