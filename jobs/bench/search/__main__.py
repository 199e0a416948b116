"""Whether searching pays, on real weights and data: PBT against random search, sweeps against one run, at equal steps.

    python -m jobs.bench.search --json --log search.jsonl      five seeds; about an hour on two cores
    python -m jobs.bench.search --log search.jsonl --summary   what the log has so far

Owns the command. `arms.py` says what is compared and why. Every trial has one worker, two run at a time in warm slots, on CPU. The
movie snippets are fetched once (`jobs.prepare_sentiment`). With `--log` a bench that was stopped goes on behind the last arm that
ended. Seeds are the outer loop, so a part of a run has whole comparisons.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.bench.search.arms import FULL, QUICK, Size, arms, design_digest
from jobs.bench.search.figures import Record, append_log, is_done, read_log, summarize, table
from jobs.bench.snippets import prepare_snippets

SLOTS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    size = QUICK if options.quick else FULL
    try:
        records = read_log(options.log, None if options.summary else design_digest(size)) if options.log else []
    except ValueError as error:
        print(f"jobs.bench.search: {error}", file=sys.stderr)
        return 2
    if not options.summary:
        records = measure(size, records, options.log)
    figures: dict[str, Any] = summarize(records)
    print(json.dumps(figures) if options.json else table(figures))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.search", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="one seed of tiny sweeps: does it run at all")
    parser.add_argument(
        "--log", type=Path, help="file with a line for each arm that has ended; what it has is not run again"
    )
    parser.add_argument("--summary", action="store_true", help="run nothing: say what the log has")
    options = parser.parse_args(arguments)
    if options.summary and options.log is None:
        parser.error("--summary needs --log")
    return options


def measure(size: Size, records: Sequence[Record], log: Path | None) -> list[Record]:
    """Run what is not among the records, and return them all."""
    found, design = list(records), design_digest(size)
    left = [
        (seed, arm) for seed in range(size.seeds) for arm in arms(size) if not is_done(found, arm.part, arm.name, seed)
    ]
    if not left:
        return found
    with tempfile.TemporaryDirectory(prefix="tlcore-bench-", ignore_cleanup_errors=True) as name:
        data = prepare(Path(name), size)
        import ray

        from jobs.bench.search.run import run_arm
        from jobs.bench.small_ray import start_ray

        start_ray(SLOTS)
        try:
            for seed, arm in left:
                record = {"design": design, **run_arm(arm, size, seed, data)}
                found.append(record)
                if log is not None:
                    append_log(log, record)
                print(_line(record), file=sys.stderr, flush=True)
        finally:
            ray.shutdown()
    return found


def prepare(directory: Path, size: Size) -> Path:
    """The snippets of one size below a directory: train.parquet has the rows to train on and to judge by. Raises RuntimeError."""
    import pyarrow.parquet as pq

    data = prepare_snippets(directory)
    path = data / "train.parquet"
    pq.write_table(pq.read_table(path).slice(0, size.train_rows + size.validation_rows), path)
    return data


def _line(record: Record) -> str:
    test = record["test"]
    place = f"seed {record['seed']} {record['part']}/{record['arm']}"
    return f"{place}: {record['steps']} steps, test accuracy {test['test_accuracy']:.4f}, {record['wall_s']} s"


if __name__ == "__main__":
    sys.exit(main())
