"""Run by torchrun from test_train_lazy.py: the same training with eager and with lazy saves at every step, at every ZeRO stage.

Arguments: the model's directory, a store's URL, the output file. Writes each run's losses, stalls and what its checkpoints hold.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tlcore.engine.process import prepare_process

prepare_process()

import torch.distributed as dist  # noqa: E402 (the process must be settled first)

sys.path.insert(0, str(Path(__file__).parent))
from ranks_restore import recipe_for  # noqa: E402

from tlcore.checkpoint import list_manifests, read_manifest  # noqa: E402
from tlcore.checkpoint.manifest import read_index  # noqa: E402
from tlcore.storage import create_run, open_store  # noqa: E402
from tlcore.train.group import agree, process_group  # noqa: E402
from tlcore.train.session import TrialSession  # noqa: E402

STAGES = (0, 1, 2, 3)
UNTIL = 0.45


def run(stage: int, snapshot: str, model: str, storage: str) -> dict[str, Any]:
    """Losses of every step, and the digests of what each checkpoint holds, by rank."""
    changes = {
        "deepspeed": {"zero_stage": stage},
        "train": {"micro_batch_size": 6},
        "checkpoint": {"snapshot": snapshot, "every_steps": 1, "when_late": "wait", "keep_last": 100},
    }
    recipe = recipe_for(changes, model, storage, dist.get_world_size())
    name = f"{snapshot}{stage}"
    url = agree(create_run(storage, "lazy", {}, datetime.now(UTC), name).url if dist.get_rank() == 0 else "")
    session = TrialSession(recipe, url, "t000", resume_step=0)
    losses = []
    while session.step < UNTIL * session.total_steps:
        session.train_step()  # saves at every step, and agrees on its loss before
        losses.append(session._loss.hex())
    session.save(wait=True)
    totals = session._saver.totals.to_dict()
    session.close()
    dist.barrier()
    store = open_store(url)
    held = {
        step: [
            [chunk.digest for chunk in read_index(store, ref).chunks]
            for ref in read_manifest(store, "t000", step).indexes
        ]
        for step in list_manifests(store, "t000")
    }
    return {"losses": losses, "held": held, "totals": totals}


def main() -> None:
    model, storage, output = sys.argv[1:]
    with process_group():
        runs = {
            f"{snapshot}{stage}": run(stage, snapshot, model, storage)
            for stage in STAGES
            for snapshot in ("eager", "lazy")
        }
        if dist.get_rank() == 0:
            Path(output).write_text(json.dumps(runs))


if __name__ == "__main__":
    main()
