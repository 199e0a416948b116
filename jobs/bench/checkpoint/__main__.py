"""Checkpoints beside their limits and their peers, measured side by side. Run: python -m jobs.bench.checkpoint --json

Owns the command: what is asked for, the scratch directory with its object store, and how figures are printed. What is measured,
and in what order, stands in `sections.py`, the figures and their targets in `figures.py`.

Two gloo ranks train a stack of linear layers under DeepSpeed ZeRO-2 with AdamW and save to a SeaweedFS of the bench's own.

    save      eager saves, beside a copy of the same bytes in memory and raw concurrent PUT of them
    lazy      stall of lazy saves while training goes on
    restore   at the same topology, beside raw ranged GET with and without SHA-256
    reshard   at other stages and world sizes
    blocked   training with a save every `--interval` seconds, beside training without
    lora      bytes of a repeated save of adapters
    clone     a checkpoint handed to another trial
    peers     DeepSpeed local + Ray Train SYNC and ASYNC, torch DCP on fsspec, torch.save through s3fs, s3torchconnector's DCP

The JSON has every figure at top level by its key, of the largest size; `spread`, `targets`, `peers`, `not_measured` and `sizes`
(all of them, with counts and samples) beside. With `--device cuda` one GPU rank saves to a directory in memory and only the rows
that need a GPU are measured; neither Ray nor an object store is needed for that.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.bench.absent import s3torchconnector_absent
from jobs.bench.checkpoint.figures import (
    GPU_TARGETS,
    NO_GPU,
    TARGETS,
    Figure,
    Samples,
    figures,
    gpu_figures,
    peer_figures,
    peer_table,
    table,
)
from jobs.bench.checkpoint.sections import QUICK_RESHARDS, RESHARDS, Bench, Plan, say
from tlcore.storage import EmbeddedStore

SECTIONS = ("save", "lazy", "restore", "reshard", "blocked", "lora", "clone", "peers")
GPU_SECTIONS = ("save", "lazy", "blocked")
PEERS = ("ray_sync", "ray_async", "dcp_fsspec", "torch_save_s3fs", "s3torchconnector")
SIZES_GB = {"cpu": (0.25, 0.9), "cuda": (18.0,)}
WIDTHS = {"cpu": 1024, "cuda": 8192}
GB = 1e9
ALL_TARGETS = {**TARGETS, **GPU_TARGETS}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that ranks and store end with this
    not_measured = _not_measured(options)
    peers = tuple(peer for peer in options.peers if peer not in not_measured)
    reshards = QUICK_RESHARDS if options.quick else tuple(RESHARDS)
    peer_rounds = 1 if options.quick else options.rounds
    plan = Plan(options.rounds, peer_rounds, options.interval, options.width, reshards, peers, options.device)
    with _place(options) as (directory, url):
        results = measure(Bench(directory, url, plan), options)
    report = summarize(results, not_measured, options.device)
    print(json.dumps(report, indent=1) if options.json else "")
    return 0


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, tuple[Samples, dict[str, Any]]]:
    """Every section of every size: size in GB -> samples, counts. Prints each size's table when it is done."""
    results: dict[str, tuple[Samples, dict[str, Any]]] = {}
    try:
        for size in sorted(options.sizes):
            bench.begin(size * GB)
            for section in options.only:
                say(f"{size:g} GB of state: {section}")
                getattr(bench, section)()
            results[f"{size:g}"] = (bench.samples, bench.counts)
            say(_tables(f"{size:g}", bench.samples, options.device))
            bench.end()
    finally:
        if len(results) < len(options.sizes):
            say(f"stopped early; samples so far: {json.dumps(bench.samples)}")
        bench.close()
    return results


