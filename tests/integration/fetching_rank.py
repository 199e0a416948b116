"""One process of test_node_weights.py: builds a model from `SOURCE` for `TRIALS` trials and writes how it asked the store.

    python fetching_rank.py SOURCE TRIALS OUTPUT [slow]

With `slow` it says so in OUTPUT after its first read, and then waits to be killed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tlcore.checkpoint import CheckpointReader
from tlcore.models import build_pretrained, resolve_source
from tlcore.storage.s3 import S3ObjectStore


def main(source: str, trials: int, output: Path, slow: bool) -> None:
    from transformers import AutoModelForSequenceClassification

    asked: list[str] = []
    for name in ("get", "get_into"):
        act = getattr(S3ObjectStore, name)

        def counted(self, key, *where, act=act):
            asked.append(key)
            return act(self, key, *where)

        setattr(S3ObjectStore, name, counted)
    read_into = CheckpointReader.read_into

    def halting(self, pieces):
        report = read_into(self, pieces)
        output.write_text("reading")
        time.sleep(600)
        return report

    if slow:
        CheckpointReader.read_into = halting
    sums = []
    for _ in range(trials):
        found = resolve_source(source)
        model = build_pretrained(AutoModelForSequenceClassification, found, found.load_config(num_labels=2), seed=0)
        sums.append(sum(float(each.double().sum()) for each in model.parameters()))
    output.write_text(json.dumps({"asked": asked, "sums": sums}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), "slow" in sys.argv)
