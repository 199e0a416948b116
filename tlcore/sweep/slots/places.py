"""Placement groups that nobody looks after any more: those of worker groups whose slot died.

Owns finding them and freeing them. Ray keeps a placement group as long as the job that made it lives. A slot's workers' is made by
Ray Train's controller, which Ray ends when its slot dies, and then nobody is left to remove it: no other trial would ever find its
room. Until its ranks have joined, the slot itself does not know which one it is. Ray does: it notes the actor that made a group and
whether that actor is dead, though its public table leaves both out. So a group is freed when its maker is dead, whoever that was,
and no living slot can lose the one that it has just asked for. What the driver and Tune ask for was made by no actor.

Ray Train's own cleaner, one process for each group, is left out (`trainer.py`): it asks the dashboard, which a machine alone does
not have, and knows no group before its workers started.

Called by the driver's watching thread, every few seconds: Ray learns of a controller's death a moment after the slot's.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup


def made_by_actors() -> list[Any]:
    """Ray's records of the placement groups that actors of this job made and that still are."""
    accessor = ray._private.state.state._connect_and_get_accessor()
    places = [PlacementGroupTableData.FromString(record) for record in accessor.get_placement_group_table()]
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id()).binary()
    nobody = ray.ActorID.nil().binary()  # Ray counts it as dead
    return [
        each
        for each in places
        if each.creator_job_id == job
        and each.creator_actor_id not in (b"", nobody)
        and each.state != PlacementGroupTableData.REMOVED
    ]


def free_orphans() -> int:
    """Remove the placement groups whose maker is dead, with whatever runs in them. Returns how many there were."""
    orphans = [each.placement_group_id for each in made_by_actors() if each.creator_actor_dead and not each.is_detached]
    for place in orphans:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(place)))
    return len(orphans)