def summarize(
    results: dict[str, tuple[Samples, dict[str, Any]]], not_measured: dict[str, str], device: str
) -> dict[str, Any]:
    """One JSON-able object: figures of the largest size by their keys, and all that is behind them."""
    sizes = {
        size: {
            "figures": {key: figure.to_dict() for key, figure in _figures(samples, device).items()},
            "peers": peer_figures(samples),
            "counts": counts,
            "samples": {name: [float(f"{value:.5g}") for value in values] for name, values in samples.items()},
        }
        for size, (samples, counts) in results.items()
    }
    largest, _ = list(results.values())[-1]
    found = _figures(largest, device)
    return {
        **{key: figure.to_dict()["value"] for key, figure in found.items()},
        "spread": {key: figure.to_dict() for key, figure in found.items()},
        "targets": {key: _verdict(key, figure) for key, figure in found.items()},
        "peers": peer_figures(largest),
        "not_measured": not_measured,
        "sizes": sizes,
        "machine": {"cores": os.cpu_count(), "device": device, "when": datetime.now(UTC).isoformat(timespec="seconds")},
    }


def _verdict(key: str, figure: Figure) -> dict[str, Any]:
    target = ALL_TARGETS[key]
    return {"says": target.says, "target": str(target), "met": target.met(figure.value)}


def _figures(samples: Samples, device: str) -> dict[str, Figure]:
    return gpu_figures(samples) if device == "cuda" else figures(samples)


def _tables(size: str, samples: Samples, device: str) -> str:
    text = f"\n{size} GB of state\n{table(_figures(samples, device), ALL_TARGETS, _absent(device))}\n"
    peers = peer_figures(samples)
    return f"{text}\n{peer_table(peers)}\n" if peers else text


def _absent(device: str) -> dict[str, str]:
    return {} if device == "cuda" else dict.fromkeys(GPU_TARGETS, NO_GPU)


def _not_measured(options: argparse.Namespace) -> dict[str, str]:
    """What this machine cannot measure, and why."""
    absent = _absent(options.device)
    if "s3torchconnector" in options.peers and (reason := s3torchconnector_absent()):
        absent["s3torchconnector"] = f"not measured: {reason}"
    return absent


@contextmanager
def _place(options: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """A scratch directory, and where the checkpoints go: a store of the bench's own, or a directory in memory."""
    inside = "/dev/shm" if options.device == "cuda" else options.scratch
    with tempfile.TemporaryDirectory(prefix="tlcore-bench-", dir=inside) as scratch:
        directory = Path(scratch)
        if options.device == "cuda":
            yield directory, f"file://{directory}/store"
            return
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ["TLCORE_STORE_DIR"] = str(directory / "store")
        store = EmbeddedStore()
        store.up()
        try:
            yield directory, "s3://tlcore/bench/checkpoint"
        finally:
            store.down()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench.checkpoint",
        description=str(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument(
        "--quick", action="store_true", help="0.25 GB, two rounds, one of the peers: under three minutes"
    )
    parser.add_argument("--only", type=_listed, help=f"sections, with commas: {','.join(SECTIONS)}")
    parser.add_argument("--peers", type=_listed, default=list(PEERS), help=f"with commas: {','.join(PEERS)}")
    parser.add_argument("--sizes", type=_sizes, help="GB of state, with commas (default: 0.25,0.9)")
    parser.add_argument("--rounds", type=int, help="default 7, quick 2")
    parser.add_argument(
        "--interval", type=float, help="seconds between saves in the section `blocked`; default 10, quick 4"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--width", type=int, help="of the layers; default 1024, on a GPU 8192")
    parser.add_argument("--scratch", help="directory for the store and the peers' local files; default: the system's")
    options = parser.parse_args(arguments)
    sections = GPU_SECTIONS if options.device == "cuda" else SECTIONS
    options.only = options.only or list(sections)
    wrong = [each for each in options.only if each not in sections] + [
        each for each in options.peers if each not in PEERS
    ]
    if wrong:
        parser.error(f"{wrong[0]!r} is neither a section ({', '.join(sections)}) nor a peer ({', '.join(PEERS)})")
    options.sizes = options.sizes or ((0.25,) if options.quick else SIZES_GB[options.device])
    options.rounds = options.rounds or (2 if options.quick else 7)
    options.interval = options.interval or (4.0 if options.quick else 10.0)
    options.width = options.width or WIDTHS[options.device]
    return options


def _listed(text: str) -> list[str]:
    return [each for each in text.split(",") if each]


def _sizes(text: str) -> tuple[float, ...]:
    return tuple(float(each) for each in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
