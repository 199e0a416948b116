"""What each rank does in test_train_takeover.py: one trial goes on from a clone of another's checkpoint, with other settings.

Run by `rank_server.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from ranks_restore import everywhere, new_run, recipe_for, watched

from tlcore.checkpoint import clone_checkpoint, read_manifest
from tlcore.storage import open_store
from tlcore.train.session import TrialSession


def moments(session: TrialSession) -> dict[str, bool]:
    """By state: whether any of it is not zero on this rank, for what this trial trains and its donor did not."""
    found: dict[str, bool] = {}
    for piece in session.model.pieces():
        if piece.row.parameter.startswith("bert.encoder.layer.0.") and piece.row.state.startswith("exp_"):
            nonzero = bool(torch.frombuffer(bytearray(piece.data.tobytes()), dtype=torch.float32).abs().max() > 0)
            found[piece.row.state] = found.get(piece.row.state, False) or nonzero
    return found


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Donor t000 to 0.4 and committed, receiver t001 to 0.7; t001 takes over, trains to 0.8, stops, goes on."""
    world = dist.get_world_size()
    donor, receiver = (recipe_for(case[key], case["model"], case["storage"], world) for key in ("donor", "receiver"))
    url = new_run(case, case["name"])
    session = TrialSession(donor, url, "t000", resume_step=0)
    taken = watched(session)
    report = session.advance(0.4, commit=True)
    assert report.checkpoint_step == report.step
    session.close()
    session = TrialSession(receiver, url, "t001", resume_step=0)
    session.advance(0.7, commit=True)
    session.close()
    if dist.get_rank() == 0:
        store = open_store(url)
        clone_checkpoint(store, read_manifest(store, "t000", report.step), "t001")
    dist.barrier()
    session = TrialSession(receiver, url, "t001", inherits=True)
    begins = (session.step, session._evaluate(), moments(session))
    more = watched(session)
    middle = session.advance(0.8, commit=True)
    taken += more
    session.close()
    session = TrialSession(receiver, url, "t001", inherits=True)
    resumed = session.step
    more = watched(session)
    last = session.advance(1.0)
    taken += more
    samples = session.order.samples
    session.close()
    return {
        "name": case["name"],
        "donor": (report.step, report.metrics),
        "begins": begins,
        "resumed": (middle.step, resumed),
        "last": (last.step, last.total_steps, last.loss),
        "taken": everywhere(taken),
        "samples": samples,
    }
