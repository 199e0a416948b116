"""Placement groups that nobody looks after any more: those of worker groups whose slot died.

Owns finding them and freeing them. Ray keeps a placement group as long as the job that made it lives, and a slot's workers' is
made by Ray Train's controller, which dies with the slot: until the ranks have joined, nobody else knows which one it is. So it is
told by what is left: the groups of this job that no living slot holds, that neither Tune nor the driver asked for, and that were
not there before. Among these may be one that another slot's controller has just made; by its code it finds its group gone and makes
another (`WorkerGroupStartupTimeoutError` in Ray Train), which no test has shown: so nothing is freed but the dead slot's own group
where that is known. Ray Train's own cleaner asks the dashboard, which a machine alone does not have, and knows no group before its
workers have started.

Called by `driver.py`, when a slot died and when a sweep ends.
"""

from __future__ import annotations

from collections.abc import Iterable

import ray
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from tlcore.sweep.resources import HEAD_RESOURCE


def own_places() -> set[str]:
    """Ids (hex) of the placement groups that this job made and that still are, but for those that Tune puts slots in."""
    job = ray.get_runtime_context().get_job_id()
    return {
        place
        for place, facts in placement_group_table().items()
        if place.endswith(job)  # an id ends with its job's
        and facts["state"] != "REMOVED"
        and any({*bundle} != {HEAD_RESOURCE} for bundle in facts["bundles"].values())
    }


def free_places(places: Iterable[str]) -> None:
    """Remove placement groups by id (hex), with whatever runs in them."""
    for place in places:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(place))))
