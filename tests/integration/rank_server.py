"""Groups of gloo ranks of any size in one launch: a process that has loaded torch and DeepSpeed forks them.

Loading takes longer than most cases do, so it is done once. `start` is called by the tests; the file itself is what they start:

    python rank_server.py MODULE GROUPS.json OUTPUT.json

GROUPS is a list of {"world": n, "cases": [...]}, done one after the other; each rank of a group calls `MODULE.run(case)` for every
case, on an initialised default group. OUTPUT gets, per group, what rank 0's calls returned.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def start(module: str, groups: list[dict[str, Any]], directory: Path, timeout_s: float = 1200) -> list[list[Any]]:
    """Run `groups` and return, per group, what rank 0 returned for each case. Fails with the ranks' own words."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "groups.json").write_text(json.dumps(groups))
    output = directory / "results.json"
    words = [sys.executable, str(HERE / "rank_server.py"), module, str(directory / "groups.json"), str(output)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]), "OMP_NUM_THREADS": "1"}
    with (directory / "ranks.log").open("w+") as log:
        server = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            code = server.wait(timeout_s)
        finally:
            # Ranks that wait for each other outlive their server.
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
        log.seek(0)
        assert code == 0, log.read()[-6000:]
    results: list[list[Any]] = json.loads(output.read_text())
    return results


def _rank(module: Any, group: dict[str, Any], rank: int, directory: Path) -> None:
    import torch.distributed as dist

    world = group["world"]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=world)
    results = [module.run(case) for case in group["cases"]]
    if rank == 0:
        (directory / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def _fork(module: Any, group: dict[str, Any], rank: int, directory: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        _rank(module, group, rank, directory)
    except BaseException:  # noqa: BLE001 (a forked rank must end here, whatever happened)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _run_group(module: Any, group: dict[str, Any], directory: Path) -> list[Any]:
    directory.mkdir()
    pids = {_fork(module, group, rank, directory) for rank in range(group["world"])}
    failed = False
    while pids:
        pid, status = os.wait()
        pids.discard(pid)
        if status and not failed:
            failed = True
            time.sleep(2)  # let the others say what they saw
            for other in pids:
                os.kill(other, signal.SIGKILL)
    if failed:
        raise SystemExit(f"a rank of {group['world']} failed")
    results: list[Any] = json.loads((directory / "results.json").read_text())
    return results


def main() -> None:
    name, groups, output = sys.argv[1:]
    from tlcore.engine.process import prepare_process

    prepare_process()
    module = importlib.import_module(name)
    # DeepSpeed loads torch's compiler by way of this at the first engine: once here instead of in every rank.
    importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    gc.freeze()  # stage 3 collects garbage at every start: 0.3 s each among all that has been loaded
    found = [
        _run_group(module, group, Path(output).parent / f"group-{at}")
        for at, group in enumerate(json.loads(Path(groups).read_text()))
    ]
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
