"""One rank of a real training that the kill bench kills: DeepSpeed under gloo, a checkpoint after every step.

Owns the process: its environment, its group, what it tells. The training is `TrialSession`, as a sweep runs it. Preloaded into the
fork server with everything a session imports on its way (DeepSpeed, the model's code, the compiler that an optimizer of DeepSpeed's
pulls in), so that a group starts in two seconds instead of fifteen. Called through `server.py` by `groups.py`.
"""

from __future__ import annotations

import importlib
import os
from multiprocessing.connection import Connection
from pathlib import Path

from jobs.bench.kill.groups import GroupLife
from jobs.bench.kill.ranks import begin  # settles the process before torch is loaded
from jobs.bench.tiny_model import make_tiny_bert
from tlcore.errors import TlcoreError
from tlcore.recipe import recipe_from_dict
from tlcore.train.group import process_group
from tlcore.train.progress import Progress
from tlcore.train.session import TrialSession

USED_LATER = (
    "datasets",
    "deepspeed.runtime.zero.muon.original_muon",
    "tlcore.tasks.text_classification",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
)
for _name in USED_LATER:
    importlib.import_module(_name)


def run_group_rank(life: GroupLife, rank: int, wire: Connection) -> None:
    """Train to the end, unless killed, or another rank is."""
    tell = begin(wire)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(life.world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(life.port)}

    def on_progress(progress: Progress) -> None:
        # A save is due at every step, so this comes at every step, with the loss of that step alone.
        tell("loss", progress.step, float(progress.loss).hex())
        if progress.checkpoint_step:
            tell("committed", progress.checkpoint_step)

    try:
        with process_group():
            session = TrialSession(recipe_from_dict(life.recipe), life.run_url, life.trial, on_progress)
            tell("started", session.step)
            while session.step < session.total_steps:
                session.train_step()
            session.save()
            tell("ended", session.step)
            session.close()
    except TlcoreError as error:
        tell("failed", 0, error.message.replace("\n", " "))
    except RuntimeError as error:
        tell("orphan", 0, str(error).partition("\n")[0])  # gloo: another rank is gone


def make_model(directory: Path, wire: Connection) -> None:
    """Save the model that every group trains."""
    begin(wire)
    make_tiny_bert(directory)
