"""kill -9, over and over: what is left in the store must always be whole checkpoints, and all that were committed.

    python -m jobs.bench.kill --kills 1000 --json --seed 1 --log kill.jsonl

Owns the plan, the log and the totals. Three lanes, taken in turn in proportion to their sizes:

    saves    ranks of a made-up state that save without a pause (`saves.py`), some 0.5 s each from a warm fork server
    groups   whole DeepSpeed trainings on two gloo ranks, restarted from the newest checkpoint (`groups.py`), some 5 s each
    stores   SeaweedFS itself in the middle of saves (`stores.py`), some 5 s each

After each kill every visible manifest of the trial is verified byte for byte and restored, and the bytes are compared with what
they must be. `torn`: a visible manifest that fails. `lost`: a commit that was acknowledged, or seen by an earlier check, and that
is gone without retention's doing, or no longer restores. `errors`: a save or a start that failed where nothing had been killed
yet. The exit status is 1 when any of the three is not 0.

With `--log`, each kill is a line there. Ctrl-C ends the run after the kill under way, a second one at once; the same command again
goes on where it stopped, and the totals are the log's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.bench.kill.checks import stages
from jobs.bench.kill.server import preload
from jobs.bench.kill.shop import Shop

GROUPS_SHARE, STORES_SHARE = 0.08, 0.02
Log = list[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    log = read_log(options.log, options.seed, options.local)
    wanted = {
        "saves": options.kills - options.groups - options.stores,
        "groups": options.groups,
        "stores": options.stores,
    }
    todo = list(plan(wanted, log))
    os.environ["OMP_NUM_THREADS"] = "1"
    preload(["jobs.bench.kill.ranks", *(["jobs.bench.kill.group_ranks"] if options.groups else [])])
    with tempfile.TemporaryDirectory(prefix="tlcore-kill-", dir=options.scratch) as directory:
        run(todo, log, options, Path(directory))
    figures = summarize(log)
    print(json.dumps(figures) if options.json else table(figures))
    return 1 if figures["torn"] or figures["lost"] or figures["errors"] else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's words; groups and stores take their share of all kills unless told."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.kill", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000, help="kills in all (default 1000)")
    parser.add_argument("--groups", type=int, help="of these, whole DeepSpeed groups (default 8 %%)")
    parser.add_argument("--stores", type=int, help="of these, kills of the store (default 2 %%)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="one JSON line per kill; makes the run resumable")
    parser.add_argument("--local", action="store_true", help="save to a directory (file://) instead of SeaweedFS")
    parser.add_argument("--scratch", help="where the store lives while this runs (default: the temporary directory)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    options.groups = round(GROUPS_SHARE * options.kills) if options.groups is None else options.groups
    if options.stores is None:
        options.stores = 0 if options.local else round(STORES_SHARE * options.kills)
    if options.local and options.stores:
        parser.error(f"--stores {options.stores}: with --local there is no server to kill")
    if min(options.groups, options.stores) < 0 or options.groups + options.stores > options.kills:
        parser.error(f"--kills {options.kills} are fewer than --groups {options.groups} and --stores {options.stores}")
    return options


def read_log(path: Path | None, seed: int, local: bool) -> Log:
    """The kills already done. Raises SystemExit when the log is of another seed or another kind of store."""
    if path is None or not path.exists():
        return []
    log: Log = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    for record in log:
        if (record["seed"], record.get("local", False)) != (seed, local):
            written = f"--seed {record['seed']}{' --local' if record.get('local') else ''}"
            raise SystemExit(f"{path} was written with {written}: give these words, or another file")
    return log


def plan(wanted: dict[str, int], log: Log) -> Iterator[tuple[str, int]]:
    """(lane, number) of each kill still to be done, the lanes spread evenly over the whole."""
    done = {(record["lane"], record["index"]) for record in log}
    every = [((index + 0.5) / size, lane, index) for lane, size in wanted.items() for index in range(size)]
    return ((lane, index) for _, lane, index in sorted(every) if (lane, index) not in done)


def run(todo: Sequence[tuple[str, int]], log: Log, options: argparse.Namespace, directory: Path) -> None:
    """Do these kills, writing each down."""
    stop = StopAfterThis()
    with Shop(directory, options.local) as shop, LogFile(options.log) as file, progress_line() as line:
        lanes = make_lanes(shop, options.seed, directory, any(lane == "groups" for lane, _ in todo))
        bar = line.add_task("kills", total=len(log) + len(todo), completed=len(log), found="")
        for lane, index in todo:
            record = {"seed": options.seed, "local": options.local, **lanes[lane](index).to_dict()}
            log.append(record)
            file.write(record)
            bad = {name: sum(len(each[name]) for each in log) for name in ("torn", "lost", "errors")}
            line.update(bar, advance=1, found="  ".join(f"{name} {count}" for name, count in bad.items()))
            if stop.asked:
                break


def make_lanes(shop: Shop, seed: int, directory: Path, groups: bool) -> dict[str, Callable[[int], Any]]:
    """What does a kill of each lane."""
    from jobs.bench.kill.groups import GroupKills
    from jobs.bench.kill.saves import SaveKills
    from jobs.bench.kill.stores import StoreKills

    lanes: dict[str, Callable[[int], Any]] = {
        "saves": SaveKills(shop, seed).kill,
        "stores": StoreKills(shop, seed).kill,
    }
    if groups:
        lanes["groups"] = GroupKills(shop, directory, seed).kill
    return lanes


class StopAfterThis:
    """Takes the first Ctrl-C; the next one interrupts."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._ask)
        signal.signal(signal.SIGTERM, self._end)

    def _ask(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("stopping after this kill", file=sys.stderr)

    def _end(self, *_: object) -> None:
        """At once, but not without stopping the store."""
        raise SystemExit(128 + signal.SIGTERM)


class LogFile:
    """The log file, one line per kill, each on the disk when `write` returns."""

    def __init__(self, path: Path | None) -> None:
        self._file: TextIO | None = path.open("a") if path else None

    def write(self, record: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def __enter__(self) -> LogFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


def progress_line() -> Progress:
    """One line on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[found]}"), console=console, disable=not console.is_terminal)


def summarize(log: Log) -> dict[str, Any]:
    """Totals over the whole log: kills, torn, lost and errors, the same by lane and kind, stages hit, seconds per kill."""
    bad = ("torn", "lost", "errors")
    kinds: dict[str, dict[str, Any]] = {}
    for record in log:
        found = kinds.setdefault(f"{record['lane']}.{record['kind']}", {"kills": 0, **dict.fromkeys(bad, 0)})
        found["kills"] += 1
        for name in bad:
            found[name] += len(record[name])
    lanes = sorted({record["lane"] for record in log})
    seconds = {lane: [record["seconds"] for record in log if record["lane"] == lane] for lane in lanes}
    return {
        "kills": len(log),
        **{name: sum(len(record[name]) for record in log) for name in bad},
        "lanes": {lane: len(values) for lane, values in seconds.items()},
        "kinds": dict(sorted(kinds.items())),
        "stages": stages(log),
        "commits_acknowledged": sum(record["acknowledged"] for record in log),
        "steps_repeated_alike": sum(record["repeated"] for record in log),
        "checkpoints_proved": sum(record["proved"] for record in log),
        "seconds_per_kill": {lane: round(median(values), 2) for lane, values in seconds.items()},
    }


def table(figures: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{'what was killed':24}{'kills':>8}{'torn':>8}{'lost':>8}{'errors':>8}"]
    for name, found in [*figures["kinds"].items(), ("all", figures)]:
        lines.append(f"{name:24}{found['kills']:>8}{found['torn']:>8}{found['lost']:>8}{found['errors']:>8}")
    hit = ", ".join(f"{stage} {count}" for stage, count in figures["stages"].items())
    proved = (
        f"{figures['checkpoints_proved']} checkpoints proved, {figures['commits_acknowledged']} commits acknowledged"
    )
    return "\n".join([*lines, f"killed in: {hit}", proved])


if __name__ == "__main__":
    sys.exit(main())
