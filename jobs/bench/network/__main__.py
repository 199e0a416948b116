"""Save and restore over a network with faults: tlcore against its peers, as a share of what the connections could carry.

    python -m jobs.bench.network --json          about an hour; --quick about four minutes

Owns the measurement; `worker.py` holds the tools, `proxy.py` the network: 20 ms round trip, a cap per connection
(and connections x cap for all together), 1 % of requests answered 503 SlowDown, 1 % standing still for 5 s at a random place
of their body. The cap is 6 MB/s, or less where 8 connections would carry more than half of what the store takes without the
proxy, measured first in the same run.

    save_fraction, restore_fraction     bytes/s over (connections x cap), from the call to the durable commit, and to
                                        verified bytes in place; medians over the repetitions
    peers                               the same of each peer, with as many connections as it chose to use, at most the same

Every tool moves data for about a minute: the state is sized for that by a short first run, since a slow tool would need ten
minutes for the fast one's state. Tools take turns; every other round runs backwards. Each starts in a fresh process, with a
seed of its own per round that all tools share.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.bench.absent import s3torchconnector_absent
from jobs.bench.network.faults import Faults
from jobs.bench.network.proxy import FaultProxy
from tlcore.storage import EmbeddedStore, ObjectStore, open_store

CONNECTIONS = 8
CAP = 6e6
TARGET = 0.9
NETWORK = Faults(round_trip_s=0.02, slow_down_rate=0.01, stall_rate=0.01, stall_s=5.0)
PEERS = ("dcp", "torch_save", "s3torch", "pyarrow")
_CHUNK = 16 << 20
_RAW_BYTES = 512 << 20
_PILOT_SHARE = 1 / 6
_LIMIT_S = 900


@dataclass(frozen=True)
class Turn:
    """One save and restore by one tool."""

    tool: str
    size_bytes: int
    save_s: float
    restore_s: float
    save_counts: dict[str, Any]
    restore_counts: dict[str, Any]

    def fractions(self, limit: float) -> tuple[float, float]:
        return self.size_bytes / self.save_s / limit, self.size_bytes / self.restore_s / limit


def available(tools: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The tools that can run here, and why the others cannot."""
    absent = {}
    if "s3torch" in tools and (reason := s3torchconnector_absent()):
        absent["s3torch"] = reason
    return [tool for tool in tools if tool not in absent], absent


def raw_speed(store: ObjectStore) -> dict[str, float]:
    """Bytes/s of concurrent PUTs and GETs of 16 MiB, straight to the server."""
    body = os.urandom(_CHUNK)
    count = _RAW_BYTES // _CHUNK
    keys = [f"raw/{n}" for n in range(count)]
    with ThreadPoolExecutor(CONNECTIONS) as threads:

        def timed(request: Callable[[str], object]) -> float:
            began = time.monotonic()
            list(threads.map(request, keys))
            return _RAW_BYTES / (time.monotonic() - began)

        put = timed(lambda key: store.put(key, body))
        get = timed(lambda key: store.get_into(key, 0, [memoryview(bytearray(_CHUNK))]))
    store.delete(keys)
    return {"put_bytes_per_s": put, "get_bytes_per_s": get}


def run_tool(
    tool: str, size_bytes: int, proxy: FaultProxy, env: dict[str, str], url: str, seed: int, cap: float
) -> Turn:
    """One turn in a fresh process. The proxy is told its faults right before each half, so that the counts are of that half."""
    command = [sys.executable, "-m", "jobs.bench.network.worker"]
    asked = {"tool": tool, "size_bytes": size_bytes, "url": url, "connections": CONNECTIONS}
    faults = replace(NETWORK, bytes_per_s=cap, total_bytes_per_s=CONNECTIONS * cap)
    pipe = subprocess.PIPE
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env, cwd=root, text=True) as worker:
        try:
            _say(worker, json.dumps(asked))
            _heard(worker, tool)
            halves = []
            for half in range(2):
                proxy.configure(replace(faults, seed=2 * seed + half))
                _say(worker, "go")
                told = _heard(worker, tool)
                halves.append((told, proxy.counts()))
        finally:
            worker.kill() if sys.exc_info()[0] else None
    (save, up), (restore, down) = halves
    return Turn(tool, save["size_bytes"], save["seconds"], restore["seconds"], up, down)


def _say(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(line + "\n")
    worker.stdin.flush()


def _heard(worker: subprocess.Popen[str], tool: str) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"{tool} ended with status {worker.wait()} and said nothing; its errors stand above")
    found: dict[str, Any] = json.loads(line)
    return found


def measure(tools: Sequence[str], seconds: float, rounds: int, directory: Path) -> dict[str, Any]:
    """All rounds of all tools; the figures as `main` prints them."""
    store = EmbeddedStore(directory / "store")
    store.up()
    try:
        env = {**os.environ, **store.env(), "OMP_NUM_THREADS": "1"}
        os.environ.update(store.env())
        raw = raw_speed(open_store("s3://tlcore/raw"))
        with FaultProxy(str(store.status().endpoint)) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = env["AWS_ENDPOINT_URL"] = proxy.endpoint
            proxied = raw_speed(open_store("s3://tlcore/proxied"))
            cap = min(CAP, 0.5 * min(raw.values()) / CONNECTIONS)
            limit = CONNECTIONS * cap
            sizes = _sizes(tools, seconds, limit, lambda tool, size: _turn(tool, size, 0, proxy, env, cap))
            turns: list[Turn] = []
            for number in range(1, rounds + 1):
                for tool in tools if number % 2 else reversed(tools):
                    turns.append(_turn(tool, sizes[tool], number, proxy, env, cap))
                    _progress(turns[-1], number, limit)
    finally:
        store.down()
    return summarize(turns, tools, limit, cap, raw, proxied)


