"""Run by test_train_export_store.py in a process of its own: export a checkpoint and print what it took of memory, as JSON.

Arguments: the checkpoint's URL, a directory for the exports, bytes per shard, the formats.
"""

from __future__ import annotations

import json
import resource
import sys

from tlcore.engine.process import prepare_process

prepare_process()

import peft  # noqa: E402, F401 (what the export may load belongs to the baseline)
from transformers import AutoTokenizer, BertForSequenceClassification  # noqa: E402, F401

from tlcore.checkpoint import CheckpointRef  # noqa: E402
from tlcore.models.stored import StoredWeights  # noqa: E402
from tlcore.tasks import build_task  # noqa: E402
from tlcore.train.export import export_checkpoint, skeleton  # noqa: E402


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    url, directory, shard_bytes, *dtypes = sys.argv[1:]
    store, manifest = CheckpointRef.parse(url).open()
    skeleton(build_task(StoredWeights(store, manifest).recipe, facts=manifest.common["task"]))
    found = {"baseline": peak_bytes()}
    for dtype in dtypes:
        export_checkpoint(url, f"{directory}/{dtype}", dtype=dtype, max_shard_bytes=int(shard_bytes))  # type: ignore[arg-type]
        found[dtype] = peak_bytes()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
