"""What each rank does in test_slot_memory.py: one trial after another in the same process, measured in between.

Run by `rank_server.py`.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from ranks_restore import new_run, recipe_for

from tlcore.engine.resident import measure
from tlcore.sweep.slots.worker import SessionHost

STAGES = (2, 3, 1, 0)


def run(case: dict[str, Any]) -> list[list[int]]:
    """Resident bytes per rank after each of `trials` trials, whose settings change as a search's do."""
    world = dist.get_world_size()
    url = new_run(case, "slot-memory")
    host = SessionHost("tlcore.train.session:TrialSession", None)
    found: list[list[int]] = []
    for number in range(case["trials"]):
        stage = STAGES[number % len(STAGES)]
        settings = {"deepspeed": {"zero_stage": stage}, "train": {"global_batch_size": 24, "learning_rate": 1e-4}}
        recipe = recipe_for(settings, case["model"], case["storage"], world)
        command = {
            "op": "start",
            "recipe": recipe.to_dict(),
            "point": {},
            "trial": f"t{number:03d}",
            "run_url": url,
            "resume_step": 0,
            "inherits": False,
        }
        host.perform(command)
        host.perform({"op": "advance", "fraction": case["fraction"], "commit": True})
        host.perform({"op": "close"})
        mine: list[int] = [measure().resident_bytes]
        every: list[Any] = [None] * world
        dist.all_gather_object(every, mine[0])
        found.append(every)
    return found