def _turn(tool: str, size: int, number: int, proxy: FaultProxy, env: dict[str, str], cap: float) -> Turn:
    url = f"s3://tlcore/{tool}-{number}"
    try:
        return run_tool(tool, size, proxy, env, url, number, cap)
    finally:
        proxy.configure(Faults())
        store = open_store(url)
        store.delete([each.key for each in store.list()])


def _sizes(tools: Sequence[str], seconds: float, limit: float, pilot: Callable[[str, int], Turn]) -> dict[str, int]:
    """Bytes that keep each tool busy for about `seconds` each way."""
    full = int(limit * seconds)
    least = int(full * _PILOT_SHARE)
    sizes = {"tlcore": full}
    for tool in tools:
        if tool not in sizes:
            turn = pilot(tool, least)
            slower = max(turn.save_s, turn.restore_s)
            sizes[tool] = min(full, max(least, int(turn.size_bytes / slower * seconds)))
            said = f"{turn.size_bytes / 1e6:.0f} MB, {turn.save_s:.1f} s and {turn.restore_s:.1f} s"
            print(f"pilot of {tool}: {said}", file=sys.stderr, flush=True)
    return sizes


def _progress(turn: Turn, number: int, limit: float) -> None:
    save, restore = turn.fractions(limit)
    print(
        f"round {number} {turn.tool}: {turn.size_bytes / 1e6:.0f} MB, save {turn.save_s:.1f} s ({save:.3f}), "
        f"restore {turn.restore_s:.1f} s ({restore:.3f})",
        file=sys.stderr,
        flush=True,
    )


def summarize(
    turns: Sequence[Turn],
    tools: Sequence[str],
    limit: float,
    cap: float,
    raw: dict[str, float],
    proxied: dict[str, float],
) -> dict[str, Any]:
    """Medians, all values, and what the proxy counted."""
    figures = {tool: _figures([turn for turn in turns if turn.tool == tool], limit) for tool in tools}
    ours = figures.pop("tlcore")
    return {
        "save_fraction": ours["save_fraction"],
        "restore_fraction": ours["restore_fraction"],
        "target": TARGET,
        "connections": CONNECTIONS,
        "cap_bytes_per_s": round(cap),
        "limit_bytes_per_s": round(limit),
        "raw": {name: round(value) for name, value in raw.items()},
        "limit_over_raw": round(limit / min(raw.values()), 3),
        "proxy_without_faults": {name: round(value) for name, value in proxied.items()},
        "network": {
            "round_trip_s": NETWORK.round_trip_s,
            "slow_down_rate": NETWORK.slow_down_rate,
            "stall_rate": NETWORK.stall_rate,
            "stall_s": NETWORK.stall_s,
        },
        "tlcore": ours,
        "peers": figures,
    }


def _figures(turns: Sequence[Turn], limit: float) -> dict[str, Any]:
    save, restore = zip(*(turn.fractions(limit) for turn in turns), strict=True)
    counted = ("requests", "slow_downs", "stalls", "peak_busy", "bytes_up", "bytes_down", "store_s")
    return {
        "save_fraction": round(statistics.median(save), 4),
        "restore_fraction": round(statistics.median(restore), 4),
        "save_all": [round(value, 4) for value in save],
        "restore_all": [round(value, 4) for value in restore],
        "size_bytes": turns[0].size_bytes,
        "save_s": [round(turn.save_s, 2) for turn in turns],
        "restore_s": [round(turn.restore_s, 2) for turn in turns],
        "save_counts": [{name: turn.save_counts[name] for name in counted} for turn in turns],
        "restore_counts": [{name: turn.restore_counts[name] for name in counted} for turn in turns],
    }


def table(figures: dict[str, Any]) -> str:
    """The same for people."""
    lines = [
        f"{figures['connections']} connections of {figures['cap_bytes_per_s'] / 1e6:.1f} MB/s, "
        f"{figures['limit_over_raw']:.2f} of what the store takes; share of that:",
        f"{'':14}{'save':>8}{'restore':>10}",
    ]
    for tool, each in {"tlcore": figures["tlcore"], **figures["peers"]}.items():
        lines.append(f"{tool:14}{each['save_fraction']:>8.3f}{each['restore_fraction']:>10.3f}")
    met = min(figures["save_fraction"], figures["restore_fraction"]) >= TARGET
    return "\n".join([*lines, f"target {TARGET}: {'met' if met else 'not met'}"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.network", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="transfers of 12 s, one round")
    parser.add_argument("--seconds", type=float, default=62.0, help="length of one transfer at the full rate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tools", nargs="+", default=["tlcore", *PEERS], choices=("tlcore", *PEERS))
    options = parser.parse_args(arguments)
    tools, absent = available(list(dict.fromkeys(["tlcore", *options.tools])))
    for tool, reason in absent.items():
        print(f"left out: {tool}: {reason}", file=sys.stderr)
    seconds, rounds = (12.0, 1) if options.quick else (options.seconds, options.rounds)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="tlcore-bench-") as directory:
        figures = measure(tools, seconds, rounds, Path(directory))
    figures["left_out"] = absent
    print(json.dumps(figures) if options.json else table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
