"""Checkpoints that go from memory to the object store: intervals in, chunks and a manifest out, and back at any world
size.

Owns the format and everything that happens between live memory and the store. Knows numpy and `storage/`; knows
neither torch nor DeepSpeed: `engine/` turns its state into `Piece`s and takes it back from them.
"""

from tlcore.checkpoint.choosing import best_step
from tlcore.checkpoint.clone import clone_checkpoint
from tlcore.checkpoint.exchange import Peers
from tlcore.checkpoint.fence import Claim, claim_attempt, next_attempt
from tlcore.checkpoint.fetch import FetchReport, fetch_checkpoint
from tlcore.checkpoint.gc import GcReport, TrialGarbage, check_grace, gc
from tlcore.checkpoint.intervals import ITEM_BYTES, Piece, Row
from tlcore.checkpoint.manifest import Manifest, list_manifests, newest_step, read_manifest
from tlcore.checkpoint.plan import frozen_shares
from tlcore.checkpoint.reader import CheckpointReader, ReadReport
from tlcore.checkpoint.refs import CheckpointRef
from tlcore.checkpoint.retention import Retention, delete_checkpoint, steps_to_delete
from tlcore.checkpoint.settings import SaveReport, WriterSettings
from tlcore.checkpoint.verify import Intact, Problem, newest_intact, verify
from tlcore.checkpoint.writer import CheckpointWriter

__all__ = [
    "ITEM_BYTES",
    "CheckpointReader",
    "CheckpointRef",
    "CheckpointWriter",
    "Claim",
    "FetchReport",
    "GcReport",
    "Intact",
    "Manifest",
    "Peers",
    "Piece",
    "Problem",
    "ReadReport",
    "Retention",
    "Row",
    "SaveReport",
    "TrialGarbage",
    "WriterSettings",
    "best_step",
    "check_grace",
    "claim_attempt",
    "clone_checkpoint",
    "delete_checkpoint",
    "fetch_checkpoint",
    "frozen_shares",
    "gc",
    "list_manifests",
    "newest_intact",
    "newest_step",
    "next_attempt",
    "read_manifest",
    "steps_to_delete",
    "verify",
]
